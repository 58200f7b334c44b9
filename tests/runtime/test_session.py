import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from strategies import GraphBuilder

from firebox.export import write_onnx, write_tflite
from firebox.runtime import Contract, Preprocessing, Session
from firebox.runtime.contract import KEY, Golden, TensorSpec
from firebox.runtime.errors import DataError, FireboxError, FormatError, MissingExtraError, UsageError
from firebox.runtime.graph import Graph, Tensor, ops

FILES = (
    "model.float32.onnx",
    "model.int8.onnx",
    "model.float32.tflite",
    "model.int8.tflite",
    "uint8/model.int8.tflite",
)
BACKENDS = {"onnx": ["onnxruntime"], "tflite": ["litert", "tflite-runtime"]}
RUNS = [(file, backend) for file in FILES for backend in BACKENDS[file.rpartition(".")[2]]]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (50, 40, 3), np.uint8)


@pytest.mark.parametrize(("file", "backend"), RUNS)
def test_every_file_runs_in_every_backend(exported, image, tmp_path, file, backend):
    with Session(exported / file, backend) as session:
        assert session.backend == backend
        assert session.classes == ("class0", "class1", "class2")
        answer = session.predict(image)
        assert (answer.shape, answer.dtype) == ((3,), np.float32)
        pixels = session.preprocessing.crop(image)
        np.testing.assert_array_equal(session.predict_pixels(pixels), answer)
        Image.fromarray(image).save(tmp_path / "image.png")
        for same in (tmp_path / "image.png", (tmp_path / "image.png").read_bytes(), Image.fromarray(image)):
            np.testing.assert_array_equal(session.predict(same), answer)
        best, *others = session.classify(image)
        assert best.index == answer.argmax()
        assert best.label == f"class{best.index}"
        assert best.score >= others[0].score >= others[1].score
        assert sum(found.score for found in (best, *others)) == pytest.approx(1)
        assert session.check().passed
    with Session((exported / file).read_bytes(), backend) as session:
        np.testing.assert_array_equal(session.predict(image), answer)


def test_files_and_backends_agree(exported, image):
    answers = {run: Session(exported / run[0], run[1]).predict(image) for run in RUNS}
    truth = answers["model.float32.onnx", "onnxruntime"]
    step = Session(exported / "model.int8.tflite").contract.output.scale
    for (file, backend), answer in answers.items():
        np.testing.assert_allclose(answer, truth, atol=1e-4 if "float32" in file else 12 * step, err_msg=backend)
    for backend in BACKENDS["tflite"]:
        np.testing.assert_array_equal(answers[FILES[3], backend], answers[FILES[4], backend])


@pytest.mark.parametrize("file", FILES)
def test_run_takes_the_shape_and_type_of_the_file(exported, file):
    with Session(exported / file) as session:
        spec = session.contract.input
        assert (session.input_shape, session.input_dtype) == (spec.shape, spec.dtype)
        integer = "uint8" if file.startswith("uint8") or file.endswith("int8.onnx") else "int8"
        assert spec.dtype == ("float32" if "float32" in file else integer)
        assert session.run(np.zeros(spec.shape, spec.dtype)).shape == session.contract.output.shape
        with pytest.raises(UsageError, match=r"takes .* got float64"):
            session.run(np.zeros(spec.shape, np.float64))
        with pytest.raises(UsageError, match="use classify"):
            session.run(np.zeros((1, 3, 9, 9), spec.dtype))
        with pytest.raises(UsageError, match="top is 0"):
            session.classify(np.zeros((9, 9, 3), np.uint8), top=0)


@pytest.mark.parametrize(("file", "backend"), [RUNS[1], RUNS[5], RUNS[6]])
def test_threads_get_the_same_outputs_as_one_thread(exported, file, backend):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (24, 24, 3), np.uint8) for _ in range(24)]
    with Session(exported / file, backend) as session:
        alone = [session.predict_pixels(pixels) for pixels in images]
        together = threading.Barrier(4)

        def work(number: int) -> list[np.ndarray]:
            together.wait()
            return [session.predict_pixels(pixels) for pixels in images[number:] + images[:number]]

        with ThreadPoolExecutor(4) as pool:
            for number, found in enumerate(pool.map(work, range(4))):
                for answer, expected in zip(found, alone[number:] + alone[:number], strict=True):
                    np.testing.assert_array_equal(answer, expected)


def test_outputs_survive_the_next_inference(exported):
    for file, backend in RUNS:
        with Session(exported / file, backend) as session:
            random = np.random.default_rng(0)
            first = session.predict_pixels(random.integers(0, 256, (24, 24, 3), np.uint8))
            kept = first.copy()
            session.predict_pixels(random.integers(0, 256, (24, 24, 3), np.uint8))
            np.testing.assert_array_equal(first, kept)


def test_a_closed_session_raises(exported, image):
    for file in FILES[1], FILES[3]:
        with Session(exported / file) as session:
            pass
        session.close()
        for use in (lambda: session.classify(image), lambda: session.input_shape, session.check):
            with pytest.raises(UsageError, match="is closed; open a new"):
                use()


def test_operations_are_timed_if_the_runtime_supports_it(exported):
    with Session(exported / FILES[1]) as session:
        times = session.op_times_ms(np.zeros(session.input_shape, np.uint8), runs=2)
        assert times
        assert all(value >= 0 for value in times.values())
    with Session(exported / FILES[3]) as session:
        assert session.op_times_ms(np.zeros(session.input_shape, np.int8), runs=2) is None


@pytest.mark.parametrize(
    ("file", "options", "said"),
    [
        (FILES[0], {"backend": "litert"}, "does not run .onnx files; use onnxruntime"),
        (FILES[2], {"backend": "onnxruntime"}, "does not run .tflite files; use litert or tflite-runtime"),
        (FILES[0], {"backend": "tensorrt"}, "'tensorrt' is not one of auto, onnxruntime"),
        (FILES[0], {"threads": 0}, "threads is 0; give 1 to 128"),
        (FILES[2], {"threads": 100_000}, "threads is 100000; give 1 to 128"),
        ("none.onnx", {}, "no such file"),
        ("uint8", {}, "ends neither in .onnx nor in .tflite"),
        ("export.json", {}, "ends neither in .onnx nor in .tflite"),
    ],
)
def test_invalid_arguments_are_usage_errors(exported, file, options, said):
    with pytest.raises(UsageError, match=said):
        Session(exported / file, **options)


def test_a_missing_package_is_reported_with_its_extra(exported, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'firebox\[litert\]'"):
        Session(exported / FILES[3], "litert")


def test_networks_with_two_inputs_are_rejected():
    both = [Tensor(name, (1, 4, 4, 2)) for name in ("a", "b", "sum")]
    graph = Graph.of("two", both, [ops.Add(("a", "b"), "sum")], ["a", "b"], ["sum"])
    for data in (write_onnx(graph), write_tflite(graph)):
        with pytest.raises(FormatError, match="2 inputs and 1 outputs"):
            Session(data)


def test_a_file_without_metadata_runs_but_does_not_classify(image):
    build = GraphBuilder((1, 4, 4, 2))
    graph = build.graph(build.conv("input", 3))
    for data in (write_onnx(graph), write_tflite(graph)):
        with Session(data) as session:
            assert session.run(np.zeros(session.input_shape, np.float32)).size == 48
            with pytest.raises(UsageError, match="has no firebox metadata; pass like="):
                session.classify(image)


def small_contract(**changes) -> Contract:
    preprocessing = Preprocessing(size=(4, 4), mean=(0.1, 0.2, 0.3))
    shape = (1, 4, 4, 3)
    golden = Golden(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), (1.0, -2.5), 0.25)
    source, target = TensorSpec("float32", shape), TensorSpec("float32", (1, 1, 1, 2))
    contract = Contract(
        "small", preprocessing, ("no", "ja"), ("n1", "n2"), "NHWC", "logits", source, target, "5f", golden
    )
    return replace(contract, **changes)


def test_a_contract_survives_a_round_trip():
    contract = small_contract()
    found = Contract.from_bytes(contract.to_bytes())
    assert found.golden is not None
    assert contract.golden is not None
    np.testing.assert_array_equal(found.golden.pixels, contract.golden.pixels)
    assert replace(found, golden=None) == replace(contract, golden=None)
    assert (found.golden.output, found.golden.tolerance) == (contract.golden.output, contract.golden.tolerance)
    assert found.to_bytes() == contract.to_bytes()
    assert replace(Contract.from_bytes(replace(contract, golden=None).to_bytes())).golden is None


@pytest.mark.parametrize("spec", [TensorSpec("uint8", (1,), 0.5, 128), TensorSpec("int8", (1,), 0.5, 0)])
def test_quantization_rounds_and_saturates(spec):
    reals = np.array([-1000.0, -0.5, 0.24, 0.25, 0.75, 1000.0], np.float32)
    integers = spec.encode(reals)
    assert str(integers.dtype) == spec.dtype
    limits = np.iinfo(spec.dtype)
    assert (integers[0], integers[-1]) == (limits.min, limits.max)
    assert list(spec.decode(integers[1:-1])) == [-0.5, 0.0, 0.0, 1.0]


def with_contract(changes: dict) -> list[bytes]:
    """A small network in both formats, whose contract has the given changes."""
    build = GraphBuilder((1, 4, 4, 3))
    graph = build.graph(build.linear("input", 2))
    files = []
    for write, layout, shape in ((write_onnx, "NCHW", (1, 3, 4, 4)), (write_tflite, "NHWC", (1, 4, 4, 3))):
        contract = small_contract(layout=layout, input=TensorSpec("float32", shape))
        values = json.loads(contract.to_bytes())
        for path, value in changes.items():
            *parents, key = path.split(".")
            place = values
            for parent in parents:
                place = place[parent]
            place[key] = value
        files.append(write(graph, {KEY: json.dumps(values).encode()}))
    return files


HOSTILE = [
    {"version": 2},
    {"preprocessing.size": [1_000_000_000, 1_000_000_000]},
    {"preprocessing.size": [4.5, 4]},
    {"preprocessing.size": [4]},
    {"preprocessing.size": [4, 4, 4]},
    {"preprocessing.size": "44"},
    {"preprocessing.size": None},
    {"preprocessing.size": [True, True]},
    {"preprocessing.resize": 1e300},
    {"preprocessing.resize": "256"},
    {"preprocessing.resize": 256.5},
    {"preprocessing.mean": [1e400, 0, 0]},
    {"preprocessing.mean": [[1], [2], [3]]},
    {"preprocessing.std": [0, 1, 1]},
    {"preprocessing.scale": "1"},
    {"preprocessing.channels": "RGBA"},
    {"preprocessing.channels": 3},
    {"preprocessing": 5},
    {"preprocessing": {}},
    {"classes": ["only one"]},
    {"classes": []},
    {"classes": 7},
    {"layout": "NWHC"},
    {"layout": 4},
    {"answer": "poem"},
    {"input": None},
    {"input.dtype": "float16"},
    {"input.dtype": "object"},
    {"input.dtype": 3},
    {"input.shape": [1, 2]},
    {"input.shape": 4},
    {"input.scale": 0.0},
    {"input.scale": "1"},
    {"output.scale": -1.0},
    {"output.scale": 1e400},
    {"output.zero_point": 10**30},
    {"output.dtype": "complex64"},
    {"golden.pixels": "AAAA"},
    {"golden.pixels": "€"},
    {"golden.pixels": 4},
    {"golden.output": [1.0]},
    {"golden.output": ["one", "two"]},
    {"golden.tolerance": "wide"},
    {"golden": [1]},
    {"surprise": 1},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=lambda changes: next(f"{k}={v!r}" for k, v in changes.items()))
def test_a_malformed_contract_is_an_error_of_one_line(changes, image):
    for data in with_contract(changes):
        with pytest.raises(FireboxError) as error:
            session = Session(data)
            session.check()
            session.classify(image)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"version": 1}'])
def test_bytes_that_are_not_a_contract_are_rejected(text):
    with pytest.raises(FormatError, match="contract is"):
        Contract.from_bytes(text)


def test_a_changed_golden_pair_fails(exported):
    from firebox.runtime import read_graph

    for file, backend in RUNS:
        path = exported / file
        with Session(path, backend) as session:
            contract = session.contract
        assert contract.golden is not None
        output = tuple(value + 3 * contract.golden.tolerance for value in contract.golden.output)
        wrong = replace(contract, golden=replace(contract.golden, output=output))
        write = write_onnx if file.endswith(".onnx") else write_tflite
        with Session(write(read_graph(path), {KEY: wrong.to_bytes()}), backend, check="off") as session:
            check = session.check()
            assert not check.passed
            assert check.max_abs == pytest.approx(3 * contract.golden.tolerance, rel=0.9)
        silent = replace(contract, golden=None)
        with (
            Session(write(read_graph(path), {KEY: silent.to_bytes()}), backend) as session,
            pytest.raises(UsageError, match="no golden pair"),
        ):
            session.check()


def test_probabilities_get_no_softmax(image):
    build = GraphBuilder((1, 4, 4, 3))
    from firebox.runtime.graph import ops

    graph = build.graph(build.add(ops.Softmax, build.linear("input", 2)))
    contract = small_contract(answer="probabilities")
    with Session(write_tflite(graph, {KEY: contract.to_bytes()}), check="off") as session:
        scores = {found.index: found.score for found in session.classify(image)}
        np.testing.assert_allclose([scores[0], scores[1]], session.predict(image))


@pytest.mark.parametrize("bad", [b"no image", np.zeros((4, 4), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_a_session_rejects_invalid_images(exported, bad):
    with Session(exported / FILES[3]) as session, pytest.raises(DataError):
        session.classify(bad)
