"""The layers of a network in the order in which they compute, and layers that learn no more."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer


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
