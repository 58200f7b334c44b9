"""The layers of a network in order of execution: frozen layers, blocks, and learning-rate factors."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from ...runtime.errors import UsageError


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer and the norms after it; ``name`` is the name of the former."""

    name: str
    parts: tuple[nn.Module, ...]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of the layer."""
        for part in self.parts:
            yield from part.parameters(recurse=False)

    @property
    def normed(self) -> bool:
        """True if batch norm follows, so that the norm of the kernel has no effect."""
        return any(isinstance(part, nn.BatchNorm2d) for part in self.parts)

    @property
    def trainable(self) -> bool:
        """True if any parameter of the layer requires gradients."""
        return any(parameter.requires_grad for parameter in self.parameters())


def layers_of(module: nn.Module) -> list[Layer]:
    """The layers with parameters, first to last: modules are registered in order of execution."""
    layers: list[Layer] = []
    for name, part in module.named_modules():
        own = list(part.parameters(recurse=False))
        if not own:
            continue
        if layers and all(parameter.ndim < 2 for parameter in own):
            layers[-1] = Layer(layers[-1].name, (*layers[-1].parts, part))
        else:
            layers.append(Layer(name, (part,)))
    return layers


def blocks_of(module: nn.Module) -> list[list[Layer]]:
    """The layers by block, first to last: a Fire module or a single convolution, for example; the head is last.

    A block is a child of the network's ``features`` or ``classifier``.
    """
    blocks: dict[str, list[Layer]] = {}
    for layer in layers_of(module):
        blocks.setdefault(".".join(layer.name.split(".")[:2]), []).append(layer)
    return list(blocks.values())


def freeze(layer: Layer, optimizer: Optimizer | None = None) -> None:
    """Freeze a layer: no gradients, norms in eval mode, its parameters and their state out of the optimizer.

    When all layers before it are frozen too, the backward pass skips them.
    """
    for part in layer.parts:
        part.eval()
    frozen = {id(parameter) for parameter in layer.parameters()}
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
        if optimizer is not None:
            optimizer.state.pop(parameter, None)
    if optimizer is not None:
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in frozen]
        # An optimizer needs at least one group.
        kept = [group for group in optimizer.param_groups if group["params"]]
        optimizer.param_groups[:] = kept or optimizer.param_groups[:1]


def freeze_below(module: nn.Module, learn: str | int) -> None:
    """Freeze the layers that ``learn`` excludes: for "head" all but the head, for N all but head and last N blocks.

    Raises ``UsageError`` if the network has no more than N blocks.
    """
    if learn == "all":
        return
    blocks, trained = blocks_of(module), 0 if learn == "head" else int(learn)
    if trained >= len(blocks):
        raise UsageError(f"the network has {len(blocks) - 1} blocks before its head, not {learn}; train fewer blocks")
    for block in blocks[: -trained - 1]:
        for layer in block:
            freeze(layer)


def rate_factors(module: nn.Module, decay: float) -> dict[str, float]:
    """The learning-rate factor of each layer by name: 1 in the head, times ``decay`` for each block further down.

    Discriminative fine-tuning (Howard and Ruder, arXiv 1801.06146, section 3.2). Empty if all factors are 1.
    """
    if decay == 1:
        return {}
    blocks = blocks_of(module)
    return {layer.name: decay ** (len(blocks) - 1 - index) for index, block in enumerate(blocks) for layer in block}
