"""Graphs and tensors: a small, framework-free, immutable representation of a network.

Activations are NHWC, or (N, C) once flattened. The weight of a convolution is OHWI, (out, height, width, in / groups);
that of a fully connected layer is (out, in). Integer tensors carry the affine quantization
``real = scale * (q - zero_point)`` (Jacob et al., arXiv 1712.05877, section 2.1).

Layers between float32 activations may have weights in float16, or in int8 with scales. The graph does not specify
whether a runtime converts these weights to float32 or quantizes the activations at run time.

All other modules are functions from graph to graph, from file to graph, or from graph to a file or to figures.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import numpy as np

from ..errors import UnsupportedError
from .ops import Op, Reshape, Shape

DType = Literal["float32", "float16", "int8", "uint8", "int16", "int32", "int64"]

_MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class Quantization:
    """``real = scale * (q - zero_point)``: one scale per tensor, or one per index of ``axis``."""

    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int | None = None

    def dequantize(self, values: np.ndarray) -> np.ndarray:
        """Float32 values of integers."""
        return (values.astype(np.float32) - np.float32(self.zero_point)) * self._along(values.ndim)

    def quantize(self, values: np.ndarray, dtype: str) -> np.ndarray:
        """Integers of ``dtype`` for real values, rounded half to even and saturated."""
        limits = np.iinfo(dtype)
        rounded = np.rint(np.asarray(values, np.float32) / self._along(values.ndim)) + self.zero_point
        return np.clip(rounded, limits.min, limits.max).astype(dtype)

    def _along(self, ndim: int) -> np.ndarray:
        scale = np.asarray(self.scale, np.float32)
        if self.axis is None:
            return scale.reshape(())
        return scale.reshape([-1 if axis == self.axis else 1 for axis in range(ndim)])


@dataclass(frozen=True)
class Tensor:
    """A named array: a constant if it has ``data``, otherwise an activation."""

    name: str
    shape: Shape
    dtype: DType = "float32"
    quantization: Quantization | None = None
    data: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def real(self) -> np.ndarray:
        """Values of a constant as float32, dequantized if necessary."""
        assert self.data is not None
        return self.quantization.dequantize(self.data) if self.quantization else self.data.astype(np.float32)


@dataclass(frozen=True)
class Graph:
    """Tensors by name, operations in execution order, and the names of the inputs and outputs.

    Raises ``UnsupportedError`` if the parts contradict each other, for example if an operation uses a tensor before
    it is computed or the shape of its output does not follow from its inputs.
    """

    name: str
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        for tensor in self.tensors.values():
            _check_tensor(tensor)
        known = {name for name, tensor in self.tensors.items() if tensor.data is not None} | set(self.inputs)
        for op in self.ops:
            for name in op.inputs:
                if name not in known:
                    raise UnsupportedError(f"{op.kind} {op.name!r} uses {name!r} before any operation computes it")
            self._check_shapes(op)
            known.add(op.output)
        for name in self.outputs:
            if name not in known:
                raise UnsupportedError(f"no operation computes the output {name!r} of {self.name}")

    def _check_shapes(self, op: Op) -> None:
        try:
            expected = op.output_shape(*(self.tensors[name].shape for name in op.inputs))
        except (ValueError, IndexError) as error:
            raise UnsupportedError(f"{op.kind} {op.name!r} cannot run: {error}") from error
        if min(expected, default=1) < 1:
            raise UnsupportedError(f"{op.kind} {op.name!r} has an empty output {expected}; use a larger input")
        if self.tensors[op.output].shape != expected:
            shape = self.tensors[op.output].shape
            raise UnsupportedError(f"{op.kind} {op.name!r} computes {expected}, but {op.output!r} is declared {shape}")

    @classmethod
    def of(
        cls,
        name: str,
        tensors: Iterable[Tensor],
        ops: Iterable[Op],
        inputs: Iterable[str],
        outputs: Iterable[str],
    ) -> "Graph":
        """A graph of the operations and tensors that the outputs depend on; all others are dropped."""
        outputs, inputs, needed, kept = tuple(outputs), tuple(inputs), set(outputs), []
        for op in reversed(list(ops)):
            if op.output in needed:
                needed.update(op.inputs)
                kept.append(op)
        used = {tensor.name: tensor for tensor in tensors if tensor.name in needed or tensor.name in inputs}
        return cls(name, used, tuple(reversed(kept)), inputs, outputs)

    def input_values(self, reals: np.ndarray) -> np.ndarray:
        """Real values of the single input's shape (NHWC) in the input's own type: float32, or quantized integers."""
        (name,) = self.inputs
        tensor = self.tensors[name]
        if tensor.quantization is None:
            return reals.astype(np.float32)
        return tensor.quantization.quantize(reals, tensor.dtype)

    def shapes(self, op: Op) -> list[Shape]:
        """Shapes of the inputs of an operation."""
        return [self.tensors[name].shape for name in op.inputs]

    def op_macs(self, op: Op) -> int:
        """Multiply-accumulates of one operation."""
        return op.macs(*self.shapes(op))

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(self.op_macs(op) for op in self.ops)

    @cached_property
    def weight_bytes(self) -> int:
        """Size of all constants in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values() if tensor.data is not None)

    @cached_property
    def activations(self) -> tuple[Tensor, ...]:
        """All tensors that are not constant, in the order in which they are computed."""
        names = dict.fromkeys([*self.inputs, *(op.output for op in self.ops)])
        return tuple(self.tensors[name] for name in names)

    @cached_property
    def producers(self) -> Mapping[str, Op]:
        """The operation that computes each tensor."""
        return {op.output: op for op in self.ops}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Op, ...]]:
        """The operations that read each tensor."""
        found: dict[str, list[Op]] = {name: [] for name in self.tensors}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                found[name].append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    def only_consumer(self, name: str) -> Op | None:
        """The one operation that reads a tensor; ``None`` if there are several or the tensor is a network output."""
        users = self.consumers[name]
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def flattened_image(self, name: str) -> Shape | None:
        """The shape of the image of more than one pixel that a tensor holds flattened, or ``None``."""
        op = self.producers.get(name)
        while op is not None and op.elementwise and len(op.inputs) == 1:
            op = self.producers.get(op.inputs[0])
        if not isinstance(op, Reshape):
            return None
        shape = self.tensors[op.inputs[0]].shape
        return shape if len(shape) == 4 and shape[1:3] != (1, 1) else None

    def constant(self, name: str) -> Tensor:
        """The constant of this name. Raises ``UnsupportedError`` if the tensor is computed."""
        tensor = self.tensors[name]
        if tensor.data is None:
            raise UnsupportedError(f"{name!r} must be constant, but it is computed")
        return tensor


def _check_tensor(tensor: Tensor) -> None:
    if any(size < 1 for size in tensor.shape):
        raise UnsupportedError(f"{tensor.name!r} has shape {tensor.shape}; all dimensions must be fixed and positive")
    if math.prod(tensor.shape) > _MAX_ELEMENTS:
        raise UnsupportedError(f"{tensor.name!r} has shape {tensor.shape}, which has more than 2**31 - 1 elements")
    if tensor.data is not None and (tensor.data.shape != tensor.shape or tensor.data.dtype != tensor.dtype):
        raise UnsupportedError(f"{tensor.name!r} holds {tensor.data.dtype} {tensor.data.shape}, not {tensor.shape}")
