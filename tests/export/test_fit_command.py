"""``firebox fit`` and ``firebox export --sram``: files, output, exit codes, and errors for bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from strategies import GraphBuilder, in_any_8_bits

from firebox.export import Export, ExportConfig, Tolerance, calibrate, export, quantize, write_onnx, write_tflite
from firebox.export.fit import DoesNotFitError
from firebox.model_zoo import load_network
from firebox.runtime import Session, open_images, plan, read_graph
from firebox.runtime.graph import Graph, Tensor, ops


@pytest.fixture(scope="module")
def model(exported) -> Path:
    return exported / "model.int8.tflite"


@pytest.fixture(scope="module")
def budget(model) -> int:
    """A budget below the model's demand and above the smallest possible one."""
    total = plan(model).total_bytes
    assert total is not None
    return total * 9 // 10


@pytest.fixture(scope="module")
def fitted(command, model, budget, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("fitted") / "out"
    ran = command("fit", model, "--sram", budget, "-o", out, "--json")
    assert ran.code == 0, ran.err
    return out, json.loads(ran.out)


def test_a_fit_is_written_in_both_formats_with_its_reports(fitted, model, budget):
    out, printed = fitted
    planned = plan(out / "model.int8.fit.tflite")
    assert planned.total_bytes == printed["after"]["total_bytes"] == printed["measured"]["total_bytes"] <= budget
    assert printed["before"]["total_bytes"] == plan(model).total_bytes
    assert printed["verdict"]["fits"] and printed["stages"]
    assert set(printed["compared_images"]) >= {"litert", "onnxruntime", "tflite-micro"}
    report = json.loads((out / "fit.json").read_text())
    assert {name: report[name] for name in ("before", "after", "stages")} == {
        name: printed[name] for name in ("before", "after", "stages")
    }
    assert set(report["files"]) == {"model.int8.fit.tflite", "model.int8.fit.onnx"}
    rows = list(csv.DictReader((out / "fit.csv").read_text().splitlines()))
    assert [row["experiment"] for row in rows] == ["before", "after"]
    page = (out / "report.html").read_text()
    assert "model.int8.fit.tflite" in page


def test_the_files_keep_their_contract_and_outputs(fitted, model, noise):
    out, _ = fitted
    with Session(model) as before:
        for name in ("model.int8.fit.tflite", "model.int8.fit.onnx"):
            with Session(out / name) as after:
                assert after.check().passed
                assert after.classes == before.classes
                image = noise / "class0" / "0.png"
                np.testing.assert_allclose(after.predict(image), before.predict(image), atol=1e-6)


def test_an_onnx_file_is_fitted_and_shown_as_tables(command, exported, budget, noise, tmp_path):
    ran = command("fit", exported / "model.int8.onnx", "--sram", budget, "-o", tmp_path / "out", "--images", noise)
    assert ran.code == 0, ran.err
    assert "the same integers as before on 12 images" in ran.out
    assert "fits" in ran.out.splitlines()[-1] or "fits" in ran.out
    assert (tmp_path / "out" / "model.int8.fit.tflite").exists()


def test_a_model_that_fits_is_unchanged(command, model, tmp_path):
    ran = command("fit", model, "--sram", "1MiB", "-o", tmp_path / "out", "--json")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert report["stages"] == [] and report["extra_macs"] == 0


def test_a_huge_budget_is_not_allocated(command, model, tmp_path):
    ran = command("fit", model, "--sram", 2**63 - 1, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["verdict"]["fits"]


def test_without_a_fit_the_smallest_arena_and_alternatives_are_reported(command, model, tmp_path):
    ran = command("fit", model, "--sram", "4KiB", "-o", tmp_path / "out", "--json")
    assert ran.code == 3
    report = json.loads(ran.out)
    assert report["smallest_bytes"] > report["sram_bytes"] == 4096
    assert report["binding"]
    changes = {found["change"]: found["about_bytes"] for found in report["alternatives"]}
    assert "without its bypasses" in changes and "with 50% of its channels" in changes
    assert f"{report['smallest_bytes']:,} bytes" in ran.err
    assert not (tmp_path / "out").exists()
    again = command("fit", model, "--sram", report["smallest_bytes"], "-o", tmp_path / "out")
    assert again.code == 0, again.err


def test_export_fits_the_int8_files(noise, tmp_path):
    network = load_network("squeezenet_micro", random_init=True, num_classes=3, input_size=(24, 24))
    anything = Tolerance(float_error=1e-3, sqnr_db=-100, agreement=0, formats_agreement=0)

    def exported_within(sram_bytes: int, out: Path, flash_bytes: int | None = None, reserve_bytes: int = 0) -> Export:
        config = ExportConfig(
            calibration_images=4,
            sram_bytes=sram_bytes,
            flash_bytes=flash_bytes,
            reserve_bytes=reserve_bytes,
            tolerance=anything,
        )
        return export(
            network.module,
            out,
            preprocessing=network.preprocessing,
            images=open_images(noise),
            classes=("class0", "class1", "class2"),
            config=config,
        )

    total = exported_within(2**20, tmp_path / "roomy").report["files"]["model.int8.tflite"]["total_bytes"]
    out = tmp_path / "out"
    found = exported_within(total * 9 // 10 + 1024, out, 2**20, 1024)
    verdict = found.report["fit"]["verdict"]
    assert (verdict["reserve_bytes"], verdict["flash_bytes"]) == (1024, 2**20)
    assert verdict["flash_needed_bytes"] == (out / "model.int8.tflite").stat().st_size
    assert found.report["fit"]["stages"] and found.report["fit"]["verdict"]["fits"]
    planned = plan(out / "model.int8.tflite")
    assert planned.total_bytes == found.report["files"]["model.int8.tflite"]["total_bytes"] <= total * 9 // 10
    for name in ("model.float32.onnx", "model.int8.onnx", "report.html", "fit.csv", "export.json"):
        assert (out / name).exists()
    with pytest.raises(DoesNotFitError, match=r"does not fit 4\.0 KiB"):
        exported_within(4096, tmp_path / "late")
    assert not (tmp_path / "late").exists()


def foreign(path: Path, kind: str, batch: int | str = 1) -> Path:
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])
    target = helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 3, 8, 8])
    graph = helper.make_graph([helper.make_node(kind, ["input"], ["output"])], "foreign", [source], [target])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_the_integer_part_of_a_foreign_file_is_fitted(command, exported, tmp_path):
    """A file as from onnxruntime's quantizer: float32 input and output around integers."""
    inner = read_graph(exported / "model.int8.tflite")
    source, target = inner.tensors[inner.inputs[0]], inner.tensors[inner.outputs[0]]
    outer = [Tensor(name, tensor.shape) for name, tensor in (("real", source), ("answer", target))]
    operations = [ops.Quantize(("real",), source.name), *inner.ops, ops.Dequantize((target.name,), "answer")]
    graph = Graph.of("foreign", [*inner.tensors.values(), *outer], operations, ["real"], ["answer"])
    (tmp_path / "foreign.onnx").write_bytes(write_onnx(graph))
    total = plan(inner).total_bytes
    ran = command("fit", tmp_path / "foreign.onnx", "--sram", total * 9 // 10, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["integer_ends"] and report["stages"]
    fitted = read_graph(tmp_path / "out" / "foreign.fit.tflite")
    assert {tensor.dtype for tensor in fitted.activations} == {"int8"}
    assert fitted.tensors[fitted.inputs[0]].quantization == source.quantization


def test_bad_input_is_one_line_and_writes_nothing(command, model, exported, tmp_path):
    out = tmp_path / "out"
    float_model = exported / "model.float32.tflite"
    file = tmp_path / "file"
    file.write_text("in the way")
    cases = [
        (("fit", model), 2, "fit needs a budget"),
        (("fit", model, "--sram", "0"), 2, "size '0'"),
        (("fit", model, "--sram", "99999999TiB"), 2, "unknown unit"),
        (("fit", model, "--sram", "9999999999GiB"), 2, "8 EiB"),
        (("fit", model, "--sram", "-1"), 2, "-1"),
        (("fit", model, "--sram", "1MiB", "--device", "stm32h743"), 2, "two budgets"),
        (("fit", model, "--device", "toaster"), 2, "toaster"),
        (("fit", model, "--sram", "64KiB", "--target", "onnxruntime"), 2, "onnxruntime"),
        (("fit", float_model, "--sram", "64KiB"), 2, "fit supports int8 only"),
        (("fit", tmp_path / "none.tflite", "--sram", "64KiB"), 2, "none.tflite"),
        (("fit", foreign(tmp_path / "gelu.onnx", "Gelu"), "--sram", "64KiB"), 3, "Gelu"),
        (("fit", foreign(tmp_path / "batch.onnx", "Relu", "n"), "--sram", "64KiB"), 1, "dynamic shape"),
        (("fit", model, "--sram", "64KiB", "--images", tmp_path / "nothing"), 2, "nothing"),
    ]
    for arguments, code, said in cases:
        ran = command(*arguments, *(() if "-o" in arguments else ("-o", out)))
        assert (ran.code, ran.out) == (code, ""), (arguments, ran.err)
        assert said in ran.err
        assert not out.exists()
    blocked = command("fit", model, "--sram", "64KiB", "-o", file / "out")
    assert blocked.code == 1
    assert file.read_text() == "in the way"


def test_images_need_a_contract(command, tmp_path, noise):
    build = GraphBuilder((1, 12, 12, 3))
    graph = build.graph(build.conv(build.conv("input", 8, (3, 3), padding=(1, 1, 1, 1)), 4))
    random = np.random.default_rng(0)
    samples = [random.standard_normal((1, 12, 12, 3), np.float32) for _ in range(2)]
    (tmp_path / "hand.onnx").write_bytes(write_onnx(quantize(graph, calibrate(graph, samples))))
    ran = command("fit", tmp_path / "hand.onnx", "--sram", "64KiB", "--images", noise, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "has no firebox metadata" in ran.err
    assert not (tmp_path / "out").exists()
    assert command("fit", tmp_path / "hand.onnx", "--sram", "64KiB", "-o", tmp_path / "out").code == 0


def test_a_fitted_file_is_not_changed_again(command, fitted, budget, tmp_path):
    out, _ = fitted
    ran = command("fit", out / "model.int8.fit.tflite", "--sram", budget, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["stages"] == []
    assert report["before"] == report["after"]
    assert plan(tmp_path / "out" / "model.int8.fit.fit.tflite").total_bytes == report["after"]["total_bytes"] <= budget


def test_runtimes_that_cannot_run_the_network_are_skipped(command, tmp_path):
    # tflite-micro's concat takes at most ten tensors.
    build = GraphBuilder((1, 6, 6, 3))
    joined = build.add(ops.Concat, *["input"] * 12, axis=2)
    model = tmp_path / "wide.tflite"
    model.write_bytes(write_tflite(in_any_8_bits(build.graph(build.conv(joined, 3)))))
    ran = command("fit", model, "--sram", "1MiB", "-o", tmp_path / "out", "--target", "litert-reference", "--json")
    assert ran.code == 0, ran.err
    compared = json.loads(ran.out)["compared_images"]
    assert {"litert", "onnxruntime"} <= set(compared)
    assert "tflite-micro" not in compared
    ran = command("fit", model, "--sram", "1MiB", "-o", tmp_path / "late")
    assert ran.code == 1
    assert "tflite-micro cannot run the file" in ran.err
    assert not (tmp_path / "late").exists()


def test_a_flat_network_that_cannot_fit_has_no_alternatives(command, tmp_path):
    build = GraphBuilder((1, 4096))
    model = tmp_path / "flat.tflite"
    model.write_bytes(write_tflite(in_any_8_bits(build.graph(build.linear("input", 10)))))
    ran = command("fit", model, "--sram", "2KiB", "-o", tmp_path / "out")
    assert ran.code == 3, ran.err
    assert "the smallest rewrite found needs" in ran.err
    assert "Smaller alternatives" not in ran.out
