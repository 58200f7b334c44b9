"""Compiled C: memory, identity, speed, accuracy, compile time and devices; writes docs/compile.md.

The figures of each part are kept in ``results/compile.json``, and ``--only PART`` measures one part again. Without
``--only`` and ``--fresh`` the page is written from kept figures, and parts without figures are measured.

Needs gcc and clang, and for the emulated processors (Debian's names) gcc-aarch64-linux-gnu, qemu-user,
gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm. OpenVINO is measured if it is installed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import common
import compile_builds as builds
import numpy as np
from compile_networks import (
    BUILD,
    CIFAR_NETWORK,
    LARGE,
    SMALLER,
    SMALLEST,
    V10,
    V11,
    Case,
    exported,
    held_back,
    images_of,
    inputs_of,
    network_of,
    zoo,
)
from compile_page import KEPT, PARTS, Kept, page, read_kept
from fit_growth import chain

from firebox.export import fit
from firebox.export.fit import DoesNotFitError, needed
from firebox.model_zoo.training import load_images, predict
from firebox.runtime import Session, measure_arena, read_graph, sample
from firebox.runtime.compile import compile_c
from firebox.runtime.errors import FireboxError
from firebox.runtime.files import sha256, write_file
from firebox.runtime.memory import judge, known_devices
from firebox.runtime.memory.compiled import plan_compiled, smallest_plan
from firebox.runtime.processor import this_processor

KiB = 1024
_SEED = 1
# Networks in the table of memory, with the RAM that is given to them: whole input, input by rows.
_MEMORY: tuple[tuple[Case, int | None, int | None], ...] = (
    (V11, 160_000, 40_960),
    (SMALLER, 56 * KiB, 28 * KiB),
    (SMALLEST, 36 * KiB, 24 * KiB),
    (V10, 164 * KiB, 60 * KiB),
    (Case("squeezenet1_0_simple_bypass", 224), None, 128 * KiB),
    (Case("squeezenet1_0_complex_bypass", 224), None, 192 * KiB),
    (CIFAR_NETWORK, None, None),
    (Case("squeezenet_micro", 32), None, None),
    (Case("mobilenet_v2 x 0.35", 160), None, None),
    (Case("resnet8", 32), None, None),
    (Case("densenet22", 32), None, None),
)
# Emulated cores of arm64, without and with the dot product.
_CORES = ("cortex-a53", "cortex-a76")
_BOARDS = (builds.boards.M7, builds.boards.M4)
_SPEED = (V11, V10, SMALLER, CIFAR_NETWORK)
_WORKER = Path(__file__).with_name("compile_worker.py")
# The option that hides matrix registers from OpenVINO.
_NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
# Operations of the chains whose planning is timed.
_CHAINS = (50, 100, 200, 500, 1000, 2000)
# Seconds between turns.
_PAUSE = 0.005
# Repetitions of what takes milliseconds.
_REPEATS = 15

Row = dict[str, Any]


@click.command()
@common.data_option
@common.out_option("compile.md")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Measure these parts again.")
@click.option("--fresh", is_flag=True, help="Measure all parts again.")
@click.option("--images", "count", default=100, show_default=True, help="Images to compare.")
@click.option("--rounds", default=60, show_default=True, help="Turns of each runtime.")
@click.option(
    "--openvino",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with the package openvino, if it is installed elsewhere (pip install --target).",
)
def main(
    data_folder: Path,
    out: Path,
    only: tuple[str, ...],
    fresh: bool,
    count: int,
    rounds: int,
    openvino: Path | None,
) -> None:
    """Measure compiled C, and write the page.

    \b
    Example:
      python benchmarks/compile.py --data-folder ~/firebox-data
      python benchmarks/compile.py --data-folder ~/firebox-data --only speed --openvino build/openvino
    """
    kept = read_kept()
    parts: Mapping[str, Callable[[], Iterator[Row]]] = {
        "memory": lambda: memory(data_folder),
        "identity": lambda: identity(data_folder, count),
        "zoo": lambda: whole_zoo(data_folder),
        "accuracy": lambda: accuracy(data_folder),
        "times": lambda: times(data_folder),
        "devices": lambda: verdicts(data_folder),
        "speed": lambda: speed(data_folder, rounds, openvino),
        "threads": lambda: threads(data_folder, rounds),
    }
    for part in [name for name in PARTS if fresh or name in only or (not only and not is_whole(kept, name))]:
        rows = []
        for row in parts[part]():
            rows.append(row)
            common.terminal.note(f"{part}: {json.dumps(row)}")
        # Other parts may have been measured in the meantime.
        kept = read_kept()
        kept[part] = {"measured": f"{common.surroundings()} The processor is {this_processor()}.", "rows": rows}
        write_file(KEPT, json.dumps(kept, indent=1) + "\n")
    common.write_page(out, page(kept))


def is_whole(kept: Kept, part: str) -> bool:
    """True if all rows of a part are kept."""
    return part in kept and not kept[part].get("partial")


# Memory


def memory(data_folder: Path) -> Iterator[Row]:
    """The RAM of linked programs on an emulated Cortex-M7, compared with tflite-micro."""
    for case, whole, by_rows in _MEMORY:
        exported(case, data_folder)
        others = in_tflite_micro(case)
        graph, inputs = inputs_of(case, sample(images_of(case, data_folder), 2, _SEED), data_folder)
        outputs = builds.reference_outputs(graph, inputs)
        row: Row = {"network": case.label, "weights": case.weights, "macs": graph.macs, **others}
        for way, limit in (("whole", whole), ("rows", by_rows)):
            row[way] = on_microcontroller(case, way, limit, inputs, outputs)
        yield row


def on_microcontroller(case: Case, way: Any, limit: int | None, inputs: np.ndarray, outputs: np.ndarray) -> Row:
    """One plan, first with much RAM to see what it needs, then with no more than the limit."""
    plan = smallest_plan(read_graph(case.tflite), input=way)
    source = builds.generated(case.tflite, "cortex-m", input=way, sram_bytes=plan.arena_bytes)
    folder = BUILD / "boards" / f"{case.name.replace(' ', '')}-{case.side}-{way}"
    found = builds.on_board(builds.boards.M7, source, inputs[:1], outputs[:1], folder)
    if found is None:
        return {"arena_bytes": plan.arena_bytes, "macs": plan.graph.macs, "limit_bytes": limit}
    needed_bytes = -(-found.total_bytes // 16) * 16
    given = limit if limit and needed_bytes <= limit else needed_bytes
    tight = builds.on_board(builds.boards.M7, source, inputs, outputs, folder, given)
    return {
        "arena_bytes": found.arena_bytes,
        "total_bytes": found.total_bytes,
        "stack_bytes": found.stack_bytes,
        "flash_bytes": builds.code_bytes(folder),
        "macs": plan.graph.macs,
        "limit_bytes": limit,
        "ran_in_bytes": given if tight else None,
        "equal": tight.equal if tight else 0,
        "images": len(inputs),
    }


def in_tflite_micro(case: Case) -> Row:
    """The arena of tflite-micro: of the file as it is, and of the smallest rewritten one."""
    graph, row = read_graph(case.tflite), {"tflm_bytes": None, "tflm_least_bytes": None, "tflm_extra_macs": None}
    try:
        row["tflm_bytes"] = measure_arena(case.tflite, "tflm", exact=True).total_bytes
    except FireboxError as error:
        common.terminal.note(f"{case.label}: {error}")
    try:
        least = fit(graph, 1)
    except DoesNotFitError as error:
        least = fit(graph, error.smallest_bytes)
    except FireboxError as error:
        common.terminal.note(f"{case.label}: {error}")
        return row
    return {**row, "tflm_least_bytes": needed(least.after), "tflm_extra_macs": least.extra_macs}


# Identity


def identity(data_folder: Path, count: int) -> Iterator[Row]:
    """Outputs of every instruction set and compiler, compared with the reference, LiteRT and onnxruntime."""
    for case in (V11, V10):
        exported(case, data_folder)
        graph, inputs = inputs_of(case, sample(images_of(case, data_folder), count, _SEED), data_folder)
        expected = references(case, graph, inputs)
        for way, images in ways(count):
            if way.missing:
                common.terminal.note(f"{way.name}: {way.missing} is not installed")
                continue
            folder = BUILD / "programs" / f"{case.name}-{way.name.replace(' ', '_').replace(',', '')}"
            found = {}
            for arrival in ("rows", "whole") if way.isa != "plain" else ("rows",):
                program = builds.build(builds.generated(case.tflite, way.isa, input=arrival), way, folder)
                found[arrival] = builds.run(program, way, inputs[:images])
            yield {
                "network": case.name,
                "way": way.name,
                "runs": builds.instruction_set(program, way),
                "images": images,
                **{f"{name}_{key}": share(y, x) for name, x in expected.items() for key, y in found.items()},
            }
        for board in _BOARDS:
            source = builds.generated(case.tflite, "cortex-m")
            folder = BUILD / "boards" / f"{case.name}-{board.name}"
            ran = builds.on_board(board, source, inputs[:2], expected["reference"][:2], folder)
            equal = ran.equal / ran.images if ran else 0.0
            others = {
                f"{name}_rows": equal * float(np.array_equal(expected["reference"][:2], x[:2]))
                for name, x in expected.items()
            }
            name = f"bare emulated {board.name}"
            yield {"network": case.name, "way": name, "runs": "plain", "images": 2, **others}


def ways(count: int) -> Iterator[tuple[builds.Way, int]]:
    """Ways to build and run, each with its number of images."""
    for isa in builds.native_sets():
        for compiler in ("gcc", "clang"):
            yield builds.native(isa, compiler), min(count, 10) if isa == "plain" else count
    for compiler in ("gcc", "clang"):
        yield builds.native("auto", compiler, builds.SANITIZED), 2
    yield builds.native("auto"), count
    for core in _CORES:
        yield builds.arm64(core), 5


def references(case: Case, graph: Any, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs (images, values), int8, of the reference and of firebox sessions."""
    # The reference takes a second for each image, and depends on nothing but the file and the images.
    kept = BUILD / "references" / f"{sha256(case.tflite.read_bytes() + inputs.tobytes())[:16]}.npy"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, builds.reference_outputs(graph, inputs))
    found = {"reference": np.load(kept, allow_pickle=False)}
    with Session(case.tflite, "litert") as session:
        found["litert"] = np.stack([session.run(x).ravel() for x in inputs])
    with Session(case.onnx, "onnxruntime") as session:
        unsigned = (inputs.view(np.uint8) ^ 0x80).transpose(0, 1, 4, 2, 3)
        outputs = np.stack([session.run(np.ascontiguousarray(x)).ravel() for x in unsigned])
        found["onnxruntime"] = (outputs ^ 0x80).view(np.int8)
    return found


def share(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of identical outputs."""
    return float((found == expected[: len(found)]).mean())


def whole_zoo(data_folder: Path) -> Iterator[Row]:
    """Every network of the zoo, compared with LiteRT and, unless it is large, with the reference."""
    for case in zoo():
        try:
            yield _of_zoo(exported(case, data_folder), data_folder)
        except FireboxError as error:
            yield {"network": case.name, "side": case.side, "refused": str(error)}


def _of_zoo(case: Case, data_folder: Path) -> Row:
    large = case.name in LARGE
    images = 1 if large else 2
    graph, inputs = inputs_of(case, sample(images_of(case, data_folder), images, _SEED), data_folder)
    row: Row = {"network": case.name, "side": case.side, "weights": case.weights, "images": images, "macs": graph.macs}
    if not large:
        row["reference"] = {}
        expected = builds.reference_outputs(graph, inputs)
    with Session(case.tflite, "litert") as session:
        row["litert"], litert = {}, np.stack([session.run(x).ravel() for x in inputs])
    for isa in ["plain"] if large else ["plain", "auto"]:
        way = builds.native(isa)
        program = builds.build(
            builds.generated(case.tflite, isa), way, BUILD / "programs" / f"{case.name}-{case.side}-{isa}"
        )
        found = builds.run(program, way, inputs)
        row["litert"][isa] = share(found, litert)
        if not large:
            row["reference"][isa] = share(found, expected)
    return row


# Accuracy


def accuracy(data_folder: Path) -> Iterator[Row]:
    """Agreement with torch's class on images that calibrated nothing."""
    (isa,) = builds.native_sets()[-1:]
    for case in (V11, V10, CIFAR_NETWORK):
        exported(case, data_folder)
        images = held_back(case, data_folder)
        images = sample(images, 2000, _SEED) if len(images) > 2000 else images
        network = network_of(case, data_folder)
        _, inputs = inputs_of(case, images, data_folder)
        logits = predict(network.module, load_images(images, network.preprocessing), network.preprocessing)
        classes = logits.numpy().argmax(1)
        with Session(case.tflite, "litert") as session:
            litert = np.stack([session.run(x).ravel() for x in inputs])
        way = builds.native(isa)
        found = {"LiteRT, int8": litert}
        for output, kind in (("int8", np.int8), ("float", np.float32)):
            folder = BUILD / "programs" / f"{case.name}-{output}"
            program = builds.build(builds.generated(case.tflite, isa, output=output), way, folder)
            found[f"C, {output}"] = builds.run(program, way, inputs, kind)
        yield {
            "network": case.label,
            "images": len(images),
            "agreement": {name: float((y.argmax(1) == classes).mean()) for name, y in found.items()},
            "ties": {name: int((np.sort(y, 1)[:, -1] == np.sort(y, 1)[:, -2]).sum()) for name, y in found.items()},
        }


# Times


def times(data_folder: Path) -> Iterator[Row]:
    """Processor time to generate and compile, to plan long chains, and to open and use a session."""
    exported(V11, data_folder)
    (isa,) = builds.native_sets()[-1:]
    seconds = {"generate": [], "gcc": []}
    for _ in range(3):
        source, spent = builds.timed(lambda: compile_c(V11.tflite, isa=isa, name="net"))
        seconds["generate"].append(spent)
        seconds["gcc"].append(builds.library(source, BUILD / "programs" / "times")[1])
    size = len(source.code)
    yield {"what": "compile", "isa": isa, "characters": size, **{name: min(all_) for name, all_ in seconds.items()}}
    for operations in _CHAINS:
        yield {"what": "plan", "operations": operations, "seconds": planning_seconds(operations)}
    yield from _native_times(data_folder)


def planning_seconds(operations: int) -> float:
    """Processor time to plan a chain of squeezing and expanding convolutions, as in a SqueezeNet."""
    graph = chain(operations)
    return min(builds.timed(lambda: plan_compiled(graph))[1] for _ in range(2))


def _native_times(data_folder: Path) -> Iterator[Row]:
    """Processor time of the backend ``native``: to compile, to open the library again, and what a session adds."""
    from firebox.runtime.compile.build import build_library
    from firebox.runtime.inference.native import Native

    def row(step: str, ms: float) -> Row:
        return {"what": "native", "step": step, "ms": ms}

    data = V11.tflite.read_bytes()
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, FIREBOX_CACHE=cache):
        library, spent = builds.timed(lambda: build_library(data))
        yield row("generate and compile, without the compiler's own time", 1000 * spent)
        sha = min(builds.timed(lambda: sha256(data))[1] for _ in range(_REPEATS))
        yield row("hash the model file, to find its library", 1000 * sha)
        found = min(builds.timed(lambda: Native(build_library(data)))[1] for _ in range(_REPEATS))
        yield row("find, verify and load the library, without this hash", 1000 * (found - sha))
        opening = min(builds.timed(lambda: Session(data, "native", check="off"))[1] for _ in range(_REPEATS))
        yield row("open a session, with everything", 1000 * opening)
        x = inputs_of(V11, sample(images_of(V11, data_folder), 1, _SEED), data_folder)[1][0]
        with Session(data, "native", check="off") as session:
            shortest = min(_per_run(session.run, x) for _ in range(_REPEATS))
            yield row(f"one inference of SqueezeNet 1.1, {library.record.isa}", shortest)
        yield row("`Session.run` beyond the call of the C function", _overhead_ms(data_folder))


def _overhead_ms(data_folder: Path) -> float:
    """What a session adds to the C function, on a network so small that the difference shows."""
    case = exported(Case("squeezenet_micro", 32), data_folder)
    with Session(case.tflite, "native", check="off") as session:
        backend = session._running()
        x = np.zeros(session.input_shape, session.input_dtype)
        out = np.empty(backend._output_shape, backend._output_dtype)
        arena, memory = backend._new_arena()
        addresses = arena, x.ctypes.data, out.ctypes.data
        times = [(_per_run(session.run, x), _per_run(lambda _: backend._entry(*addresses), x)) for _ in range(200)]
        del memory
    through, direct = np.min(times, axis=0)
    return float(through - direct)


def _per_run(run: Callable[[np.ndarray], Any], x: np.ndarray) -> float:
    """Milliseconds of thread time of one run."""
    run(x)
    start = time.thread_time()
    for _ in range(_REPEATS):
        run(x)
    return 1000 * (time.thread_time() - start) / _REPEATS


# Speed


def speed(data_folder: Path, rounds: int, openvino: Path | None) -> Iterator[Row]:
    """Thread time of each runtime in a process of its own, in turns."""
    for case in _SPEED:
        exported(case, data_folder)
        with tempfile.TemporaryDirectory() as name:
            yield {"network": case.label, "rounds": rounds, "runtimes": in_turns(case, Path(name), rounds, openvino)}


@dataclass(frozen=True)
class Contestant:
    """A process that runs one inference after the other on request, and what it said when it started."""

    name: str
    process: subprocess.Popen
    facts: Row

    def ms(self) -> float:
        """Processor time of one inference, after another one that warms the caches."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def in_turns(case: Case, folder: Path, rounds: int, openvino: Path | None) -> list[Row]:
    """The times of all runtimes on one image."""
    commands = {f"C, {isa}": ["c", str(_library(case, isa, folder))] for isa in builds.native_sets() if isa != "plain"}
    commands |= {"LiteRT": ["litert", str(case.tflite)], "onnxruntime": ["onnxruntime", str(case.onnx)]}
    environments: dict[str, dict[str, str]] = {}
    for name, limits in {"OpenVINO": {}, "OpenVINO without AMX": _NO_AMX}.items():
        if limits and "amx_int8" not in this_processor().features:
            continue
        commands[name], environments[name] = ["openvino", str(case.onnx), str(openvino or "")], limits
    return _raced(case.label, commands, environments, rounds)


def threads(data_folder: Path, rounds: int) -> Iterator[Row]:
    """Sessions with one and two threads."""
    for case in _SPEED:
        exported(case, data_folder)
        files = {"native": case.tflite, "litert": case.tflite, "onnxruntime": case.onnx}
        commands = {
            f"{backend}, {count}": ["session", str(file), backend, str(count)]
            for backend, file in files.items()
            for count in (1, 2)
        }
        yield {"network": case.label, "rounds": rounds, "runtimes": _raced(case.label, commands, {}, rounds)}


def _raced(
    label: str, commands: Mapping[str, Sequence[str]], environments: Mapping[str, Mapping[str, str]], rounds: int
) -> list[Row]:
    """The times of processes that take turns in random order."""
    contestants = []
    for name, words in commands.items():
        started = _start(name, words, environments.get(name, {}))
        if started is not None:
            contestants.append(started)
    spent: dict[str, list[float]] = {one.name: [] for one in contestants}
    random = np.random.default_rng(0)
    with common.terminal.task(label, rounds) as advance:
        for _ in range(rounds):
            for index in random.permutation(len(contestants)):
                spent[contestants[index].name].append(contestants[index].ms())
                # Threads of some runtimes spin for a while, and would take a core from the next.
                time.sleep(_PAUSE)
            advance()
    for one in contestants:
        assert one.process.stdin is not None
        one.process.stdin.close()
        one.process.wait()
    return [
        {"name": one.name, "min_ms": min(spent[one.name]), "median_ms": float(np.median(spent[one.name])), **one.facts}
        for one in contestants
    ]


def _library(case: Case, isa: str, folder: Path) -> Path:
    source = builds.generated(case.tflite, isa)
    place = folder / isa
    path, _ = builds.library(source, place)
    facts = {
        "arena_bytes": source.arena_bytes,
        "input_bytes": int(np.prod(read_graph(case.tflite).tensors[source.plan.graph.inputs[0]].shape)),
    }
    (place / "net.json").write_text(json.dumps(facts))
    return path


def _start(name: str, words: Sequence[str], environment: Mapping[str, str]) -> Contestant | None:
    process = subprocess.Popen(
        [sys.executable, str(_WORKER), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        common.terminal.note(f"{name} does not start")
        return None
    return Contestant(name, process, json.loads(line))


# Devices


def verdicts(data_folder: Path) -> Iterator[Row]:
    """The networks of the zoo that fit a device, by ``firebox devices``."""
    devices = [one for one in known_devices().values() if one.kind == "microcontroller"]
    full = [case if case.side == 32 else Case(case.name, 227 if case.name == "alexnet" else 224) for case in zoo()]
    for case in (*full, SMALLER, SMALLEST):
        if case.name in LARGE:
            # More than 60 MB of weights: no flash of a microcontroller holds them.
            continue
        exported(case, data_folder)
        fits: dict[str, dict[str, bool | None]] = {}
        for one in judge(case.tflite, devices):
            fits.setdefault(one.device.id, {})[one.target] = one.fits
        yield {"network": case.label, "weights": case.weights, "fits": fits}


if __name__ == "__main__":
    main()
