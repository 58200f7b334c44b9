"""The targets for which memory is planned: one ``Target`` each, found by name in ``TARGETS``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import UnsupportedError, UsageError
from ..formats.read import Format
from ..graph import Graph
from . import compiled, litert, measure_worker, static, tflm
from .allocation import Layout, allocate, live_ranges
from .rows import Input

# Alignment of onnxruntime's allocator (BFCArena).
_ONNXRUNTIME_ALIGNMENT = 256


@dataclass(frozen=True)
class Runtime:
    """A Python package that runs files of one ``format``, and can report the memory of a run.

    ``measure(data, exact)`` runs a file and returns its memory as the runtime reports it, or the smallest arena found
    by search if ``exact``. It must be a function of a module, since it runs in a process of its own. With
    ``measures_heap``, its ``total_bytes`` are the heap of that process, with copies of the weights, not the demand for
    SRAM.
    """

    format: Format
    module: str
    package: str
    extra: str
    measure: Callable[[bytes, bool], Mapping[str, int | None]]
    measures_heap: bool = True


def _none(graph: Graph) -> None:
    return None


def _zero(graph: Graph) -> int:
    return 0


@dataclass(frozen=True)
class Target:
    """A runtime or compiler whose memory is planned.

    * ``lay_out`` lays out the arena of a graph; it gets the offsets that the file prescribes.
    * ``unplanned`` gives the reason why the memory of a graph cannot be planned, or ``None``.
    * ``plans_all``: the arena holds every activation. False if the runtime keeps some elsewhere or rewrites the graph.
    * ``rewrites``: ``fit`` may tile the graph for it. False if its plan is as small without.
    * ``takes_offsets``: the runtime follows the offsets in the file, so rows of a tensor can be freed one by one.
    * ``reads_external_buffers``: it finds constants that lie behind the flatbuffer.
    * ``tail_bytes`` are the bytes that operations themselves occupy, next to the activations; ``part_tail_bytes`` is
      the same for a part of a network, an upper bound that can be summed.
    * ``flash_bytes`` are the weights and the code that a compiler makes of a graph, as ``lay_out`` returns it. ``None``
      for a runtime: it keeps the file in flash, and the size of its own code is unknown.
    * ``runtime`` is what measures it.
    """

    name: str
    description: str
    lay_out: Callable[[Graph, Mapping[str, int]], Layout]
    unplanned: Callable[[Graph], str | None] = _none
    plans_all: bool = False
    rewrites: bool = True
    takes_offsets: bool = False
    reads_external_buffers: bool = True
    tail_bytes: Callable[[Graph], int] = _zero
    part_tail_bytes: Callable[[Graph], int] = _zero
    flash_bytes: Callable[[Graph], int] | None = None
    runtime: Runtime | None = None


TARGETS: dict[str, Target] = {}


def register(target: Target) -> Target:
    """Add a target: ``plan``, ``fit`` (if it ``plans_all``) and the options of commands know it from then on."""
    TARGETS[target.name] = target
    return target


def find_target(name: str) -> Target:
    """The target of that name. Raises ``UsageError`` for an unknown one."""
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is not one of {', '.join(TARGETS)}")
    return TARGETS[name]


def lay_out(graph: Graph, target: Target, offsets: Mapping[str, int]) -> Layout:
    """The arena of a graph on a target, with the ``offsets`` of the file if the target takes them.

    Raises ``UnsupportedError`` if the target cannot be planned for the graph, with the targets that can.
    """
    reason = target.unplanned(graph)
    if reason is not None:
        others = ", ".join(other.name for other in TARGETS.values() if other.unplanned(graph) is None)
        raise UnsupportedError(f"{reason}; plan it for another target: {others}")
    return target.lay_out(graph, offsets)


def _lay_out_onnxruntime(graph: Graph) -> Layout:
    """Activations without the input, which is the caller's array, allocated greedily by size.

    Graph optimizations of onnxruntime and the scratch memory of its kernels are not planned.
    """
    ranges = [live for live in live_ranges(graph, alignment=_ONNXRUNTIME_ALIGNMENT) if live.tensor not in graph.inputs]
    return Layout(graph, allocate(ranges, alignment=_ONNXRUNTIME_ALIGNMENT))


TFLM = register(
    Target(
        "tflm",
        "tflite-micro, to the byte",
        tflm.lay_out,
        tflm.unplanned,
        plans_all=True,
        takes_offsets=True,
        reads_external_buffers=False,
        tail_bytes=tflm.tail_bytes,
        part_tail_bytes=tflm.part_tail_bytes,
        runtime=Runtime(
            "tflite", "tflite_micro", "tflite-micro", "micro", measure_worker.measure_tflm, measures_heap=False
        ),
    )
)
LITERT_REFERENCE = register(
    Target(
        "litert-reference",
        "LiteRT with its reference kernels",
        lambda graph, offsets: litert.lay_out_reference(graph),
        litert.unplanned_reference,
        plans_all=True,
        runtime=Runtime(
            "tflite", "ai_edge_litert", "ai-edge-litert", "litert", measure_worker.measure_litert_reference
        ),
    )
)
LITERT = register(
    Target(
        "litert",
        "LiteRT with XNNPACK",
        lambda graph, offsets: litert.lay_out_xnnpack(graph),
        litert.unplanned_xnnpack,
        runtime=Runtime("tflite", "ai_edge_litert", "ai-edge-litert", "litert", measure_worker.measure_litert),
    )
)
ONNXRUNTIME = register(
    Target(
        "onnxruntime",
        "onnxruntime without its graph optimizations",
        lambda graph, offsets: _lay_out_onnxruntime(graph),
        runtime=Runtime("onnx", "onnxruntime", "onnxruntime", "onnx", measure_worker.measure_onnxruntime),
    )
)
STATIC = register(
    Target(
        "static",
        "an ideal static compiler",
        lambda graph, offsets: static.lay_out(graph),
        plans_all=True,
    )
)


def _compiled(name: str, arrival: str, input: Input) -> Target:
    return Target(
        name,
        f"C generated by firebox compile, input {arrival}",
        lambda graph, offsets: compiled.lay_out(graph, input),
        compiled.unplanned,
        plans_all=True,
        rewrites=False,
        flash_bytes=compiled.flash_bytes,
    )


C = register(_compiled("c", "delivered by rows", "rows"))
C_WHOLE = register(_compiled("c-whole", "whole in the arena", "whole"))
