"""A public file over the network, for those who ask for it: resumed where it was cut, checked, kept in a cache."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock, Timeout

from ...runtime.errors import DownloadError, WriteError
from ...runtime.files import cache_folder, reason
from ...runtime.progress import SILENT, Progress

_LIMIT_BYTES = 1024**3
_CHUNK_BYTES = 64 * 1024
_TIMEOUT_S = 30
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_PARTIAL, _NOT_SATISFIABLE = 206, 416


def downloads_folder() -> Path:
    """The folder of downloads, ``cache_folder()``. Raises ``DownloadError`` for a user without a home."""
    folder = cache_folder()
    if folder is None:
        raise DownloadError("this user has no home folder to keep downloads in; set FIREBOX_CACHE to one")
    return folder


def fetch(
    url: str,
    sha256: str,
    folder: Path | None = None,
    *,
    limit_bytes: int = _LIMIT_BYTES,
    progress: Progress = SILENT,
) -> Path:
    """The file at a URL, from ``folder`` (``downloads_folder()``) if it is there, else downloaded with progress.

    ``sha256`` are the first hexadecimal digits of its SHA-256; nothing else is ever returned. What has come before a
    connection broke stays beside it as ``NAME.part``, and the next call goes on from there. One process at a time
    downloads a file, holding ``NAME.lock``; others wait for it. Raises ``DownloadError`` (no connection, no such file,
    cut, another hash, more than ``limit_bytes``, neither https nor this machine) and ``WriteError``.
    """
    path = (folder or downloads_folder()) / PurePosixPath(urlsplit(url).path).name
    try:
        if not _has_hash(path, sha256):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path, progress):
                # Another process may have brought it in the meantime.
                if not _has_hash(path, sha256):
                    _bring(url, sha256, path, limit_bytes, progress)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {reason(error)}") from error
    return path


@contextmanager
def _alone(path: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process downloads ``path``. The lock of one that was killed is gone with it."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        progress.note(f"another process is downloading {path.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _bring(url: str, sha256: str, path: Path, limit_bytes: int, progress: Progress) -> None:
    """Download what is not there yet, and rename it to ``path`` if it is the file."""
    part = path.with_name(f"{path.name}.part")
    if not _has_hash(part, sha256):
        _download(url, part, limit_bytes, progress)
    if not _has_hash(part, sha256):
        part.unlink()
        raise DownloadError(
            f"{url} has another SHA-256 than {sha256}…, so it is not the file it should be and was removed; "
            "try again later, or pass a file of your own"
        )
    part.replace(path)


def _has_hash(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().startswith(sha256)


def _download(url: str, part: Path, limit_bytes: int, progress: Progress) -> None:
    """Append to ``part`` what it lacks, or write it anew where the server cannot go on in the middle."""
    with _request(url, part) as response:
        start = _start(url, response, part)
        total = start + response.length if response.length is not None else None
        _check_size(url, total or 0, limit_bytes)
        done = start
        with (
            part.open("ab") as stream,
            progress.task(f"downloading {part.stem} (KiB)", total and total // 1024) as advance,
        ):
            stream.truncate(start)
            advance(start // 1024)
            for chunk in _chunks(url, response):
                done += len(chunk)
                _check_size(url, done, limit_bytes)
                stream.write(chunk)
                advance(len(chunk) // 1024)
            stream.flush()
            os.fsync(stream.fileno())
    if total is not None and done < total:
        raise _cut(url, f"after {done:,} of {total:,} bytes")


def _request(url: str, part: Path) -> HTTPResponse:
    """The answer of the server to a request for what ``part`` lacks."""
    _check_url(url)
    size = _size(part)
    headers = {"User-Agent": "firebox"} | ({"Range": f"bytes={size}-"} if size else {})
    try:
        return build_opener(_Redirects).open(Request(url, headers=headers), timeout=_TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code == _NOT_SATISFIABLE and size:
            # The part is as long as the file, or longer, and yet it is not the file.
            part.unlink()
            return _request(url, part)
        raise DownloadError(
            f"cannot download {url}: the server answers {error.code} {error.reason}; try again later, or pass a file "
            "of your own"
        ) from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        # A ValueError is about an address that the server redirects to.
        raise DownloadError(
            f"cannot download {url}: {_why(error)}; check the connection, or pass a file of your own"
        ) from error


def _start(url: str, response: HTTPResponse, part: Path) -> int:
    """The position at which the answer begins: the end of the part, or 0 from a server that cannot go on."""
    if response.status != _PARTIAL:
        return 0
    size = _size(part)
    found = response.headers.get("Content-Range", "")
    if not found.startswith(f"bytes {size}-"):
        raise DownloadError(f"{url} was asked for from byte {size} and answers {found!r}; remove {part} and try again")
    return size


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _chunks(url: str, response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK_BYTES):
            yield chunk
    except (HTTPException, OSError) as error:
        raise _cut(url, f"({_why(error)})") from error


def _cut(url: str, where: str) -> DownloadError:
    return DownloadError(f"the download of {url} was cut {where}; run the same again, and it goes on from there")


def _check_size(url: str, found_bytes: int, limit_bytes: int) -> None:
    if found_bytes > limit_bytes:
        raise DownloadError(
            f"{url} has {found_bytes:,} bytes or more, the limit is {limit_bytes:,}; download it yourself"
        )


def _check_url(url: str) -> None:
    """Nothing is fetched that others could change on the way."""
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in _THIS_MACHINE):
        raise DownloadError(f"{url} is not fetched: only https is; download it yourself, and pass the file")


class _Redirects(HTTPRedirectHandler):
    """Redirections are followed to places where the file could have been in the first place."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        try:
            _check_url(newurl)
        except DownloadError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _why(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return str(getattr(cause, "strerror", None) or cause).lower().rstrip(".")
