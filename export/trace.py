"""Tracing of an ``nn.Module`` into a graph with torch's ONNX exporter."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ..runtime.errors import MissingExtraError, UnsupportedError
from ..runtime.formats.onnx_reader import read_onnx
from ..runtime.graph import Graph, ops
from ..runtime.graph.rewrite import fold_batch_norm, fuse_activations
from .formats.onnx_writer import OPSET

if TYPE_CHECKING:
    import torch
    from torch import nn


def trace(module: "nn.Module", input_shape: tuple[int, int, int, int], name: str = "main") -> Graph:
    """Trace a module in eval mode into a float graph; batch norm is folded and ReLUs are fused.

    ``input_shape`` is torch's (N, channels, height, width), ``name`` becomes the graph's name. The module keeps its
    mode. Raises ``UnsupportedError`` with the unsupported operation and its module.
    """
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
        import torch
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "export") from error
    example = torch.zeros(input_shape, device=device_of(module))
    try:
        with _quiet(), in_eval_mode(module), torch.no_grad():
            program = torch.onnx.export(
                module, (example,), dynamo=True, external_data=False, opset_version=OPSET, verbose=False,
                input_names=["input"], output_names=["output"],
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        cause = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedError(f"{type(module).__name__} cannot be traced with input {input_shape}: {cause}") from error
    assert program is not None
    graph = fuse_activations(fold_batch_norm(read_onnx(program.model_proto)))
    return replace(_named_after_modules(graph), name=name)


def device_of(module: "nn.Module") -> "torch.device | None":
    """The device of a module's parameters; ``None`` if it has none."""
    return next((parameter.device for parameter in module.parameters()), None)


@contextlib.contextmanager
def in_eval_mode(module: "nn.Module") -> Iterator[None]:
    """Put a module in eval mode, then restore the mode of each submodule: frozen ones stay in eval mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: a single image does not keep more busy, and on loaded cores threads wait for others."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _named_after_modules(graph: Graph) -> Graph:
    """Rename each layer's output after the module that holds its weight, not after the ReLU fused into it."""
    names: dict[str, str] = {}
    for op in graph.ops:
        module, _, kind = op.inputs[1].rpartition(".") if len(op.inputs) == 3 else ("", "", "")
        taken = module in graph.tensors and module != op.output
        if kind == "weight" and not taken and module not in names.values() and op.output not in graph.outputs:
            names[op.output] = module
    tensors = [replace(tensor, name=names.get(tensor.name, tensor.name)) for tensor in graph.tensors.values()]
    operations = [ops.rename(op, names) for op in graph.ops]
    return Graph.of(graph.name, tensors, operations, graph.inputs, graph.outputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings and logs about its internals and about torchvision."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
