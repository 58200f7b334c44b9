"""Generated networks on emulated processors: bare Cortex-M boards, and AArch64 with and without dot products."""

import shutil
import subprocess
from pathlib import Path

import boards
import numpy as np
import pytest
from row_networks import seeded_network
from waiting import CEILING

from firebox.runtime import read_graph
from firebox.runtime.compile import compile_c
from firebox.runtime.compile.convolutions import stack_bytes
from firebox.runtime.graph.reference import run_reference

IMAGES = 2

_MAIN = """
#include <stdio.h>
#include "micro.h"
int main(void) {
  static int8_t in[MICRO_INPUT_BYTES], out[MICRO_OUTPUT_BYTES];
  fprintf(stderr, "%s", micro_isa());
  while (fread(in, 1, sizeof in, stdin) == sizeof in) {
    micro_run(in, out);
    if (fwrite(out, 1, sizeof out, stdout) != sizeof out) return 1;
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def model(exported) -> Path:
    return exported / "model.int8.tflite"


def written(folder: Path, model: Path, by_rows: bool = True):
    """Writes the generated C, random inputs and what they must give, and returns what was generated."""
    source = compile_c(model, input="rows" if by_rows else "whole", name="micro")
    (folder / "micro.c").write_text(source.code)
    (folder / "micro.h").write_text(source.header)
    graph = read_graph(model)
    shape = graph.tensors[graph.inputs[0]].shape
    images = np.random.default_rng(0).integers(-128, 128, (IMAGES, *shape), np.int8)
    (folder / "micro.in").write_bytes(images.tobytes())
    wanted = [run_reference(graph, image)[graph.outputs[0]].astype(np.int8).tobytes() for image in images]
    (folder / "micro.want").write_bytes(b"".join(wanted))
    return source


@pytest.mark.parametrize("by_rows", [True, False], ids=["rows", "whole"])
@pytest.mark.parametrize("board", [boards.M3, boards.M4, boards.M7, boards.M55], ids=lambda board: board.name)
def test_a_network_on_a_bare_board_needs_its_arena_and_a_small_stack(tmp_path, model, board: boards.Board, by_rows):
    if boards.missing():
        pytest.skip(f"{boards.missing()} is not installed")
    source = written(tmp_path, model, by_rows)
    found = boards.run_network(board, tmp_path / "micro.c", IMAGES, by_rows=by_rows)
    assert found["equal"] == IMAGES
    assert found["arena"] == source.arena_bytes
    assert found["arena"] <= found["static"] < found["arena"] + 1024
    # The stack of an M3, which computes float numbers by calls, is the deepest.
    assert 0 < found["stack"] <= stack_bytes(source.plan)
    # It runs in no more RAM than it reports: that much, with the margin that paint needs.
    ram = found["static"] + found["stack"] + 256 & ~7
    again = boards.run_network(board, tmp_path / "micro.c", IMAGES, by_rows=by_rows, ram_bytes=ram)
    assert again == found


@pytest.mark.parametrize("board", [boards.M3, boards.M7], ids=lambda board: board.name)
def test_the_planned_flash_is_an_upper_estimate(tmp_path, model, board: boards.Board):
    if boards.missing():
        pytest.skip(f"{boards.missing()} is not installed")
    # Among them are softmaxes and tables.
    for network in (model, *map(seeded_network, (0, 2, 4, 9))):
        source = compile_c(network, isa="cortex-m", name="net", self_test=False)
        for name, text in source.files().items():
            (tmp_path / name).write_text(text)
        needed = boards.flash_bytes(board, tmp_path / "net.c")
        assert needed <= source.flash.nbytes < needed + 12288


@pytest.mark.parametrize("compiler", ["aarch64-linux-gnu-gcc", "clang --target=aarch64-linux-gnu"])
@pytest.mark.parametrize(("processor", "isa"), [("cortex-a53", "neon"), ("cortex-a76", "neondot")])
def test_aarch64_runs_the_best_instruction_set_it_has(tmp_path, model, compiler, processor, isa):
    command = compiler.split()
    for program in (command[0], "qemu-aarch64"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    written(tmp_path, model)
    (tmp_path / "main.c").write_text(_MAIN)
    strict = ("-O1", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-static")
    built = subprocess.run(
        [*command, *strict, "micro.c", "main.c", "-o", "micro"], cwd=tmp_path, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[:4000]
    data = (tmp_path / "micro.in").read_bytes()
    emulator = ("qemu-aarch64", "-cpu", processor, str(tmp_path / "micro"))
    ran = subprocess.run(emulator, input=data, capture_output=True, timeout=CEILING, check=True)
    assert ran.stderr.decode() == isa
    assert ran.stdout == (tmp_path / "micro.want").read_bytes()
