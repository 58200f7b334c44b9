import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firebox.model_zoo import create_model
from firebox.model_zoo.weights import load_weights, load_weights_into
from firebox.runtime.errors import CheckpointError, UsageError


@pytest.fixture(scope="module")
def micro():
    torch.manual_seed(1)
    return create_model("squeezenet_micro").eval()


@pytest.fixture(scope="module")
def micro_safetensors(micro) -> bytes:
    return safetensors.torch.save(micro.state_dict())


def compressed(counts: dict[int, int] | None = None) -> bytes:
    """A Deep Compression file with one entry of code 1 per convolution."""
    shapes = [(96, 147)]
    channels = 96
    for index in range(8):
        expand, squeeze = 64 * (1 + index // 2), 16 * (1 + index // 2)
        shapes += [(squeeze, channels), (expand, squeeze), (expand, squeeze * 9)]
        channels = 2 * expand
    shapes.append((1000, 512))
    stored = [(counts or {}).get(number, 1) for number in range(len(shapes))]
    data = struct.pack("<26I", *stored)
    for (outputs, _), count in zip(shapes, stored, strict=True):
        codebook = np.zeros(256, "<f4")
        codebook[1] = 0.5
        data += codebook.tobytes() + np.arange(outputs, dtype="<f4").tobytes()
        data += b"\x01" * count + b"\x02" * ((count + 1) // 2)
    return data


def test_safetensors_and_pth_files_restore_the_weights(tmp_path, micro, micro_safetensors):
    (tmp_path / "bare.safetensors").write_bytes(micro_safetensors)
    torch.save(micro.state_dict(), tmp_path / "new.pth")
    torch.save(micro.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("bare.safetensors", "new.pth", "old.pt"):
        other = create_model("squeezenet_micro").eval()
        load_weights_into(other, load_weights(tmp_path / name))
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(other(x), micro(x))


def test_compressed_network_is_decoded(tmp_path):
    path = tmp_path / "small.net"
    path.write_bytes(compressed())
    weights = load_weights(path)
    first = weights.tensors["features.0.weight"].flatten()
    # The only entry has a gap of 2, so positions 0 and 1 have code 0.
    assert first[2] == 0.5
    assert first.count_nonzero() == 1
    assert torch.equal(weights.tensors["features.0.bias"], torch.arange(96.0))
    assert weights.preprocessing is not None
    assert weights.preprocessing.channels == "BGR"
    assert (weights.classes[0], weights.class_ids[0]) == ("tench", "n01440764")
    load_weights_into(create_model("squeezenet1_0", head_padding=1), weights)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, too few"),
        (compressed()[:90], "90 bytes, too few"),
        (compressed()[:-1], "its table requires"),
        (compressed() + b"x", "its table requires"),
        (compressed({0: 100_000_000}), "convolution 1 stores 100,000,000"),
        (compressed({1: 1500}), "features.3.squeeze has an entry past"),
    ],
    ids=["empty", "cut table", "cut", "longer", "impossible count", "gaps too wide"],
)
def test_damaged_compressed_network_is_refused(tmp_path, data, message):
    path = tmp_path / "bad.net"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        load_weights(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@settings(max_examples=60)
@given(data=st.data(), suffix=st.sampled_from([".safetensors", ".pth", ".net"]))
def test_truncated_and_garbled_files_are_refused(tmp_path_factory, data, suffix, micro, micro_safetensors):
    stream = io.BytesIO()
    torch.save({"a": torch.arange(6.0)}, stream)
    whole = {".safetensors": micro_safetensors, ".pth": stream.getvalue(), ".net": compressed()}
    content = whole[suffix][: data.draw(st.integers(0, len(whole[suffix]) - 1))]
    if data.draw(st.booleans()):
        content = data.draw(st.binary(max_size=200)) + content
    path = tmp_path_factory.mktemp("cut") / f"cut{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_weights_into(micro, load_weights(path))
    assert "\n" not in str(error.value)


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, legacy):
    proof, path = tmp_path / "was-run", tmp_path / "bomb.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"features.0.weight": Bomb(proof)}))
    else:
        torch.save({"features.0.weight": Bomb(proof)}, path)
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        load_weights(path)
    assert not proof.exists()


def test_zip_bombs_and_other_pickles_are_refused(tmp_path):
    path = tmp_path / "bad.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="would unpack to more"):
        load_weights(path)
    for content in (
        [1, 2],
        {},
        {"a": 1},
        {1: torch.zeros(1)},
        {"a": torch.zeros(2, dtype=torch.cfloat)},
    ):
        torch.save(content, path)
        with pytest.raises(CheckpointError):
            load_weights(path)


@pytest.mark.parametrize("name", ["missing.pth", "weights.h5", "."])
def test_other_files_are_a_usage_error(tmp_path, name):
    with pytest.raises(UsageError):
        load_weights(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named_and_refused(tmp_path, micro, value):
    state = {name: tensor.clone() for name, tensor in micro.state_dict().items()}
    state["features.4.expand3x3.weight"][1, 2, 0, 0] = value
    safetensors.torch.save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"features\.4\.expand3x3\.weight.*not finite"):
        load_weights_into(micro, load_weights(tmp_path / "nan.safetensors"))


def test_a_head_of_another_size_is_replaced_only_on_request(tmp_path, micro, micro_safetensors):
    path = tmp_path / "ten.safetensors"
    path.write_bytes(micro_safetensors)
    other = create_model("squeezenet_micro", num_classes=3)
    fresh = other.classifier[1].weight.clone()
    with pytest.raises(CheckpointError, match="a head for 10 classes, the network for 3"):
        load_weights_into(other, load_weights(path))
    load_weights_into(other, load_weights(path), replace_head=True)
    assert torch.equal(other.classifier[1].weight, fresh)
    assert torch.equal(other.features[0].weight, micro.features[0].weight)


@pytest.mark.parametrize("name", ["squeezenet_cifar", "squeezenet1_1"])
def test_weights_of_another_network_are_refused(tmp_path, micro_safetensors, name):
    path = tmp_path / "micro.safetensors"
    path.write_bytes(micro_safetensors)
    other = create_model(name, num_classes=10)
    before = other.features[0].weight.clone()
    with pytest.raises(CheckpointError, match="is of another network"):
        load_weights_into(other, load_weights(path))
    assert torch.equal(other.features[0].weight, before)
