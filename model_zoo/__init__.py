"""What a network is, how it learns, which weights exist.

>>> from firebox.model_zoo import create_model, list_models
>>> create_model("squeezenet1_1", num_classes=10)

torch is imported when a name that needs it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..runtime.errors import MissingExtraError
from .networks.config import NetworkConfig
from .networks.registry import PublicFile, ZooEntry, find_model, list_models, model_config, register
from .networks.squeezenet import DELAYED, EARLY, SqueezeNetConfig
from .recipes import list_recipes, load_recipe
from .training_config import TrainingConfig
from .weights.imagenet import imagenet_classes

if TYPE_CHECKING:
    from .network import Network, create_model, export_network, load_network
    from .networks.build import build_network
    from .networks.modules import NetworkModule, head_prefix
    from .networks.squeezenet_module import Fire, SqueezeNet
    from .training.averaging import average_checkpoints
    from .training.callbacks import Callback, LearningRate, LoopState, SaveSnapshots, WeightAverage, snapshot_callbacks
    from .training.data import load_images, open_training_images
    from .training.distributed import Resources
    from .training.freezeout import FreezeOut
    from .training.optimizer import make_optimizer
    from .training.result import TrainingResult
    from .training.trainer import quantized_config, resume, train, train_quantized
    from .training.validation import predict, top_k
    from .weights.files import Weights, load_weights, load_weights_into

__all__ = [
    "DELAYED",
    "EARLY",
    "WeightAverage",
    "Callback",
    "Fire",
    "FreezeOut",
    "LoopState",
    "Network",
    "NetworkConfig",
    "NetworkModule",
    "PublicFile",
    "LearningRate",
    "Resources",
    "SaveSnapshots",
    "SqueezeNet",
    "SqueezeNetConfig",
    "TrainingConfig",
    "TrainingResult",
    "Weights",
    "ZooEntry",
    "average_checkpoints",
    "build_network",
    "create_model",
    "export_network",
    "find_model",
    "head_prefix",
    "imagenet_classes",
    "list_models",
    "list_recipes",
    "load_network",
    "load_images",
    "load_recipe",
    "load_weights",
    "load_weights_into",
    "make_optimizer",
    "model_config",
    "open_training_images",
    "predict",
    "quantized_config",
    "register",
    "resume",
    "snapshot_callbacks",
    "top_k",
    "train",
    "train_quantized",
]

# Where the names are that need torch.
_HOMES = {
    "training.averaging": ("average_checkpoints",),
    "training.callbacks": (
        "WeightAverage",
        "Callback",
        "LoopState",
        "LearningRate",
        "SaveSnapshots",
        "snapshot_callbacks",
    ),
    "training.validation": ("predict", "top_k"),
    "training.freezeout": ("FreezeOut",),
    "networks.modules": ("NetworkModule", "head_prefix"),
    "network": ("Network", "create_model", "export_network", "load_network"),
    "networks.build": ("build_network",),
    "training.optimizer": ("make_optimizer",),
    "training.distributed": ("Resources",),
    "networks.squeezenet_module": ("Fire", "SqueezeNet"),
    "training.trainer": ("quantized_config", "resume", "train", "train_quantized"),
    "training.data": ("load_images", "open_training_images"),
    "training.result": ("TrainingResult",),
    "weights.files": ("Weights", "load_weights", "load_weights_into"),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{home}", __name__), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("torch", "kornia", "matplotlib", "safetensors", "tensorboard"):
            raise
        raise MissingExtraError(package, "train") from error
