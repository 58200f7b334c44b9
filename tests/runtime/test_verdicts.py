"""Verdicts on a budget of SRAM, reserve and flash: by hand, of files on every target, and on every device."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import GraphBuilder

from firebox.export import ExportConfig, quantize, write_onnx, write_tflite
from firebox.export.fit import DoesNotFitError, fit
from firebox.export.quantization import Range, with_float16_weights
from firebox.runtime import Graph, plan
from firebox.runtime.errors import FormatError, UsageError
from firebox.runtime.graph import ops
from firebox.runtime.memory import TARGETS, Budget, Device, FlashDemand, Target, Verdict, judge, overall_exit_code
from firebox.runtime.memory.static import lay_out
from firebox.runtime.report import summary_csv

KIB = 1024


def network() -> Graph:
    """An int8 network whose weights are most of its file."""
    build = GraphBuilder((1, 8, 8, 4))
    graph = build.graph(build.conv(build.conv("input", 64), 16))
    return quantize(graph, {tensor.name: Range(-1, 1) for tensor in graph.activations})


def device(sram: int, flash: int | None = None, reserve: int = 0) -> Device:
    return Device(f"d{sram}", "a device", "microcontroller", "SRAM", sram, flash, "invented", reserve)


def compiler(name: str, code_bytes: int) -> Target:
    return Target(
        name,
        "a compiler",
        lambda graph, offsets: lay_out(graph),
        plans_all=True,
        flash_bytes=lambda graph: graph.weight_bytes + code_bytes,
    )


def test_a_verdict_is_an_exit_code():
    assert Verdict(Budget(1024), 1024).exit_code == 0
    assert Verdict(Budget(1024), 1000, total_bytes=1024).text() == "fits 1.0 KiB, 0 B to spare"
    whole = Verdict(Budget(1024), 1000, total_bytes=1025)
    assert (whole.fits, whole.about, whole.margin_bytes) == (False, "total", -1)
    late = Verdict(Budget(1024), 2048)
    assert (late.fits, late.exit_code) == (False, 3)
    assert late.text() == "does not fit 1.0 KiB, 1.0 KiB too much (arena alone)"
    assert late.to_json() == {
        "sram_bytes": 1024,
        "reserve_bytes": 0,
        "flash_bytes": None,
        "arena_bytes": 2048,
        "arena_source": "planned",
        "total_bytes": None,
        "flash_needed_bytes": None,
        "flash_about": None,
        "about": "arena",
        "fits": False,
        "margin_bytes": -1024,
        "flash_margin_bytes": None,
    }


@pytest.mark.parametrize(
    ("verdict", "code", "said"),
    [
        (
            Verdict(Budget(8 * KIB, reserve_bytes=KIB), 0, total_bytes=7 * KIB),
            0,
            "fits 8.0 KiB, 0 B to spare beside a reserve of 1.0 KiB",
        ),
        (
            Verdict(Budget(8 * KIB, reserve_bytes=KIB), 0, total_bytes=7 * KIB + 1),
            3,
            "does not fit 8.0 KiB, 1 B too much beside a reserve of 1.0 KiB",
        ),
        (
            Verdict(Budget(8 * KIB, 4 * KIB), 0, total_bytes=KIB, flash=FlashDemand(4 * KIB, "file")),
            0,
            "fits 8.0 KiB of SRAM, 7.0 KiB to spare; "
            "fits 4.0 KiB of flash, 0 B to spare (file alone, without the runtime's code)",
        ),
        (
            Verdict(Budget(8 * KIB, 4 * KIB), 0, total_bytes=KIB, flash=FlashDemand(4 * KIB + 1, "weights")),
            3,
            "does not fit 4.0 KiB of flash, 1 B too much (weights alone, without code); "
            "fits 8.0 KiB of SRAM, 7.0 KiB to spare",
        ),
        (
            Verdict(Budget(8 * KIB, 4 * KIB), KIB, flash=FlashDemand(KIB, "weights and code")),
            4,
            "undecided: the arena alone fits 8.0 KiB of SRAM, 7.0 KiB to spare; the other demand is unknown; "
            "fits 4.0 KiB of flash, 3.0 KiB to spare (weights and code)",
        ),
        (
            Verdict(Budget(8 * KIB, 4 * KIB), KIB, flash=FlashDemand(5 * KIB, "file")),
            3,
            "does not fit 4.0 KiB of flash, 1.0 KiB too much (file alone, without the runtime's code); "
            "undecided: the arena alone fits 8.0 KiB of SRAM, 7.0 KiB to spare; the other demand is unknown",
        ),
        (
            Verdict(Budget(8 * KIB, 4 * KIB), 0, total_bytes=KIB),
            4,
            "undecided: the demand for 4.0 KiB of flash is unknown; fits 8.0 KiB of SRAM, 7.0 KiB to spare",
        ),
        (
            Verdict(Budget(8 * KIB, reserve_bytes=KIB), KIB),
            4,
            "undecided: the arena alone fits 8.0 KiB, 6.0 KiB to spare beside a reserve of 1.0 KiB; "
            "the other demand is unknown",
        ),
    ],
)
def test_the_part_that_decides_comes_first(verdict, code, said):
    assert (verdict.exit_code, verdict.text()) == (code, said)
    assert verdict.fits == {0: True, 3: False, 4: None}[code]


@given(
    st.integers(1, 100),
    st.none() | st.integers(1, 100),
    st.integers(0, 99),
    st.integers(0, 120),
    st.none() | st.integers(0, 20),
    st.none() | st.integers(0, 120),
)
def test_a_verdict_is_never_better_than_the_truth(sram, flash, reserve, arena, rest, needed):
    if reserve >= sram:
        with pytest.raises(UsageError, match="leaves nothing of"):
            Budget(sram, flash, reserve or sram)
        return
    demand = FlashDemand(needed, "file") if needed is not None else None
    total = arena + rest if rest is not None else None
    verdict = Verdict(Budget(sram, flash, reserve), arena, total_bytes=total, flash=demand)
    known = (arena if total is None else total) + reserve <= sram and (flash is None or (needed or 0) <= flash)
    unknown = (total is None and (flash is not None or reserve)) or (flash is not None and needed is None)
    assert verdict.fits == (False if not known else None if unknown else True)
    # A plain size of SRAM is judged as it always was.
    if flash is None and not reserve:
        assert verdict.fits == (verdict.margin_bytes >= 0)


def test_flash_holds_the_file_or_the_weights_or_what_the_target_says(monkeypatch, tmp_path):
    graph = network()
    tflite, onnx = write_tflite(graph), write_onnx(graph)
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite)
    for model, target, expected in (
        (tflite, "tflm", FlashDemand(len(tflite), "file")),
        (path, "litert", FlashDemand(len(tflite), "file")),
        (onnx, "onnxruntime", FlashDemand(len(onnx), "file")),
        (onnx, "tflm", FlashDemand(graph.weight_bytes, "weights")),
        (graph, "tflm", FlashDemand(graph.weight_bytes, "weights")),
        (tflite, "static", FlashDemand(graph.weight_bytes, "weights")),
    ):
        planned = plan(model, target)
        assert planned.flash == expected
        lines = {line.name: (line.nbytes, line.source) for line in planned.account()}
        source = "measured" if expected.about == "file" else "planned"
        assert lines[f"flash ({expected.about})"] == (expected.nbytes, source)
        assert lines["flash (code)"] == (None, "unknown")
    monkeypatch.setitem(TARGETS, "c", compiler("c", 5000))
    planned = plan(tflite, "c")
    assert planned.flash == FlashDemand(graph.weight_bytes + 5000, "weights and code")
    assert "flash (code)" not in {line.name for line in planned.account()}
    assert plan(graph, "c") == planned


def test_a_file_is_judged_on_flash_beside_sram():
    data = write_tflite(network())
    planned = plan(data)
    total = planned.total_bytes
    assert total is not None
    assert planned.verdict(total).text() == planned.verdict(Budget(total)).text()
    assert planned.verdict(Budget(total + 100, len(data), 100)).exit_code == 0
    assert planned.verdict(Budget(total + 100, len(data), 101)).exit_code == 3
    assert planned.verdict(Budget(total + 100, len(data) - 1, 100)).exit_code == 3
    unknown = plan(data, "litert")
    assert unknown.total_bytes is None
    assert unknown.verdict(total).exit_code == 0
    assert unknown.verdict(Budget(total, len(data))).exit_code == 4
    assert unknown.verdict(Budget(total, len(data) - 1)).exit_code == 3


def test_commands_judge_flash_and_reserve(command, exported, tmp_path):
    model = exported / "model.int8.tflite"
    size = model.stat().st_size
    total = plan(model).total_bytes
    for options, code in (
        (("--sram", "1MiB", "--flash", size), 0),
        (("--sram", "1MiB", "--flash", size - 1), 3),
        (("--sram", total + 10, "--reserve", 10), 0),
        (("--sram", total + 10, "--reserve", 11), 3),
        (("--sram", "1MiB", "--reserve", "1KiB", "--target", "litert"), 4),
        (("--sram", "1MiB", "--target", "litert"), 0),
    ):
        ran = command("plan", model, *options, "--json")
        verdict = json.loads(ran.out)["verdict"]
        assert (ran.code, verdict["fits"]) == (code, {0: True, 3: False, 4: None}[code])
    people = command("plan", model, "--sram", "1MiB", "--flash", "1KiB", "--reserve", "2KiB", "--measure")
    assert people.code == 3
    assert "does not fit 1.0 KiB of flash" in people.out
    assert "beside a reserve of 2.0 KiB" in people.out
    assert {"reserve", "flash"} <= {line.split()[0] for line in people.out.splitlines() if line.strip()}
    measured = command("profile", model, "--sram", "1MiB", "--flash", "1KiB", "--seconds", "0.1", "--json")
    verdict = json.loads(measured.out)["verdict"]
    assert (measured.code, verdict["flash_margin_bytes"]) == (3, KIB - size)
    page = tmp_path / "page.html"
    budget = ("--sram", "1MiB", "--flash", "1KiB", "--reserve", "2KiB")
    ran = command("report", model, *budget, "-o", page, "--csv", tmp_path / "page.csv", "--json")
    assert (ran.code, json.loads(ran.out)["verdict"]["flash_about"]) == (3, "file")
    text = page.read_text()
    assert "Does not fit 1.0 KiB of flash" in text
    assert "budget 1,024.0 KiB less a reserve of 2.0 KiB" in text
    (row,) = csv.DictReader(io.StringIO((tmp_path / "page.csv").read_text()))
    assert (row["fits"], row["reserve_bytes"], row["flash_bytes"]) == ("false", "2048", "1024")
    assert (row["flash_needed_bytes"], row["flash_margin_bytes"]) == (str(size), str(KIB - size))
    assert float(row["arena_cache_size"]) == 1022


def test_options_without_effect_are_refused(command, exported):
    model = exported / "model.int8.tflite"
    for arguments, said in (
        (("plan", model, "--flash", "1MiB"), "--flash 1MiB has no effect without SRAM"),
        (("plan", model, "--reserve", "1KiB"), "--reserve 1KiB has no effect without SRAM"),
        (("plan", model, "--sram", "1KiB", "--reserve", "1KiB"), "leaves nothing"),
        (("devices", "--target", "tflm"), "--target tflm has no effect without MODEL"),
        (("energy", model, "--sram", "1MiB", "--flash", "1MiB"), "--flash"),
    ):
        ran = command(*arguments)
        assert ran.code == 2
        assert said in ran.err
    with pytest.raises(UsageError, match="no effect without sram_bytes"):
        ExportConfig(flash_bytes=1024)


def test_an_undecided_verdict_has_no_answer_in_the_summary():
    planned = plan(network(), "litert")
    verdict = planned.verdict(Budget(2**20, 2**20))
    (row,) = csv.DictReader(io.StringIO(summary_csv({"default": planned}, None, verdict)))
    assert row["fits"] == ""
    assert int(row["flash_needed_bytes"]) == planned.weight_bytes


def test_fit_keeps_the_reserve_free_and_refuses_too_little_flash():
    graph = network()
    total = plan(graph).total_bytes
    assert total is not None
    found = fit(graph, Budget(total + KIB, 2**20, KIB))
    assert (found.stages, found.budget.available_bytes, found.sram_bytes) == ((), total, total + KIB)
    with pytest.raises(DoesNotFitError, match=r"less a reserve of 2\.0 KiB on tflm: the smallest rewrite"):
        fit(graph, Budget(4 * KIB, None, 2 * KIB))
    with pytest.raises(DoesNotFitError, match=r"does not fit 1\.0 KiB of flash on tflm: its weights take 1,") as caught:
        fit(graph, Budget(2**20, KIB))
    assert caught.value.exit_code == 3


def test_the_command_fit_judges_flash(command, tmp_path):
    model = tmp_path / "model.tflite"
    model.write_bytes(write_tflite(network()))
    weights = plan(model).weight_bytes
    ran = command("fit", model, "--sram", "1MiB", "--flash", weights, "-o", tmp_path / "out", "--json")
    report = json.loads(ran.out)
    # The weights fit, the file does not.
    assert (ran.code, report["verdict"]["fits"], report["flash_bytes"]) == (3, False, weights)
    assert report["verdict"]["flash_needed_bytes"] == (tmp_path / "out" / "model.fit.tflite").stat().st_size
    ran = command("fit", model, "--sram", "1MiB", "--flash", weights - 1, "-o", tmp_path / "none", "--json")
    assert (ran.code, json.loads(ran.out)["flash_bytes"]) == (3, weights - 1)
    assert "of flash on tflm" in ran.err
    assert not (tmp_path / "none").exists()
    people = command("fit", model, "--device", "nrf52840", "-o", tmp_path / "out")
    assert people.code == 0
    assert "flash (file)" in people.out
    assert "beside a reserve of 16.0 KiB" in people.out


def test_a_model_is_judged_on_every_device(monkeypatch):
    data = write_tflite(network())
    total = plan(data).total_bytes
    assert total is not None
    devices = [device(total), device(total + 1, 1), device(total - 1), device(total + 2, len(data), 2)]
    found = judge(data, devices, ["tflm", "litert"])
    assert [(item.device.sram_bytes - total, item.target) for item in found[:2]] == [(0, "tflm"), (0, "litert")]
    assert [item.fits for item in found if item.target == "tflm"] == [True, False, False, True]
    assert [item.fits for item in found if item.target == "litert"] == [True, False, True, None]
    assert overall_exit_code(found) == 0
    assert overall_exit_code(judge(data, devices[1:3], ["tflm"])) == 3
    assert overall_exit_code(judge(data, [devices[1], devices[3]], ["litert"])) == 4
    monkeypatch.delitem(TARGETS, "c", raising=False)
    assert {item.target for item in judge(data, devices)} == {"tflm"}
    monkeypatch.setitem(TARGETS, "c", compiler("c", 100))
    assert {item.target for item in judge(data, devices)} == {"tflm", "c"}


def test_a_target_that_cannot_run_a_model_is_undecided_and_a_broken_file_an_error():
    build = GraphBuilder((1, 4, 4, 2))
    half = write_tflite(with_float16_weights(build.graph(build.add(ops.Relu, build.conv("input", 2)))))
    (found,) = judge(half, [device(2**20)], ["tflm"])
    assert (found.verdict, found.fits, overall_exit_code([found])) == (None, None, 4)
    assert "no kernel for float16 weights" in found.reason
    assert found.to_json()["reason"] == found.reason
    with pytest.raises(FormatError):
        judge(b"1234TFL3" + bytes(100), [device(2**20)])
    with pytest.raises(UsageError, match="target 'esp' is not one of"):
        judge(half, [device(2**20)], ["esp"])


def test_the_command_judges_a_model_on_every_device(command, exported, tmp_path):
    model = exported / "model.int8.tflite"
    names = list(json.loads(command("devices", "--json").out))
    ran = command("devices", model, "--target", "tflm", "--target", "static", "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["exit_code"], found["model"]) == (0, 0, str(model))
    assert list(dict.fromkeys(item["device"] for item in found["judgements"])) == names
    assert [item["target"] for item in found["judgements"]] == ["tflm", "static"] * len(names)
    nrf = next(item for item in found["judgements"] if item["device"] == "nrf52840")
    planned = command("plan", model, "--device", "nrf52840", "--target", "tflm", "--json")
    assert nrf["verdict"] == json.loads(planned.out)["verdict"]
    people = command("devices", model, "--target", "tflm")
    assert people.code == 0
    assert "nrf52840" in people.out
    assert "flash: file alone, without the runtime's code" in people.out
    assert "\x1b[" not in people.out
    mine = tmp_path / "mine.toml"
    small = 'kind = "microcontroller"\nname = "x"\nmemory = "SRAM"\nsource = "x"\nsram = "8KiB"\n'
    mine.write_text("\n".join(f"[{name}]\n{small}" for name in names))
    none = command("devices", model, "--target", "tflm", "--devices", mine)
    assert none.code == 3
    assert "does not fit SRAM" in none.out
    half = tmp_path / "half.tflite"
    build = GraphBuilder((1, 4, 4, 2))
    half.write_bytes(write_tflite(with_float16_weights(build.graph(build.conv("input", 2)))))
    undecided = command("devices", half, "--target", "tflm")
    assert undecided.code == 4
    assert "tflm: undecided: tflite-micro has no kernel for float16 weights" in undecided.out
    assert command("devices", tmp_path / "none.tflite").code == 2
