"""Generated tiles of all instruction sets, held to numpy bit by bit on random convolutions."""

import shutil

import pytest
from tiles import build, expected, random_cases, run

from firebox.runtime.compile.tiles.amx import Amx
from firebox.runtime.compile.tiles.spec import Tiles
from firebox.runtime.compile.tiles.x86 import Avx2, Avx512Vnni, AvxVnni

CASES = 32
TILES = [Amx(), Avx512Vnni(), AvxVnni(), Avx2()]
COMPILERS = ["gcc -O2", "clang -O2"]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("tiles", TILES, ids=lambda tiles: tiles.name)
def test_tiles_write_what_numpy_says_and_nothing_else(tmp_path, tiles: Tiles, compiler: str):
    command = compiler.split()
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    cases = random_cases(tiles, CASES, seed=len(tiles.name))
    outputs = run(build(tmp_path, tiles, cases, command), cases)
    if outputs is None:
        pytest.skip(f"this processor has no {tiles.name}")
    wrong = [case for case, output in zip(cases, outputs, strict=True) if output != expected(case)]
    assert not wrong, f"{len(wrong)} of {CASES}: {wrong[0].spec}, {wrong[0].pixels} pixels, {wrong[0].panels} panels"
