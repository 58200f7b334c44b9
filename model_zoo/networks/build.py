"""The torch module of a config."""

from .config import NetworkConfig
from .layers import LayeredConfig
from .modules import LayeredNetwork, NetworkModule
from .squeezenet import SqueezeNetConfig
from .squeezenet_module import SqueezeNet


def build_network(config: NetworkConfig) -> NetworkModule:
    """Build the network of a config in training mode, with new weights from torch's global generator."""
    match config:
        case LayeredConfig():
            return LayeredNetwork(config)
        case SqueezeNetConfig():
            return SqueezeNet(config)
        case _:
            raise TypeError(f"no module for a {type(config).__name__}")
