import json

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from firebox.model_zoo import NetworkConfig, SqueezeNetConfig
from firebox.model_zoo.networks import DELAYED, EARLY, SqueezeNet
from firebox.runtime.errors import FormatError, UsageError


@st.composite
def configs(draw) -> SqueezeNetConfig:
    fires = draw(st.integers(1, 5))
    kernel = draw(st.integers(1, 5))
    try:
        return SqueezeNetConfig(
            in_channels=draw(st.integers(1, 4)),
            num_classes=draw(st.integers(1, 12)),
            input_size=(draw(st.integers(5, 40)), draw(st.integers(5, 40))),
            stem_channels=draw(st.integers(1, 12)),
            stem_kernel=kernel,
            stem_stride=draw(st.integers(1, 3)),
            stem_padding=draw(st.integers(0, kernel - 1)),
            num_fires=fires,
            base_e=draw(st.integers(2, 24)),
            incr_e=draw(st.integers(0, 12)),
            freq=draw(st.integers(1, 3)),
            pct3x3=draw(st.floats(0.01, 0.99)),
            squeeze_ratio=draw(st.floats(0.05, 1)),
            pools=tuple(sorted(draw(st.sets(st.integers(1, fires + 1), max_size=3)))),
            bypass=draw(st.sampled_from(["none", "simple", "complex"])),
            bypass_before_relu=draw(st.booleans()),
            batch_norm=draw(st.booleans()),
            dropout=draw(st.floats(0, 0.9)),
            head_padding=draw(st.integers(0, 1)),
            head_relu=draw(st.booleans()),
        )
    except UsageError:
        reject()


@settings(max_examples=100)
@given(configs())
def test_every_valid_config_builds_the_network_it_describes(config):
    network = SqueezeNet(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == config.parameters

    sizes = []
    network.features[0].register_forward_hook(lambda *hook: sizes.append(hook[2].shape[2:]))
    network.features.register_forward_hook(lambda *hook: sizes.append(hook[2].shape[2:]))
    logits = network.eval()(torch.zeros(2, config.in_channels, *config.input_size))
    assert logits.shape == (2, config.num_classes)
    assert sizes == [config.stage_sizes[0], config.stage_sizes[-1]]

    values = json.loads(json.dumps(config.to_json()))
    assert SqueezeNetConfig.from_json(values) == config


@pytest.mark.parametrize(
    ("ratio", "pct3x3", "parameters"),
    [
        (0.125, 0.5, 1_248_424),
        (0.25, 0.5, 1_967_080),
        (0.5, 0.5, 3_404_392),
        (0.75, 0.5, 4_841_704),
        (1.0, 0.5, 6_279_016),
        (0.5, 0.99, 5_330_536),
    ],
)
def test_parameters_over_the_design_space_of_section_5(ratio, pct3x3, parameters):
    assert SqueezeNetConfig(squeeze_ratio=ratio, pct3x3=pct3x3).parameters == parameters


def test_pool_positions_change_macs_but_not_parameters():
    delayed, early = SqueezeNetConfig(pools=DELAYED), SqueezeNetConfig(pools=EARLY)
    assert delayed.parameters == early.parameters
    assert delayed.macs > early.macs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes 0"),
        ({"num_classes": True}, "num_classes True"),
        ({"base_e": 128.5}, "base_e 128.5"),
        ({"pct3x3": 1.0}, "pct3x3 1.0"),
        ({"pct3x3": float("nan")}, "pct3x3 nan"),
        ({"squeeze_ratio": 0}, "squeeze_ratio 0"),
        ({"squeeze_ratio": 0.001}, "fire2 would have 0 squeeze"),
        ({"pools": (1, 12)}, "pools (1, 12)"),
        ({"pools": (4, 1)}, "pools (4, 1)"),
        ({"bypass": "both"}, "bypass 'both'"),
        ({"input_size": (8, 8)}, "input size (8, 8)"),
        ({"input_size": (224, 224, 3)}, "input_size (224, 224, 3)"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"stem_padding": 7}, "stem_padding 7"),
    ],
)
def test_invalid_values_are_named(change, message):
    with pytest.raises(UsageError) as error:
        SqueezeNetConfig(**change)
    assert message in str(error.value)
    with pytest.raises(FormatError):
        SqueezeNetConfig.from_json(SqueezeNetConfig().to_json() | change)


@pytest.mark.parametrize("values", [None, [], {"wings": 2}, {"pools": "1"}, {"base_e": None}])
def test_invalid_json_is_refused(values):
    with pytest.raises(FormatError):
        SqueezeNetConfig.from_json(values)


def test_json_names_the_family_and_defaults_to_squeezenet():
    config = SqueezeNetConfig(num_classes=3)
    values = config.to_json()
    assert values.pop("family") == "squeezenet"
    assert NetworkConfig.from_json(values) == NetworkConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("family", ["wings", "", None, 3, ["squeezenet"]])
def test_unknown_families_are_named(family):
    with pytest.raises(FormatError, match="no family"):
        NetworkConfig.from_json(SqueezeNetConfig().to_json() | {"family": family})


@pytest.mark.parametrize("values", [None, [], 3, "squeezenet"])
def test_json_other_than_an_object_is_refused(values):
    with pytest.raises(FormatError, match="JSON object"):
        NetworkConfig.from_json(values)
