"""The ends of a model file, its own layout and types, beside the NHWC int8 of the generated C."""

from dataclasses import dataclass, replace

import numpy as np

from ..contract import Layout, TensorSpec
from ..errors import UnsupportedError
from ..formats.read import format_of
from ..graph import Graph, Tensor

# Numbers of TensorProto.DataType.
_ONNX_TYPES = {2: "uint8", 3: "int8"}


@dataclass(frozen=True)
class Ends:
    """Type, shape and quantization of a file's input and output, and the layout of its images."""

    input: TensorSpec
    output: TensorSpec
    layout: Layout


def ends_of(data: bytes, graph: Graph) -> Ends:
    """The ends of a file with that graph. Raises ``UnsupportedError`` unless both are quantized to 8 bits."""
    source, target = (_spec(graph, graph.tensors[name]) for name in (graph.inputs[0], graph.outputs[0]))
    if format_of(data) == "tflite":
        return Ends(source, target, "NHWC")
    from ..formats.onnx_reader import parse_onnx

    found = parse_onnx(data).graph
    kinds = {value.name: _ONNX_TYPES.get(value.type.tensor_type.elem_type) for value in (*found.input, *found.output)}
    source, target = (
        _as_stored(_channels_first(spec), kinds.get(name) or spec.dtype)
        for spec, name in ((source, graph.inputs[0]), (target, graph.outputs[0]))
    )
    return Ends(source, target, "NCHW" if len(source.shape) == 4 else "NHWC")


def _spec(graph: Graph, tensor: Tensor) -> TensorSpec:
    found = tensor.quantization
    if tensor.dtype not in ("int8", "uint8") or found is None:
        raise UnsupportedError(
            f"{tensor.name!r} of {graph.name} is {tensor.dtype}; backend native runs files whose input and output are "
            "int8 or uint8: export the model with --precision int8"
        )
    return TensorSpec(tensor.dtype, tuple(tensor.shape), float(np.float32(found.scale[0])), found.zero_point)


def _channels_first(spec: TensorSpec) -> TensorSpec:
    if len(spec.shape) != 4:
        return spec
    batch, height, width, channels = spec.shape
    return replace(spec, shape=(batch, channels, height, width))


def _as_stored(spec: TensorSpec, dtype: str) -> TensorSpec:
    """The spec with the file's own type; the graph's integers are signed."""
    if dtype == spec.dtype:
        return spec
    shift = np.iinfo(dtype).min - np.iinfo(spec.dtype).min
    return replace(spec, dtype=dtype, zero_point=spec.zero_point + shift)
