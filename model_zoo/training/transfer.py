"""Which layers of a trained network learn again, and how fast."""

from torch import nn

from ...runtime.errors import UsageError
from .layer_groups import Layer, freeze, layers_of


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
