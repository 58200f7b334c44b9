"""A file rewritten to fit a budget: written in both formats, compared bit for bit, measured and reported."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...runtime.commands.console import progress, progress_unless
from ...runtime.contract import KEY, Contract, golden_pixels, read_contract
from ...runtime.errors import FormatError, ParityError, UsageError
from ...runtime.files import check_writable, read_file, sha256, write_files
from ...runtime.formats.read import read_placed
from ...runtime.graph import Graph, Tensor
from ...runtime.graph.rewrite import integer_ends
from ...runtime.images import LabelledImages, sample
from ...runtime.inference import Session, installed_backends
from ...runtime.memory.measure import MeasuredArena, measure_arena, run_in_arena
from ...runtime.memory.plan import MemoryPlan
from ...runtime.memory.targets import Target
from ...runtime.profiling.latency import Profile, profile
from ...runtime.report.summary import model_explorer_node_data, summary_csv
from ..formats.contract_writer import for_file
from ..formats.onnx_writer import write_onnx
from ..formats.tflite_writer import write_tflite
from .search import Fit, fit

# Images that are compared.
_IMAGES = 20
# How long operations are timed for the page.
_SECONDS = 3.0

# The runtime of a target, by its name among those that compare.
_RUNTIMES: Mapping[Target, str] = {"tflm": "tflite-micro", "litert-reference": "litert"}

Answers = list[np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """What was written; ``report`` is what ``fit.json`` says of it.

    Its ``compared_images`` are those on which each runtime gave the same integers as for the file before, and
    ``measured`` is None where the target's runtime is not installed.
    """

    fit: Fit
    files: tuple[Path, ...]
    report: Mapping[str, Any]


def fit_file(
    model: str | Path,
    sram_bytes: int,
    out: str | Path,
    *,
    target: Target = "tflm",
    images: LabelledImages | None = None,
    quiet: bool = False,
) -> Fitted:
    """Rewrite an int8 file to fit and write it into ``out`` as ``NAME.fit.tflite`` and ``NAME.fit.onnx``.

    Beside them: ``fit.json``, the summary as ``fit.csv``, node data for Model Explorer, and ``report.html`` where the
    extra ``report`` is installed. A file that begins and ends in float32 around integers is fitted from its first
    integers to its last: ``integer_ends`` in the report says so. ``images`` are compared, or a test card and noise.
    Raises as ``fit`` does and ``ParityError`` when a runtime gives other integers than before; then nothing is
    written.
    """
    data = read_file(model)
    contract = read_contract(data)
    whole, offsets = read_placed(model)
    graph = replace(integer_ends(whole), name=contract.name if contract else Path(model).stem)
    pixels = _crops(contract, images) if images is not None else None
    check_writable(out)
    found = fit(graph, sram_bytes, target, offsets, progress_unless(quiet))
    after = written(found.graph, contract, found.offsets)
    name = Path(model).stem
    files = {f"{name}.fit.{ending}": content for ending, content in after.items()}
    ends = {"integer_ends": (graph.inputs, graph.outputs) != (whole.inputs, whole.outputs)}
    report = {
        "model": str(model),
        "sha256": sha256(data),
        **ends,
        **judged(found, contract, after, pixels, quiet=quiet),
    }
    sizes = {file: {"bytes": len(content), "sha256": sha256(content)} for file, content in files.items()}
    contents: dict[str, bytes | str] = {**files, "fit.json": json.dumps({**report, "files": sizes}, indent=2) + "\n"}
    contents |= summaries(found, f"{name}.fit", after, quiet=quiet)
    return Fitted(found, tuple(write_files(out, contents)), report)


def judged(
    found: Fit,
    contract: Contract | None,
    files: Mapping[str, bytes],
    pixels: Sequence[np.ndarray] | None,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compare a fit's files with those of the graph before it, measure their memory, and say what was found.

    Raises ``ParityError`` when a runtime gives other integers.
    """
    before = found.before.graph
    inputs = _inputs(before, contract, pixels)
    compared = _compare(written(before, contract), files, found, inputs, quiet)
    measured = _measured(files, found.after.target)
    verdict = (measured if measured and found.after.target == "tflm" else found.after).verdict(found.sram_bytes)
    return {
        "target": found.after.target,
        "sram_bytes": found.sram_bytes,
        "verdict": verdict.to_json() | {"text": verdict.text(), "exit_code": verdict.exit_code},
        "before": _figures(found.before),
        "after": _figures(found.after),
        "extra_macs": found.extra_macs,
        "measured": measured.to_json() if measured else None,
        "compared_images": compared,
        "stages": [
            {
                "from": stage.source,
                "to": stage.target,
                "bands": [{"rows": [band[0].top, band[0].bottom], "tiles": len(band)} for band in stage.bands],
            }
            for stage in found.stages
            if stage.bands
        ],
    }


def written(graph: Graph, contract: Contract | None, offsets: Mapping[str, int] | None = None) -> dict[str, bytes]:
    """The files of a graph by their ending, with the contract of each."""
    onnx = {KEY: for_file(contract, graph, "NCHW").to_bytes()} if contract else {}
    tflite = {KEY: for_file(contract, graph, "NHWC").to_bytes()} if contract else {}
    return {"tflite": write_tflite(graph, tflite, offsets), "onnx": write_onnx(graph, onnx)}


def _compare(
    before: Mapping[str, bytes], after: Mapping[str, bytes], found: Fit, inputs: Sequence[np.ndarray], quiet: bool
) -> dict[str, int]:
    """Run both files on all inputs in every runtime here that runs the one before; on how many each compared them.

    tflite-micro gets an arena of exactly the budget. Raises ``ParityError`` when integers differ, and ``FormatError``
    when the target's own runtime cannot run a file, or any other the fitted one.
    """
    runners, compared = _runners(found), {}
    with progress("comparing", len(runners), quiet=quiet) as advance:
        for name, (ending, run) in runners.items():
            try:
                expected = run(before[ending], inputs, False)
            except FormatError:
                if name == _RUNTIMES.get(found.after.target):
                    raise
                # What it could not run before says nothing of the fit.
                continue
            answers = run(after[ending], inputs, True)
            for index, (was, now) in enumerate(zip(expected, answers, strict=True)):
                if not np.array_equal(was, now):
                    steps = int(np.abs(was.astype(int) - now.astype(int)).max())
                    raise ParityError(
                        f"{name} gives other integers for image {index} than before the fit, by up to {steps} steps; "
                        "nothing was written"
                    )
            compared[name] = len(inputs)
            advance()
    return compared


Runner = Callable[[bytes, Sequence[np.ndarray], bool], Answers]


def _runners(found: Fit) -> dict[str, tuple[str, Runner]]:
    """Runtimes by name: the ending of the files that they run, and how to."""
    source = found.before.graph.tensors[found.before.graph.inputs[0]]
    runners: dict[str, tuple[str, Runner]] = {}
    runners |= {name: ("tflite", _session(name, source, False)) for name in installed_backends("tflite")}
    runners |= {name: ("onnx", _session(name, source, True)) for name in installed_backends("onnx")}
    if find_spec("tflite_micro"):
        roomy = 2 * (found.before.total_bytes or found.before.arena_bytes) + 2**20
        # A budget far above the need may be more than this machine has.
        fitted_arena = min(found.sram_bytes, roomy) if found.after.target == "tflm" else roomy
        arena = {False: roomy, True: fitted_arena}
        runners["tflite-micro"] = "tflite", lambda data, inputs, fitted: run_in_arena(data, arena[fitted], inputs)
    return runners


def _session(backend: str, source: Tensor, onnx: bool) -> Runner:
    def run(data: bytes, inputs: Sequence[np.ndarray], fitted: bool) -> Answers:
        with Session(data, backend, check="off") as session:
            return [session.run(_as_onnx(x, source) if onnx else x) for x in inputs]

    return run


def _as_onnx(x: np.ndarray, source: Tensor) -> np.ndarray:
    """NCHW, and unsigned as all activations are there."""
    values = (x.astype(np.int16) + 128).astype(np.uint8) if source.dtype == "int8" else x
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if x.ndim == 4 else values)


def _crops(contract: Contract | None, images: LabelledImages) -> list[np.ndarray]:
    if contract is None:
        raise UsageError("the file carries no contract, so images cannot be prepared for it; leave --images out")
    drawn = sample(images, _IMAGES, 0)
    return [contract.preprocessing.crop(drawn.read(name), drawn.where(name)) for name in drawn.names]


def _inputs(graph: Graph, contract: Contract | None, pixels: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """What is fed: real images where there are any, else the test card of the contract and noise."""
    source = graph.tensors[graph.inputs[0]]
    if contract and pixels:
        return [_encoded(contract, image, source) for image in pixels[:_IMAGES]]
    cards = [_encoded(contract, golden_pixels(contract.preprocessing), source)] if contract else []
    random = np.random.default_rng(0)
    limits = np.iinfo(source.dtype)
    noise = random.integers(limits.min, limits.max, (_IMAGES - len(cards), *source.shape), endpoint=True)
    return [*cards, *noise.astype(source.dtype)]


def _encoded(contract: Contract, pixels: np.ndarray, source: Tensor) -> np.ndarray:
    assert source.quantization is not None
    return source.quantization.quantize(contract.preprocessing.normalize(pixels)[None], source.dtype)


def _measured(files: Mapping[str, bytes], target: Target) -> MeasuredArena | None:
    """The memory that the TFLite file takes on a target, where that can be found out here."""
    module = {"tflm": "tflite_micro", "litert-reference": "ai_edge_litert"}.get(target)
    if module is None or not find_spec(module):
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fitted.tflite"
        path.write_bytes(files["tflite"])
        return measure_arena(path, target, exact=True)


def _figures(planned: MemoryPlan) -> dict[str, Any]:
    return {
        "arena_bytes": planned.arena_bytes,
        "total_bytes": planned.total_bytes,
        "macs": planned.graph.macs,
        "ops": len(planned.graph.ops),
    }


def summaries(found: Fit, name: str, files: Mapping[str, bytes], *, quiet: bool = False) -> dict[str, bytes | str]:
    """A fit for people and for other tools: the page, Vela's columns, Model Explorer's node data.

    Times of operations are those of onnxruntime, where it is installed.
    """
    verdict = found.after.verdict(found.sram_bytes)
    times = _profile(files["onnx"], quiet)
    contents: dict[str, bytes | str] = {
        "fit.csv": summary_csv({"before": found.before, "after": found.after}, times, verdict, network=name)
    }
    for figure, text in model_explorer_node_data(found.after, times).items():
        contents[f"{name}.{figure}.json"] = text
    if find_spec("bokeh"):
        from ...runtime.report.page import report_html

        contents["report.html"] = report_html(
            found.after,
            found.before,
            verdict,
            times,
            name=f"{name}.tflite",
            data=files["tflite"],
            account=found.after.account(),
        )
    return contents


def _profile(onnx: bytes, quiet: bool) -> Profile | None:
    if not find_spec("onnxruntime"):
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fitted.onnx"
        path.write_bytes(onnx)
        return profile(path, backend="onnxruntime", max_seconds=_SECONDS, progress=progress_unless(quiet))
