"""Networks of the zoo: configs that count without torch, torch modules built from them, and the registry of names."""

from typing import TYPE_CHECKING

from ...runtime.lazy import attach
from ..extras import EXTRAS
from . import baselines, squeezenet  # noqa: F401  They register their networks.
from .baselines import AlexNetConfig, DenseNetConfig, GoogLeNetConfig, NINConfig, ResNetConfig, VGGConfig
from .config import NetworkConfig
from .layers import LayeredConfig
from .registry import PublicFile, ZooEntry, find_model, list_models, model_config, register
from .squeezenet import DELAYED, EARLY, SqueezeNetConfig

if TYPE_CHECKING:
    from .build import build_network
    from .int8 import calibrated, fake_quantized, without_batch_norm
    from .modules import NetworkModule, head_prefix
    from .squeezenet_module import Fire, SqueezeNet
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "build": ("build_network",),
            "int8": ("calibrated", "fake_quantized", "without_batch_norm"),
            "modules": ("NetworkModule", "head_prefix"),
            "squeezenet_module": ("Fire", "SqueezeNet"),
        },
        EXTRAS,
    )

__all__ = [
    "DELAYED",
    "EARLY",
    "AlexNetConfig",
    "DenseNetConfig",
    "Fire",
    "GoogLeNetConfig",
    "LayeredConfig",
    "NINConfig",
    "NetworkConfig",
    "NetworkModule",
    "PublicFile",
    "ResNetConfig",
    "SqueezeNet",
    "SqueezeNetConfig",
    "VGGConfig",
    "ZooEntry",
    "build_network",
    "calibrated",
    "fake_quantized",
    "find_model",
    "head_prefix",
    "list_models",
    "model_config",
    "register",
    "without_batch_norm",
]
