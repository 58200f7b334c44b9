import shutil
from dataclasses import replace

import pytest
import torch

from firebox.model_zoo import TrainingConfig, create_model, load_network, train
from firebox.model_zoo.training import Resources, load_images, make_optimizer, open_training_images, predict
from firebox.model_zoo.training.features import Head, extract_features
from firebox.model_zoo.training.layer_groups import blocks_of, layers_of, rate_factors
from firebox.model_zoo.training.start import start
from firebox.model_zoo.weights import read_checkpoint
from firebox.runtime.errors import CheckpointError, DataError, UsageError
from firebox.runtime.images import open_images


@pytest.fixture(scope="module")
def other(tmp_path_factory, paint):
    """Images of four classes; the initial run has three."""
    return paint(tmp_path_factory.mktemp("other") / "images", classes=4, images=6)


def config_for(trained, data, **changes) -> TrainingConfig:
    return TrainingConfig(data=str(data), start=str(trained.out), epochs=1, batch_size=4, **changes)


def changed(trained, result) -> set[str]:
    """The names of tensors outside the head that differ from the initial weights."""
    before, after = (read_checkpoint(each.checkpoint).weights for each in (trained, result))
    return {name for name in before if name.startswith("features") and not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("learn", ["head", 2, "all"])
def test_only_trained_layers_change_and_the_head_is_new(trained, other, tmp_path, learn):
    result = train(config_for(trained, other, learn=learn), tmp_path / "run")
    network = load_network(result.checkpoint)
    assert network.classes == ("class0", "class1", "class2", "class3")
    names = [layer.name for block in blocks_of(network.module)[:-1] for layer in block]
    learning = {"head": [], 2: [layer.name for block in blocks_of(network.module)[-3:-1] for layer in block]}
    expected = learning.get(learn, names)
    # A norm is named after its convolution and is trained with it.
    parts = {name.rpartition(".")[0].replace("_norm", "") for name in changed(trained, result)}
    norms = {name for name in parts if name not in names}
    assert parts - norms == set(expected)
    assert bool(norms) == (learn == "all")
    assert read_checkpoint(result.checkpoint).origin_sha256


def test_the_same_number_of_other_classes_has_a_new_head(trained, other, tmp_path):
    first = train(config_for(trained, other), tmp_path / "first")
    started = {}
    for name, classes in (("same", None), ("renamed", ("a", "b", "c", "d"))):
        data = tmp_path / name
        shutil.copytree(other, data)
        for before, after in zip(sorted(data.iterdir()), classes or (), strict=False):
            before.rename(data / after)
        config = replace(config_for(first, data), seed=7)
        images = open_training_images(config)
        started[name] = start(config, images, Resources("cpu")).weights["classifier.1.weight"]
    kept = read_checkpoint(first.checkpoint).weights["classifier.1.weight"]
    assert torch.equal(started["same"], kept)
    assert not torch.equal(started["renamed"], kept)


def test_features_and_head_give_the_logits_of_the_network(trained, other):
    network = load_network(trained.out)
    images = load_images(open_images(other), network.preprocessing)
    features = extract_features(network.module, images, network.preprocessing, memory_bytes=2**24)
    assert features.inputs.dtype == torch.float16
    assert torch.equal(features.labels, images.labels)
    found = predict(Head(network.module), features, network.preprocessing)
    expected = predict(network.module, images, network.preprocessing)
    # float16 has a precision of eleven bits.
    assert torch.allclose(found, expected, rtol=0.01, atol=0.01)
    with pytest.raises(UsageError, match=r"features of 24 images take .* more than 1.0 KiB; raise --memory"):
        extract_features(network.module, images, network.preprocessing, memory_bytes=1024)


def test_features_beyond_the_memory_are_refused_in_one_line(firebox, trained, other, tmp_path):
    options = ("--start", trained.out, "--learn", "head", "--data", other, "--memory", "1KiB")
    outcome = firebox("train", *options, "--out", tmp_path / "run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "raise --memory" in outcome.err
    assert not (tmp_path / "run").exists()


def test_learning_rates_fall_by_block():
    module = create_model("squeezenet_micro", num_classes=3)
    blocks, factors = blocks_of(module), rate_factors(module, 0.5)
    assert [{factors[layer.name] for layer in block} for block in blocks][::-1] == [
        {0.5**index} for index in range(len(blocks))
    ]
    assert rate_factors(module, 1.0) == {}
    for freezeout in (None, "linear"):
        optimizer = make_optimizer(module, TrainingConfig(freezeout=freezeout, layer_decay=0.5), factors)
        assert {group["layer"]: group["factor"] for group in optimizer.param_groups} == factors
    assert [layer.name for layer in layers_of(module)] == [layer.name for block in blocks for layer in block]


def test_freezeout_and_layer_decay_combine_with_learn(trained, other, tmp_path):
    config = config_for(trained, other, learn=2, layer_decay=0.5, freezeout="cubic", freeze_first=0.5)
    result = train(config, tmp_path / "run")
    assert result.predicted_saving is not None
    assert 0 < result.predicted_saving < 1


def test_initial_weights_may_be_published_ones(data_dir, other, tmp_path):
    weights = data_dir / "squeezenet1_1.pth"
    config = TrainingConfig(model="squeezenet1_1", data=str(other), start=str(weights), learn="head", epochs=1)
    result = train(replace(config, input_size=(64, 64), batch_size=4), tmp_path / "run")
    network, origin = load_network(result.checkpoint), torch.load(weights, weights_only=True)
    state = network.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in origin.items() if name.startswith("features"))
    assert state["classifier.1.weight"].shape[0] == 4
    assert network.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"start": "nowhere"}, UsageError, "no such weights to start from: nowhere"),
        ({"model": "squeezenet_cifar"}, CheckpointError, "is of another network"),
        ({"learn": 8}, UsageError, "the network has 7 blocks before its head, not 8; train fewer blocks"),
        ({"images_per_class": 50}, DataError, "has 5 images, not 50; use fewer"),
        ({"network": {"bypass": "complex"}}, CheckpointError, "missing key features"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unsuitable_initial_weights_are_refused(trained, other, tmp_path, changes, kind, message):
    config = replace(config_for(trained, other), **changes)
    with pytest.raises(kind, match=message):
        train(config, tmp_path / "run", Resources("cpu"))
    assert not (tmp_path / "run").exists()
