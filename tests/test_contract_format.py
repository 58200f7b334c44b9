"""A reader that follows docs/formats/contract.md alone finds the keys and computes the integers that firebox does.

The reader uses the standard library only, on the raw bytes of the files.
"""

import base64
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from firebox.export import ExportConfig, export
from firebox.model_zoo import load_network
from firebox.runtime import Preprocessing, Session, open_images

PAGE = Path(__file__).parents[1] / "docs" / "formats" / "contract.md"
FILES = (
    "model.float32.onnx",
    "model.float32.tflite",
    "model.int8.onnx",
    "model.int8.tflite",
    "uint8/model.int8.tflite",
)
Plane = list[list[int]]
Rows = list[list[list[int]]]


# ----- The reader -----


def varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def protobuf_fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and value of the length-delimited fields of a message."""
    position = 0
    while position < len(data):
        key, position = varint(data, position)
        wire = key & 7
        if wire == 0:
            _, position = varint(data, position)
        elif wire == 2:
            size, position = varint(data, position)
            yield key >> 3, data[position : position + size]
            position += size
        else:
            position += {1: 8, 5: 4}[wire]


def onnx_contract(data: bytes) -> bytes:
    entries = [dict(protobuf_fields(value)) for number, value in protobuf_fields(data) if number == 14]
    (found,) = [entry[2] for entry in entries if entry[1] == b"firebox.contract"]
    return found


def tflite_contract(data: bytes) -> bytes:
    def u32(position: int) -> int:
        return struct.unpack_from("<I", data, position)[0]

    def slot(table: int, number: int) -> int:
        """Position of a field's value in its table."""
        vtable = table - struct.unpack_from("<i", data, table)[0]
        return table + struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]

    def follow(position: int) -> int:
        return position + u32(position)

    def elements(vector: int) -> list[int]:
        return [follow(vector + 4 + 4 * index) for index in range(u32(vector))]

    def content(vector: int) -> bytes:
        return data[vector + 4 : vector + 4 + u32(vector)]

    model = follow(0)
    metadata, buffers = (elements(follow(slot(model, number))) for number in (6, 4))
    (index,) = [u32(slot(m, 1)) for m in metadata if content(follow(slot(m, 0))) == b"firebox.contract"]
    return content(follow(slot(buffers[index], 0)))


def read_entry(path: Path) -> dict[str, Any]:
    read = onnx_contract if path.suffix == ".onnx" else tflite_contract
    return json.loads(read(path.read_bytes()).decode("ascii"))


def f32(value: float) -> float:
    """The nearest 32-bit float. Of +, -, * and / in 64 bits, rounded like this, the result is that of 32 bits."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def resized_line(line: list[int], size: int) -> list[int]:
    step = len(line) / size
    stretch = max(step, 1.0)
    found = []
    for i in range(size):
        centre = (i + 0.5) * step
        first = max(0, math.trunc(centre - stretch + 0.5))
        last = min(len(line), math.trunc(centre + stretch + 0.5))
        weights = [max(0.0, 1 - abs((j - centre + 0.5) * (1 / stretch))) for j in range(first, last)]
        total = 0.0
        for weight in weights:
            total += weight
        fixed = [math.trunc(0.5 + weight / total * 4194304) for weight in weights]
        value = (2097152 + sum(k * x for k, x in zip(fixed, line[first:last], strict=True))) >> 22
        found.append(min(max(value, 0), 255))
    return found


def resized_width(plane: Plane, width: int) -> Plane:
    return plane if width == len(plane[0]) else [resized_line(row, width) for row in plane]


def transposed(plane: Plane) -> Plane:
    return [list(column) for column in zip(*plane, strict=True)]


def resized(plane: Plane, width: int, height: int) -> Plane:
    h, w = len(plane), len(plane[0])
    if h > height and h - height > 2 * (w - width):
        return resized_width(transposed(resized_width(transposed(plane), height)), width)
    return transposed(resized_width(transposed(resized_width(plane, width)), height))


def cropped(image: Rows, how: dict[str, Any]) -> Rows:
    """Steps 2 to 6, from RGB pixels."""
    if how["channels"] == "L":
        image = [[[(19595 * r + 38470 * g + 7471 * b + 32768) >> 16] for r, g, b in row] for row in image]
    h, w, (height, width) = len(image), len(image[0]), how["size"]
    target_width, target_height, left, top = width, height, 0, 0
    if how["resize"] is not None:
        ratio = how["resize"] / min(w, h)
        target_width = max(how["resize"], math.trunc(w * ratio))
        target_height = max(how["resize"], math.trunc(h * ratio))
        # Python rounds halves to even.
        left, top = round((target_width - width) / 2), round((target_height - height) / 2)
    planes = [
        resized([[pixel[c] for pixel in row] for row in image], target_width, target_height)
        for c in range(len(image[0][0]))
    ]
    if how["channels"] == "BGR":
        planes.reverse()
    return [[[plane[y][x] for plane in planes] for x in range(left, left + width)] for y in range(top, top + height)]


def encoded(pixels: Rows, entry: dict[str, Any]) -> list[float]:
    """Steps 7 to 9."""
    how, tensor = entry["preprocessing"], entry["input"]
    factors = [f32(f32(how["scale"]) / f32(std)) for std in how["std"]]
    offsets = [f32(f32(mean) / f32(std)) for mean, std in zip(how["mean"], how["std"], strict=True)]

    def value(pixel: int, c: int) -> float:
        real = f32(f32(pixel * factors[c]) - offsets[c])
        if tensor["scale"] is None:
            return real
        low, high = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}[tensor["dtype"]]
        return min(max(round(f32(real / f32(tensor["scale"]))) + tensor["zero_point"], low), high)

    rows, columns, channels = range(len(pixels)), range(len(pixels[0])), range(len(factors))
    if entry["layout"] == "NCHW":
        return [value(pixels[y][x][c], c) for c in channels for y in rows for x in columns]
    return [value(pixels[y][x][c], c) for y in rows for x in columns for c in channels]


def decoded(integers: list[float], entry: dict[str, Any]) -> list[float]:
    tensor = entry["output"]
    if tensor["scale"] is None:
        return integers
    return [f32(f32(f32(q) - f32(tensor["zero_point"])) * f32(tensor["scale"])) for q in integers]


def golden_image(entry: dict[str, Any]) -> Rows:
    (height, width), channels = entry["preprocessing"]["size"], len(entry["preprocessing"]["channels"])
    packed = base64.b64decode(entry["golden"]["pixels"])
    values = zlib.decompressobj().decompress(packed, height * width * channels)
    return [[list(values[(y * width + x) * channels :][:channels]) for x in range(width)] for y in range(height)]


# ----- The tests -----


def flattened(values: dict[str, Any], prefix: str = "") -> set[str]:
    """Keys of an object and, after a dot, of the objects in it."""
    found = set()
    for key, value in values.items():
        found |= {prefix + key} if not isinstance(value, dict) else flattened(value, f"{prefix}{key}.")
    return found


def as_array(values: list[float], entry: dict[str, Any]) -> np.ndarray:
    return np.array(values, entry["input"]["dtype"]).reshape(entry["input"]["shape"])


@pytest.fixture(params=FILES)
def path(request, exported) -> Path:
    return exported / request.param


def test_the_table_lists_the_keys_that_files_contain(path):
    # `golden` itself has a row, because it may be null.
    documented = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) - {"golden"}
    assert flattened(read_entry(path)) == documented


def test_the_values_are_those_of_the_session(path):
    entry = read_entry(path)
    with Session(path) as session:
        contract = session.contract
    assert entry["version"] == 1
    assert (entry["name"], entry["checkpoint_sha256"]) == ("micro", contract.checkpoint_sha256)
    assert tuple(entry["classes"]) == contract.classes and tuple(entry["class_ids"]) == contract.class_ids
    assert (entry["answer"], entry["layout"]) == ("logits", "NCHW" if path.suffix == ".onnx" else "NHWC")
    assert entry["preprocessing"] == json.loads(json.dumps(contract.preprocessing.to_json()))
    for name, spec in (("input", contract.input), ("output", contract.output)):
        own = entry[name]
        assert (own["dtype"], tuple(own["shape"])) == (spec.dtype, spec.shape)
        assert (own["scale"], own["zero_point"]) == (spec.scale, spec.zero_point)
        assert own["scale"] is None or own["scale"] == f32(own["scale"])
    assert contract.golden is not None
    assert golden_image(entry) == contract.golden.pixels.tolist()
    assert tuple(entry["golden"]["output"]) == contract.golden.output
    assert entry["golden"]["tolerance"] == contract.golden.tolerance


def test_the_golden_image_is_drawn_by_the_formula(path):
    entry = read_entry(path)
    (height, width), channels = entry["preprocessing"]["size"], len(entry["preprocessing"]["channels"])
    assert golden_image(entry) == [
        [[((y * 8 // height) * 73 + (x * 8 // width) * 151 + c * 59) % 256 for c in range(channels)]
         for x in range(width)]
        for y in range(height)
    ]  # fmt: skip


def test_the_golden_pair_passes_in_the_runtime(path):
    entry = read_entry(path)
    with Session(path, check="off") as session:
        output = session.run(as_array(encoded(golden_image(entry), entry), entry))
    found = decoded(output.reshape(-1).tolist(), entry)
    differences = [abs(a - b) for a, b in zip(found, entry["golden"]["output"], strict=True)]
    assert max(differences) <= entry["golden"]["tolerance"]


@pytest.mark.parametrize("shape", [(40, 48), (24, 24), (31, 24), (97, 50), (7, 9)])
def test_images_become_the_same_integers(path, shape):
    entry = read_entry(path)
    image = np.random.default_rng(shape[0]).integers(0, 256, (*shape, 3), np.uint8)
    with Session(path, check="off") as session:
        contract = session.contract
        values = contract.preprocessing.normalize(contract.preprocessing.crop(image))[None]
        if contract.layout == "NCHW":
            values = values.transpose(0, 3, 1, 2)
        expected = contract.input.encode(values)
    own = as_array(encoded(cropped(image.tolist(), entry["preprocessing"]), entry), entry)
    assert own.dtype == expected.dtype and np.array_equal(own, expected)


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        (Preprocessing(size=(16, 16), resize=19), (60, 41)),
        (Preprocessing(size=(16, 12), resize=21), (33, 47)),
        (Preprocessing(size=(16, 16), resize=16), (90, 23)),
        (Preprocessing(size=(40, 10)), (30, 80)),
        (Preprocessing(size=(10, 40)), (80, 30)),
        (Preprocessing(size=(9, 16), resize=17, channels="BGR"), (20, 17)),
        (Preprocessing(size=(11, 10), resize=32), (10, 12)),
        (Preprocessing(size=(12, 20), channels="L", mean=(0.5,), std=(0.25,)), (50, 23)),
        (Preprocessing(size=(8, 8), resize=9, channels="L", mean=(0.1,), std=(0.3,)), (29, 100)),
    ],
)
def test_resize_crop_and_channels_give_the_same_pixels(how, shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    # A smooth image too: noise averages out, and rounding of the filter shows in gradients.
    smooth = np.asarray(Image.fromarray(image[:3, :3]).resize(shape[::-1], Image.Resampling.BICUBIC))
    for pixels in (image, smooth):
        assert cropped(pixels.tolist(), how.to_json()) == how.crop(pixels).tolist()


def test_one_channel_a_scaled_image_and_names_beyond_ascii(tmp_path, noise):
    network = load_network("squeezenet_micro", random_init=True, num_classes=3, in_channels=1, input_size=(24, 24))
    export(
        network.module,
        tmp_path,
        preprocessing=Preprocessing(size=(24, 24), resize=28, channels="L", mean=(0.4,), std=(0.3,)),
        images=open_images(noise),
        classes=("Äpfel", "b", "猫"),
        class_ids=("n01", "n02", "n03"),
        config=ExportConfig(precisions=("float32",)),
    )
    for name in ("model.float32.onnx", "model.float32.tflite"):
        entry = read_entry(tmp_path / name)
        assert entry["classes"] == ["Äpfel", "b", "猫"] and entry["class_ids"] == ["n01", "n02", "n03"]
        assert entry["preprocessing"]["resize"] == 28 and entry["preprocessing"]["channels"] == "L"
        with Session(tmp_path / name) as session:
            output = session.run(as_array(encoded(golden_image(entry), entry), entry))
        assert np.abs(output.reshape(-1) - entry["golden"]["output"]).max() <= entry["golden"]["tolerance"]
