"""Generated C as shared libraries and programs, run between bytes that nothing may touch."""

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from firebox.runtime.compile.isa import families
from firebox.runtime.compile.source import CSource
from firebox.runtime.graph import Graph
from firebox.runtime.graph.reference import run_reference

WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
_GUARD = 64
_FREE = 0xA5


@functools.cache
def runs_here(isa: str) -> bool:
    """True if this processor has an instruction set."""
    (family,) = families(isa)
    detect = family.tiles[0].detect or "1"
    code = f"{_BEFORE}{family.tiles[0].prelude}\nint main(void) {{ return !({detect}); }}\n"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "detect"
        built = subprocess.run(["gcc", "-x", "c", "-", "-o", str(program)], input=code.encode(), capture_output=True)
        return built.returncode == 0 and subprocess.run([program]).returncode == 0


def library(folder: Path, sources: Sequence[CSource], *flags: str, compiler: str = "gcc") -> ctypes.CDLL:
    """One shared library of several networks, whose names differ."""
    names = [_write(folder, source) for source in sources]
    _compile([compiler, *WARNINGS, "-shared", "-fPIC", *flags, *names, "-o", "networks.so"], folder)
    return ctypes.CDLL(str(folder / "networks.so"))


def run(library: ctypes.CDLL, source: CSource, x: np.ndarray) -> np.ndarray:
    """The output for an int8 input, in a dirty arena whose neighbours stay as they are."""
    (name,) = source.plan.graph.outputs
    y = np.zeros(source.plan.graph.tensors[name].shape, np.int8)
    block = np.full(source.arena_bytes + 2 * _GUARD + 16, _FREE, np.uint8)
    start = _GUARD + -block.ctypes.data % 16
    x = np.ascontiguousarray(x)
    getattr(library, f"{source.name}_run_in")(
        ctypes.c_void_p(block.ctypes.data + start), ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data)
    )
    outside = np.concatenate([block[:start], block[start + source.arena_bytes :]])
    assert (outside == _FREE).all(), f"{source.name} writes beyond its arena"
    return y


def program(folder: Path, sources: Sequence[CSource], *flags: str) -> Path:
    """A program that reads the inputs of several networks from stdin and writes their outputs to stdout."""
    names = [_write(folder, source) for source in sources]
    includes = "".join(f'#include "{source.name}.h"\n' for source in sources)
    calls = "".join(_CALL.replace("NAME", source.name).replace("MACRO", source.name.upper()) for source in sources)
    (folder / "main.c").write_text(f"#include <stdio.h>\n#include <stdlib.h>\n{includes}int main(void) {{\n{calls}}}\n")
    _compile(["gcc", *WARNINGS, *flags, *names, "main.c", "-o", "networks"], folder)
    return folder / "networks"


def random_input(graph: Graph, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random input as int8, and what the reference makes of it."""
    tensor = graph.tensors[graph.inputs[0]]
    limits = np.iinfo(tensor.dtype)
    x = np.random.default_rng(seed).integers(limits.min, limits.max + 1, tensor.shape).astype(tensor.dtype)
    return as_int8(x), as_int8(run_reference(graph, x)[graph.outputs[0]])


def as_int8(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.int16) - 128).astype(np.int8) if values.dtype == np.uint8 else values


def _write(folder: Path, source: CSource) -> str:
    for name, text in source.files().items():
        (folder / name).write_text(text)
    return f"{source.name}.c"


def _compile(command: Sequence[str], folder: Path) -> None:
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[:4000]


_BEFORE = """\
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#define FB_SHIFT 128
#define FB_INLINE static inline
#define FB_NOINLINE
#define FB_TABLE(kind, name, count) static const kind name[count]
typedef uint8_t fb_t;
FB_INLINE int32_t fb_load4(const void *p) { int32_t v; memcpy(&v, p, 4); return v; }
"""

# The arena has exactly its size, so that sanitizers see a byte beyond it.
_CALL = """\
  {
    void *arena = aligned_alloc(16, (MACRO_ARENA_BYTES + 15) / 16 * 16);
    int8_t *in = malloc(MACRO_INPUT_BYTES), *out = malloc(MACRO_OUTPUT_BYTES);
    if (fread(in, 1, MACRO_INPUT_BYTES, stdin) != MACRO_INPUT_BYTES) return 1;
    NAME_run_in(arena, in, out);
    if (fwrite(out, 1, MACRO_OUTPUT_BYTES, stdout) != MACRO_OUTPUT_BYTES) return 2;
    free(arena); free(in); free(out);
  }
"""
