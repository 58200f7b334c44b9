"""The layers of a network in the order in which they compute, and layers that learn no more."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from ...runtime.errors import UsageError


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer with the norms that follow it; ``name`` is that of its kernel's module."""

    name: str
    parts: tuple[nn.Module, ...]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of the layer."""
        for part in self.parts:
            yield from part.parameters(recurse=False)

    @property
    def normed(self) -> bool:
        """Whether a batch norm follows, so that the length of the kernel does not matter."""
        return any(isinstance(part, nn.BatchNorm2d) for part in self.parts)

    @property
    def learns(self) -> bool:
        """Whether any parameter of the layer gets gradients."""
        return any(parameter.requires_grad for parameter in self.parameters())


def layers_of(module: nn.Module) -> list[Layer]:
    """The layers with parameters, first to last: modules are registered in the order in which they compute."""
    found: list[Layer] = []
    for name, part in module.named_modules():
        own = list(part.parameters(recurse=False))
        if not own:
            continue
        if found and all(parameter.ndim < 2 for parameter in own):
            found[-1] = Layer(found[-1].name, (*found[-1].parts, part))
        else:
            found.append(Layer(name, (part,)))
    return found


def freeze(layer: Layer, optimizer: Optimizer | None = None) -> None:
    """Have a layer learn no more: no gradients, norms as in inference, and out of the optimizer with its state.

    Once all layers up to it are frozen, they are outside the graph of the backward pass.
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
        # An optimizer must keep one group at least.
        kept = [group for group in optimizer.param_groups if group["params"]]
        optimizer.param_groups[:] = kept or optimizer.param_groups[:1]


def blocks_of(module: nn.Module) -> list[list[Layer]]:
    """The layers by block, first to last: a Fire module, say, or a convolution; the last block is the head.

    A block is a child of the network's ``features`` or of its ``classifier``.
    """
    blocks: dict[str, list[Layer]] = {}
    for layer in layers_of(module):
        blocks.setdefault(".".join(layer.name.split(".")[:2]), []).append(layer)
    return list(blocks.values())


def settle_layers(module: nn.Module, learn: str | int) -> None:
    """Freeze what does not learn: all but the head, or all but the head and so many blocks before it.

    Raises ``UsageError`` where there are fewer blocks.
    """
    if learn == "all":
        return
    blocks, learning = blocks_of(module), 0 if learn == "head" else int(learn)
    if learning >= len(blocks):
        raise UsageError(f"the network has {len(blocks) - 1} blocks before its head, not {learn}; have fewer learn")
    for block in blocks[: -learning - 1]:
        for layer in block:
            freeze(layer)


def rate_factors(module: nn.Module, decay: float) -> dict[str, float]:
    """The factor of each layer's rate, by its name: 1 in the head, times ``decay`` with every block below.

    (Howard and Ruder, arXiv 1801.06146, section 3.2: discriminative fine-tuning.) Empty where all are 1.
    """
    if decay == 1:
        return {}
    blocks = blocks_of(module)
    return {layer.name: decay ** (len(blocks) - 1 - index) for index, block in enumerate(blocks) for layer in block}
