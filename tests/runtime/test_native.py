"""The backend ``native``, and libraries that were not built here."""

import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from firebox.export import write_onnx
from firebox.runtime import Session, read_graph
from firebox.runtime.compile import build_library
from firebox.runtime.errors import FormatError, MissingCompilerError, UnsupportedError, UsageError, WriteError
from firebox.runtime.graph import Graph, ops
from firebox.runtime.inference.native_speed import measure_native

_COMPILERS = ("cc", "gcc", "clang")
pytestmark = pytest.mark.skipif(not any(map(shutil.which, _COMPILERS)), reason="no C compiler is installed")

OTHERS = {"model.int8.tflite": "litert", "uint8/model.int8.tflite": "litert", "model.int8.onnx": "onnxruntime"}


@pytest.fixture(scope="module")
def tflite(exported, own_cache) -> Path:
    """An int8 file; the module is skipped on processors for which there is only plain C."""
    try:
        build_library(exported / "model.int8.tflite")
    except UnsupportedError as error:
        pytest.skip(str(error))
    return exported / "model.int8.tflite"


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (50, 40, 3), np.uint8)


def inputs(session: Session, count: int) -> list[np.ndarray]:
    limits = np.iinfo(session.input_dtype)
    rng = np.random.default_rng(0)
    shape = session.input_shape
    return [rng.integers(limits.min, limits.max, shape, limits.dtype, endpoint=True) for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("file", OTHERS)
def test_integers_are_those_of_the_other_runtimes(exported, tflite, image, file, threads):
    with Session(exported / file, "native", threads) as session, Session(exported / file, OTHERS[file]) as other:
        assert session.backend == session.facts.backend == "native"
        assert (session.input_shape, session.input_dtype) == (other.input_shape, other.input_dtype)
        assert session.contract.to_bytes() == other.contract.to_bytes()
        for x in inputs(session, 20):
            found = session.run(x)
            assert (found.shape, found.dtype) == (other.run(x).shape, other.run(x).dtype)
            np.testing.assert_array_equal(found, other.run(x))
        assert session.classify(image) == other.classify(image)
        assert session.facts.golden in ("passed", "remembered")
        assert session.check().max_abs == other.check().max_abs


def test_an_output_of_several_pixels_keeps_the_layout_of_the_file(tflite):
    whole = read_graph(tflite)
    last = max(index for index, op in enumerate(whole.ops) if isinstance(op, ops.MaxPool))
    operations = whole.ops[: last + 1]
    graph = Graph.of("cut", whole.tensors.values(), operations, whole.inputs, [operations[-1].output])
    with Session(write_onnx(graph), "native") as session, Session(write_onnx(graph), "onnxruntime") as other:
        for x in inputs(session, 5):
            found = session.run(x)
            assert found.flags.c_contiguous
            np.testing.assert_array_equal(found, other.run(x), strict=True)


def test_read_only_inputs_and_new_outputs(tflite):
    with Session(tflite, "native") as session:
        x, other = inputs(session, 2)
        x.setflags(write=False)
        first = session.run(x)
        kept = first.copy()
        session.run(other)
        np.testing.assert_array_equal(first, kept)


def test_a_library_is_compiled_once(exported, tflite, tmp_path, monkeypatch):
    log = tmp_path / "log"
    compiler = tmp_path / "logging-cc"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    Session(tflite, "native")
    lines = log.read_text()
    assert "-shared" in lines
    assert "logging-cc" not in lines
    Session(tflite, "native")
    Session(tflite.read_bytes(), "native")
    assert log.read_text() == lines


def test_without_a_compiler(tflite, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingCompilerError, match=r"^no C compiler; install one: apt-get install gcc libc6-dev$"):
        Session(tflite, "native")
    monkeypatch.setenv("CC", "cc-of-nobody -m64")
    with pytest.raises(MissingCompilerError, match="CC is 'cc-of-nobody -m64', which is not installed"):
        Session(tflite, "native")


def test_a_compiler_that_fails(tflite, monkeypatch):
    monkeypatch.setenv("CC", "false")
    with pytest.raises(MissingCompilerError, match="the C compiler false failed: exit code 1; set CC"):
        Session(tflite, "native")
    monkeypatch.setenv("CC", "true")
    with pytest.raises(MissingCompilerError, match="the C compiler true wrote nothing; set CC"):
        Session(tflite, "native")


@pytest.mark.parametrize(
    ("written", "message"), [("rubbish", "wrote no shared library"), ("\\177ELF rubbish", "cannot be loaded")]
)
def test_a_library_that_does_not_load_is_not_handed_out(tflite, tmp_path, command, written, message):
    compiler = tmp_path / "cc"
    compiler.write_text(
        f'#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && printf \'{written}\' > "$2"; shift; done; true\n'
    )
    compiler.chmod(0o700)
    ran = command("compile", tflite, "-o", tmp_path / "out.so", environment={"CC": str(compiler)})
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert message in ran.err
    assert not (tmp_path / "out.so").exists()


def test_a_file_that_cannot_be_compiled(exported, tflite):
    with pytest.raises(UnsupportedError, match=r"is float32.*--precision int8"):
        Session(exported / "model.float32.tflite", "native")


def test_a_processor_with_plain_c_alone(tflite):
    environment = os.environ | {"FIREBOX_CPU_FEATURES": ""}
    code = f"from firebox.runtime import Session; Session({str(tflite)!r}, 'native')"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "plain C is slow; use another backend" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("file", ["model.int8.tflite", "model.int8.onnx"])
def test_a_library_is_a_model(exported, tflite, image, tmp_path, file):
    path = tmp_path / "model.so"
    build_library(exported / file, path)
    with Session(path) as session, Session(exported / file, "native") as same:
        assert session.backend == "native"
        assert session.contract.to_bytes() == same.contract.to_bytes()
        assert session.classify(image) == same.classify(image)
        assert session.op_times_ms(inputs(session, 1)[0], 1) is None
    with pytest.raises(UsageError, match=r"backend 'litert' does not run compiled libraries; use native"):
        Session(path, "litert")
    with pytest.raises(UsageError, match=r"built for 1 threads, not for 2; build it again"):
        Session(path, threads=2)


def test_no_other_library_is_loaded(tflite, tmp_path):
    path = tmp_path / "model.so"
    data = build_library(tflite, path).path.read_bytes()
    for place in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(FormatError, match="not a library that firebox built on this machine"):
            Session(path)
    own = next(Path(importlib.machinery.PathFinder.find_spec("_ctypes").origin).parent.glob("_ctypes*.so"))  # pyright: ignore
    shutil.copy(own, path)
    with pytest.raises(FormatError, match="not a library that firebox built on this machine"):
        Session(path)
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="not a library that firebox built on this machine"):
        Session(path)


@pytest.fixture
def own_store(tflite, tmp_path, monkeypatch) -> Path:
    """A library in a store of its own, copied from the common one to save a compilation, and a copy of it elsewhere."""
    shutil.copytree(build_library(tflite).path.parent, tmp_path / "cache" / "native")
    monkeypatch.setenv("FIREBOX_CACHE", str(tmp_path / "cache"))
    return build_library(tflite, tmp_path / "model.so").path


def replace_file(path: Path, content: bytes | str) -> None:
    """Change a file as a new one, so that a library in memory stays whole."""
    new = path.with_suffix(".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.chmod(0o600)
    new.replace(path)


def test_changes_in_the_store_are_seen(own_store, tflite, tmp_path):
    data = own_store.read_bytes()
    replace_file(own_store, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FormatError, match="its bytes have changed"):
        Session(tmp_path / "model.so")
    # From the model it is compiled again.
    Session(tflite, "native")
    assert own_store.read_bytes() == data
    Session(tmp_path / "model.so")
    # The same bytes in a new file, as after a restored backup.
    replace_file(own_store, data)
    Session(tmp_path / "model.so")


def test_edited_records_are_seen(own_store, tmp_path):
    record = own_store.with_suffix(".json")
    digest, _, text = record.read_text().partition("\n")
    values = json.loads(text)
    values["record"]["arena_bytes"] = 16
    for edited in (json.dumps(values), text[:-1], "[]", ""):
        replace_file(record, f"{digest}\n{edited}")
        with pytest.raises(FormatError, match="its record has changed"):
            Session(tmp_path / "model.so")
    record.unlink()
    with pytest.raises(FormatError, match="no such file"):
        Session(tmp_path / "model.so")


def test_an_edited_contract_is_seen(own_store, tmp_path):
    replace_file(own_store.with_suffix(".contract"), "{}")
    with pytest.raises(FormatError, match="its contract has changed"):
        Session(tmp_path / "model.so")


def test_files_that_others_can_write_to(own_store, tmp_path):
    own_store.chmod(0o622)
    with pytest.raises(FormatError, match="others can write to it"):
        Session(tmp_path / "model.so")
    own_store.chmod(0o600)
    own_store.with_suffix(".json").chmod(0o660)
    with pytest.raises(FormatError, match="others can write to it"):
        Session(tmp_path / "model.so")
    own_store.parent.chmod(0o777)
    with pytest.raises(
        WriteError, match="not a folder that only this user can write to; remove it, or set FIREBOX_CACHE"
    ):
        Session(tmp_path / "model.so")
    own_store.parent.chmod(0o700)
    cache = own_store.parent.parent
    mode = cache.stat().st_mode & 0o777
    cache.chmod(0o777)
    with pytest.raises(WriteError, match=r"anyone can replace files in .*; forbid others to write there"):
        Session(tmp_path / "model.so")
    # In a sticky folder only the owner of a file can replace it.
    cache.chmod(0o1777)
    own_store.with_suffix(".json").chmod(0o600)
    Session(tmp_path / "model.so").close()
    cache.chmod(mode)
    elsewhere = tmp_path / "elsewhere"
    own_store.parent.rename(elsewhere)
    own_store.parent.symlink_to(elsewhere)
    with pytest.raises(WriteError, match="not a folder that only this user can write to"):
        Session(tmp_path / "model.so")


def test_files_of_the_store_are_private(own_store):
    assert own_store.parent.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in own_store.parent.iterdir()} == {0o600}


def test_auto_takes_what_was_measured_to_be_faster(own_store, tflite, monkeypatch):
    # Compiled, not measured.
    assert Session(tflite).backend == "litert"
    best = measure_native(tflite.read_bytes(), runs=3)
    assert set(best) == {"native", "litert"}
    assert Session(tflite).backend == min(best, key=lambda name: best[name])
    with monkeypatch.context() as other:
        other.setattr("firebox.runtime.inference.native.backend_version", lambda name: "99.0")
        assert Session(tflite).backend == "litert"
    monkeypatch.setenv("PATH", "")
    assert Session(tflite).backend == "litert"


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_a_session(tflite, threads):
    with Session(tflite, "native", threads) as session:
        xs = inputs(session, 40)
        expected = [session.run(x) for x in xs]
        with ThreadPoolExecutor(4) as pool:
            for found, wanted in zip(pool.map(session.run, xs * 5), expected * 5, strict=True):
                np.testing.assert_array_equal(found, wanted)


_FORK = """
import os, sys
import numpy as np
from firebox.runtime import Session
session = Session(sys.argv[1], "native", threads=int(sys.argv[2]))
x = np.full(session.input_shape, 7, session.input_dtype)
before = session.run(x)
child = os.fork()
same = bool((session.run(x) == before).all())
if not child:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
session.close()
sys.exit(0 if same and status == 0 else 1)
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_session_works_after_a_fork(tflite, threads):
    assert subprocess.run([sys.executable, "-c", _FORK, str(tflite), threads]).returncode == 0


_CLOSE = """
import sys
from pathlib import Path
import numpy as np
from firebox.runtime import Session
def threads():
    return len(list(Path("/proc/self/task").iterdir()))
session = Session(sys.argv[1], "native", threads=3, check="off")
x = np.zeros(session.input_shape, session.input_dtype)
before = threads()
session.run(x)
assert threads() == before + 2, threads()
session.close()
assert threads() == before, threads()
# Left open: the process ends all the same.
Session(sys.argv[1], "native", threads=3, check="off").run(x)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list threads")
def test_closing_a_session_ends_its_threads(tflite):
    assert subprocess.run([sys.executable, "-c", _CLOSE, str(tflite)]).returncode == 0


def test_a_library_for_two_threads(tflite, tmp_path):
    path = tmp_path / "model.so"
    build_library(tflite, path, threads=2)
    with Session(path) as one, Session(path, threads=2) as two:
        for x in inputs(one, 5):
            np.testing.assert_array_equal(one.run(x), two.run(x))
    with pytest.raises(UsageError, match=r"built for 2 threads, not for 3; build it again"):
        Session(path, threads=3)


def test_a_closed_session(tflite):
    session = Session(tflite, "native")
    x = inputs(session, 1)[0]
    session.close()
    with pytest.raises(UsageError, match="is closed"):
        session.run(x)


def test_times_of_operations(tflite, command):
    with Session(tflite, "native") as session:
        times = session.op_times_ms(inputs(session, 1)[0], 3)
    assert times
    assert len(times) > 10
    assert all(ms >= 0 for ms in times.values())
    assert sum(times.values()) > 0
    ran = command("profile", tflite, "--backend", "native", "--seconds", "0.1", "--json")
    found = json.loads(ran.out)
    assert found["backend"] == "native"
    assert found["facts"]["weights"].startswith("compiled for ")
    assert set(found["op_ms"]) == set(times)


def test_the_command_writes_a_library_and_measures_it(own_store, tflite, tmp_path, command):
    out = tmp_path / "out.so"
    ran = command("compile", tflite, "-o", out, "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["files"], found["threads"]) == (0, [str(out)], 1)
    assert set(found["best_ms"]) == {"native", "litert"}
    assert Session(out).backend == "native"
    assert Session(tflite).backend == min(found["best_ms"], key=lambda name: found["best_ms"][name])
    ran = command("compile", tflite, "-o", out)
    assert "for this machine alone" in " ".join(ran.out.split())
    for options, message in (
        (("-o", out, "--isa", "avx2"), "out.so takes no --isa; leave it out"),
        (("-o", out, "--sram", "1MiB"), "out.so takes no memory budget; leave it out"),
        (("-o", tmp_path / "out.c", "--threads", 2), "leave --threads out"),
        (("-o", out, "--threads", 0), "threads is 0; give 1 to 128"),
    ):
        ran = command("compile", tflite, *options)
        assert ran.code == 2
        assert message in ran.err
    assert command("compile", tflite, "-o", out, environment={"PATH": "", "CC": ""}).code == 1
