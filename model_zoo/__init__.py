"""Networks, training and weights of the zoo.

>>> from firebox.model_zoo import create_model, list_models
>>> create_model("squeezenet1_1", num_classes=10)

``firebox.model_zoo.networks``, ``.training`` and ``.weights`` have more. torch is imported when a name that needs it is
first used.
"""

from typing import TYPE_CHECKING

from ..runtime.lazy import attach
from .extras import EXTRAS

if TYPE_CHECKING:
    from .network import Network, TorchClassifier, create_model, export_network, load_network
    from .networks import NetworkConfig, SqueezeNetConfig, find_model, list_models, model_config, register
    from .training import TrainingResult, resume, train, train_quantized
    from .training_config import TrainingConfig
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "network": ("Network", "TorchClassifier", "create_model", "export_network", "load_network"),
            "networks": (
                "NetworkConfig", "SqueezeNetConfig", "find_model", "list_models", "model_config", "register",
            ),
            "training": ("TrainingResult", "resume", "train", "train_quantized"),
            "training_config": ("TrainingConfig",),
        },
        EXTRAS,
    )  # fmt: skip

__all__ = [
    "Network",
    "NetworkConfig",
    "SqueezeNetConfig",
    "TorchClassifier",
    "TrainingConfig",
    "TrainingResult",
    "create_model",
    "export_network",
    "find_model",
    "list_models",
    "load_network",
    "model_config",
    "register",
    "resume",
    "train",
    "train_quantized",
]
