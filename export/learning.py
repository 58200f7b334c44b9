"""Weights and biases learned for their int8 form, on calibration pictures alone, from the float network's answers.

As AdaRound (Nagel et al., arXiv 2004.10568) it moves weights by fractions of a step, so that what rounding does to them
and to the activations cancels out; unlike it, all layers at once and with the whole network's answer as the aim. Each
picture is used as it is and mirrored: more of them keep the network from learning the pictures by heart.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.errors import MissingExtraError
from ..runtime.graph import Conv, FullyConnected, Graph, Softmax
from .blaming import answers
from .calibrators import Range
from .scales import activation_scales

if TYPE_CHECKING:
    from .fake_quantization import FakeQuantized

EPOCHS = 6
_BATCH = 10
# What a step of the optimizer moves: this share of a weight's, or for a bias of its output's, integer step.
_PACE = 0.003
# How much the squared error of the answers counts beside the divergence of the classes they stand for.
_SQUARED = 100.0


def learn(
    graph: Graph,
    ranges: Mapping[str, Range],
    samples: Sequence[np.ndarray],
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Graph:
    """The float graph with weights that answer better once they are rounded to the nearest integer.

    ``ranges`` of the activations stay as they are; ``samples`` are network inputs, NHWC with the batch. ``tick`` is
    called ``EPOCHS + 2`` times a sample. Deterministic for a seed on the same kind of processor. Raises
    ``MissingExtraError`` without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "export") from error
    from torch.nn import functional

    from .fake_quantization import FakeQuantized
    from .tracing import one_thread

    mirrored = [np.ascontiguousarray(sample[:, :, ::-1]) if sample.ndim == 4 else sample for sample in samples]
    inputs = [*samples, *mirrored]
    expected = torch.from_numpy(answers(graph, inputs, tick).astype(np.float32))
    pictures = np.concatenate(inputs)
    pictures = pictures.transpose(0, 3, 1, 2) if pictures.ndim == 4 else pictures
    ends_in_shares = isinstance(graph.producers.get(graph.outputs[0]), Softmax)
    with one_thread():
        module = FakeQuantized(graph, ranges)
        optimizer = torch.optim.Adam(_paced(graph, ranges, module), betas=(0.9, 0.99))
        paces = [group["lr"] for group in optimizer.param_groups]
        batches = list(_batches(len(inputs), len(samples), seed))
        for step, batch in enumerate(batches):
            for group, pace in zip(optimizer.param_groups, paces, strict=True):
                group["lr"] = pace * (1 - step / len(batches))
            given = expected[batch]
            found = module(torch.from_numpy(np.ascontiguousarray(pictures[batch], np.float32))).flatten(1)
            shares = [v.clamp_min(1e-6).log() if ends_in_shares else v.log_softmax(1) for v in (found, given)]
            loss = functional.kl_div(shares[0], shares[1], log_target=True, reduction="batchmean")
            loss = loss + _SQUARED * functional.mse_loss(found, given) / given.square().mean().clamp_min(1e-12)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for _ in batch:
                tick()
        return module.graph()


def _paced(graph: Graph, ranges: Mapping[str, Range], module: "FakeQuantized") -> list[dict[str, Any]]:
    """Each layer's parameters with the rate at which they move: weights differ by orders of magnitude."""
    scales = activation_scales(graph, ranges)
    groups: list[dict[str, Any]] = []
    for op in graph.ops:
        if isinstance(op, Conv | FullyConnected):
            weight, bias = (module.parameter_of(name) for name in op.inputs[1:])
            step = float(weight.detach().abs().flatten(1).amax(1).mean()) / 127
            groups.append({"params": [weight], "lr": _PACE * step})
            groups.append({"params": [bias], "lr": _PACE * scales[op.output].scale[0]})
    return groups


def _batches(inputs: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of inputs, as many in each epoch as there are samples."""
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        chosen = rng.permutation(inputs)[:samples]
        yield from np.array_split(chosen, max(1, -(-samples // _BATCH)))
