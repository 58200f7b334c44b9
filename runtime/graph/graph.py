"""The spine: a small, framework-free, immutable representation of a network.

Activations are NHWC (or N, C once flattened). A convolution's weight is OHWI: (out, height, width, in / groups); a
fully connected layer's is (out, in). Integer tensors carry the affine quantization ``real = scale * (q - zero_point)``
(Jacob et al., arXiv 1712.05877, section 2.1). Padding is explicit, (top, bottom, left, right), and never counts:
zeros for a convolution, ignored by the pools.

Layers between float32 activations may have weights of fewer bits: float16, or int8 with their scales. That is all a
graph says of them; whether a runtime turns them into float32, or the activations into integers, is its own affair.

Everything else in firebox is a function from graph to graph, from file to graph, or from graph to file or figures.
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
        """Integers to float32."""
        return (values.astype(np.float32) - np.float32(self.zero_point)) * self._along(values.ndim)

    def quantize(self, values: np.ndarray, dtype: str) -> np.ndarray:
        """Reals to integers of ``dtype``, rounded half to even and saturated."""
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
    """A named array: an activation, or a constant when ``data`` is there."""

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
        """The constant's values as float32."""
        assert self.data is not None
        return self.quantization.dequantize(self.data) if self.quantization else self.data.astype(np.float32)


@dataclass(frozen=True)
class Graph:
    """Tensors by name, operations in an order in which they can run, and which tensors go in and out.

    Raises ``UnsupportedError`` when the parts contradict each other: an operation that uses what is not there yet,
    a shape that does not follow from the inputs.
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
                    raise UnsupportedError(f"{op.kind} {op.name!r} uses {name!r} before anything makes it")
            self._check_shapes(op)
            known.add(op.output)
        for name in self.outputs:
            if name not in known:
                raise UnsupportedError(f"output {name!r} of {self.name} is not made by any operation")

    def _check_shapes(self, op: Op) -> None:
        try:
            expected = op.output_shape(*(self.tensors[name].shape for name in op.inputs))
        except (ValueError, IndexError) as error:
            raise UnsupportedError(f"{op.kind} {op.name!r} cannot run: {error}") from error
        if min(expected, default=1) < 1:
            raise UnsupportedError(f"{op.kind} {op.name!r} has an empty output {expected}; the input is too small")
        if self.tensors[op.output].shape != expected:
            shape = self.tensors[op.output].shape
            raise UnsupportedError(f"{op.kind} {op.name!r} gives {expected}, but {op.output!r} is declared {shape}")

    @classmethod
    def of(
        cls,
        name: str,
        tensors: Iterable[Tensor],
        ops: Iterable[Op],
        inputs: Iterable[str],
        outputs: Iterable[str],
    ) -> "Graph":
        """A graph of what the outputs need: operations and tensors that lead nowhere are left out."""
        outputs, inputs, needed, kept = tuple(outputs), tuple(inputs), set(outputs), []
        for op in reversed(list(ops)):
            if op.output in needed:
                needed.update(op.inputs)
                kept.append(op)
        used = {tensor.name: tensor for tensor in tensors if tensor.name in needed or tensor.name in inputs}
        return cls(name, used, tuple(reversed(kept)), inputs, outputs)

    def input_values(self, reals: np.ndarray) -> np.ndarray:
        """What the single input takes for real numbers of its shape (NHWC): these as float32, or its integers."""
        (name,) = self.inputs
        tensor = self.tensors[name]
        if tensor.quantization is None:
            return reals.astype(np.float32)
        return tensor.quantization.quantize(reals, tensor.dtype)

    def shapes(self, op: Op) -> list[Shape]:
        """Shapes of an operation's inputs."""
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
        """Bytes of all constants."""
        return sum(tensor.nbytes for tensor in self.tensors.values() if tensor.data is not None)

    @cached_property
    def activations(self) -> tuple[Tensor, ...]:
        """Everything that is not constant, in the order in which it comes to life."""
        names = dict.fromkeys([*self.inputs, *(op.output for op in self.ops)])
        return tuple(self.tensors[name] for name in names)

    @cached_property
    def producers(self) -> Mapping[str, Op]:
        """The operation that makes each tensor."""
        return {op.output: op for op in self.ops}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Op, ...]]:
        """The operations that use each tensor."""
        found: dict[str, list[Op]] = {name: [] for name in self.tensors}
        for op in self.ops:
            for name in dict.fromkeys(op.inputs):
                found[name].append(op)
        return {name: tuple(ops) for name, ops in found.items()}

    def only_consumer(self, name: str) -> Op | None:
        """The single operation that uses a tensor that is not an output of the network, if there is just one."""
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
        """A tensor that must be constant. Raises ``UnsupportedError``."""
        tensor = self.tensors[name]
        if tensor.data is None:
            raise UnsupportedError(f"{name!r} must be constant, but is computed")
        return tensor


def _check_tensor(tensor: Tensor) -> None:
    if any(size < 1 for size in tensor.shape):
        raise UnsupportedError(f"{tensor.name!r} has shape {tensor.shape}; every dimension must be fixed and positive")
    if math.prod(tensor.shape) > _MAX_ELEMENTS:
        raise UnsupportedError(f"{tensor.name!r} has shape {tensor.shape}, too large to be real")
    if tensor.data is not None and (tensor.data.shape != tensor.shape or tensor.data.dtype != tensor.dtype):
        raise UnsupportedError(f"{tensor.name!r} holds {tensor.data.dtype} {tensor.data.shape}, not {tensor.shape}")
