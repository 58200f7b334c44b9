"""Downloads of published files: resumable, checked by SHA-256, and cached."""

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
    """The download folder, ``cache_folder()``. Raises ``DownloadError`` if the user has no home folder."""
    folder = cache_folder()
    if folder is None:
        raise DownloadError("the user has no home folder for downloads; set FIREBOX_CACHE to a folder")
    return folder


def fetch(
    url: str,
    sha256: str,
    folder: Path | None = None,
    *,
    limit_bytes: int = _LIMIT_BYTES,
    progress: Progress = SILENT,
) -> Path:
    """Download the file at a URL into ``folder`` (by default ``downloads_folder()``), unless it is there.

    ``sha256`` holds the first hexadecimal digits of the SHA-256; a file with another hash is never returned. After an
    interruption the partial file stays as ``NAME.part``, and the next call resumes it. Only one process downloads a
    file, holding ``NAME.lock``; others wait for it. Raises ``DownloadError`` (no connection, no such file, truncated,
    wrong hash, more than ``limit_bytes``, neither https nor this machine) and ``WriteError``.
    """
    path = (folder or downloads_folder()) / PurePosixPath(urlsplit(url).path).name
    try:
        if not _has_hash(path, sha256):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path, progress):
                # Another process may have downloaded it in the meantime.
                if not _has_hash(path, sha256):
                    _complete(url, sha256, path, limit_bytes, progress)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {reason(error)}") from error
    return path


@contextmanager
def _alone(path: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process downloads ``path``. The lock of a killed process is released with it."""
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


def _complete(url: str, sha256: str, path: Path, limit_bytes: int, progress: Progress) -> None:
    """Download the missing bytes, and rename the file to ``path`` if its hash is right."""
    part = path.with_name(f"{path.name}.part")
    if not _has_hash(part, sha256):
        _download(url, part, limit_bytes, progress)
    if not _has_hash(part, sha256):
        part.unlink()
        raise DownloadError(
            f"{url} does not have the SHA-256 {sha256}…, so its download was removed; try again later, or pass a file "
            "of your own"
        )
    part.replace(path)


def _has_hash(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().startswith(sha256)


def _download(url: str, part: Path, limit_bytes: int, progress: Progress) -> None:
    """Append the missing bytes to ``part``, or download all of it if the server does not support ranges."""
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
    """The server's response to a request for the bytes that ``part`` lacks."""
    _check_url(url)
    size = _size(part)
    headers = {"User-Agent": "firebox"} | ({"Range": f"bytes={size}-"} if size else {})
    try:
        return build_opener(_Redirects).open(Request(url, headers=headers), timeout=_TIMEOUT_S)
    except HTTPError as error:
        error.close()
        if error.code == _NOT_SATISFIABLE and size:
            # The part is at least as long as the file and has another hash.
            part.unlink()
            return _request(url, part)
        raise DownloadError(
            f"cannot download {url}: the server responds {error.code} {error.reason}; try again later, or pass a file "
            "of your own"
        ) from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        # ValueError: the server redirects to an invalid URL.
        raise DownloadError(
            f"cannot download {url}: {_why(error)}; check the connection, or pass a file of your own"
        ) from error


def _start(url: str, response: HTTPResponse, part: Path) -> int:
    """Position at which the response starts: the end of the part, or 0 if the server does not support ranges."""
    if response.status != _PARTIAL:
        return 0
    size = _size(part)
    found = response.headers.get("Content-Range", "")
    if not found.startswith(f"bytes {size}-"):
        raise DownloadError(f"{url} was requested from byte {size} and sent {found!r}; remove {part} and try again")
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
    return DownloadError(f"the download of {url} was interrupted {where}; run the command again to resume it")


def _check_size(url: str, found_bytes: int, limit_bytes: int) -> None:
    if found_bytes > limit_bytes:
        raise DownloadError(
            f"{url} has at least {found_bytes:,} bytes, more than the limit of {limit_bytes:,}; download it yourself"
        )


def _check_url(url: str) -> None:
    """Raise ``DownloadError`` for URLs whose content others could change on the way."""
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in _THIS_MACHINE):
        raise DownloadError(f"{url} is not https; download it yourself, and pass the file")


class _Redirects(HTTPRedirectHandler):
    """Follows redirects only to URLs that ``fetch`` accepts."""

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
