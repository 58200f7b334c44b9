"""Downloads from a local server that interrupts, ignores ranges, or sends wrong bytes."""

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from waiting import CEILING, QUIET, wait_until

from firebox.model_zoo.weights.download import downloads_folder, fetch
from firebox.runtime.errors import DownloadError, WriteError

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()[:8]
# Position at which a paused server waits: two chunks of the client.
HALF = 131_072


@dataclass
class Server:
    """Behaviour of the server, and the ranges requested from it."""

    url: str = ""
    content: bytes = CONTENT
    cut_after: int | None = None
    ranges: bool = True
    sends_length: bool = True
    claimed_length: int | None = None
    wrong_range: bool = False
    always_partial: bool = False
    status: int = 200
    redirect: str = ""
    go_on: threading.Event = field(default_factory=threading.Event)
    requested: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    behaviour = Server()
    behaviour.go_on.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour.requested.append(wanted := self.headers["Range"])
            if behaviour.redirect and self.path.endswith("moved.bin"):
                self.send_response(302)
                self.send_header("Location", behaviour.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if behaviour.status != 200:
                self.send_error(behaviour.status)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and behaviour.ranges else 0
            if start >= len(behaviour.content):
                self.send_error(416)
                return
            body = behaviour.content[start:][: behaviour.cut_after]
            self.send_response(206 if start or behaviour.always_partial else 200)
            if start:
                first = 7 if behaviour.wrong_range else start
                self.send_header(
                    "Content-Range", f"bytes {first}-{len(behaviour.content) - 1}/{len(behaviour.content)}"
                )
            if behaviour.sends_length:
                self.send_header("Content-Length", str(behaviour.claimed_length or len(behaviour.content) - start))
            self.end_headers()
            self.wfile.write(body[:HALF])
            behaviour.go_on.wait(CEILING)
            # The client may have been killed.
            with suppress(ConnectionError):
                self.wfile.write(body[HALF:])

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    behaviour.url = f"http://127.0.0.1:{running.server_port}/models/weights.bin"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield behaviour
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache" / "firebox"


def kept(folder: Path) -> list[str]:
    """Names of the files in the folder, without locks."""
    return [path.name for path in folder.glob("*") if path.suffix != ".lock"]


def refusal(server: Server, folder: Path, **more: int) -> str:
    """The error message, after checking that the folder holds at most a partial file."""
    with pytest.raises(DownloadError) as error:
        fetch(server.url, SHA256, folder, **more)
    assert not (folder / "weights.bin").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_downloaded_once_and_kept(server, folder):
    path = fetch(server.url, SHA256, folder)
    assert path == folder / "weights.bin"
    assert path.read_bytes() == CONTENT
    assert fetch(server.url, SHA256, folder) == path
    assert server.requested == [None]
    assert kept(folder) == ["weights.bin"]


def test_a_damaged_file_in_the_cache_is_not_used(server, folder):
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(CONTENT[:-1])
    assert fetch(server.url, SHA256, folder).read_bytes() == CONTENT


@pytest.mark.parametrize("cuts", [[1], [131_072], [100_000, 70_000, 1], [299_999]])
def test_an_interrupted_download_resumes(server, folder, cuts):
    for server.cut_after in cuts:
        message = refusal(server, folder)
        assert "was interrupted after" in message
        assert "300,000 bytes; run the command again" in message
    server.cut_after = None
    assert fetch(server.url, SHA256, folder).read_bytes() == CONTENT
    assert server.requested == [None, *(f"bytes={sum(cuts[: n + 1])}-" for n in range(len(cuts)))]
    assert not (folder / "weights.bin.part").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_download_a_file_once(server, folder, killed):
    server.go_on.clear()
    # The server is silent until the second process has started.
    program = (
        f"{QUIET}; import sys; from firebox.model_zoo.weights import download; from pathlib import Path; "
        "from firebox.runtime.commands.console import TerminalProgress; "
        f"download._TIMEOUT_S = {CEILING}; "
        "print(download.fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]), progress=TerminalProgress()))"
    )
    command, part = [sys.executable, "-c", program, server.url, SHA256, str(folder)], folder / "weights.bin.part"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as first:
        wait_until(
            lambda: part.exists() and part.stat().st_size >= HALF, f"half of {part}", lambda: first.poll() is None
        )
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == "another process is downloading weights.bin; waiting for it\n"
            if killed:
                first.kill()
            server.go_on.set()
            out, err = second.communicate(timeout=CEILING)
    assert (second.returncode, out, err) == (0, f"{folder / 'weights.bin'}\n", "")
    assert killed or first.returncode == 0
    assert (folder / "weights.bin").read_bytes() == CONTENT
    assert server.requested == ([None, f"bytes={HALF}-"] if killed else [None])
    assert kept(folder) == ["weights.bin"]


def test_without_range_support_the_download_starts_again(server, folder):
    server.cut_after = 1000
    refusal(server, folder)
    server.ranges, server.cut_after = False, None
    assert fetch(server.url, SHA256, folder).read_bytes() == CONTENT
    assert server.requested == [None, "bytes=1000-"]


def test_a_response_with_another_range_is_refused(server, folder):
    server.cut_after = 1000
    refusal(server, folder)
    server.wrong_range = True
    assert "was requested from byte 1000" in refusal(server, folder)
    assert (folder / "weights.bin.part").read_bytes() == CONTENT[:1000]


def test_a_partial_response_without_a_range_request_is_refused(server, folder):
    server.always_partial = True
    assert "was requested from byte 0" in refusal(server, folder)


def test_a_complete_part_needs_no_server(server, folder):
    folder.mkdir(parents=True)
    (folder / "weights.bin.part").write_bytes(CONTENT)
    assert fetch(server.url, SHA256, folder).read_bytes() == CONTENT
    assert server.requested == []


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_complete_part_with_another_hash_is_discarded(server, folder, extra):
    folder.mkdir(parents=True)
    (folder / "weights.bin.part").write_bytes(bytes(len(CONTENT)) + extra)
    assert fetch(server.url, SHA256, folder).read_bytes() == CONTENT
    assert server.requested == [f"bytes={len(CONTENT) + len(extra)}-", None]


@pytest.mark.parametrize("first", [0, 5000])
def test_a_file_with_another_hash_is_removed(server, folder, first):
    if first:
        server.cut_after = first
        refusal(server, folder)
        server.cut_after = None
    server.content = bytes(100) + CONTENT[100:-1] + b"x"
    assert f"does not have the SHA-256 {SHA256}…" in refusal(server, folder)
    assert kept(folder) == []
    server.content = CONTENT
    assert fetch(server.url, SHA256, folder).read_bytes() == CONTENT


def test_too_large_files_are_refused_before_anything_is_written(server, folder):
    assert "has at least 300,000 bytes, more than the limit of 299,999" in refusal(server, folder, limit_bytes=299_999)
    assert kept(folder) == []
    server.claimed_length = 2 * 1024**3
    assert "more than the limit of 1,073,741,824" in refusal(server, folder)
    assert kept(folder) == []


def test_a_response_without_a_length_cannot_fill_the_disk(server, folder):
    server.sends_length = False
    assert "more than the limit of 100,000" in refusal(server, folder, limit_bytes=100_000)
    left = sum(path.stat().st_size for path in folder.iterdir())
    assert left <= 100_000
    assert fetch(server.url, SHA256, folder).read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "message"), [(404, "404 Not Found"), (503, "503 Service Unavailable")])
def test_the_error_names_the_status_of_the_server(server, folder, status, message):
    server.status = status
    assert f"cannot download {server.url}: the server responds {message}" in refusal(server, folder)
    assert kept(folder) == []


def test_without_a_connection_the_part_is_kept(server, folder):
    server.cut_after = 1000
    refusal(server, folder)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}/weights.bin"
        assert "connection refused; check the connection" in refusal(server, folder)
    server.url = "http://127.0.0.1:1:2/weights.bin"
    with pytest.raises(DownloadError):
        fetch(server.url, SHA256, folder)
    assert (folder / "weights.bin.part").read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize(
    "url",
    ["http://example.org/weights.bin", "ftp://127.0.0.1/weights.bin", "file:///etc/weights.bin", "weights.bin"],
)
def test_only_https_urls_are_allowed(server, folder, url):
    server.url = url
    assert "is not https" in refusal(server, folder)
    assert kept(folder) == []


def test_redirects_are_followed_to_allowed_urls_only(server, folder):
    server.redirect = server.url
    moved = server.url.replace("weights.bin", "moved.bin")
    assert fetch(moved, SHA256, folder).read_bytes() == CONTENT
    refused = {
        "http://example.org/x.bin": "http://example.org/x.bin is not https",
        "ftp://example.org/x.bin": "ftp://example.org/x.bin is not https",
        "file:///etc/passwd": "is not allowed",
        "http://[x": "cannot download",
    }
    for server.redirect, message in refused.items():
        with pytest.raises(DownloadError, match=message):
            fetch(moved, SHA256, folder / "other")
        assert kept(folder / "other") == []


def test_a_file_in_place_of_the_folder_is_an_error(server, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(WriteError, match="a file has the name of a needed folder"):
        fetch(server.url, SHA256, tmp_path / "cache")


def test_the_cache_folder_is_configurable(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FIREBOX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert downloads_folder() == tmp_path / ".cache" / "firebox"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert downloads_folder() == tmp_path / "x" / "firebox"
    monkeypatch.setenv("FIREBOX_CACHE", str(tmp_path / "mine"))
    assert downloads_folder() == tmp_path / "mine"


def test_a_user_without_a_home_gets_an_error(monkeypatch):
    for name in ("FIREBOX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError))
    with pytest.raises(DownloadError, match="set FIREBOX_CACHE"):
        downloads_folder()
