"""The features of a processor: from the system's list, from numpy, or from the user."""

from pathlib import Path

import pytest

from firebox.runtime import processor
from firebox.runtime.onnx_session import kernels_saturate
from firebox.runtime.processor import FEATURES, VARIABLE, Processor, this_processor

SKYLAKE = {"model name": "Some Xeon", "flags": "fpu avx2 avx512bw"}


@pytest.fixture(autouse=True)
def detected_anew(monkeypatch):
    """Clear the caches before and after the test."""
    monkeypatch.delenv(VARIABLE, raising=False)
    for cached in (this_processor, kernels_saturate):
        cached.cache_clear()
    yield
    for cached in (this_processor, kernels_saturate):
        cached.cache_clear()


@pytest.fixture
def found(monkeypatch):
    """The processor for given system entries and numpy features."""

    def find(entries: dict[str, str], detected: dict[str, bool], architecture: str = "x86_64") -> Processor:
        monkeypatch.setattr(processor, "_cpuinfo", lambda: entries)
        monkeypatch.setattr(processor, "_detected_by_numpy", lambda: detected)
        monkeypatch.setattr(processor.platform, "machine", lambda: architecture)
        monkeypatch.setattr(processor.platform, "processor", lambda: "")
        this_processor.cache_clear()
        return this_processor()

    return find


def test_this_processor_is_detected_once():
    assert this_processor() is this_processor()
    assert set(this_processor().features) <= set(FEATURES)
    assert not this_processor().overridden
    assert processor._detected_by_numpy()


def test_the_variable_replaces_the_detected_features(monkeypatch, found):
    monkeypatch.setenv(VARIABLE, " avx512_vnni , avx2,mmx")
    chosen = found(SKYLAKE, {"AVX2": True, "AVX512_CLX": False})
    assert chosen == Processor("x86_64", "Some Xeon", ("avx2", "avx512_vnni"), overridden=True)
    monkeypatch.setenv(VARIABLE, "")
    assert found(SKYLAKE, {"AVX2": True}).features == ()
    assert found(SKYLAKE, {"AVX2": True}).overridden


@pytest.mark.parametrize(
    ("features", "architecture", "saturate"),
    [
        ("avx2", "x86_64", True),
        ("avx2,avx512bw", "AMD64", True),
        ("avx2,avx_vnni", "x86_64", False),
        ("avx2,avx512bw,avx512_vnni", "x86_64", False),
        ("", "x86_64", False),
        ("avx2", "aarch64", False),
        ("asimd,asimddp", "aarch64", False),
    ],
)
def test_the_variable_decides_whether_kernels_saturate(monkeypatch, found, features, architecture, saturate):
    monkeypatch.setenv(VARIABLE, features)
    assert found({}, {}, architecture).features == tuple(filter(None, features.split(",")))
    assert kernels_saturate() is saturate


def test_kernels_are_run_if_features_do_not_decide(monkeypatch, found):
    monkeypatch.setattr("firebox.runtime.onnx_session._largest_products_saturate", lambda: True)
    found(SKYLAKE, {"AVX2": True})
    assert kernels_saturate()
    kernels_saturate.cache_clear()
    found({"flags": "avx2 avx512bw avx512_vnni"}, {})
    assert not kernels_saturate()


@pytest.mark.parametrize(
    ("flags", "detected", "features"),
    [
        ("avx2 avx512_vnni", {}, ("avx2", "avx512_vnni")),
        ("avx2 avx512_vnni", {"AVX2": True, "AVX512_CLX": False}, ("avx2",)),
        ("avx2 avx512_vnni", {"AVX2": True, "AVX512VNNI": False, "AVX512_ICL": True}, ("avx2", "avx512_vnni")),
        ("", {"AVX2": True, "AVX512BW": True}, ("avx2", "avx512bw")),
        ("avx2 avx512bw", {"X86_V3": True, "X86_V4": False}, ("avx2",)),
        ("avx2 avx_vnni amx_int8", {"AVX2": True}, ("avx2", "avx_vnni", "amx_int8")),
        ("asimd asimddp i8mm", {"ASIMD": True, "ASIMDDP": False}, ("asimd", "i8mm")),
    ],
)
def test_numpy_corrects_what_the_system_lists(found, flags, detected, features):
    assert found({"flags": flags}, detected).features == features
    assert found({"Features": flags}, detected).features == features


def test_features_that_require_avx2_are_dropped_without_it(found):
    flags = {"flags": "avx2 avx512bw avx_vnni avx512_vnni amx_int8"}
    assert found(flags, {"AVX2": False}).features == ("avx512bw",)
    assert found({"flags": "avx_vnni avx512_vnni amx_int8"}, {}).features == ()


def test_a_processor_as_text(found):
    assert str(found(SKYLAKE, {})) == "Some Xeon (avx2, avx512bw)"
    assert str(found({}, {}, "riscv64")) == "riscv64 (no int8 instructions)"
    assert str(Processor("aarch64", "", ("asimd",))) == "aarch64 (asimd)"


@pytest.mark.parametrize(
    ("architecture", "x86"), [("x86_64", True), ("AMD64", True), ("i686", True), ("aarch64", False), ("arm64", False)]
)
def test_x86_kernels_run_on_x86(architecture, x86):
    assert Processor(architecture, "", ()).is_x86 is x86


def test_without_a_list_numpy_detects_the_features(monkeypatch):
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert processor._cpuinfo() == {}
    monkeypatch.setattr(processor, "_detected_by_numpy", lambda: {"ASIMD": True, "ASIMDDP": True})
    assert this_processor().features == ("asimd", "asimddp")
    assert str(this_processor())


def test_the_first_processor_of_the_list_is_used(monkeypatch):
    text = "processor\t: 0\nmodel name\t: A: the first\nflags\t\t: avx2\n\nprocessor\t: 1\nmodel name\t: the second\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    assert processor._cpuinfo() == {"processor": "0", "model name": "A: the first", "flags": "avx2"}
