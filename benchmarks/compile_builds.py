"""Programs from generated C: built by gcc or clang, run here, on emulated processors, and on bare emulated boards."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from firebox.runtime import Graph
from firebox.runtime.compile import CSource, compile_c
from firebox.runtime.processor import this_processor

# The boards of the tests, with their start-up code and linker scripts.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import boards

# Instruction sets of x86, the fastest last, and the features that they need.
X86 = {
    "plain": (),
    "avx2": ("avx2",),
    "avxvnni": ("avx2", "avx_vnni"),
    "avx512vnni": ("avx512bw", "avx512_vnni"),
    "amx": ("avx512bw", "avx512_vnni", "amx_int8"),
}
_ARM64 = "aarch64-linux-gnu-gcc"
_EMULATOR = ("qemu-aarch64", "qemu-aarch64-static")
# A board of more memory than any network needs, to find out what it needs.
_ROOMY = 4 << 20
_NUMBERS = re.compile(r"equal (\d+) arena (\d+) static (\d+) stack (\d+)")

_MAIN = """
#include "{name}.h"
#include <stdio.h>
static int8_t in[{macro}_INPUT_BYTES];
static {kind} out[{macro}_OUTPUTS];
int main(int count, char **words) {{
  if (count == 1) return puts({name}_isa()) < 0;
  FILE *from = fopen(words[1], "rb"), *to = fopen(words[2], "wb");
  while (from && to && fread(in, sizeof in, 1, from)) {{
    {name}_run(in, out);
    fwrite(out, sizeof out, 1, to);
  }}
  return !from || !to || fclose(to) != 0;
}}
"""


@dataclass(frozen=True)
class Way:
    """One way to build and run C: the ``compiler`` with its options, the program that runs what it builds."""

    name: str
    isa: str
    compiler: tuple[str, ...]
    runner: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """The program that is not installed, or nothing."""
        return next((one for one in (self.compiler[0], *self.runner[:1]) if not shutil.which(one)), "")


SANITIZED = ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def native_sets() -> list[str]:
    """The instruction sets that this machine runs, slowest first."""
    from firebox.runtime.compile import isa_names

    found = set(this_processor().features)
    return [name for name, needed in X86.items() if set(needed) <= found and name in isa_names()]


def native(isa: str, compiler: str = "gcc", options: Sequence[str] = ("-O3",)) -> Way:
    """A way to run on this machine."""
    sanitized = ", ASan and UBSan" if any("sanitize" in option for option in options) else ""
    return Way(f"{isa}, {compiler} {options[0]}{sanitized}", isa, (compiler, *options))


def arm64(core: str) -> Way:
    """A way to run on an emulated core of arm64."""
    emulator = next((one for one in _EMULATOR if shutil.which(one)), _EMULATOR[0])
    options = ("-O3", "-fno-schedule-insns", "-static")
    return Way(f"arm64 on an emulated {core}", "arm64", (_ARM64, *options), (emulator, "-cpu", core))


def generated(model: Path, isa: str, **options) -> CSource:
    """The C of a model, with the prefix ``net``."""
    return compile_c(model, isa=isa, name="net", **options)


def build(source: CSource, way: Way, folder: Path) -> Path:
    """Compile a program that reads inputs from a file and writes outputs to another."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = "float" if "float *out" in source.header else "int8_t"
    main = _MAIN.format(name=source.name, macro=source.name.upper(), kind=kind)
    for name, text in {**source.files(), "main.c": main}.items():
        (folder / name).write_text(text)
    program = folder / "program"
    command = [*way.compiler, "-std=gnu11", "-ffp-contract=off", f"{source.name}.c", "main.c", "-lm", "-o", "program"]
    _run(command, folder)
    return program


def run(program: Path, way: Way, inputs: np.ndarray, kind: type = np.int8) -> np.ndarray:
    """Outputs (images, values) of a program for int8 inputs."""
    folder = program.parent
    inputs.tofile(folder / "in")
    _run([*way.runner, str(program), "in", "out"], folder)
    return np.fromfile(folder / "out", kind).reshape(len(inputs), -1)


def instruction_set(program: Path, way: Way) -> str:
    """The instruction set that a program chooses."""
    return _run([*way.runner, str(program)], program.parent).strip()


def library(source: CSource, folder: Path, options: Sequence[str] = ("-O3",)) -> tuple[Path, float]:
    """A shared library, and the seconds of processor time that gcc took."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in source.files().items():
        (folder / name).write_text(text)
    target = folder / f"{source.name}.so"
    before = _children()
    _run(["gcc", *options, "-ffp-contract=off", "-shared", "-fPIC", f"{source.name}.c", "-o", target.name], folder)
    return target, _children() - before


@dataclass(frozen=True)
class OnBoard:
    """A program that ran on an emulated board: its memory, and the images whose outputs were all equal."""

    arena_bytes: int
    static_bytes: int
    stack_bytes: int
    equal: int
    images: int

    @property
    def total_bytes(self) -> int:
        """Arena, other data and stack."""
        return self.static_bytes + self.stack_bytes


def on_board(
    board: boards.Board, source: CSource, inputs: np.ndarray, outputs: np.ndarray, folder: Path, ram_bytes: int = _ROOMY
) -> OnBoard | None:
    """Link the network for a board with ``ram_bytes`` of RAM and run it; ``None`` if the program is not linked."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in source.files().items():
        (folder / name).write_text(text)
    inputs.tofile(folder / "in")
    outputs.tofile(folder / "want")
    macros = {"MODEL": f'"{source.name}.h"', "NAME": source.name, "PREFIX": source.name.upper()}
    macros |= {"IN": '"in"', "WANT": '"want"', "IMAGES": len(inputs)}
    options = [f"-D{name}={value}" for name, value in macros.items()] + ["-DFIREBOX_NO_CLASSES"]
    options += ["-DBY_ROWS"] if source.plan.input == "rows" else []
    network = Path(boards.__file__).parent / "cortex_m" / "network.c"
    sources = [folder / f"{source.name}.c", network]
    try:
        program = boards.build_for(board, sources, folder / "board.elf", f"-I{folder}", *options, ram_bytes=ram_bytes)
    except AssertionError as error:
        click.echo(f"{folder.name} in {ram_bytes:,} bytes: {str(error)[:400]}", err=True)
        return None
    target = ("-semihosting-config", "enable=on,target=native")
    command = ["qemu-system-arm", "-M", board.machine, "-nographic", *target, "-kernel", str(program)]
    # The program prints where the emulator pleases: some versions take stderr. Its exit code tells of unequal outputs.
    ran = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = ran.stdout + ran.stderr
    found = _NUMBERS.search(said)
    if not found:
        raise click.ClickException(f"{source.name} on {board.name} printed {said[:200]!r}")
    equal, arena, static, stack = map(int, found.groups())
    return OnBoard(arena, static, stack, equal, len(inputs))


def code_bytes(folder: Path) -> int:
    """Bytes of code and constants of the program that ``on_board`` linked, as the linker counts them."""
    lines = _run(["arm-none-eabi-size", "board.elf"], folder).splitlines()
    return int(lines[1].split()[0])


def reference_outputs(graph: Graph, inputs: np.ndarray) -> np.ndarray:
    """Outputs (images, values) of the reference."""
    from firebox.runtime.graph.reference import run_reference

    return np.stack([run_reference(graph, x)[graph.outputs[0]].ravel() for x in inputs])


def _run(command: Sequence[str], folder: Path) -> str:
    ended = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise click.ClickException(f"{' '.join(map(str, command))[:200]}: {(ended.stderr or ended.stdout)[:600]}")
    return ended.stdout


def _children() -> float:
    """Processor seconds of all ended child processes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(work) -> tuple[object, float]:
    """A result and its processor seconds."""
    start = time.process_time()
    return work(), time.process_time() - start
