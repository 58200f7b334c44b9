"""Generated tiles of all instruction sets, held to numpy bit by bit on random convolutions."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import boards
import pytest
from tiles import build, expected, random_cases, run, run_on_board

from firebox.runtime.compile.tiles.amx import Amx
from firebox.runtime.compile.tiles.neon import Neon, NeonDot
from firebox.runtime.compile.tiles.plain import Plain
from firebox.runtime.compile.tiles.spec import Tiles
from firebox.runtime.compile.tiles.wasm import WasmSimd
from firebox.runtime.compile.tiles.x86 import Avx2, Avx512Vnni, AvxVnni

CASES = 32
_BOARD_WEIGHTS = 1 << 17  # in a case, so that all of them fit the memory of a board
_WASM = Path(__file__).parents[1] / "support" / "wasm"


@dataclass(frozen=True)
class Machine:
    """How tiles are compiled and run: with a compiler, and an emulator unless this processor is meant."""

    tiles: Tiles
    compiler: str
    emulator: str = ""

    @property
    def name(self) -> str:
        signs = "-signed" if isinstance(self.tiles, Plain) and self.tiles.signed else ""
        return f"{self.tiles.name}{signs}-{self.compiler.split()[0]}"


_SIGNED = replace(Plain(), signed=True)
_GCC_ARM, _CLANG_ARM = "aarch64-linux-gnu-gcc -O2 -static", "clang --target=aarch64-linux-gnu -O2 -static"
_A53, _A76 = "qemu-aarch64 -cpu cortex-a53", "qemu-aarch64 -cpu cortex-a76"
_CLANG_WASM = (
    f"clang --target=wasm32 -O2 -msimd128 -mbulk-memory -ffreestanding -nostdlib -isystem {_WASM}"
    " -Wl,--no-entry -Wl,--export=run_cases -Wl,--export=out_bytes -Wl,--export=__heap_base"
)
MACHINES = [
    *(
        Machine(tiles, compiler)
        for tiles in (Amx(), Avx512Vnni(), AvxVnni(), Avx2(), Plain(), _SIGNED)
        for compiler in ("gcc -O2", "clang -O2")
    ),
    *(Machine(NeonDot(), compiler, _A76) for compiler in (_GCC_ARM, _CLANG_ARM)),
    *(Machine(Neon(), compiler, _A53) for compiler in (_GCC_ARM, _CLANG_ARM)),
    Machine(_SIGNED, _GCC_ARM, _A53),
    Machine(WasmSimd(), _CLANG_WASM, f"node {_WASM / 'tiles.mjs'}"),
]


def wrong(cases, outputs) -> str:
    bad = [case for case, output in zip(cases, outputs, strict=True) if output != expected(case)]
    return f"{len(bad)} of {len(cases)}: {bad[0].spec}, {bad[0].pixels} pixels, {bad[0].panels} panels" if bad else ""


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_tiles_write_what_numpy_says_and_nothing_else(tmp_path, machine: Machine):
    tiles, command, emulator = machine.tiles, machine.compiler.split(), machine.emulator.split()
    for program in (command[0], *emulator[:1]):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    cases = random_cases(tiles, CASES, seed=len(tiles.name))
    outputs = run(build(tmp_path, tiles, cases, command), cases, emulator)
    if outputs is None:
        pytest.skip(f"this processor has no {tiles.name}")
    assert not wrong(cases, outputs)


@pytest.mark.parametrize("board", [boards.M3, boards.M4, boards.M7], ids=lambda board: board.name)
def test_plain_tiles_on_bare_microcontrollers(tmp_path, board: boards.Board):
    if boards.missing():
        pytest.skip(f"{boards.missing()} is not installed")
    cases = [case for case in random_cases(Plain(), CASES, seed=1) if case.weights.nbytes <= _BOARD_WEIGHTS]
    assert not wrong(cases, run_on_board(tmp_path, board, Plain(), cases))
