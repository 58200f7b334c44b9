"""The families of the zoo: from a config, or its JSON, to the network that it describes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...runtime.errors import FormatError
from .baselines import AlexNetConfig, DenseNetConfig, GoogLeNetConfig, NINConfig, ResNetConfig, VGGConfig
from .config import NetworkConfig
from .layered_config import LayeredConfig
from .squeezenet import SqueezeNetConfig

if TYPE_CHECKING:
    from .modules import NetworkModule

_FAMILIES: dict[str, type[NetworkConfig]] = {
    config.family: config
    for config in (
        SqueezeNetConfig,
        AlexNetConfig,
        VGGConfig,
        NINConfig,
        GoogLeNetConfig,
        ResNetConfig,
        DenseNetConfig,
    )
}


def config_from_json(values: Mapping[str, Any]) -> NetworkConfig:
    """The config in a JSON object; one without a ``family`` is a SqueezeNet's. Raises ``FormatError``."""
    family = values.get("family", SqueezeNetConfig.family) if isinstance(values, Mapping) else SqueezeNetConfig.family
    if not isinstance(family, str) or family not in _FAMILIES:
        raise FormatError(f"no family {family!r} of networks is known, only {', '.join(_FAMILIES)}")
    return _FAMILIES[family].from_json(values)


def build(config: NetworkConfig) -> "NetworkModule":
    """The network with new weights, drawn by torch's generator."""
    if isinstance(config, LayeredConfig):
        from .layered import LayeredNetwork

        return LayeredNetwork(config)
    from .squeezenet_module import SqueezeNet

    assert isinstance(config, SqueezeNetConfig)
    return SqueezeNet(config)
