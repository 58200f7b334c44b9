"""Files are written completely or not at all, even after failures and interruptions."""

import errno
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from firebox.runtime.errors import FormatError, UsageError, WriteError
from firebox.runtime.files import check_writable, read_file, remove_unfinished, sha256, write_file, write_files


def inside(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_existing_files_are_replaced(tmp_path):
    out = tmp_path / "a" / "b"
    assert write_files(out, {"one": b"1", "two": "zwei ✓"}) == [out / "one", out / "two"]
    assert inside(out) == {"one": b"1", "two": "zwei ✓".encode()}
    write_files(out, {"one": b"new"})
    assert inside(out)["one"] == b"new"
    assert write_file(out / "three", b"") == out / "three"
    assert not list(out.glob(".*"))


def test_if_one_file_cannot_be_written_none_is(tmp_path):
    out = tmp_path / "out"
    (out / "taken").mkdir(parents=True)
    (out / "first").write_bytes(b"before")
    with pytest.raises(WriteError, match="taken: a folder has that name"):
        write_files(out, {"first": b"after", "taken": b"2"})
    assert (out / "first").read_bytes() == b"before"
    assert sorted(path.name for path in out.iterdir()) == ["first", "taken"]


def test_new_folders_are_removed_after_a_failure(tmp_path):
    with pytest.raises(WriteError):
        write_files(tmp_path / "new" / "deep", {"fine": b"1", "x" * 300: b"2"})
    assert not list(tmp_path.iterdir())


def test_a_failed_rename_restores_the_old_files(tmp_path, monkeypatch):
    write_files(tmp_path, {"one": b"before", "two": b"before"})
    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if Path(target).name in ("two", "three") and self.suffix == ".part":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(WriteError, match="input/output error"):
        write_files(tmp_path, {"one": b"after", "two": b"after"})
    with pytest.raises(WriteError, match="input/output error"):
        write_files(tmp_path, {"zero": b"new", "three": b"new"})
    assert inside(tmp_path) == {"one": b"before", "two": b"before"}


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stopped(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path / "out", {"one": b"1"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interrupted", ["one", "two", "new"])
def test_an_interruption_right_after_a_rename_restores_the_old_files(tmp_path, monkeypatch, interrupted):
    write_files(tmp_path, {"one": b"before", "two": b"before"})
    rename = Path.replace

    def stopped(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if Path(target).name == interrupted and self.suffix == ".part":
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_files(tmp_path, {"one": b"after", "new": b"after", "two": b"after"})
    assert inside(tmp_path) == {"one": b"before", "two": b"before"}


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_only_temporary_files_of_a_killed_process_are_removed(tmp_path, call):
    own = {".bashrc.old": b"1", ".thesis.part": b"2", ".a.0123456.old": b"3", "b.01234567.part": b"4", "one": b"5"}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".config.old").mkdir()
    (tmp_path / ".folder.01234567.old").mkdir()
    (tmp_path / ".link.01234567.part").symlink_to(tmp_path / "one")
    kept = set(tmp_path.iterdir())
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from firebox.runtime.files import write_files\n"
        "stop = lambda *_: os._exit(0)\n"
        "os.fsync, Path.replace = (stop, Path.replace) if sys.argv[2] == 'fsync' else (os.fsync, stop)\n"
        "write_files(sys.argv[1], {'one': b'new', 'two.csv': b'new'})\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path, call], check=True)
    assert set(tmp_path.iterdir()) > kept
    remove_unfinished(tmp_path)
    assert set(tmp_path.iterdir()) == kept
    assert {name: (tmp_path / name).read_bytes() for name in own} == own
    remove_unfinished(tmp_path / "nowhere")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that root cannot write to either")
def test_errors_name_the_given_path():
    with pytest.raises(WriteError, match=r"^cannot write /proc/self/one: "):
        write_file("/proc/self/one", b"1")
    with pytest.raises(WriteError, match=r"^cannot write into /proc/self: "):
        check_writable("/proc/self")


def test_a_full_disk(tmp_path):
    (tmp_path / "one").write_bytes(b"before")
    code = (
        "import sys\n"
        "from firebox.runtime.files import write_files\n"
        "try: write_files(sys.argv[1], {'one': b'1', 'two': bytes(100_000)})\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    for out in (tmp_path, tmp_path / "new"):
        ran = subprocess.run(
            [sys.executable, "-c", code, out],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        )
        assert ran.stdout.startswith(f"WriteError cannot write {out}/two: no space left")
    assert inside(tmp_path) == {"one": b"before"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(WriteError, match="no permission; choose a folder you can write to"):
            write_files(tmp_path, {"one": b"1"})
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.EACCES, "no permission"), (errno.EROFS, "no permission"), (errno.EDQUOT, "no space left")],
)
def test_write_errors_give_the_reason_and_a_remedy(tmp_path, monkeypatch, code, said):
    def refused(self: Path, mode: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(WriteError, match=f"cannot write .*one: {said}.* choose "):
        write_files(tmp_path / "out", {"one": b"1"})
    assert not list(tmp_path.iterdir())


def test_a_file_with_the_name_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WriteError, match="cannot write"):
            write_files(out, {"one": b"1"})
    assert inside(tmp_path) == {"file": b"kept"}


def test_unreadable_files_are_errors(tmp_path):
    (tmp_path / "big").write_bytes(bytes(100))
    assert read_file(tmp_path / "big") == bytes(100)
    with pytest.raises(FormatError, match="has 100 bytes; the limit is 99"):
        read_file(tmp_path / "big", limit=99)
    with pytest.raises(UsageError, match="no such file"):
        read_file(tmp_path / "none")
    with pytest.raises(UsageError, match="is a folder"):
        read_file(tmp_path)
    with pytest.raises(UsageError, match="not a regular file"):
        read_file("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        read_file(tmp_path / "pipe")
    with pytest.raises(FormatError, match="cannot read"):
        read_file(tmp_path / ("x" * 300))


def test_a_hash_is_sha_256():
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
