"""Weight tuning: weights and biases fine-tuned for int8 on calibration images, with the float network as teacher.

Like AdaRound (Nagel et al., arXiv 2004.10568) it moves weights by fractions of a step, so that rounding errors of
weights and activations cancel; unlike AdaRound it tunes all layers at once, against the network's outputs. Every epoch
crops and mirrors each image anew and runs the float network on it, against overfitting.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.errors import MissingExtraError
from ...runtime.graph import Graph, ops
from ...runtime.progress import SILENT, Progress
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
# Learning rate, as a share of a weight's integer step (of the output's step, for a bias).
_RATE = 0.003
# Smallest crop, as a share of an image's sides.
_SMALLEST_CROP = 0.6
# Weight of the logits' relative squared error, added to the KL divergence of the class probabilities.
_SQUARED = 100.0


def tune_weights(
    graph: Graph,
    ranges: Mapping[str, Range],
    samples: Sequence[np.ndarray],
    seed: int = 0,
    weight_range: WeightRange = DEFAULT_RANGE,
    progress: Progress = SILENT,
) -> Graph:
    """The float graph with weights tuned so that rounding them to nearest costs little accuracy.

    ``ranges`` of the activations are kept; ``samples`` are network inputs, NHWC with the batch axis. Deterministic for
    a seed on one kind of processor. Raises ``MissingExtraError`` without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "export") from error

    from ..trace import one_thread
    from .fake_quantize import FakeQuantized

    rng = np.random.default_rng(seed)
    with one_thread():
        start = compensate_layers(graph, ranges, input_moments(graph, samples, seed, progress), weight_range)
        module = FakeQuantized(start, ranges, weight_range=weight_range)
        optimizer = torch.optim.Adam(_parameter_groups(start, ranges, module), betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS * -(-len(samples) // _BATCH))
        with progress.task("tuning weights", EPOCHS * len(samples)) as advance:
            for _ in range(EPOCHS):
                views = [_augmented(samples[index], rng) for index in rng.permutation(len(samples))]
                expected = run_outputs(graph, views).astype(np.float32)
                for first in range(0, len(views), _BATCH):
                    batch = slice(first, first + _BATCH)
                    loss = _loss(graph, module, np.concatenate(views[batch]), expected[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    advance(len(views[batch]))
        return module.graph()


def _augmented(sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random crop of an image (1, H, W, C), resized to its full size and perhaps mirrored; vectors unchanged."""
    if sample.ndim != 4:
        return sample
    from torch import from_numpy
    from torch.nn import functional

    share, mirrored = rng.uniform(_SMALLEST_CROP, 1), rng.random() < 0.5
    size = sample.shape[1:3]
    part = [max(1, round(share * extent)) for extent in size]
    top, left = (int(rng.integers(0, extent - length + 1)) for extent, length in zip(size, part, strict=True))
    cut = np.ascontiguousarray(sample[:, top : top + part[0], left : left + part[1]].transpose(0, 3, 1, 2), np.float32)
    resized = functional.interpolate(from_numpy(cut), size, mode="bilinear", align_corners=False).numpy()
    return resized.transpose(0, 2, 3, 1)[:, :, :: -1 if mirrored else 1]


def _loss(graph: Graph, module: "FakeQuantized", views: np.ndarray, expected: np.ndarray) -> "Tensor":
    """KL divergence of the class probabilities from the float network's, plus relative squared error of the outputs."""
    import torch
    from torch.nn import functional

    inputs = views.transpose(0, 3, 1, 2) if views.ndim == 4 else views
    target = torch.from_numpy(expected)
    outputs = module(torch.from_numpy(np.ascontiguousarray(inputs, np.float32))).flatten(1)
    softmaxed = isinstance(graph.producers.get(graph.outputs[0]), ops.Softmax)
    p, q = (v.clamp_min(1e-6).log() if softmaxed else v.log_softmax(1) for v in (target, outputs))
    divergence = functional.kl_div(q, p, log_target=True, reduction="batchmean")
    return divergence + _SQUARED * functional.mse_loss(outputs, target) / target.square().mean().clamp_min(1e-12)


def _parameter_groups(graph: Graph, ranges: Mapping[str, Range], module: "FakeQuantized") -> list[dict[str, Any]]:
    """The optimizer's parameter groups: each layer has its own rates, since weights differ by orders of magnitude."""
    scales = activation_scales(graph, ranges)
    groups: dict[str, dict[str, Any]] = {}
    for op in graph.ops:
        if isinstance(op, ops.Layer):
            weight, bias = (module.parameter_of(name) for name in op.inputs[1:])
            step = float(weight.detach().abs().flatten(1).amax(1).mean()) / 127
            # Grouped layers that are used twice share their parameters; the first use sets the rate.
            groups.setdefault(op.inputs[1], {"params": [weight], "lr": _RATE * step})
            groups.setdefault(op.inputs[2], {"params": [bias], "lr": _RATE * scales[op.output].scale[0]})
    return list(groups.values())
