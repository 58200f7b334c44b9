"""Where a training runs, and what follows from that."""

from dataclasses import dataclass, replace

import torch

from ..runtime.errors import UsageError
from .network_config import NetworkConfig
from .training_config import TrainingConfig

# Below this much work in a batch, threads wait for each other longer than they compute; on a busy
# machine many times.
_LITTLE_WORK_MACS = 2_000_000_000


@dataclass(frozen=True)
class Resources:
    """Where a training runs; nothing here changes its result.

    ``device`` is auto, cpu or cuda; decoded pictures up to ``memory_bytes`` are kept; ``workers``
    decode them.
    """

    device: str = "auto"
    memory_bytes: int = 2 * 1024**3
    workers: int | None = None

    def torch_device(self) -> torch.device:
        """The torch device. Raises ``UsageError`` for one that is not there."""
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device {self.device!r} is not one of auto, cpu, cuda")
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device cuda is not available; use --device cpu")
        return torch.device(self.device)


def settle(config: TrainingConfig, network: NetworkConfig, device: torch.device) -> TrainingConfig:
    """The config with the values chosen that were left open."""
    little = network.macs * config.batch_size < _LITTLE_WORK_MACS
    augment = "light" if network.in_channels == 1 else "standard"
    warmup = 0 if config.snapshots or config.freezeout else 1
    return replace(
        config,
        learning_rate=config.learning_rate or (0.1 if network.batch_norm else 0.02),
        warmup_epochs=warmup if config.warmup_epochs is None else config.warmup_epochs,
        augment=config.augment or ("none" if config.learn == "head" else augment),
        precision=config.precision or ("bf16" if _computes_bf16(device) else "float32"),
        threads=config.threads or (1 if little else torch.get_num_threads()),
    )


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Elsewhere bf16 is emulated: right, but slower than float32.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
