"""Which layers of a trained network learn again, and how fast."""

from torch import nn

from .freezing import Layer, freeze, layers_of


def blocks_of(module: nn.Module) -> list[list[Layer]]:
    """The layers by block, first to last: a Fire module, say, or a convolution; the last block is the head.

    A block is a child of the network's ``features`` or of its ``classifier``.
    """
    blocks: dict[str, list[Layer]] = {}
    for layer in layers_of(module):
        blocks.setdefault(".".join(layer.name.split(".")[:2]), []).append(layer)
    return list(blocks.values())


def settle_layers(module: nn.Module, learn: str | int) -> None:
    """Freeze what does not learn: all but the head, or all but the head and so many blocks before it."""
    if learn == "all":
        return
    learning = 1 if learn == "head" else int(learn) + 1
    for block in blocks_of(module)[:-learning]:
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
