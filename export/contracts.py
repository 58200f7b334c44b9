"""What a file says of its own input and output, from the graph that it was written from."""

from dataclasses import replace

from ..runtime.contract import Contract, Layout, TensorSpec
from ..runtime.graph import Graph, Tensor
from .onnx_writer import onnx_shape, onnx_side


def for_file(contract: Contract, graph: Graph, layout: Layout) -> Contract:
    """The contract with the input and output that the file of a graph has."""
    source, target = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    return replace(contract, layout=layout, input=_spec(source, layout), output=_spec(target, layout))


def _spec(tensor: Tensor, layout: Layout) -> TensorSpec:
    shape = onnx_shape(tensor.shape) if layout == "NCHW" else tensor.shape
    if tensor.quantization is None:
        return TensorSpec(tensor.dtype, shape)
    dtype, zero_point = onnx_side(tensor) if layout == "NCHW" else (tensor.dtype, tensor.quantization.zero_point)
    return TensorSpec(dtype, shape, tensor.quantization.scale[0], zero_point)
