"""Reading files with size limits, and writing them atomically: to a temporary name, then renamed."""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from .errors import FormatError, UsageError, WriteError

# Temporary files of `write_files`: new content (.part) and copies of the old (.old).
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.(part|old)", re.DOTALL)


def write_files(folder: str | Path, files: Mapping[str, bytes | str]) -> list[Path]:
    """Write every ``name: content`` into ``folder``: all of them, or none.

    Raises ``WriteError`` (disk full, no permission) and then leaves no new file, temporary file or folder.
    """
    folder = Path(folder)
    new_folders: list[Path] = []
    parts: dict[Path, Path] = {}
    target = folder
    try:
        new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            target = folder / name
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder has that name")
            if target.exists() and not target.is_file():
                # Renaming would replace a device or a pipe by a file.
                raise OSError(errno.EINVAL, "it is not a regular file; choose another name")
            part = folder / f".{name}.{secrets.token_hex(4)}.part"
            parts[part] = target
            with part.open("xb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
        _replace(parts)
    except BaseException as error:
        _remove(parts, new_folders)
        if isinstance(error, OSError):
            raise WriteError(f"cannot write {target}: {reason(error)}") from error
        raise
    return list(parts.values())


def _replace(parts: Mapping[Path, Path]) -> None:
    """Rename every part to its target; if one rename fails, restore the targets before it."""
    # shutil imports bz2, lzma and zlib, which would slow down every start.
    from shutil import copyfile

    kept = {target: part.with_suffix(".old") for part, target in parts.items() if target.exists()}
    done: list[Path] = []
    try:
        for target, backup in kept.items():
            copyfile(target, backup)
        for part, target in parts.items():
            # Noted first: Ctrl-C can arrive as soon as the file is renamed.
            done.append(target)
            part.replace(target)
    except BaseException:
        for target in done:
            if target in kept:
                kept[target].replace(target)
            else:
                target.unlink(missing_ok=True)
        raise
    finally:
        _remove(kept.values())


def write_file(path: str | Path, content: bytes | str) -> Path:
    """Write one file atomically; see ``write_files``."""
    path = Path(path)
    return write_files(path.parent, {path.name: content})[0]


def remove_unfinished(folder: str | Path) -> None:
    """Remove temporary files of a killed ``write_files`` from ``folder``, while no other process writes there."""
    found = Path(folder).glob(".*")
    _remove(path for path in found if _UNFINISHED.fullmatch(path.name) and path.is_file() and not path.is_symlink())


def check_writable(folder: str | Path) -> None:
    """Check before long work that ``folder`` is writable; leaves nothing behind. Raises ``WriteError``."""
    folder = Path(folder)
    probe = f".probe-{secrets.token_hex(4)}"
    try:
        new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    except OSError as error:
        raise WriteError(f"cannot write into {folder}: {reason(error)}") from error
    try:
        _remove(write_files(folder, {probe: b""}), new_folders)
    except WriteError as error:
        # The user does not know the probe.
        raise WriteError(str(error).replace(str(folder / probe), f"into {folder}")) from error


def read_file(path: str | Path, limit: int = 2**31 - 1) -> bytes:
    """The bytes of a file of at most ``limit`` bytes; the size is checked before memory is allocated.

    Raises ``UsageError`` if there is no regular file of that name and ``FormatError`` if it cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder, not a file")
        size = path.stat().st_size
        if size > limit:
            raise FormatError(f"{path} has {size:,} bytes; the limit is {limit:,}")
        if not path.is_file():
            # A device or a pipe has no size to check.
            raise UsageError(f"{path} is not a regular file; copy it into one")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {reason(error)}") from error


def cache_folder() -> Path | None:
    """The folder for downloads and remembered checks: ``$FIREBOX_CACHE``, or ``firebox`` in the user's cache folder.

    ``None`` if the user has no home folder.
    """
    if given := os.environ.get("FIREBOX_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firebox"
    except RuntimeError:
        return None


def sha256(content: bytes) -> str:
    """The SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def reason(error: OSError) -> str:
    """A short description of an ``OSError``, with what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "no space left; free some or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission; choose a folder you can write to"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "a file has the name of a needed folder; choose another folder"
    return (error.strerror or str(error)).lower()


def _remove(files: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    # The error that made the write fail matters more than files that cannot be removed.
    for path in files:
        with suppress(OSError):
            path.unlink()
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
