"""Runs files on emulated processors (QEMU's user mode) and compares their outputs with the expected ones."""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

_WORKER = Path(__file__).with_name("processors_worker.py")
_EMULATOR = ("qemu-x86_64-static", "qemu-x86_64")
NATIVE = "this machine"
# onnxruntime with its default options, as in applications without firebox.
PLAIN = "plain onnxruntime"


@dataclass(frozen=True)
class Job:
    """A file in a runtime, with its inputs (images, ...) and expected outputs (images, values). ``step`` is the
    smallest difference between two outputs; ``exact`` is whether all outputs must be identical."""

    network: str
    runtime: str
    file: Path
    inputs: np.ndarray
    outputs: np.ndarray
    step: float = 1.0
    exact: bool = True


@dataclass(frozen=True)
class Outcome:
    """The result of a job on a processor: the number of identical outputs, of inputs with the same class, the largest
    difference in steps, and the form of the weights in the runtime."""

    job: Job
    processor: str
    weights: str
    inputs: int
    outputs: int
    identical: int
    same_class: int
    largest_steps: int

    @property
    def is_wrong(self) -> bool:
        """True if outputs differ that must be identical."""
        return self.job.exact and self.identical < self.outputs


def emulator() -> str | None:
    """QEMU's user mode for x86-64, on machines whose Python it can run."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    return next((found for name in _EMULATOR if (found := shutil.which(name))), None)


def run_jobs(jobs: Sequence[Job], processor: str) -> Iterator[Outcome]:
    """Run the jobs on an emulated processor (a name from ``qemu-x86_64 -cpu help``), or on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        jobs_file = Path(folder, "jobs.json")
        jobs_file.write_text(json.dumps([_saved(job, Path(folder, f"{index}.npz")) for index, job in enumerate(jobs)]))
        done, log = 0, Path(folder, "errors.txt")
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [*_python(processor), str(jobs_file)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(folder),
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                yield Outcome(jobs[done], processor, **json.loads(line))
                done += 1
        if process.returncode or done < len(jobs):
            last = " | ".join(log.read_text().strip().splitlines()[-3:])
            name = jobs[min(done, len(jobs) - 1)].network
            raise click.ClickException(f"{name} on {processor} ended with code {process.returncode}: {last}")


def _saved(job: Job, path: Path) -> dict[str, Any]:
    np.savez(path, inputs=job.inputs, outputs=job.outputs)
    return {"runtime": job.runtime, "file": str(job.file), "arrays": str(path), "step": job.step}


def _python(processor: str) -> list[str]:
    """The command that runs the worker. QEMU runs the bare interpreter, which does not know the virtual environment."""
    if processor == NATIVE:
        return [sys.executable, str(_WORKER)]
    found = emulator()
    if found is None:
        raise click.ClickException("QEMU's user mode is missing: apt-get install qemu-user-static")
    code = (
        f"import runpy, site, sys; site.addsitedir({sysconfig.get_path('purelib')!r}); sys.argv = ['worker', "
        f"*sys.argv[1:]]; runpy.run_path({str(_WORKER)!r}, run_name='__main__')"
    )
    return [found, "-cpu", processor, os.path.realpath(sys.executable), "-c", code]


def _environment(folder: str) -> dict[str, str]:
    # Kernels chosen for this machine's processor may not run on another.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS_", "FIREBOX_CPU"))}
    return {**kept, "FIREBOX_CACHE": folder, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
