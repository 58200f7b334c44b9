"""Baselines: their figures, training, checkpoints and exported files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from firebox.export import ExportConfig
from firebox.model_zoo import (
    Network,
    NetworkConfig,
    TrainingConfig,
    create_model,
    export_network,
    find_model,
    list_models,
    load_network,
    model_config,
    train,
)
from firebox.model_zoo.network import fit_preprocessing
from firebox.model_zoo.networks import (
    DenseNetConfig,
    GoogLeNetConfig,
    NINConfig,
    ResNetConfig,
    VGGConfig,
    build_network,
    head_prefix,
    without_batch_norm,
)
from firebox.model_zoo.networks.modules import SubsampleModule
from firebox.model_zoo.weights import load_weights, load_weights_into, read_checkpoint
from firebox.runtime import open_images
from firebox.runtime.errors import CheckpointError, FormatError, UsageError

CHECKPOINT = "checkpoint.safetensors"


@pytest.fixture(scope="module")
def residual(paint, tmp_path_factory) -> Path:
    """The checkpoint of a small residual network."""
    folder = tmp_path_factory.mktemp("residual")
    data = str(paint(folder / "images"))
    return train(TrainingConfig(model="resnet20", data=data, epochs=1), folder / "run").checkpoint


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("alexnet", 60_965_224),
        ("vgg16", 138_357_544),
        ("nin", 7_595_176),
        ("googlenet", 6_998_552),
        ("resnet20", 269_722),
        ("resnet56", 853_018),
        ("densenet40", 1_019_722),
        ("densenet_bc100", 769_162),
    ],
)
def test_published_parameter_counts(name, parameters):
    assert model_config(name).parameters == parameters


def test_parameters_that_papers_count_differently():
    googlenet, vgg = find_model("googlenet").config, find_model("vgg16").config
    assert isinstance(googlenet, GoogLeNetConfig)
    assert googlenet.with_auxiliary == 13_378_280
    assert isinstance(vgg, VGGConfig)
    assert vgg.figures.fully_connected == 123_642_856
    # Projections from 16 to 32 and from 32 to 64 channels, each with batch norm.
    added = model_config("resnet20", shortcut="project").parameters - model_config("resnet20").parameters
    assert added == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def counted(config: NetworkConfig) -> tuple[int, int, tuple[int, ...]]:
    """Parameters, multiply-accumulates and output shape, counted on the torch module."""
    macs = 0

    def add(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d | nn.Linear)
        macs += output.numel() * module.weight[0].numel()

    with torch.device("meta"):
        network = build_network(config).eval()
        for part in network.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.register_forward_hook(add)
        logits = network(torch.zeros(1, config.in_channels, *config.input_size))
    return sum(parameter.numel() for parameter in network.parameters()), macs, tuple(logits.shape)


@pytest.mark.parametrize("name", list_models())
def test_figures_match_the_module(name):
    config = find_model(name).config
    assert counted(config) == (config.parameters, config.macs, (1, config.num_classes))


@st.composite
def configs(draw) -> NetworkConfig:
    common = {
        "in_channels": draw(st.integers(1, 4)),
        "num_classes": draw(st.integers(1, 12)),
        "input_size": (draw(st.integers(8, 80)), draw(st.integers(8, 80))),
        "batch_norm": draw(st.booleans()),
    }
    numbers = st.integers(1, 6)
    try:
        match draw(st.sampled_from(["vgg", "nin", "googlenet", "resnet", "densenet"])):
            case "vgg":
                depths, widths = (tuple(draw(st.lists(numbers, min_size=1, max_size=3))) for _ in range(2))
                hidden = tuple(draw(st.lists(numbers, max_size=2)))
                return VGGConfig(**common, depths=depths, widths=widths, hidden=hidden)
            case "nin":
                return NINConfig(**common, widths=tuple(draw(st.lists(numbers, min_size=4, max_size=4))))
            case "googlenet":
                return GoogLeNetConfig(**common)
            case "resnet":
                depth, width = draw(st.sampled_from([8, 14, 20])), draw(numbers)
                return ResNetConfig(
                    **common, depth=depth, width=width, shortcut=draw(st.sampled_from(["pad", "project"]))
                )
            case _:
                return DenseNetConfig(
                    **common,
                    depth=draw(st.sampled_from([10, 16, 22])),
                    growth=draw(numbers),
                    bottleneck=draw(st.booleans()),
                    compression=draw(st.floats(0.05, 1)),
                )
    except UsageError:
        reject()


@settings(max_examples=60)
@given(configs())
def test_every_valid_config_builds_the_network_it_describes(config):
    assert counted(config) == (config.parameters, config.macs, (1, config.num_classes))
    assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_shortcut_without_parameters_subsamples_and_pads_with_zeros():
    x = torch.randn(2, 3, 7, 8)
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 2, 4, 4)], 1)
    assert torch.equal(SubsampleModule(3, 5, 2)(x), expected)


def test_a_dense_layer_keeps_all_earlier_outputs():
    network = create_model("densenet22").eval()
    x = torch.randn(1, 3, 32, 32)
    before = network.features[:3](x)
    after = network.features[3](before)
    assert after.shape[1] == before.shape[1] + 12
    assert torch.equal(after[:, : before.shape[1]], before)


@pytest.mark.parametrize("name", list_models())
def test_the_head_has_one_output_per_class(name):
    shapes = []
    for classes in (3, 5):
        with torch.device("meta"):
            network = create_model(name, num_classes=classes)
        shapes.append({key: tuple(value.shape) for key, value in network.state_dict().items()})
    differing = {key for key, shape in shapes[0].items() if shapes[1][key] != shape}
    assert differing == {f"{head_prefix(network)}weight", f"{head_prefix(network)}bias"}


def test_the_number_of_classes_follows_the_weights_and_heads_are_replaced(tmp_path):
    weights = create_model("resnet20", num_classes=4, width=4).state_dict()
    save_file(weights, tmp_path / "four.safetensors")
    network = create_model("resnet20", num_classes=3, width=4)
    fresh = network.state_dict()["classifier.3.weight"].clone()
    load_weights_into(network, load_weights(tmp_path / "four.safetensors"), replace_head=True)
    assert torch.equal(network.state_dict()["classifier.3.weight"], fresh)
    assert torch.equal(network.state_dict()["features.0.weight"], weights["features.0.weight"])
    torch.save(create_model("resnet20", num_classes=4).state_dict(), tmp_path / "four.pth")
    assert load_network("resnet20", tmp_path / "four.pth").config.num_classes == 4


@pytest.mark.parametrize(
    ("name", "size"), [("resnet20", None), ("densenet22", None), ("vgg_cifar", None), ("googlenet", 32)]
)
def test_training_writes_a_network_that_loads_again(firebox, images, tmp_path, name, size):
    run = tmp_path / "run"
    options = ("--input-size", size) if size else ()
    outcome = firebox("train", name, "--data", images, "--epochs", 1, "--out", run, *options, "--json")
    assert outcome.code == 0, outcome.err
    network = load_network(run)
    assert json.loads(outcome.out)["parameters"] == network.config.parameters
    assert network.config == model_config(name, num_classes=2, input_size=(32, 32))
    weights = read_checkpoint(run / CHECKPOINT).weights
    assert all(torch.equal(weights[key], value) for key, value in network.module.state_dict().items())
    with torch.no_grad():
        assert network.module(torch.zeros(1, 3, 32, 32)).isfinite().all()


def small_network(name: str, size: int, **changes) -> Network:
    """A small variant of a zoo network with batch norm statistics of random images."""
    torch.manual_seed(0)
    module = create_model(name, num_classes=3, input_size=(size, size), **changes)
    for _ in range(3):
        module(torch.randn(8, 3, size, size))
    preprocessing = fit_preprocessing(find_model(name).preprocessing, module.config)
    return Network(name, module.eval(), preprocessing, ("class0", "class1", "class2"))


@pytest.mark.parametrize(
    ("name", "size", "changes"),
    [
        ("resnet20", 16, {"depth": 8, "width": 8}),
        ("densenet22", 16, {"depth": 10, "growth": 4}),
        ("nin", 67, {"widths": (8, 12, 16, 24)}),
    ],
)
def test_exported_files_agree_with_the_network(paint, tmp_path, name, size, changes):
    images = open_images(str(paint(tmp_path / "images", classes=3)))
    found = export_network(
        small_network(name, size, **changes), tmp_path / "files", images, ExportConfig(effort="fast")
    )
    assert {path.name for path in found.files} >= {
        f"model.{precision}.{ending}" for precision in ("float32", "int8") for ending in ("onnx", "tflite")
    }
    assert all(parity.agreement == 1 for parity in found.parity)


@pytest.mark.parametrize(
    ("name", "size", "changes"),
    [
        ("resnet20", 16, {"depth": 14}),
        ("resnet20", 16, {"depth": 14, "shortcut": "project"}),
        ("vgg_cifar", 32, {"hidden": (16,)}),
        ("googlenet", 32, {"batch_norm": True}),
    ],
)
def test_batch_norm_is_folded_exactly(name, size, changes):
    module = small_network(name, size, **changes).module
    folded = without_batch_norm(module)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    x = torch.randn(4, 3, size, size)
    torch.testing.assert_close(folded(x), module(x), rtol=1e-4, atol=1e-4)


def test_densenets_are_not_trained_in_int8(firebox, images, tmp_path):
    assert firebox("train", "densenet22", "--data", images, "--epochs", 1, "--out", tmp_path / "run").code == 0
    outcome = firebox("train", "--qat", tmp_path / "run", "--out", tmp_path / "int8")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "densenet has batch norm before its convolutions, where it cannot be folded" in outcome.err
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("resnet", {"depth": 21}, "depth 21 is not 6 n + 2"),
        ("resnet", {"depth": 20_000}, "depth 20000"),
        ("resnet", {"width": 0}, "width 0"),
        ("resnet", {"shortcut": "none"}, "shortcut 'none'"),
        ("densenet", {"depth": 41}, "depth 41 is not 3 n + 4"),
        ("densenet", {"depth": 43, "bottleneck": True}, "depth 43 is not 6 n + 4"),
        ("densenet", {"compression": 0.0}, "compression 0.0"),
        ("densenet", {"growth": 1000, "depth": 998 // 3 * 3 + 1}, "parameters are more than"),
        ("densenet", {"input_size": (3, 3)}, "input size (3, 3) is too small"),
        ("vgg", {"widths": (8,)}, "differ in length; give one per stage"),
        ("vgg", {"depths": ()}, "depths ()"),
        ("vgg", {"hidden": (0,)}, "hidden (0,)"),
        ("vgg", {"hidden": (1, 2.5)}, "hidden (1, 2.5)"),
        ("vgg", {"input_size": (31, 31)}, "input size (31, 31) is too small"),
        ("nin", {"widths": (8, 8)}, "has 2 values; give 4, one per stage"),
        ("alexnet", {"input_size": (32, 32)}, "input size (32, 32) is too small"),
        ("googlenet", {"wings": 2}, "unknown key 'wings'"),
    ],
)
def test_invalid_values_are_named(family, change, message):
    with pytest.raises(FormatError) as error:
        NetworkConfig.from_json({"family": family} | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "wings"}, "no family 'wings' of networks is known, only alexnet, densenet"),
        ({"family": "vgg"}, "unknown key"),
        ({"wings": 2}, "unknown key 'wings'"),
        ({"depth": 14}, "is of another network"),
        ({"width": 900}, "contradicts itself: its network has 845,748,902 parameters, the file"),
    ],
)
def test_a_checkpoint_with_an_invalid_config_is_an_error(residual, tmp_path, change, message):
    with safe_open(residual, "pt") as file:
        header = json.loads(file.metadata()["firebox"])
    header["config"] |= change
    save_file(load_file(residual), tmp_path / CHECKPOINT, {"firebox": json.dumps(header)})
    with pytest.raises(CheckpointError) as error:
        load_network(tmp_path / CHECKPOINT)
    assert message in str(error.value)


def test_weights_of_another_family_are_an_error(trained):
    with pytest.raises(CheckpointError, match="is of another network: a squeezenet, and resnet20 is a resnet"):
        load_network("resnet20", trained.checkpoint)


def test_options_of_another_family_are_an_error():
    with pytest.raises(UsageError, match="resnet20 has no 'bypass'"):
        create_model("resnet20", bypass="simple")
    assert replace(model_config("resnet20"), depth=32).parameters > model_config("resnet20").parameters
