"""Compiled libraries in the user's cache folder, and the rule that no other library is ever loaded.

A shared library is code. firebox loads a library only from its own folder, which belongs to the user and which nobody
else can write to, and only if the bytes have the SHA-256 in their record. The folder holds, for each library,
``HASH.so``, its record ``HASH.json`` and the contract of the model ``HASH.contract``; ``KEY.key`` names the library of
a model, generator, compiler and instruction set, and ``KEY.facts`` has what was measured. A file is written under
another name and renamed, and a library's name follows from its contents, so that a loaded library never changes.
"""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..contract import TensorSpec
from ..errors import FormatError, UnsupportedError, UsageError, WriteError
from ..files import cache_folder, read_file, reason, sha256, write_file

# Functions of a library, behind the name that its record gives: what runs it, whether this processor can; and if it is
# timed, the ticks of each operation and the clock that counts them.
ENTRY, SUPPORTED, TICKS, CLOCK = "_entry", "_supported", "_ticks", "_clock"
# What opens threads, runs with them and ends them.
OPEN, PARALLEL, CLOSE = "_open", "_parallel", "_close"

_FOLDER = "native"
_LIMIT_BYTES = 1 << 30
_PRIVATE = 0o600
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Record:
    """What is known about a library that was built here.

    ``sha256`` is the library's own hash and ``model_sha256`` that of the file it was built from. ``name`` begins its
    functions. ``input`` and ``output`` are the ends of the model file, which the library keeps, with the layout of the
    input. ``operations`` are the outputs of its operations, in order.
    """

    sha256: str
    model_sha256: str
    name: str
    isa: str
    compiler: str
    threads: int
    arena_bytes: int
    layout: str
    input: TensorSpec
    output: TensorSpec
    operations: tuple[str, ...]
    contract_sha256: str | None

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Record":
        """The inverse of ``to_json``. Raises ``ValueError``, ``TypeError`` or ``KeyError`` if it is damaged."""
        ends = {
            name: TensorSpec(**{**values[name], "shape": tuple(values[name]["shape"])}) for name in ("input", "output")
        }
        return cls(**{**values, **ends, "operations": tuple(values["operations"])})


@dataclass(frozen=True)
class Library:
    """A library in the store: its file, its record and, if the model has one, its contract."""

    path: Path
    record: Record

    def contract(self) -> bytes | None:
        """The contract of the model that the library was built from."""
        wanted = self.record.contract_sha256
        if wanted is None:
            return None
        data = read_file(self.path.with_suffix(".contract"))
        if sha256(data) != wanted:
            raise _not_built_here(self.path, "its contract has changed")
        return data


def library_of_key(key: str) -> Library | None:
    """The library that was built for a key, or ``None``."""
    folder = _folder()
    with suppress(FormatError, UsageError):
        digest = _private_bytes(folder / f"{key}.key").decode("ascii", "replace").strip()
        if len(digest) == 64 and digest.isalnum():
            return _verified(folder / f"{digest}.so")
    return None


def library_of_file(path: str | Path, data: bytes) -> Library:
    """The store's own copy of a library, given its bytes. Raises ``FormatError`` if it was not built here."""
    stored = _folder() / f"{sha256(data)}.so"
    if not stored.is_file():
        raise _not_built_here(path, "nothing is known about it")
    return _verified(stored)


def store_library(key: str, data: bytes, record: Record, contract: bytes | None) -> Library:
    """Put a library into the store. Raises ``WriteError``."""
    folder = _folder()
    path = folder / f"{record.sha256}.so"
    _write(path, data)
    if contract is not None:
        _write(path.with_suffix(".contract"), contract)
    _write_record(path, record)
    _write(folder / f"{key}.key", record.sha256.encode())
    return Library(path, record)


def note(key: str, facts: Mapping[str, Any]) -> None:
    """Remember facts about the library of a key, in place of those before. Raises ``WriteError``."""
    _write(_folder() / f"{key}.facts", json.dumps(facts) + "\n")


def noted(key: str) -> dict[str, Any]:
    """The facts that ``note`` remembered, or none."""
    try:
        found = json.loads(_private_bytes(_folder() / f"{key}.facts"))
    except (FormatError, UsageError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def has_libraries() -> bool:
    """True if anything was ever built here."""
    cache = cache_folder()
    return cache is not None and (cache / _FOLDER).is_dir()


def _folder() -> Path:
    """The folder of the libraries, made if it is missing. Raises ``WriteError`` if others could write or rename it."""
    if not hasattr(os, "geteuid"):
        raise UnsupportedError(
            "this system does not say who owns a file, so libraries are not kept; use another backend"
        )
    cache = cache_folder()
    if cache is None:
        raise WriteError("the user has no home folder for compiled libraries; set FIREBOX_CACHE to a folder")
    folder = cache / _FOLDER
    try:
        try:
            found = folder.lstat()
        except FileNotFoundError:
            cache.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
    except OSError as error:
        raise WriteError(f"cannot write into {folder}: {reason(error)}") from error
    if not stat.S_ISDIR(found.st_mode) or not _is_private(found):
        raise WriteError(f"{folder} is not a folder that only this user can write to; remove it, or set FIREBOX_CACHE")
    if _lets_others_rename(cache):
        raise WriteError(f"anyone can replace files in {cache}; forbid others to write there, or set FIREBOX_CACHE")
    return folder


def _is_private(facts: os.stat_result) -> bool:
    return facts.st_uid == os.geteuid() and not facts.st_mode & _WRITABLE_BY_OTHERS


def _lets_others_rename(folder: Path) -> bool:
    """True if everyone can write to a folder, and so put another one in the place of that of the libraries."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _private_bytes(path: Path) -> bytes:
    """The bytes of a file that only the user can write to."""
    try:
        found = path.lstat()
    except OSError as error:
        raise UsageError(f"no such file: {path}") from error
    if not stat.S_ISREG(found.st_mode) or not _is_private(found):
        raise _not_built_here(path, "others can write to it")
    return read_file(path, _LIMIT_BYTES)


def _verified(path: Path) -> Library:
    """A library of the store with its record.

    Hashing it again takes longer than loading it. The system sets a file's change time, which no program can forge: if
    file, size and times are those of the file that was hashed, so are its bytes.
    """
    record, stamp = _read_record(path)
    facts = path.lstat()
    if not stat.S_ISREG(facts.st_mode) or not _is_private(facts):
        raise _not_built_here(path, "others can write to it")
    if list(_stamp(facts)) != stamp:
        if sha256(read_file(path, _LIMIT_BYTES)) != record.sha256:
            raise _not_built_here(path, "its bytes have changed")
        with suppress(WriteError):
            _write_record(path, record)
    return Library(path, record)


def _stamp(facts: os.stat_result) -> tuple[int, ...]:
    return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def _write_record(path: Path, record: Record) -> None:
    values = {"record": record.to_json(), "stamp": _stamp(path.lstat())}
    text = json.dumps(values)
    _write(path.with_suffix(".json"), sha256(text.encode()) + "\n" + text)


def _read_record(path: Path) -> tuple[Record, Sequence[int]]:
    """The record of a library and the stamp of the file that was hashed. Raises ``FormatError``."""
    try:
        digest, _, text = _private_bytes(path.with_suffix(".json")).decode().partition("\n")
        if digest != sha256(text.encode()):
            raise ValueError("its record has changed")
        values = json.loads(text)
        record = Record.from_json(values["record"])
        if record.sha256 != path.stem:
            raise ValueError("its record is that of another library")
        return record, values["stamp"]
    except (UsageError, ValueError, KeyError, TypeError) as error:
        raise _not_built_here(path, str(error)) from error


def _write(path: Path, content: bytes | str) -> None:
    write_file(path, content)
    try:
        path.chmod(_PRIVATE)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {reason(error)}") from error


def _not_built_here(path: str | Path, why: str) -> FormatError:
    return FormatError(
        f"{path} is not a library that firebox built on this machine ({why}); build it here from the model"
    )
