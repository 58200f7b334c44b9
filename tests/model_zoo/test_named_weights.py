"""Weights by name: in the package, and published weights from the cache."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from firebox.model_zoo import create_model, find_model, load_network
from firebox.model_zoo.networks import PublicFile, registry
from firebox.model_zoo.training import load_images, predict
from firebox.model_zoo.weights import names as named_weights
from firebox.model_zoo.weights import pack_compact, read_checkpoint
from firebox.model_zoo.weights.checkpoint import read_safetensors
from firebox.runtime import open_images, sample
from firebox.runtime.errors import CheckpointError, DownloadError, UsageError

MODEL = "squeezenet_micro"
DOCS = Path(__file__).resolve().parents[2] / "docs"
FILES = sorted(named_weights._FOLDER.glob("*.safetensors"))


def test_weights_in_the_package_are_small_and_documented():
    assert FILES and sum(file.stat().st_size for file in FILES) <= 1_000_000
    card = (DOCS / "weights.md").read_text()
    for file in FILES:
        assert f"SHA-256 of the file: `{hashlib.sha256(file.read_bytes()).hexdigest()}`" in card
        epochs = read_checkpoint(file).training.epochs
        assert len(file.with_suffix(".log.csv").read_text().splitlines()) == 1 + epochs


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_weights_in_the_package_are_accurate(name, data_dir):
    test = sample(open_images(data_dir / "cifar10-images.tar").split("test"), 500, 0)
    network = load_network(name)
    assert network.classes == test.classes
    images = load_images(test, network.preprocessing)
    answers = predict(network.module, images, network.preprocessing).argmax(1).numpy()
    assert (answers == test.labels).mean() > 0.85


@pytest.fixture
def shipped(trained, tmp_path, monkeypatch) -> Path:
    """A package with weights of squeezenet_micro in the shipped form."""
    (tmp_path / f"{MODEL}.safetensors").write_bytes(pack_compact(read_checkpoint(trained.checkpoint)))
    monkeypatch.setattr(named_weights, "_FOLDER", tmp_path)
    return tmp_path / f"{MODEL}.safetensors"


@pytest.fixture
def public(tmp_path, monkeypatch) -> Path:
    """A cache with published weights of squeezenet_micro, whose URL does not exist."""
    monkeypatch.setenv("FIREBOX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache" / "micro.pth"
    path.parent.mkdir()
    torch.save(create_model(MODEL, num_classes=3).state_dict(), path)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    entry = replace(find_model(MODEL), public={"imagenet": PublicFile("https://127.0.0.1:1/micro.pth", digits)})
    monkeypatch.setitem(registry._ENTRIES, MODEL, entry)
    return path


def test_a_bare_name_loads_the_weights_in_the_package(shipped, trained):
    found, run = load_network(MODEL), load_network(trained.out)
    assert found.sha256 == hashlib.sha256(shipped.read_bytes()).hexdigest()
    assert (found.classes, found.preprocessing, found.config) == (run.classes, run.preprocessing, run.config)
    assert {parameter.dtype for parameter in found.module.parameters()} == {torch.float32}
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(found.module(images), run.module(images), atol=0.05, rtol=0.01)

    model = create_model(MODEL, num_classes=3, weights="default")
    assert model.training
    torch.testing.assert_close(model.state_dict(), found.module.state_dict())


def test_commands_accept_weights_by_name(shipped, trained, firebox):
    (listed,) = json.loads(firebox("models", MODEL, "--json").out)["models"]
    assert listed["weights"] == ["default"]
    assert "default" in firebox("models", MODEL).out
    data = trained.out.parent / "images"
    ran = firebox("evaluate", MODEL, trained.out, "--data", data, "--json")
    assert ran.code == 0, ran.err
    first, second = (model["agreement_with_first"] for model in json.loads(ran.out)["models"])
    # Shipped kernels are int8.
    assert (first, second >= 0.9) == (1, True)


def test_weights_determine_the_config(shipped):
    with pytest.raises(CheckpointError, match="a head for 3 classes, the network for 7"):
        create_model(MODEL, num_classes=7, weights="default")
    with pytest.raises(UsageError, match="bypass of squeezenet_micro cannot be changed with weights"):
        create_model(MODEL, weights="default", bypass="none")
    with pytest.raises(UsageError, match="cannot have both weights and random weights"):
        load_network(MODEL, "default", random_init=True)


def test_damaged_weights_in_the_package_are_an_error(shipped):
    shipped.write_bytes(shipped.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=str(shipped)):
        load_network(MODEL)


def test_the_error_for_missing_weights_lists_alternatives(tmp_path, monkeypatch):
    monkeypatch.setattr(named_weights, "_FOLDER", tmp_path)
    for load in (load_network, lambda name: create_model(name, weights="default")):
        with pytest.raises(UsageError, match=r"no weights for it; pass --weights imagenet, --weights FILE, or"):
            load("squeezenet1_1")
        with pytest.raises(UsageError, match=r"the package has no weights for it; pass --weights FILE, or"):
            load(MODEL)
    with pytest.raises(UsageError, match="has no weights 'imagenet'"):
        load_network(MODEL, "imagenet")
    with pytest.raises(UsageError, match=r"has no weights 'imagnet'; pass --weights imagenet"):
        load_network("squeezenet1_0", "imagnet")


def test_published_weights_come_from_the_cache(public, trained, firebox):
    assert load_network(MODEL, "imagenet").sha256 == hashlib.sha256(public.read_bytes()).hexdigest()
    (listed,) = json.loads(firebox("models", MODEL, "--json").out)["models"]
    assert "imagenet" in listed["weights"]
    data = trained.out.parent / "images"
    ran = firebox("evaluate", MODEL, "--weights", "imagenet", "--data", data, "--json")
    # A bare state dict has no class names.
    assert ran.code == 1
    assert "is not one of the model's 3 classes" in ran.err


def test_a_cached_file_with_another_hash_is_not_used(public, firebox):
    public.write_bytes(public.read_bytes() + b"x")
    with pytest.raises(DownloadError, match="connection refused"):
        load_network(MODEL, "imagenet")
    ran = firebox("export", MODEL, "--weights", "imagenet", "--calibrate", "digits")
    assert (ran.code, ran.out) == (1, "")
    (line,) = ran.err.splitlines()
    assert line.startswith("error: cannot download https://127.0.0.1:1/micro.pth: connection refused")


def test_a_path_is_not_read_as_a_name(public, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").symlink_to(trained.out)
    for path in ("./imagenet", Path("imagenet"), trained.checkpoint):
        assert load_network(MODEL, path).classes == ("class0", "class1", "class2")
    assert load_network(MODEL, "imagenet").classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_torchvision_urls_contain_the_hash(name):
    file = find_model(name).public["imagenet"]
    assert file.url.startswith("https://")
    assert file.url.endswith(f"/{name}-{file.sha256}.pth")
    assert len(bytes.fromhex(file.sha256)) == 4


def test_shipped_weights_are_small_and_checked(shipped, trained, tmp_path):
    run = read_checkpoint(trained.checkpoint)
    assert shipped.stat().st_size < 0.2 * trained.checkpoint.stat().st_size
    found = read_checkpoint(shipped)
    for name, weight in run.weights.items():
        steps = weight.flatten(1).abs().amax(1) / 127 if weight.ndim > 1 else torch.zeros(1)
        difference = (found.weights[name] - weight).abs()
        assert (difference.flatten(1).amax(1) <= steps / 2 + 1e-6).all() if weight.ndim > 1 else not difference.any()
    tensors, metadata = read_safetensors(shipped.read_bytes(), "the file")
    header = {key: value for key, value in json.loads(metadata["firebox"]).items() if key != "tensors_sha256"}
    metadata = {"firebox": json.dumps(header)}
    scale = next(name for name in tensors if name.startswith("scale."))
    for changed in ({scale: tensors[scale][:-1]}, {scale: tensors[scale].int()}, {"scale.nothing": torch.ones(1)}):
        safetensors.torch.save_file({**tensors, **changed}, tmp_path / "broken.safetensors", metadata)
        with pytest.raises(CheckpointError, match="the scale of"):
            read_checkpoint(tmp_path / "broken.safetensors")
