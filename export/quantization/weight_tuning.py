"""Weights and biases learned for their int8 form, on calibration images alone, from the float network's answers.

As AdaRound (Nagel et al., arXiv 2004.10568) it moves weights by fractions of a step, so that what rounding does to them
and to the activations cancels out; unlike it, all layers at once and with the whole network's answer as the aim. Each
image is cut and mirrored anew every time, and the float network asked for its answer: more of them keep the weights
from learning the images by heart.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import MissingExtraError
from ...runtime.graph import Graph, ops
from ..activations import run_outputs
from .gptq import input_moments
from .quantize import compensate_layers
from .ranges import Range
from .scales import activation_scales
from .weight_grid import DEFAULT_RANGE, WeightRange

if TYPE_CHECKING:
    from torch import Tensor

    from .fake_quantize import FakeQuantized

EPOCHS = 8
_BATCH = 10
# What a step of the optimizer moves: this share of a weight's, or for a bias of its output's, integer step.
_PACE = 0.003
# The least share of an image's sides that is looked at.
_LEAST_SHARE = 0.6
# How much the squared error of the answers counts beside the divergence of the classes they stand for.
_SQUARED = 100.0


def tune_weights(
    graph: Graph,
    ranges: Mapping[str, Range],
    samples: Sequence[np.ndarray],
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
    weight_range: WeightRange = DEFAULT_RANGE,
) -> Graph:
    """The float graph with weights that answer better once they are rounded to the nearest integer.

    ``ranges`` of the activations stay as they are; ``samples`` are network inputs, NHWC with the batch. ``tick`` is
    called ``EPOCHS + 1`` times a sample. Deterministic for a seed on the same kind of processor. Raises
    ``MissingExtraError`` without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "export") from error

    from ..trace import one_thread
    from .fake_quantize import FakeQuantized

    rng = np.random.default_rng(seed)
    with one_thread():
        start = compensate_layers(graph, ranges, input_moments(graph, samples, seed, tick), weight_range)
        module = FakeQuantized(start, ranges, weight_range=weight_range)
        optimizer = torch.optim.Adam(_paced(start, ranges, module), betas=(0.9, 0.99))
        slowing = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS * -(-len(samples) // _BATCH))
        for _ in range(EPOCHS):
            views = [_view(samples[index], rng) for index in rng.permutation(len(samples))]
            expected = run_outputs(graph, views).astype(np.float32)
            for first in range(0, len(views), _BATCH):
                batch = slice(first, first + _BATCH)
                loss = _loss(graph, module, np.concatenate(views[batch]), expected[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                slowing.step()
                for _ in views[batch]:
                    tick()
        return module.graph()


def _view(sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of an image (1, H, W, C) in its full size, mirrored or not; what is no image as it is."""
    if sample.ndim != 4:
        return sample
    from torch import from_numpy
    from torch.nn import functional

    share, mirrored = rng.uniform(_LEAST_SHARE, 1), rng.random() < 0.5
    size = sample.shape[1:3]
    part = [max(1, round(share * extent)) for extent in size]
    top, left = (int(rng.integers(0, extent - length + 1)) for extent, length in zip(size, part, strict=True))
    cut = np.ascontiguousarray(sample[:, top : top + part[0], left : left + part[1]].transpose(0, 3, 1, 2), np.float32)
    resized = functional.interpolate(from_numpy(cut), size, mode="bilinear", align_corners=False).numpy()
    return resized.transpose(0, 2, 3, 1)[:, :, :: -1 if mirrored else 1]


def _loss(graph: Graph, module: "FakeQuantized", views: np.ndarray, expected: np.ndarray) -> "Tensor":
    """The divergence of the classes' shares from the float network's, and the squared error of the answers."""
    import torch
    from torch.nn import functional

    inputs = views.transpose(0, 3, 1, 2) if views.ndim == 4 else views
    given = torch.from_numpy(expected)
    found = module(torch.from_numpy(np.ascontiguousarray(inputs, np.float32))).flatten(1)
    in_shares = isinstance(graph.producers.get(graph.outputs[0]), ops.Softmax)
    p, q = (v.clamp_min(1e-6).log() if in_shares else v.log_softmax(1) for v in (given, found))
    divergence = functional.kl_div(q, p, log_target=True, reduction="batchmean")
    return divergence + _SQUARED * functional.mse_loss(found, given) / given.square().mean().clamp_min(1e-12)


def _paced(graph: Graph, ranges: Mapping[str, Range], module: "FakeQuantized") -> list[dict[str, Any]]:
    """Each layer's parameters with the rate at which they move: weights differ by orders of magnitude."""
    scales = activation_scales(graph, ranges)
    groups: dict[str, dict[str, Any]] = {}
    for op in graph.ops:
        if isinstance(op, ops.Layer):
            weight, bias = (module.parameter_of(name) for name in op.inputs[1:])
            step = float(weight.detach().abs().flatten(1).amax(1).mean()) / 127
            # Grouped layers that are used twice still share theirs: the first use sets the rate.
            groups.setdefault(op.inputs[1], {"params": [weight], "lr": _PACE * step})
            groups.setdefault(op.inputs[2], {"params": [bias], "lr": _PACE * scales[op.output].scale[0]})
    return list(groups.values())
