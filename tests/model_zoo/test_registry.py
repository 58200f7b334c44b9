import json
from fnmatch import fnmatch

import pytest
import torch

from firebox.model_zoo import NetworkConfig, create_model, find_model, list_models, model_config
from firebox.model_zoo.weights import imagenet_classes
from firebox.runtime.errors import UsageError


@pytest.mark.parametrize("name", list_models())
def test_every_entry_builds_a_network_for_its_preprocessing(name):
    entry = find_model(name)
    config, preprocessing = entry.config, entry.preprocessing
    assert (preprocessing.size, preprocessing.depth) == (config.input_size, config.in_channels)
    # Large networks are built on the meta device.
    device = torch.device("meta" if config.parameters > 10_000_000 else "cpu")
    with device:
        network = create_model(name, num_classes=7, in_channels=1).eval()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == model_config(name, num_classes=7, in_channels=1).parameters
    logits = network(torch.randn(2, 1, *config.input_size, device=device))
    assert logits.shape == (2, 7)
    assert device.type == "meta" or torch.isfinite(logits).all()
    assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("squeezenet1_0", 1000, 1_248_424),
        ("squeezenet1_1", 1000, 1_235_496),
        ("squeezenet1_0_simple_bypass", 1000, 1_248_424),
        ("squeezenet1_0_complex_bypass", 1000, 1_589_672),
        ("squeezenet1_0", 10, 740_554),
        ("squeezenet1_1", 10, 727_626),
    ],
)
def test_published_parameter_counts(name, classes, parameters):
    assert model_config(name, classes).parameters == parameters


def test_small_networks_stay_small():
    assert model_config("squeezenet_cifar", 10).parameters <= 750_000
    assert model_config("squeezenet_cifar_small", 10).parameters <= 150_000
    assert model_config("squeezenet_micro", 10).parameters < 100_000


@pytest.mark.parametrize(("name", "gmacs"), [("squeezenet1_0", 0.82), ("squeezenet1_1", 0.35)])
def test_published_macs(name, gmacs):
    assert find_model(name).config.macs / 1e9 == pytest.approx(gmacs, abs=0.005)


def test_tensor_names_are_torchvisions():
    v1_0, v1_1 = (list(create_model(f"squeezenet1_{minor}").state_dict()) for minor in (0, 1))
    assert len(v1_0) == len(v1_1) == 52
    assert v1_0[:4] == [
        "features.0.weight",
        "features.0.bias",
        "features.3.squeeze.weight",
        "features.3.squeeze.bias",
    ]
    fires = {0: (3, 4, 5, 7, 8, 9, 10, 12), 1: (3, 4, 6, 7, 9, 10, 11, 12)}
    for minor, names in enumerate((v1_0, v1_1)):
        expected = {f"features.{i}.expand3x3.weight" for i in fires[minor]}
        assert {name for name in names if "expand3x3.weight" in name} == expected
        assert names[-2:] == ["classifier.1.weight", "classifier.1.bias"]


def test_bypass_adds_the_input_of_odd_fires():
    plain = create_model("squeezenet1_0", input_size=(40, 40)).eval()
    bypass = create_model("squeezenet1_0_simple_bypass", input_size=(40, 40)).eval()
    bypass.load_state_dict(plain.state_dict())
    x = torch.rand(1, 128, 6, 6)
    assert torch.equal(bypass.features[4](x), plain.features[4](x) + x)
    x = torch.rand(1, 96, 6, 6)
    assert torch.equal(bypass.features[3](x), plain.features[3](x))


def test_initial_weights_follow_the_paper():
    network = create_model("squeezenet1_0")
    head = network.classifier[1]
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert all(not module.bias.any() for module in network.modules() if hasattr(module, "weight"))
    expand = network.features[10].expand3x3.weight
    assert expand.abs().max().item() <= (6 / (9 * (expand.shape[0] + expand.shape[1]))) ** 0.5


def test_overrides_change_the_network():
    network = create_model("squeezenet1_1", bypass="simple", batch_norm=True, input_size=(64, 64))
    assert network.config.bypass == "simple"
    assert "features.4.squeeze_norm.running_var" in network.state_dict()


def test_list_models_matches_glob_patterns():
    assert list_models("squeezenet1_1") == ["squeezenet1_1"]
    assert list_models("squeezenet1_0*") == [
        "squeezenet1_0",
        "squeezenet1_0_complex_bypass",
        "squeezenet1_0_simple_bypass",
    ]
    assert list_models("x*") == []


def test_unknown_names_suggest_similar_ones():
    with pytest.raises(UsageError, match=r"no model 'squeezenet1\.1'.*squeezenet1_1"):
        create_model("squeezenet1.1")
    with pytest.raises(UsageError, match="no 'bypas'; did you mean bypass"):
        create_model("squeezenet1_1", bypas="simple")


def test_imagenet_classes_are_in_index_order():
    names, ids = imagenet_classes()
    assert len(names) == len(set(ids)) == 1000
    assert (names[0], ids[0]) == ("tench", "n01440764")
    assert list(ids) == sorted(ids)


def test_models_command_lists_and_filters(firebox):
    everything = firebox("models")
    assert everything.code == 0
    assert all(name in everything.out for name in list_models())
    result = json.loads(firebox("models", "squeezenet1_*", "--json").out)
    assert [model["name"] for model in result["models"]] == list_models("squeezenet1_*")
    assert result["models"][0]["parameters"] == 1_248_424
    nothing = firebox("models", "mobilenet*")
    assert nothing.code == 2
    assert "no model matches 'mobilenet*'" in nothing.err


def test_model_names_complete():
    from click.testing import CliRunner

    from firebox.runtime.commands.main import firebox as group

    environment = {
        "_FIREBOX_COMPLETE": "bash_complete",
        "COMP_WORDS": "firebox train squeezenet_",
        "COMP_CWORD": "2",
    }
    result = CliRunner().invoke(group, prog_name="firebox", env=environment)
    offered = {line.partition(",")[2] for line in result.output.splitlines()}
    assert offered == {name for name in list_models() if fnmatch(name, "squeezenet_*")}
