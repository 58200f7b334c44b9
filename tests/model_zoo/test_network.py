from pathlib import Path

import numpy as np
import pytest
import torch

from firebox.export import ExportConfig, Tolerance
from firebox.model_zoo import TrainingConfig, create_model, export_network, load_network, train
from firebox.model_zoo.training import load_images, predict, top_k
from firebox.model_zoo.weights import imagenet_classes
from firebox.runtime.errors import CheckpointError, FireboxError, UsageError
from firebox.runtime.files import sha256
from firebox.runtime.formats.read import read_graph
from firebox.runtime.graph import ops
from firebox.runtime.images import match_labels, open_images, sample


def test_run_folder_checkpoint_and_zoo_name_give_the_same_network(trained):
    networks = [
        load_network(trained.out),
        load_network(str(trained.checkpoint)),
        load_network("squeezenet_micro", trained.checkpoint),
    ]
    x = torch.randn(2, 3, 32, 32)
    for network in networks:
        assert network.name == "squeezenet_micro"
        assert network.classes == ("class0", "class1", "class2")
        assert network.preprocessing == networks[0].preprocessing
        assert network.sha256 == sha256(trained.checkpoint.read_bytes())
        assert not network.module.training
        assert torch.equal(network.module(x), networks[0].module(x))


def test_bare_weights_take_preprocessing_and_classes_from_the_zoo(tmp_path):
    torch.save(create_model("squeezenet1_1").state_dict(), tmp_path / "big.pth")
    network = load_network("squeezenet1_1", tmp_path / "big.pth")
    assert network.preprocessing.resize == 256
    assert (network.classes, network.class_ids) == imagenet_classes()
    torch.save(create_model("squeezenet1_1", num_classes=4).state_dict(), tmp_path / "four.pth")
    network = load_network("squeezenet1_1", tmp_path / "four.pth", input_size=(112, 112))
    assert network.classes == ("class 0", "class 1", "class 2", "class 3")
    assert (network.preprocessing.size, network.preprocessing.resize) == ((112, 112), 128)


def test_random_weights_depend_on_the_seed_and_leave_torchs_generator_alone():
    state = torch.random.get_rng_state()
    first, again, other = (
        load_network("squeezenet_micro", random_init=True, in_channels=1, seed=seed).module for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.features[0].weight, again.features[0].weight)
    assert not torch.equal(first.features[0].weight, other.features[0].weight)
    network = load_network("squeezenet_micro", random_init=True, in_channels=1)
    assert (network.preprocessing.channels, network.sha256) == ("L", "")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("squeezenet1_1", {}, "no weights for it; pass --weights imagenet, --weights FILE, or a run folder"),
        ("squeezenet1_1", {"weights": "x.pth"}, "no such file: x.pth"),
        ("squeezenet1_1", {"weights": "x.pth", "random_init": True}, "cannot have both weights"),
        ("squeezenet1_l", {}, "did you mean squeezenet1_1"),
        ("wings", {}, "no model 'wings' in the zoo; choose one of alexnet,"),
        ("runs/nowhere", {}, "no such run folder or checkpoint: runs/nowhere"),
        (".", {}, "is not a run folder"),
        (".", {"random_init": True}, "need a zoo name"),
        ("squeezenet1_1", {"random_init": True, "in_channels": 2}, "1 or 3 channels"),
        ("squeezenet1_1", {"random_init": True, "input_size": (9, 9)}, "too small"),
    ],
)
def test_specs_without_a_network_are_errors(spec, options, message):
    with pytest.raises(UsageError) as error:
        load_network(spec, **options)
    assert message in str(error.value)


def test_a_checkpoint_is_not_mistaken_for_another_network(trained, tmp_path):
    with pytest.raises(CheckpointError, match="of another network: stem_channels 32, not"):
        load_network("squeezenet1_1", trained.checkpoint)
    with pytest.raises(CheckpointError, match="a head for 3 classes, the network for 5"):
        load_network("squeezenet_micro", trained.checkpoint, num_classes=5)
    torch.save(create_model("squeezenet_micro").state_dict(), tmp_path / "bare.pth")
    with pytest.raises(UsageError, match="as weights of a zoo name"):
        load_network(tmp_path / "bare.pth")


def test_a_changed_header_raises_only_firebox_errors(trained, tmp_path):
    data = trained.checkpoint.read_bytes()
    header = int.from_bytes(data[:8], "little")
    random = np.random.default_rng(0)
    path = tmp_path / "checkpoint.safetensors"
    for _ in range(100):
        changed = bytearray(data)
        changed[random.integers(0, 8 + header)] = random.integers(0, 256)
        path.write_bytes(changed)
        try:
            load_network(path)
        except FireboxError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "file", "size", "top1", "top5"),
    [
        ("squeezenet1_1", "squeezenet1_1.pth", (224, 224), 0.55, 0.75),
        ("squeezenet1_0", "compressed_SqueezeNet.net", (227, 227), 0.5, 0.72),
    ],
)
def test_published_weights_recognize_real_images(data_dir: Path, name, file, size, top1, top5):
    network = load_network(name, data_dir / file)
    assert network.preprocessing.size == network.config.input_size == size
    # Sixty images distinguish correct from swapped channels and keep the test short.
    images = sample(open_images(data_dir / "imagenet-samples.tar"), 60)
    labels = torch.from_numpy(match_labels(images, network.classes, network.class_ids))
    dataset = load_images(images, network.preprocessing)
    found = top_k(predict(network.module, dataset, network.preprocessing), labels)
    assert found[0] >= top1
    assert found[1] >= top5


def test_a_bypass_before_the_relu_is_exported_as_a_residual_sum(images, tmp_path):
    torch.manual_seed(0)
    fire = create_model("squeezenet_micro", bypass_before_relu=True).features[4].eval()
    x = torch.randn(2, 64, 8, 8)
    squeezed = fire.squeeze_norm(fire.squeeze(x)).relu()
    expanded = [
        fire.expand1x1_norm(fire.expand1x1(squeezed)),
        fire.expand3x3_norm(fire.expand3x3(squeezed)),
    ]
    torch.testing.assert_close(fire(x), (torch.cat(expanded, 1) + x).relu())

    network = {"bypass": "complex", "bypass_before_relu": True}
    config = TrainingConfig(data=str(images), epochs=2, batch_size=4, network=network)
    trained = load_network(train(config, tmp_path / "run").out)
    labelled = open_images(images)
    tolerance = Tolerance(agreement=0.5, sqnr_db=10)
    found = export_network(trained, tmp_path / "files", labelled, ExportConfig(8, tolerance=tolerance))
    # The sum and its ReLU are one operation.
    graph = read_graph(tmp_path / "files" / "model.int8.tflite")
    assert {op.activation for op in graph.ops if isinstance(op, ops.Add)} == {"relu"}
    assert all(parity.agreement >= 0.5 for parity in found.parity)
