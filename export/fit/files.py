"""Files rewritten to fit a budget: written in both formats, compared bit for bit, measured and reported."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ...runtime.contract import KEY, Contract, golden_pixels, read_contract
from ...runtime.errors import FormatError, ParityError, UsageError
from ...runtime.files import check_writable, read_file, sha256, write_files
from ...runtime.formats.read import Format, read_placed
from ...runtime.graph import Graph, Tensor
from ...runtime.graph.rewrite import integer_ends
from ...runtime.images import LabelledImages, sample
from ...runtime.inference import Session, installed_backends
from ...runtime.inference.installed import BACKENDS
from ...runtime.memory import TFLM, Budget, MeasuredArena, MemoryPlan, Target, find_target, measure_arena, run_in_arena
from ...runtime.profiling import Profile, profile
from ...runtime.progress import SILENT, Progress
from ...runtime.report import model_explorer_node_data, summary_csv
from ..formats.contract_writer import contract_for_file
from ..formats.onnx_writer import write_onnx
from ..formats.tflite_writer import write_tflite
from .search import Fit, fit

# Number of images to compare on.
_IMAGES = 20
# Time limit for the latency of operations in the report.
_SECONDS = 3.0


@dataclass(frozen=True)
class FitFiles:
    """The files of a fit; ``report`` is the content of ``fit.json``.

    Its ``compared_images`` count, for each runtime, the images on which it computes the same integers before and after
    the fit; ``measured`` is ``None`` if the target's runtime is not installed.
    """

    fit: Fit
    files: tuple[Path, ...]
    report: Mapping[str, Any]


def fit_file(
    model: str | Path,
    budget: Budget | int,
    out: str | Path,
    *,
    target: str = TFLM.name,
    images: LabelledImages | None = None,
    progress: Progress = SILENT,
) -> FitFiles:
    """Rewrite an int8 file to fit a budget and write it into ``out`` as ``NAME.fit.tflite`` and ``NAME.fit.onnx``.

    A number is a budget of that many bytes of SRAM.

    Also written are ``fit.json``, its summary ``fit.csv``, node data for Model Explorer, and ``report.html`` if the
    extra ``report`` is installed. If the model has float32 input and output around an integer network, only the integer
    part is fitted, and ``integer_ends`` in the report is true. The files are compared on ``images``, by default on a
    test card and noise. Raises as ``fit`` does, and ``ParityError`` if a runtime computes other integers than before;
    then nothing is written.
    """
    data = read_file(model)
    contract = read_contract(data)
    whole, offsets = read_placed(model)
    graph = replace(integer_ends(whole), name=contract.name if contract else Path(model).stem)
    pixels = _crops(contract, images) if images is not None else None
    check_writable(out)
    found = fit(graph, budget, target, offsets, progress)
    after = file_contents(found.graph, contract, found.offsets)
    name = Path(model).stem
    files = {f"{name}.fit.{ending}": content for ending, content in after.items()}
    report = {
        "model": str(model),
        "sha256": sha256(data),
        "integer_ends": (graph.inputs, graph.outputs) != (whole.inputs, whole.outputs),
        **fit_report(found, contract, after, pixels, progress=progress),
    }
    sizes = {file: {"bytes": len(content), "sha256": sha256(content)} for file, content in files.items()}
    contents: dict[str, bytes | str] = {**files, "fit.json": json.dumps({**report, "files": sizes}, indent=2) + "\n"}
    contents |= report_files(found, f"{name}.fit", after, progress=progress)
    return FitFiles(found, tuple(write_files(out, contents)), report)


def fit_report(
    found: Fit,
    contract: Contract | None,
    files: Mapping[str, bytes],
    pixels: Sequence[np.ndarray] | None,
    *,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Compare the files of a fit with those of the original graph, measure their memory, and report the figures.

    Raises ``ParityError`` if a runtime computes other integers.
    """
    before = found.before.graph
    inputs = _inputs(before, contract, pixels)
    compared = _compare(file_contents(before, contract), files, found, inputs, progress)
    target = find_target(found.after.target)
    measured = _measured(files, target)
    after = _planned(found, files)
    verdict = after.verdict(found.budget)
    if measured and target.runtime and not target.runtime.measures_heap:
        verdict = measured.verdict(found.budget, after.flash)
    return {
        "target": target.name,
        "sram_bytes": found.sram_bytes,
        "reserve_bytes": found.budget.reserve_bytes,
        "flash_bytes": found.budget.flash_bytes,
        "verdict": verdict.to_json() | {"text": verdict.text(), "exit_code": verdict.exit_code},
        "before": _figures(found.before),
        "after": _figures(found.after),
        "extra_macs": found.extra_macs,
        "measured": measured.to_json() if measured else None,
        "compared_images": compared,
        "stages": [
            {
                "from": stage.source,
                "to": stage.target,
                "bands": [{"rows": [band[0].top, band[0].bottom], "tiles": len(band)} for band in stage.bands],
            }
            for stage in found.stages
            if stage.bands
        ],
    }


def file_contents(
    graph: Graph, contract: Contract | None, offsets: Mapping[str, int] | None = None
) -> dict[str, bytes]:
    """The files of a graph by format, each with its contract."""
    onnx = {KEY: contract_for_file(contract, graph, "NCHW").to_bytes()} if contract else {}
    tflite = {KEY: contract_for_file(contract, graph, "NHWC").to_bytes()} if contract else {}
    return {"tflite": write_tflite(graph, tflite, offsets), "onnx": write_onnx(graph, onnx)}


def _compare(
    before: Mapping[str, bytes],
    after: Mapping[str, bytes],
    found: Fit,
    inputs: Sequence[np.ndarray],
    progress: Progress,
) -> dict[str, int]:
    """Run the files before and after the fit in every installed runtime; the number of equal outputs for each.

    Runtimes that cannot run the file before the fit are skipped, except for the target's own. Raises ``ParityError``
    if integers differ and ``FormatError`` if a runtime cannot run the fitted file.
    """
    runners, compared = _runners(found), {}
    own = find_target(found.after.target).runtime
    with progress.task("comparing", len(runners)) as advance:
        for runner in runners:
            try:
                expected = runner.before(before[runner.format], inputs)
            except FormatError:
                if own is not None and runner.package == own.package:
                    raise
                # The runtime does not support the network: that is not due to the fit.
                continue
            outputs = runner.after(after[runner.format], inputs)
            for index, (old, new) in enumerate(zip(expected, outputs, strict=True)):
                if not np.array_equal(old, new):
                    steps = int(np.abs(old.astype(int) - new.astype(int)).max())
                    raise ParityError(
                        f"{runner.name} computes other integers for image {index} than before the fit, by up to "
                        f"{steps} steps; nothing was written"
                    )
            compared[runner.name] = len(inputs)
            advance()
    return compared


_Run = Callable[[bytes, Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class _Runner:
    """An installed runtime, and how it runs the file before and after the fit."""

    name: str
    package: str
    format: Format
    before: _Run
    after: _Run


def _runners(found: Fit) -> list[_Runner]:
    source = found.before.graph.tensors[found.before.graph.inputs[0]]
    formats: tuple[Format, ...] = ("tflite", "onnx")
    runners = []
    for format_ in formats:
        for name in installed_backends(format_):
            run = _session(name, source, format_)
            runners.append(_Runner(name, BACKENDS[name].package, format_, run, run))
    if TFLM.runtime is not None and find_spec(TFLM.runtime.module):
        roomy = 2 * (found.before.total_bytes or found.before.arena_bytes) + 2**20
        # The fitted file gets an arena of exactly the budget, unless that exceeds every need (and this machine).
        exact = min(found.budget.available_bytes, roomy) if found.after.target == TFLM.name else roomy
        package = TFLM.runtime.package
        runners.append(_Runner(package, package, TFLM.runtime.format, _arena(roomy), _arena(exact)))
    return runners


def _arena(size: int) -> _Run:
    return lambda data, inputs: run_in_arena(data, size, inputs)


def _session(backend: str, source: Tensor, format_: Format) -> _Run:
    def run(data: bytes, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with Session(data, backend, check="off") as session:
            return [session.run(_as_onnx(x, source) if format_ == "onnx" else x) for x in inputs]

    return run


def _as_onnx(x: np.ndarray, source: Tensor) -> np.ndarray:
    """The input as ONNX files take it: NCHW and unsigned."""
    values = (x.astype(np.int16) + 128).astype(np.uint8) if source.dtype == "int8" else x
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if x.ndim == 4 else values)


def _crops(contract: Contract | None, images: LabelledImages) -> list[np.ndarray]:
    if contract is None:
        raise UsageError("the file has no firebox metadata to preprocess images by; leave out --images")
    drawn = sample(images, _IMAGES, 0)
    return contract.preprocessing.crop_all(drawn)


def _inputs(graph: Graph, contract: Contract | None, pixels: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """Inputs to compare on: the given images, or else the contract's test card and noise."""
    source = graph.tensors[graph.inputs[0]]
    if contract and pixels:
        return [_encoded(contract, image, source) for image in pixels[:_IMAGES]]
    cards = [_encoded(contract, golden_pixels(contract.preprocessing), source)] if contract else []
    random = np.random.default_rng(0)
    limits = np.iinfo(source.dtype)
    noise = random.integers(limits.min, limits.max, (_IMAGES - len(cards), *source.shape), endpoint=True)
    return [*cards, *noise.astype(source.dtype)]


def _encoded(contract: Contract, pixels: np.ndarray, source: Tensor) -> np.ndarray:
    assert source.quantization is not None
    return source.quantization.quantize(contract.preprocessing.normalize(pixels)[None], source.dtype)


def _measured(files: Mapping[str, bytes], target: Target) -> MeasuredArena | None:
    """The memory that the file takes in the target's runtime, if it is installed."""
    if target.runtime is None or not find_spec(target.runtime.module):
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"fitted.{target.runtime.format}"
        path.write_bytes(files[target.runtime.format])
        return measure_arena(path, target.name, exact=True)


def _planned(found: Fit, files: Mapping[str, bytes]) -> MemoryPlan:
    """The plan after the fit, with the size of the file that the target runs."""
    runtime = find_target(found.after.target).runtime
    return replace(found.after, file_bytes=len(files[runtime.format])) if runtime else found.after


def _figures(planned: MemoryPlan) -> dict[str, Any]:
    return {
        "arena_bytes": planned.arena_bytes,
        "total_bytes": planned.total_bytes,
        "macs": planned.graph.macs,
        "ops": len(planned.graph.ops),
    }


def report_files(
    found: Fit, name: str, files: Mapping[str, bytes], *, progress: Progress = SILENT
) -> dict[str, bytes | str]:
    """Contents of the files that report a fit: a page, a CSV with Vela's columns, Model Explorer's node data.

    Times of operations are measured with onnxruntime, if it is installed.
    """
    after = _planned(found, files)
    verdict = after.verdict(found.budget)
    times = _profile(files["onnx"], progress)
    contents: dict[str, bytes | str] = {
        "fit.csv": summary_csv({"before": found.before, "after": after}, times, verdict, network=name)
    }
    for figure, text in model_explorer_node_data(after, times).items():
        contents[f"{name}.{figure}.json"] = text
    if find_spec("bokeh"):
        from ...runtime.report import report_html

        contents["report.html"] = report_html(
            after,
            found.before,
            verdict,
            times,
            name=f"{name}.tflite",
            data=files["tflite"],
            account=after.account(),
        )
    return contents


def _profile(onnx: bytes, progress: Progress) -> Profile | None:
    if not find_spec("onnxruntime"):
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fitted.onnx"
        path.write_bytes(onnx)
        return profile(path, backend="onnxruntime", max_seconds=_SECONDS, progress=progress)
