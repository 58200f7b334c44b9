"""Hybrid layers: compressed weights between float32 activations, which runtimes unpack in memory of their own."""

from ..graph import Graph, Tensor, ops


def hybrid_weight(graph: Graph) -> Tensor | None:
    """The first weight with fewer bits than the float32 activations of its layer, if any."""
    layers = (op for op in graph.ops if isinstance(op, ops.Layer))
    weights = (graph.tensors[op.inputs[1]] for op in layers if graph.tensors[op.inputs[0]].dtype == "float32")
    return next((weight for weight in weights if weight.dtype != "float32"), None)
