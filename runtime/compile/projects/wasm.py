"""WebAssembly from generated C, by Debian's clang and lld alone."""

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from ...errors import MissingCompilerError
from ..convolutions import stack_bytes
from ..source import CSource

# Sums of products in one rounding would change the outputs. lld puts the stack below the data, so that an overflow is a
# trap.
_FLAGS = (
    *("--target=wasm32", "-msimd128", "-mbulk-memory", "-O3", "-ffp-contract=off", "-ffreestanding", "-nostdlib", "-w"),
    *("-DFIREBOX_NO_CLASSES", "-fuse-ld=lld", "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,--stack-first"),
)
# There is no C library. Engines copy and fill memory by one instruction each.
_STRING_H = """\
typedef __SIZE_TYPE__ size_t;
#define memcpy __builtin_memcpy
#define memset __builtin_memset
"""
_PAGE_BYTES = 65536
_LEAST_STACK = 16384
# The tiles extend their input on the stack, and spill vectors.
_SPILLED_BYTES = 32768
_NEEDED = "clang and lld make WebAssembly"
_INSTALL = "apt-get install clang lld"
# Numbers of sections (WebAssembly core specification, section 5.5).
_IMPORTS, _MEMORY = 2, 5


@dataclass(frozen=True)
class WasmModule:
    """A WebAssembly module with ``memory_bytes`` of memory: the arena, the constants, the output and the stack."""

    data: bytes
    memory_bytes: int


def build_wasm(source: CSource) -> WasmModule:
    """Compile C whose input is whole to a module that imports nothing.

    It exports ``memory``; ``input`` and ``output``, which return addresses; and ``run``, which overwrites the input.
    Raises ``MissingCompilerError`` if clang or lld is missing or fails.
    """
    stack = max(_LEAST_STACK, -(-(stack_bytes(source.plan) + _SPILLED_BYTES) // 1024) * 1024)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in {**source.files(), "string.h": _STRING_H, "exports.c": _exports(source)}.items():
            (folder / file).write_text(text, encoding="utf-8")
        command = [_clang(), *_FLAGS, f"-Wl,-z,stack-size={stack}", "-isystem", ".", "exports.c", "-o", "module.wasm"]
        _run(command, folder)
        data = (folder / "module.wasm").read_bytes()
    found = sections(data)
    if _IMPORTS in found:
        raise MissingCompilerError(
            f"clang made a module with imports from this network; try another version: {_INSTALL}"
        )
    return WasmModule(data, _memory_bytes(found[_MEMORY]))


def sections(data: bytes) -> dict[int, bytes]:
    """The sections of a module by number, without the custom ones."""
    found, at = {}, 8
    while at < len(data):
        number = data[at]
        size, at = _leb128(data, at + 1)
        if number:
            found[number] = data[at : at + size]
        at += size
    return found


def _memory_bytes(section: bytes) -> int:
    """The initial size of the first memory."""
    return _leb128(section, 2)[0] * _PAGE_BYTES


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned number in 7 bits per byte, and the position behind it."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def _exports(source: CSource) -> str:
    """C that includes the network and exports its functions by the names of the module."""
    p, m = source.name, source.name.upper()
    return f"""\
#include "{p}.c"
#define FB_EXPORT(name) __attribute__((export_name(name)))
static {source.kind} fb_web_output[{m}_OUTPUTS];
FB_EXPORT("input") int8_t *fb_web_input(void) {{ return {p}_input(); }}
FB_EXPORT("output") {source.kind} *fb_web_output_at(void) {{ return fb_web_output; }}
FB_EXPORT("run") void fb_web_run(void) {{ {p}_invoke(fb_web_output); }}
"""


def _clang() -> str:
    """The path of clang. Raises ``MissingCompilerError`` if it or its linker is missing."""
    clang = which("clang")
    missing = [name for name, found in (("clang", clang), ("wasm-ld", which("wasm-ld"))) if not found]
    if missing or clang is None:
        raise MissingCompilerError(f"{_NEEDED}, and {' and '.join(missing)} is not installed; run: {_INSTALL}")
    return clang


def _run(command: list[str], folder: Path) -> None:
    try:
        # Messages are in English on every machine, so that the error is found in them.
        environment = os.environ | {"LC_ALL": "C"}
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MissingCompilerError(f"clang does not start: {error.strerror}; run: {_INSTALL}") from error
    if ran.returncode:
        lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()] or [f"exit code {ran.returncode}"]
        line = next((line for line in lines if "error" in line), lines[0])
        raise MissingCompilerError(f"clang failed: {line}; it must know the target wasm32: {_INSTALL}")
