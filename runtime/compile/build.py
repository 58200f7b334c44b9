"""Shared libraries for this machine: generated, compiled, and kept in the user's cache folder."""

import json
from pathlib import Path

from ..contract import KEY
from ..errors import WriteError
from ..files import read_file, reason, sha256, write_file
from ..formats.read import read_graph, read_metadata
from ..processor import this_processor
from .generator import fingerprint
from .store import Library, Record, library_of_key, store_library
from .toolchain import Compiler, best_isa, find_compiler, flags


def build_library(
    model: str | Path | bytes,
    out_path: str | Path | None = None,
    *,
    threads: int = 1,
    name: str | None = None,
    timed: bool = False,
) -> Library:
    """The library of an int8 ``.onnx`` or ``.tflite`` file (path or bytes), compiled unless the store has it.

    ``out_path`` gets a copy, which ``Session`` opens on this machine. ``name`` begins the library's functions, by
    default the model's own. A ``timed`` library measures its operations.

    Raises ``MissingCompilerError`` if no C compiler works, ``UnsupportedError`` if this processor has no fast
    instruction set or the network cannot be compiled, ``FormatError`` for a file that cannot be read, and
    ``WriteError``.
    """
    data = model if isinstance(model, bytes) else read_file(model)
    compiler, isa = find_compiler(), best_isa(this_processor())
    key = _key(data, compiler, isa, threads, name, timed)
    library = library_of_key(key) or _build(key, data, compiler, isa, threads, name, timed)
    if out_path is not None:
        write_file(out_path, library.path.read_bytes())
    return library


def library_key(data: bytes, threads: int = 1) -> str:
    """What ``library_of_key`` finds the library of a file's bytes by. Raises as ``build_library`` does."""
    return _key(data, find_compiler(), best_isa(this_processor()), threads, None, False)


def _key(data: bytes, compiler: Compiler, isa: str, threads: int, name: str | None, timed: bool) -> str:
    facts = [sha256(data), fingerprint(), compiler.identity, flags(), isa, threads, name, timed]
    return sha256(json.dumps(facts).encode())


def _build(key: str, data: bytes, compiler: Compiler, isa: str, threads: int, name: str | None, timed: bool) -> Library:
    # Only here, so that a library in the store is loaded without the generator.
    from .ends import ends_of
    from .isa import families
    from .library import library_arena_bytes, library_code, timers
    from .source import compile_c

    version = compiler.version()
    ends = ends_of(data, read_graph(data))
    source = compile_c(data, input="rows", isa=isa, name=name, threads=threads, self_test=False)
    operations = tuple(op.output for op in source.plan.graph.ops)
    ((tiles,),) = (family.tiles for family in families(isa))
    files = {f"{source.name}.c": library_code(source, ends, tiles.detect), f"{source.name}.h": source.header}
    options = []
    if timed:
        files["timers.h"] = timers(source.name, len(operations))
        options = ["-include", "timers.h"]
    found = _compiled(compiler, files, f"{source.name}.c", options)
    contract = read_metadata(data, KEY)
    record = Record(
        sha256=sha256(found),
        model_sha256=sha256(data),
        name=source.name,
        isa=isa,
        compiler=version,
        threads=threads,
        arena_bytes=library_arena_bytes(source, ends),
        layout=ends.layout,
        input=ends.input,
        output=ends.output,
        operations=operations,
        contract_sha256=sha256(contract) if contract is not None else None,
    )
    return store_library(key, found, record, contract)


def _compiled(compiler: Compiler, files: dict[str, str], main: str, options: list[str]) -> bytes:
    """The bytes of a shared library, compiled in a folder of its own."""
    from tempfile import TemporaryDirectory

    try:
        with TemporaryDirectory(prefix="firebox-") as folder:
            for name, text in files.items():
                Path(folder, name).write_text(text, encoding="ascii")
            library = Path(folder, "library.so")
            compiler.compile(Path(folder, main), library, ["-I", folder, "-pthread", *options])
            return library.read_bytes()
    except OSError as error:
        raise WriteError(f"cannot compile in the system's folder for temporary files: {reason(error)}") from error
