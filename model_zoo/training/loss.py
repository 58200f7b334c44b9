"""The training loss: cross-entropy, and knowledge distillation from teachers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def training_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float, teacher: Tensor | None, temperature: float, share: float
) -> Tensor:
    """The loss, a scalar, of logits (N, classes) for targets (N,) or (N, classes).

    With a teacher's logits, ``share`` of the loss is the KL divergence between the outputs of teacher and student, both
    softened by ``temperature``; that term is multiplied by the squared temperature (Hinton et al., arXiv 1503.02531,
    section 2).
    """
    cross_entropy = functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if teacher is None:
        return cross_entropy
    student, target = (functional.log_softmax(output / temperature, dim=1) for output in (logits, teacher))
    divergence = functional.kl_div(student, target, reduction="batchmean", log_target=True)
    return share * temperature**2 * divergence + (1 - share) * cross_entropy


class Teachers(nn.Module):
    """An ensemble of teachers; its logits are the log of their mean softened probabilities, times ``temperature``.

    Softened by the same temperature, these logits give that mean again.
    """

    def __init__(self, networks: Sequence[nn.Module], temperature: float):
        super().__init__()
        self.networks = nn.ModuleList(networks).eval().requires_grad_(False)
        self.temperature = temperature

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), normalized as the student's, to logits (N, classes)."""
        log_probabilities = [(network(images).float() / self.temperature).log_softmax(1) for network in self.networks]
        return self.temperature * torch.stack(log_probabilities).logsumexp(0)
