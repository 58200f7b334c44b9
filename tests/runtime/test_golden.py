"""The golden pair of a file is checked once per runtime version and processor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import run_apart
from strategies import GraphBuilder

from firebox.export import write_onnx, write_tflite
from firebox.runtime import Session, read_graph
from firebox.runtime.contract import KEY, Golden
from firebox.runtime.errors import FormatError, UsageError, WrongAnswerError, WrongAnswerWarning
from firebox.runtime.inference import golden
from firebox.runtime.inference.backends import OnnxRuntime, TFLite
from firebox.runtime.inference.golden import check_mode, compare_golden
from firebox.runtime.processor import this_processor

BACKENDS = {"model.int8.onnx": OnnxRuntime, "model.int8.tflite": TFLite}
WRONG_OUTPUT = r"the output for the golden image is off by .* \(tolerance .*\) in "


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch, tmp_path):
    """No earlier checks, on disk or in this process."""
    monkeypatch.setenv("FIREBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FIREBOX_CHECK", raising=False)
    monkeypatch.setattr(golden, "_passed", set())


@pytest.fixture(params=BACKENDS)
def file(request, exported) -> Path:
    return exported / request.param


@pytest.fixture
def runs(monkeypatch, file) -> list[int]:
    """A list that grows by one entry per inference."""
    backend, counted = BACKENDS[file.name], []
    run = backend.run

    def count(self, x: np.ndarray) -> np.ndarray:
        counted.append(1)
        return run(self, x)

    monkeypatch.setattr(backend, "run", count)
    return counted


@pytest.fixture
def faulty(monkeypatch, file) -> None:
    """A runtime whose outputs are all the lowest integer."""
    backend = BACKENDS[file.name]
    run = backend.run

    def wrong(self, x: np.ndarray) -> np.ndarray:
        answer = run(self, x)
        return np.full_like(answer, np.iinfo(answer.dtype).min)

    monkeypatch.setattr(backend, "run", wrong)


def result(model: Path | bytes, **options) -> str:
    with Session(model, **options) as session:
        return session.facts.golden


def test_a_pair_is_checked_once_and_remembered(file, runs, tmp_path, monkeypatch):
    assert (result(file), len(runs)) == ("passed", 1)
    assert [path.is_file() for path in (tmp_path / "cache").rglob("golden/*/*")] == [True]
    assert (result(file), len(runs)) == ("remembered", 1)
    # Another process and another file name change nothing.
    golden._passed.clear()
    assert (result(file.read_bytes(), check="strict"), len(runs)) == ("remembered", 1)
    monkeypatch.setenv("FIREBOX_CACHE", str(tmp_path / "elsewhere"))
    assert (result(file), len(runs)) == ("passed", 2)


def test_facts_hold_backend_processor_and_weights(file):
    with Session(file) as session:
        facts = session.facts
    assert facts.backend == session.backend
    assert facts.version[0].isdigit()
    assert facts.processor == str(this_processor())
    assert facts.weights == "as in the file" or facts.weights.startswith("uint8 in ")
    assert facts.to_json() == {**vars(facts)}


def test_a_new_version_processor_or_weight_form_is_checked_again(file, runs, monkeypatch):
    assert (result(file), len(runs)) == ("passed", 1)
    with monkeypatch.context() as other:
        other.setattr("firebox.runtime.inference.session.backend_version", lambda name: "99.0")
        assert (result(file), len(runs)) == ("passed", 2)
        assert result(file) == "remembered"
    with monkeypatch.context() as other:
        processor = replace(this_processor(), model="another")
        other.setattr("firebox.runtime.inference.session.this_processor", lambda: processor)
        assert (result(file), len(runs)) == ("passed", 3)
    with monkeypatch.context() as other:
        form = property(lambda backend: "in another form", lambda backend, weights: None)
        other.setattr(BACKENDS[file.name], "weights", form, raising=False)
        assert (result(file), len(runs)) == ("passed", 4)
    assert result(file) == "remembered"


@pytest.mark.usefixtures("faulty")
def test_a_faulty_runtime_warns_each_time_and_is_not_remembered(file, tmp_path):
    for _ in range(2):
        with pytest.warns(WrongAnswerWarning, match=WRONG_OUTPUT) as caught:
            assert result(file) == "failed"
        (warning,) = caught
        assert warning.filename == __file__
        assert "\n" not in str(warning.message)
        assert file.name in str(warning.message)
        assert str(this_processor()) in str(warning.message)
        assert "FIREBOX_CHECK=off" in str(warning.message)
        with pytest.raises(WrongAnswerError, match=WRONG_OUTPUT):
            Session(file, check="strict")
    assert not list((tmp_path / "cache").rglob("golden/*/*"))


@pytest.mark.usefixtures("faulty")
def test_the_environment_variable_sets_the_default_mode(file, monkeypatch):
    monkeypatch.setenv("FIREBOX_CHECK", "strict")
    with pytest.raises(WrongAnswerError):
        Session(file)
    with pytest.warns(WrongAnswerWarning):
        assert result(file, check="warn") == "failed"
    monkeypatch.setenv("FIREBOX_CHECK", "off")
    assert result(file) == "off"
    monkeypatch.setenv("FIREBOX_CHECK", "warn")
    with pytest.warns(WrongAnswerWarning):
        assert result(file) == "failed"


def test_check_off_runs_no_inference(file, runs):
    assert (result(file, check="off"), runs) == ("off", [])
    assert result(file) == "passed"


def test_unknown_modes_are_usage_errors(exported, monkeypatch):
    assert check_mode(None) == "warn"
    with pytest.raises(UsageError, match="check 'loud' is not one of warn, strict, off"):
        Session(exported / "model.int8.onnx", check="loud")
    monkeypatch.setenv("FIREBOX_CHECK", "yes")
    with pytest.raises(UsageError, match="check 'yes' is not one of"):
        Session(exported / "model.int8.onnx")
    assert check_mode("off") == "off"
    monkeypatch.setenv("FIREBOX_CHECK", "")
    assert check_mode(None) == "warn"


def test_files_without_contract_or_pair_are_not_checked(file, runs):
    with Session(file, check="off") as session:
        contract = session.contract
    write, graph = (write_onnx if file.suffix == ".onnx" else write_tflite), read_graph(file)
    assert (result(write(graph), check="strict"), runs) == ("none", [])
    silent = write(graph, {KEY: replace(contract, golden=None).to_bytes()})
    assert (result(silent, check="strict"), result(silent, check="off"), runs) == ("none", "none", [])


def test_a_borrowed_contract_has_no_pair(exported):
    from firebox.model_zoo import load_network

    network = load_network("squeezenet_micro", random_init=True, num_classes=3, input_size=(24, 24))
    build = GraphBuilder((1, 24, 24, 3))
    with Session(write_onnx(build.graph(build.linear("input", 3))), like=network, check="strict") as session:
        assert session.facts.golden == "none"


def test_without_a_writable_cache_the_process_remembers(file, runs, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FIREBOX_CACHE", str(tmp_path / "file" / "cache"))
    assert (result(file), result(file), len(runs)) == ("passed", "remembered", 1)
    golden._passed.clear()
    monkeypatch.delenv("FIREBOX_CACHE")
    monkeypatch.setattr(golden, "cache_folder", lambda: None)
    assert (result(file), result(file), len(runs)) == ("passed", "remembered", 2)
    assert (tmp_path / "file").read_text() == "in the way"


def test_nan_and_infinity_fail():
    pair = Golden(np.zeros((1, 1, 3), np.uint8), (1.0, 2.0), 0.5)
    for answer, passed in (((1.5, 2.0), True), ((1.6, 2.0), False), ((np.nan, 2.0), False), ((1.0, np.inf), False)):
        check = compare_golden(pair, lambda pixels, answer=answer: np.array(answer, np.float32))
        assert check.passed is passed
    assert compare_golden(pair, lambda pixels: np.array([np.nan, 2.0], np.float32)).max_abs > 1e30


def test_a_float_file_that_returns_nan_fails(exported, monkeypatch):
    def nothing(self, x: np.ndarray) -> np.ndarray:
        return np.full((1, 3), np.nan, np.float32)

    monkeypatch.setattr(OnnxRuntime, "run", nothing)
    with pytest.raises(WrongAnswerError):
        Session(exported / "model.float32.onnx", check="strict")


def test_an_output_of_another_length_is_an_error(exported, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "run", lambda self, x: np.zeros((1, 2), np.float32))
    with pytest.raises(FormatError, match="returned 2 values for 3 classes"):
        Session(exported / "model.float32.onnx")


def wrong_pair(exported: Path, folder: Path) -> Path:
    """A file with a wrong golden output."""
    source = exported / "model.int8.onnx"
    with Session(source, check="off") as session:
        contract = session.contract
    assert contract.golden is not None
    pair = replace(contract.golden, output=tuple(value + 100 for value in contract.golden.output))
    path = folder / "wrong.onnx"
    path.write_bytes(write_onnx(read_graph(source), {KEY: replace(contract, golden=pair).to_bytes()}))
    return path


def test_the_command_line_warns_in_one_line_and_continues(exported, noise, tmp_path):
    path, image = wrong_pair(exported, tmp_path), noise / "class0" / "0.png"
    ran = run_apart("classify", path, image, image)
    assert ran.code == 0
    assert "class0" in ran.out
    (line,) = ran.err.splitlines()
    assert line.startswith(f"warning: {path}: the output for the golden image")
    assert "the output for the golden image is off by" in line


def test_the_command_line_uses_the_environment_variable(exported, noise, tmp_path, command):
    path, image = wrong_pair(exported, tmp_path), noise / "class0" / "0.png"
    strict = command("classify", path, image, environment={"FIREBOX_CHECK": "strict"})
    assert (strict.code, strict.out) == (1, "")
    assert strict.err.startswith(f"error: {path}: the output for the golden image")
    off = command("classify", path, image, environment={"FIREBOX_CHECK": "off"})
    assert (off.code, off.err) == (0, "")
    bad = command("classify", path, image, environment={"FIREBOX_CHECK": "perhaps"})
    assert (bad.code, len(bad.err.splitlines())) == (2, 1)


def test_layers_that_may_still_saturate_are_reported(monkeypatch):
    monkeypatch.setattr("firebox.runtime.onnx_session.kernels_saturate", lambda: True)
    node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("x", onnx.TensorProto.UINT8, (1, 4)),
            ("w", onnx.TensorProto.INT8, (4, 2)),
            ("y", onnx.TensorProto.INT32, (1, 2)),
        )
    ]
    constant = onnx.helper.make_node("Identity", ["stored"], ["w"])
    stored = onnx.numpy_helper.from_array(np.full((4, 2), 127, np.int8), "stored")
    graph = onnx.helper.make_graph([constant, node], "computed", ends[:1], ends[2:], [stored])
    opsets = [onnx.helper.make_opsetid("", 13)]
    data = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    with pytest.warns(WrongAnswerWarning, match="1 layer may saturate in onnxruntime"):
        Session(data).close()
    with pytest.raises(WrongAnswerError, match="1 layer may saturate"):
        Session(data, check="strict")
    Session(data, check="off").close()
