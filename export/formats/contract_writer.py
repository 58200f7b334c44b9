"""Contracts for exported files: specifications of input and output, and the golden pair."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...runtime.contract import KEY, Contract, Golden, Layout, TensorSpec, golden_pixels
from ...runtime.errors import ParityError
from ...runtime.graph import Graph, Tensor
from ...runtime.inference import Session
from .onnx_writer import onnx_shape, onnx_side

# Steps of the output by which other kernels may differ: tflite-runtime requantizes in fixed point.
_GOLDEN_STEPS = 6


def contract_for_file(contract: Contract, graph: Graph, layout: Layout) -> Contract:
    """The contract with the input and output specifications of a graph's file."""
    source, target = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    return replace(contract, layout=layout, input=_spec(source, layout), output=_spec(target, layout))


def with_golden_pair(write: Callable[..., bytes], graph: Graph, contract: Contract) -> bytes:
    """The file of a graph with its contract and golden pair.

    A first file without the pair is run on the golden image, and its output is stored in the second one. Raises
    ``ParityError`` if the output is not finite.
    """
    pixels = golden_pixels(contract.preprocessing)
    with Session(write(graph, {KEY: contract.to_bytes()})) as session:
        output = session.predict_pixels(pixels)
    if not np.isfinite(output).all():
        raise ParityError(f"{contract.name} outputs values that are not finite; check the weights")
    largest = max(float(np.abs(output).max()), 1e-6)
    tolerance = 1e-3 * largest
    if any(tensor.quantization for tensor in graph.tensors.values()):
        # The output is at most as precise as the 8-bit activations before it.
        step = contract.output.scale if contract.output.dtype in ("int8", "uint8") else None
        tolerance = _GOLDEN_STEPS * (step or largest / 127)
    golden = Golden(pixels, tuple(map(float, output)), float(tolerance))
    return write(graph, {KEY: replace(contract, golden=golden).to_bytes()})


def _spec(tensor: Tensor, layout: Layout) -> TensorSpec:
    shape = onnx_shape(tensor.shape) if layout == "NCHW" else tensor.shape
    if tensor.quantization is None:
        return TensorSpec(tensor.dtype, shape)
    dtype, zero_point = onnx_side(tensor) if layout == "NCHW" else (tensor.dtype, tensor.quantization.zero_point)
    return TensorSpec(dtype, shape, tensor.quantization.scale[0], zero_point)
