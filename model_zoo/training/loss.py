"""What a training minimizes: cross-entropy with the classes, and divergence from teachers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def objective(
    logits: Tensor, targets: Tensor, label_smoothing: float, teacher: Tensor | None, temperature: float, share: float
) -> Tensor:
    """The loss of logits (N, classes) for targets (N,) or (N, classes), a scalar.

    With a teacher's logits, ``share`` of it is the divergence from the teacher's answers, both softened by
    ``temperature`` and the term multiplied by its square (Hinton et al., arXiv 1503.02531, section 2).
    """
    loss = functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if teacher is None:
        return loss
    found, wanted = (functional.log_softmax(answers / temperature, dim=1) for answers in (logits, teacher))
    divergence = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return share * temperature**2 * divergence + (1 - share) * loss


class Teachers(nn.Module):
    """Networks that answer together: the logarithm of the mean of their softened shares, times the temperature.

    Softened by the same temperature, their answer is that mean.
    """

    def __init__(self, networks: Sequence[nn.Module], temperature: float):
        super().__init__()
        self.networks = nn.ModuleList(networks).eval().requires_grad_(False)
        self.temperature = temperature

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), normalized as the student's, to logits (N, classes)."""
        shares = [(network(images).float() / self.temperature).log_softmax(1) for network in self.networks]
        return self.temperature * torch.stack(shares).logsumexp(0)
