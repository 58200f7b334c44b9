"""Decoding, resizing, cropping and normalizing images."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from firebox.runtime import Preprocessing
from firebox.runtime.errors import DataError, FireboxError, FormatError, UsageError
from firebox.runtime.images import decode

WHOLE = Preprocessing(size=(4, 6))
IMAGENET = Preprocessing(
    size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)  # fmt: skip


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def drawn(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def resize_and_crop(pixels: np.ndarray, resize: int, size: int) -> np.ndarray:
    """The result of torchvision's Resize and CenterCrop on a PIL image."""
    image = Image.fromarray(pixels)
    short, long = sorted(image.size)
    other = int(resize * long / short)
    scaled = (resize, other) if image.width <= image.height else (other, resize)
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    top, left = round((image.height - size) / 2.0), round((image.width - size) / 2.0)
    return np.asarray(image)[top : top + size, left : left + size]


@pytest.mark.parametrize(("width", "height"), [(256, 341), (500, 333), (224, 224), (301, 300), (90, 120), (1, 1)])
def test_resize_and_crop_match_torchvision(width, height):
    pixels = drawn(width, height)
    np.testing.assert_array_equal(IMAGENET.crop(pixels), resize_and_crop(pixels, 256, 224))


@settings(max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 30))
def test_every_image_becomes_the_size_of_the_input(width, height, size, more):
    preprocessing = Preprocessing(size=(size, size), resize=size + more)
    found = preprocessing.crop(drawn(width, height))
    assert (found.shape, found.dtype) == ((size, size, 3), np.uint8)
    np.testing.assert_array_equal(found, resize_and_crop(drawn(width, height), size + more, size))


def test_without_resize_the_whole_image_is_scaled():
    pixels = drawn(30, 11)
    expected = np.asarray(Image.fromarray(pixels).resize((6, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(WHOLE.crop(pixels), expected)


def test_normalization_follows_the_formula():
    pixels = drawn(5, 5)
    expected = (pixels / 255 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    found = IMAGENET.normalize(pixels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    caffe = Preprocessing(size=(5, 5), channels="BGR", scale=1.0, mean=(104.0, 117.0, 123.0))
    np.testing.assert_allclose(
        caffe.normalize(caffe.crop(pixels)), pixels[..., ::-1].astype(float) - [104, 117, 123], atol=1e-4
    )


def test_grey_networks_and_grey_images():
    grey = Preprocessing(size=(4, 6), channels="L", mean=(0.5,), std=(0.5,))
    pixels = drawn(6, 4)
    np.testing.assert_array_equal(grey.crop(pixels)[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))
    flat = pixels[..., 0]
    for same in (flat, flat[..., None], Image.fromarray(flat), encoded(Image.fromarray(flat))):
        np.testing.assert_array_equal(WHOLE.crop(same), np.stack([flat] * 3, -1))
        np.testing.assert_array_equal(grey.crop(same), flat[..., None])


def test_16_bit_images_keep_their_upper_8_bits():
    values = np.array([[0, 255, 256, 32767], [32768, 65280, 65534, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        found = np.asarray(decode(encoded(Image.fromarray(values), kind)))
        np.testing.assert_array_equal(found, values >> 8)
    found = Preprocessing(size=(2, 4)).crop(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(found, np.stack([values >> 8] * 3, -1))


@pytest.mark.parametrize("mode", ["CMYK", "P", "1", "LA", "RGBA", "YCbCr"])
def test_images_of_other_modes_become_rgb(mode):
    image = Image.new("RGB", (6, 4), (250, 30, 20)).convert(mode)
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    found = WHOLE.crop(encoded(image, kind)).reshape(-1, 3)
    np.testing.assert_allclose(found, np.asarray(image.convert("RGB")).reshape(-1, 3), atol=4)


def test_transparent_palette_of_one_pixel():
    image = Image.new("P", (1, 1), 3)
    image.putpalette([10 * index % 256 for index in range(768)])
    found = WHOLE.crop(encoded(image, transparency=3))
    assert np.unique(found.reshape(-1, 3), axis=0).tolist() == [[90, 100, 110]]


def test_exif_orientation_is_applied():
    pixels = drawn(6, 4)
    for orientation, turned in ((3, pixels[::-1, ::-1]), (6, np.rot90(pixels, -1)), (8, np.rot90(pixels))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(pixels), "PNG", exif=exif)
        np.testing.assert_array_equal(np.asarray(decode(data)), turned)


def test_a_damaged_image_is_reported_by_name():
    jpeg = encoded(Image.fromarray(drawn(60, 60)), "JPEG")
    png = encoded(Image.fromarray(drawn(60, 60)))
    for data in (jpeg[: len(jpeg) // 2], jpeg[:10], png[: len(png) // 2], png[:40], b"", b"just text", bytes(100)):
        with pytest.raises(DataError, match=r"some/7\.jpg") as error:
            WHOLE.crop(data, "some/7.jpg")
        assert "\n" not in str(error.value)


# Pillow warns about unreadable tags and about images close to its size limit.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=200)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]), st.data())
def test_changed_bytes_are_an_image_or_a_firebox_error(kind, data):
    image = bytearray(encoded(Image.fromarray(drawn(12, 9)), kind))
    for position in data.draw(st.lists(st.integers(0, len(image) - 1), max_size=3)):
        image[position] = data.draw(st.integers(0, 255))
    try:
        assert WHOLE.crop(bytes(image)).shape == (4, 6, 3)
    except FireboxError as error:
        assert str(error).startswith("image ")


def test_a_text_file_named_as_an_image_is_rejected(tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_text("meow")
    with pytest.raises(DataError, match=r"cat\.jpg is not an image"):
        WHOLE.crop(path)
    with pytest.raises(UsageError, match="no such file"):
        WHOLE.crop(tmp_path / "dog.jpg")
    with pytest.raises(UsageError, match="is a folder"):
        WHOLE.crop(tmp_path)


def test_a_decompression_bomb_is_rejected():
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    for width, height in ((20_000, 20_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        with pytest.raises(DataError):
            WHOLE.crop(data)


def test_a_long_thin_image_is_not_scaled():
    with pytest.raises(DataError, match="too long and thin"):
        Preprocessing(size=(224, 224), resize=256).crop(np.zeros((1, 20_000, 3), np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_invalid_arrays_are_rejected(array):
    with pytest.raises(DataError, match="is an array of"):
        WHOLE.crop(array)


def test_other_types_are_usage_errors():
    with pytest.raises(UsageError, match="is a list; pass a path"):
        WHOLE.crop([1, 2, 3])  # pyright: ignore[reportArgumentType]


def test_json_round_trip():
    for preprocessing in (WHOLE, IMAGENET, Preprocessing(size=(8, 8), channels="L", mean=(0.1,), std=(0.3,))):
        assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": "RGBA"}, "channel order 'RGBA'"),
        ({"channels": "L"}, "mean and std need 1 values"),
        ({"size": (0, 4)}, "not between 1 and 4096"),
        ({"size": (5000, 5000)}, "not between 1 and 4096"),
        ({"resize": 3}, "resize 3 is smaller than the crop"),
        ({"std": (0.0, 1.0, 1.0)}, "must be finite, scale and std positive"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "must be finite"),
        ({"scale": 0.0}, "must be finite"),
    ],
)
def test_invalid_values_are_rejected(change, said):
    with pytest.raises(UsageError, match=said):
        Preprocessing(**{"size": (4, 4), **change})
    values = {**Preprocessing(size=(4, 4)).to_json(), **change}
    with pytest.raises(FormatError, match="is invalid"):
        Preprocessing.from_json(values)
