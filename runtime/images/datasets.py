"""Labelled images: scikit-learn's digits, a folder of class folders, or a .tar or .zip archive of one."""

import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from ..errors import DataError, MissingExtraError, UsageError
from ..files import reason

Split = Literal["all", "train", "val", "test"]

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_MAX_FILE_BYTES = 256 * 1024**2
# A folder with this file is the run folder of a training; its curves.png is not an image of a class.
_RUN = "checkpoint.safetensors"
# The exceptions that damaged archives raise.
_ARCHIVE_ERRORS = (
    EOFError, KeyError, NotImplementedError, OSError, RuntimeError, ValueError, tarfile.TarError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class LabelledImages:
    """Images with the index of their class; ``read(name)`` reads the encoded bytes, or the array, of one image.

    ``splits[i]`` is the split of image ``i``, or "all" if the source does not name one.
    """

    source: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str, ...]
    channels: Literal["RGB", "L"]
    read: Callable[[str], bytes | np.ndarray]

    def __len__(self) -> int:
        return len(self.names)

    def where(self, name: str) -> str:
        """The image's name with its source, for messages."""
        return f"{self.source}/{name}"

    def image(self, index: int) -> bytes | np.ndarray:
        """The encoded bytes, or the array, of one image."""
        return self.read(self.names[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> "LabelledImages":
        """The images at these positions; the classes stay the same."""
        return replace(
            self,
            names=tuple(self.names[i] for i in indices),
            labels=self.labels[np.asarray(indices, np.int64)],
            splits=tuple(self.splits[i] for i in indices),
        )

    def split(self, split: Split) -> "LabelledImages | None":
        """The images of a split that the source names, or ``None``."""
        chosen = [i for i, name in enumerate(self.splits) if name == split]
        return self.subset(chosen) if chosen else None


def open_images(source: str | Path) -> LabelledImages:
    """Open ``digits``, a folder of class folders, or a ``.tar`` or ``.zip`` archive of one (read without unpacking).

    ``train``, ``val`` and ``test`` folders above the class folders become splits. Links to folders are followed; run
    folders of trainings are skipped. Raises ``UsageError`` if ``source`` does not exist, and ``DataError`` if there are
    no images, fewer than two classes, or an empty class folder.
    """
    if str(source) == "digits":
        return _open_digits()
    path = Path(source)
    if not path.exists():
        raise UsageError(f"no such data: {source}; give 'digits', a folder of class folders, or a .tar or .zip of one")
    try:
        if path.is_dir():
            names, read = _open_folder(path)
        elif not path.is_file():
            # Reading a device or a pipe may never end.
            raise DataError(f"{path} is neither a folder, a .tar nor a .zip")
        elif zipfile.is_zipfile(path):
            names, read = _open_zip(path)
        elif tarfile.is_tarfile(path):
            names, read = _open_tar(path)
        else:
            raise DataError(f"{path} is neither a folder, a .tar nor a .zip")
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    except _ARCHIVE_ERRORS as error:
        raise DataError(f"{path} is damaged or truncated: {error}") from error
    return _label(str(source), names, read)


def split_images(images: LabelledImages, fraction: float = 0.2, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Split images into training and validation images, stratified by class and drawn by seed.

    If the source names both ``train`` and ``val``, those are returned; its ``test`` images are in neither. At least one
    image of each class remains for training, however large ``fraction`` is. Raises ``DataError`` for a class without a
    training image.
    """
    own_train, own_val = images.split("train"), images.split("val")
    if own_train and own_val:
        _check_classes(own_train)
        return own_train, own_val
    if not 0 < fraction < 1:
        raise UsageError(f"validation fraction {fraction} is not between 0 and 1")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; give 0 or more")
    source, images = images.source, own_train or images.split("all") or own_val  # pyright: ignore[reportAssignmentType]
    if images is None:
        raise DataError(f"{source} has only test images; add a folder train")
    _check_classes(images)
    order = np.random.default_rng(seed).permutation(len(images))
    held: list[int] = []
    for label in range(len(images.classes)):
        members = order[images.labels[order] == label]
        if len(members) == 1:
            raise DataError(
                f"class {images.classes[label]!r} in {images.source} has one image; add a second one for validation"
            )
        held.extend(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    kept = np.setdiff1d(order, held)
    return images.subset(kept), images.subset(np.sort(held))


def _check_classes(images: LabelledImages) -> None:
    for label in np.setdiff1d(np.arange(len(images.classes)), images.labels):
        raise DataError(
            f"class {images.classes[label]!r} in {images.source} has no image to train on; add some or remove it"
        )


def per_class(images: LabelledImages, count: int, seed: int = 0) -> LabelledImages:
    """Draw ``count`` images of each class by seed. Raises ``DataError`` if a class has fewer."""
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = [order[images.labels[order] == label][:count] for label in range(len(images.classes))]
    for name, members in zip(images.classes, chosen, strict=True):
        if len(members) < count:
            where = f"class {name!r} in {images.source}"
            raise DataError(f"{where} has {len(members)} images, not {count}; use fewer")
    return images.subset(np.sort(np.concatenate(chosen)))


def sample(images: LabelledImages, count: int, seed: int = 0) -> LabelledImages:
    """Draw at most ``count`` images by seed, one class after the other, so that few images cover many classes."""
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; give 0 or more")
    if count < 1:
        raise UsageError(f"a sample of {count} images is not possible; use 1 or more")
    order = np.random.default_rng(seed).permutation(len(images))
    turn = np.empty(len(images), np.int64)
    for label in np.unique(images.labels):
        members = order[images.labels[order] == label]
        turn[members] = np.arange(len(members))
    return images.subset(order[np.argsort(turn[order], kind="stable")][:count])


def match_labels(images: LabelledImages, classes: Sequence[str], ids: Sequence[str] = ()) -> np.ndarray:
    """The labels of ``images`` as indices into a model's ``classes`` or their ``ids``, such as WordNet synsets.

    A folder's name is a class name, an id, or an id followed by ``_`` (``n01440764_tench``). Raises ``DataError`` with
    the first folder that matches no class.
    """
    by_name = {name: index for index, name in enumerate(classes)} if len(set(classes)) == len(classes) else {}
    by_id = {name: index for index, name in enumerate(ids)}
    table = np.empty(len(images.classes), np.int64)
    for position, folder in enumerate(images.classes):
        index = by_id.get(folder, by_id.get(folder.split("_")[0], by_name.get(folder)))
        if index is None:
            known = ", ".join(classes[:3])
            raise DataError(
                f"class {folder!r} of {images.source} is not one of the model's {len(classes)} classes ({known}, …)"
            )
        table[position] = index
    return table[images.labels]


def _label(source: str, names: Sequence[str], read: Callable[[str], bytes]) -> LabelledImages:
    usable = {name: path.parts for name, path in _images(names).items()}
    if not usable:
        raise DataError(
            f"{source} has no images in class folders (CLASS/image.jpg) of type {', '.join(sorted(_IMAGES))}"
        )
    classes = sorted({part[-2] for part in usable.values()})
    if len(classes) < 2:
        raise DataError(f"{source} has one class ({classes[0]!r}); add a second class folder")
    position: dict[str, int] = {name: index for index, name in enumerate(classes)}
    return LabelledImages(
        source=source,
        classes=tuple(classes),
        names=tuple(usable),
        labels=np.array([position[part[-2]] for part in usable.values()], np.int64),
        splits=tuple(_SPLITS.get(part[-3].lower(), "all") if len(part) > 2 else "all" for part in usable.values()),
        channels="RGB",
        read=read,
    )


def _images(names: Iterable[str]) -> dict[str, PurePosixPath]:
    """The paths of the files that are images of a class, sorted by name."""
    paths = {name: PurePosixPath(name) for name in sorted(names)}
    runs = {path.parent for path in paths.values() if path.name == _RUN}
    return {
        name: path
        for name, path in paths.items()
        if len(path.parts) >= 2
        and not path.name.startswith(".")
        and path.suffix.lower() in _IMAGES
        and path.parent not in runs
    }


def _open_digits() -> LabelledImages:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "train") from error
    digits: Any = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return LabelledImages(
        source="digits",
        classes=tuple(str(name) for name in digits.target_names),
        names=tuple(f"digits[{i}]" for i in range(len(pixels))),
        labels=digits.target.astype(np.int64),
        splits=("all",) * len(pixels),
        channels="L",
        read=lambda name: pixels[int(name[7:-1])],
    )


def _open_folder(folder: Path) -> tuple[list[str], Callable[[str], bytes]]:
    names: list[str] = []
    empty: list[PurePosixPath] = []

    def within(path: str) -> PurePosixPath:
        return PurePosixPath(Path(path).relative_to(folder).as_posix())

    for parent, folders, files in os.walk(folder, onerror=lambda e: empty.append(within(e.filename)), followlinks=True):
        names.extend(str(within(parent) / file) for file in files)
        if not files and not folders:
            empty.append(within(parent))
        folders[:] = [name for name in folders if _is_followed(Path(parent, name), folder)]
    beside = {path.parent.parent for path in _images(names).values()}
    for found in empty:
        if found.parent in beside and not found.name.startswith("."):
            raise DataError(f"class folder {folder / found} is empty or cannot be read; fill it or remove it")

    def read(name: str) -> bytes:
        path = folder / name
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            # Reading a device or a pipe may never end.
            raise DataError(f"{path} is not a regular file; remove it")
        _check_size(str(path), about.st_size)
        return path.read_bytes()

    return names, _named(str(folder), read)


def _is_followed(path: Path, top: Path) -> bool:
    """False for a link to a folder above it, whose images would be listed twice."""
    if not path.is_symlink():
        return True
    target = path.resolve()
    if any(above.resolve().is_relative_to(target) for above in path.parents):
        return False
    links = [above for above in path.relative_to(top).parents if above.name and (top / above).is_symlink()]
    if len(links) > 1:
        # Folders that link to each other have an exponential number of paths.
        raise DataError(f"{path} is a link within a link within a link; replace it by the folder")
    return True


def _open_tar(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    with path.open("rb") as stream:
        if stream.read(2) == b"\x1f\x8b":
            raise DataError(f"{path} is compressed; decompress it to a plain .tar for random access")
    size = path.stat().st_size
    with tarfile.open(path, "r:") as archive:
        extents = {
            member.name.removeprefix("./"): (member.offset_data, member.size) for member in archive if member.isreg()
        }
    for name, (offset, length) in extents.items():
        if offset + length > size:
            raise DataError(f"{path} is truncated: {name} ends {offset + length - size:,} bytes past its end")

    def read(name: str) -> bytes:
        offset, length = extents[name]
        _check_size(f"{path}/{name}", length)
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    return list(extents), _named(str(path), read)


def _open_zip(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    # One open archive per process and thread: workers are forked, and a ZipFile has one read position.
    local = threading.local()

    def archive() -> zipfile.ZipFile:
        if getattr(local, "owner", None) != os.getpid():
            local.archive, local.owner = zipfile.ZipFile(path), os.getpid()
        return local.archive

    def read(name: str) -> bytes:
        _check_size(f"{path}/{name}", archive().getinfo(name).file_size)
        return archive().read(name)

    # ZipInfo.is_dir fails on an empty name.
    names = [info.filename for info in archive().infolist() if not info.filename.endswith("/")]
    return names, _named(str(path), read)


def _named(source: str, read: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """Wrap ``read`` so that its errors name the image."""

    def guarded(name: str) -> bytes:
        try:
            return read(name)
        except _ARCHIVE_ERRORS as error:
            raise DataError(f"cannot read {source}/{name}: {error}") from error

    return guarded


def _check_size(name: str, size: int) -> None:
    if size > _MAX_FILE_BYTES:
        raise DataError(f"{name} has {size:,} bytes; the limit for an image is {_MAX_FILE_BYTES:,}")
