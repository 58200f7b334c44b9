"""Labelled images from folders and archives, their splits and samples, and matching of classes."""

import io
import os
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from firebox.runtime import LabelledImages, open_images, sample, split_images
from firebox.runtime.errors import DataError, FireboxError, UsageError
from firebox.runtime.images import match_labels


def pack_tar(folder: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        archive.add(folder, ".")
    return path


def pack_zip(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_folder_tar_and_zip_are_the_same_images(noise, tmp_path):
    sources = [noise, pack_tar(noise, tmp_path / "a.tar"), pack_zip(noise, tmp_path / "a.zip")]
    folder, *archives = (open_images(source) for source in sources)
    assert folder.classes == ("class0", "class1", "class2")
    assert folder.names[:2] == ("class0/0.png", "class0/1.png")
    assert folder.labels.tolist() == sorted([0, 1, 2] * 4)
    for archive in archives:
        assert (archive.names, archive.classes, archive.splits) == (folder.names, folder.classes, folder.splits)
        assert archive.labels.tolist() == folder.labels.tolist()
        for name in folder.names:
            assert archive.read(name) == folder.read(name) == (noise / name).read_bytes()
        assert archive.image(3) == folder.image(3)


def test_other_files_are_skipped(noise, tmp_path):
    import shutil

    shutil.copytree(noise, tmp_path / "more")
    for extra in ("class0/notes.txt", "class0/.hidden.png", "loose.png", ".git/config", "class1/Thumbs.db"):
        path = tmp_path / "more" / extra
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    (tmp_path / "more" / "class2" / "LOUD.PNG").write_bytes((noise / "class2" / "0.png").read_bytes())
    images = open_images(tmp_path / "more")
    assert set(images.names) == {*open_images(noise).names, "class2/LOUD.PNG"}


def copy(noise: Path, *names: str, to: Path) -> None:
    """Write two images into each folder."""
    for name in names:
        (to / name).mkdir(parents=True)
        for image in ("0.png", "1.png"):
            (to / name / image).write_bytes((noise / "class0" / image).read_bytes())


def test_the_run_folder_of_a_training_is_not_a_class(noise, tmp_path):
    folder = tmp_path / "images"
    copy(noise, "a", "b", "run", "a/deep/run", to=folder)
    for run in ("run", "a/deep/run"):
        (folder / run / "checkpoint.safetensors").write_bytes(b"")
        (folder / run / "snapshots").mkdir()
    for source in (folder, pack_tar(folder, tmp_path / "a.tar"), pack_zip(folder, tmp_path / "a.zip")):
        images = open_images(source)
        assert (images.classes, len(images)) == (("a", "b"), 4)
    # A dataset into which a training wrote is still a dataset.
    (folder / "checkpoint.safetensors").write_bytes(b"")
    assert len(open_images(folder)) == 4


def test_linked_folders_are_followed_without_cycles(noise, tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    copy(noise, "val/a", "val/b", to=data)
    copy(noise, "train/a", "b", "c", to=elsewhere)
    (data / "train").symlink_to(elsewhere / "train")
    (elsewhere / "train" / "b").symlink_to("../b")
    # Links to itself, to a folder above, and from one folder to another.
    (data / "val" / "a" / "again").symlink_to(".")
    (data / "val" / "a" / "up").symlink_to(data)
    (data / "val" / "b" / "away").symlink_to(elsewhere / "c")
    (elsewhere / "c" / "back").symlink_to(data / "val" / "b")
    images = open_images(data)
    assert images.classes == ("a", "away", "b")
    train = images.split("train")
    names = ["train/a/0.png", "train/a/1.png", "train/b/0.png", "train/b/1.png"]
    assert train is not None
    assert train.names == tuple(names)
    assert {images.read(name) for name in names} == {(noise / "class0" / f"{i}.png").read_bytes() for i in range(2)}
    assert len(images) == 4 + 4 + 2
    again = tmp_path / "again"
    again.symlink_to(data)
    assert open_images(again).names == images.names


def test_folders_that_link_to_each_other_are_rejected(noise, tmp_path):
    names = [f"class{index}" for index in range(12)]
    copy(noise, *names, to=tmp_path)
    for one in names:
        for other in names:
            (tmp_path / one / other).symlink_to(tmp_path / other)
    with pytest.raises(DataError, match="is a link within a link within a link; replace it by the folder"):
        open_images(tmp_path)


def test_only_regular_files_are_images(noise, tmp_path):
    copy(noise, "a", "b", to=tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "b" / "zero.png").symlink_to("/dev/zero")
    images = open_images(tmp_path)
    for name in ("a/pipe.png", "b/zero.png"):
        with pytest.raises(DataError, match=f"{name} is not a regular file; remove it"):
            images.read(name)


def test_an_empty_class_folder_is_an_error(noise, tmp_path):
    copy(noise, "train/a", "train/b", "val/a", to=tmp_path)
    for passed in (".git", ".git/tags", "test", "train/.hidden", "train/a/more"):
        (tmp_path / passed).mkdir()
    assert open_images(tmp_path).classes == ("a", "b")
    (tmp_path / "train" / "c").mkdir()
    with pytest.raises(DataError, match=r"class folder .*/train/c is empty or cannot be read; fill it or remove it"):
        open_images(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_class_folder_is_an_error(noise, tmp_path):
    copy(noise, "a", "b", "c", to=tmp_path)
    (tmp_path / "c").chmod(0)
    try:
        with pytest.raises(DataError, match=r"class folder .*/c is empty or cannot be read"):
            open_images(tmp_path)
    finally:
        (tmp_path / "c").chmod(0o700)


def test_each_class_needs_an_image_to_train_on(noise, tmp_path):
    copy(noise, "all/a", "all/b", to=tmp_path)
    kept, held = split_images(open_images(tmp_path / "all"), 0.99)
    assert counts(kept) == counts(held) == {0: 1, 1: 1}
    copy(noise, "train/a", "val/a", "val/b", "only/val/a", "only/test/a", "only/test/b", to=tmp_path / "own")
    for source in (tmp_path / "own", tmp_path / "own" / "only"):
        with pytest.raises(DataError, match=r"class 'b' in .* has no image to train on; add some or remove it"):
            split_images(open_images(source))


def test_folders_named_as_splits_become_splits(noise, tmp_path):
    for split, classes in (("train", 3), ("Val", 2), ("test", 3)):
        for label in range(classes):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for name in ("0.png", "1.png"):
                (folder / name).write_bytes((noise / f"class{label}" / name).read_bytes())
    images = open_images(tmp_path)
    assert images.classes == ("class0", "class1", "class2")
    assert {split: len(images.split(split) or ()) for split in ("train", "val", "test", "all")} == {
        "train": 6,
        "val": 4,
        "test": 6,
        "all": 0,
    }
    trained, validated = split_images(images, 0.5, 3)
    assert {name.split("/")[0] for name in trained.names} == {"train"}
    assert {name.split("/")[0] for name in validated.names} == {"Val"}


def test_compressed_and_truncated_archives_are_rejected(noise, tmp_path):
    for mode in ("w:gz", "w:bz2", "w:xz"):
        path = pack_tar(noise, tmp_path / f"{mode[2:]}.tar", mode)
        with pytest.raises(DataError, match=path.name):
            open_images(path)
    whole = pack_tar(noise, tmp_path / "whole.tar").read_bytes()
    packed = pack_zip(noise, tmp_path / "whole.zip").read_bytes()
    last = whole.rindex(b"\x89PNG")
    for name, data in (
        ("cut.tar", whole[: last + 100]),
        ("header.tar", whole[: last - 200]),
        ("cut.zip", packed[: len(packed) // 2]),
        ("text.tar", b"no archive"),
        ("empty.tar", b""),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name) as error:
            open_images(tmp_path / name).read("class2/3.png")
        assert "\n" not in str(error.value)


def test_damage_inside_an_archive_is_found_on_reading(noise, tmp_path):
    data = bytearray(pack_zip(noise, tmp_path / "a.zip").read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.getinfo("class1/2.png").header_offset
    data[start + 60 : start + 90] = bytes(30)
    (tmp_path / "a.zip").write_bytes(data)
    images = open_images(tmp_path / "a.zip")
    with pytest.raises(DataError, match=r"a\.zip/class1/2\.png"):
        images.read("class1/2.png")
    images.read("class1/1.png")


@settings(max_examples=60)
@given(data=st.data())
def test_a_changed_archive_gives_images_or_a_firebox_error(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for label in ("a", "b"):
        (folder / "in" / label).mkdir(parents=True)
        (folder / "in" / label / "0.png").write_bytes(b"12345")
    kind = data.draw(st.sampled_from(["tar", "zip"]))
    path = (pack_tar if kind == "tar" else pack_zip)(folder / "in", folder / f"x.{kind}")
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, min(len(content), 4096) - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        images = open_images(path)
        for name in images.names:
            images.read(name)
    except FireboxError as error:
        assert "\n" not in str(error)


def test_sources_without_classes_are_rejected(tmp_path):
    with pytest.raises(UsageError, match="no such data"):
        open_images(tmp_path / "none")
    with pytest.raises(DataError, match="has no images in class folders"):
        open_images(tmp_path)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="has one class"):
        open_images(tmp_path)


def test_a_deleted_image_is_reported_by_name(noise, tmp_path):
    import shutil

    shutil.copytree(noise, tmp_path / "more")
    images = open_images(tmp_path / "more")
    (tmp_path / "more" / "class1" / "1.png").unlink()
    with pytest.raises(DataError, match=r"class1/1\.png"):
        images.read("class1/1.png")


def test_digits_are_grey_and_complete():
    images = open_images("digits")
    assert (len(images), images.channels, images.classes) == (1797, "L", tuple("0123456789"))
    image = images.image(0)
    assert isinstance(image, np.ndarray)
    assert (image.shape, image.dtype) == ((8, 8), np.uint8)
    assert image.max() > 200


@st.composite
def collections(draw) -> LabelledImages:
    drawn = draw(st.lists(st.integers(0, 4), min_size=2, max_size=60))
    found, labels = np.unique(drawn, return_inverse=True)
    names, classes = tuple(f"p{index}" for index in range(len(labels))), tuple("abcde"[: len(found)])
    return LabelledImages("drawn", classes, names, labels, ("all",) * len(names), "RGB", lambda name: b"")


def counts(images: LabelledImages) -> Counter:
    return Counter(images.labels.tolist())


@settings(max_examples=100)
@given(collections(), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_is_disjoint_complete_stratified_and_reproducible(images, fraction, seed):
    if 1 in counts(images).values():
        with pytest.raises(DataError, match="add a second one for validation"):
            split_images(images, fraction, seed)
        return
    kept, held = split_images(images, fraction, seed)
    assert set(kept.names) | set(held.names) == set(images.names)
    assert not set(kept.names) & set(held.names)
    for label, count in counts(images).items():
        assert abs(counts(held)[label] - fraction * count) <= 1
        assert 1 <= counts(held)[label] < count
    truth = dict(zip(images.names, images.labels.tolist(), strict=True))
    for part in (kept, held):
        assert [truth[name] for name in part.names] == part.labels.tolist()
    assert split_images(images, fraction, seed)[1].names == held.names


@settings(max_examples=100)
@given(collections(), st.integers(1, 80), st.integers(0, 5))
def test_a_sample_covers_the_classes_in_turn(images, count, seed):
    drawn = sample(images, count, seed)
    assert len(drawn) == len(set(drawn.names)) == min(count, len(images))
    assert sample(images, count, seed).names == drawn.names
    available, taken = counts(images), counts(drawn)
    fewest = min(taken[label] for label in available if taken[label] < available[label]) if count < len(images) else 0
    assert all(number <= fewest + 1 for number in taken.values()) or not fewest
    truth = dict(zip(images.names, images.labels.tolist(), strict=True))
    assert [truth[name] for name in drawn.names] == drawn.labels.tolist()


def test_other_seeds_draw_other_images():
    images = open_images("digits")
    assert sample(images, 20, 0).names != sample(images, 20, 1).names
    assert split_images(images, 0.2, 0)[1].names != split_images(images, 0.2, 1)[1].names
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(UsageError, match="not between 0 and 1"):
            split_images(images, fraction)
    with pytest.raises(UsageError, match="a sample of 0"):
        sample(images, 0)


def named(*folders: str) -> LabelledImages:
    names = tuple(f"{folder}/1.jpg" for folder in folders)
    return LabelledImages(
        "named", folders, names, np.arange(len(names)), ("all",) * len(names), "RGB", lambda name: b""
    )


def test_folders_match_classes_by_name_or_id():
    assert match_labels(named("cat", "dog"), ("dog", "cat")).tolist() == [1, 0]
    ids = ("n02", "n01")
    assert match_labels(named("n01_cat", "n02"), ("dog", "cat"), ids).tolist() == [1, 0]
    # A name that two classes share is ambiguous; the ids are not.
    assert match_labels(named("n01", "n02"), ("crane", "crane"), ids).tolist() == [1, 0]
    with pytest.raises(DataError, match=r"class 'crane' of named is not one of the model's 2 classes"):
        match_labels(named("crane", "n02"), ("crane", "crane"), ids)
    with pytest.raises(DataError, match="class 'bird'"):
        match_labels(named("cat", "bird"), ("dog", "cat"))


def test_arrays_of_images_are_unchanged(noise):
    images = open_images(noise)
    data = images.read(images.names[0])
    assert isinstance(data, bytes)
    assert Image.open(io.BytesIO(data)).size == (48, 40)
    part = images.subset([5, 0])
    assert part.names == (images.names[5], images.names[0])
    assert part.labels.tolist() == [1, 0]
