"""Labelled images: the digits that come with scikit-learn, a folder of class folders, or a .tar or .zip of one."""

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
# A folder with this file is that of a training: its curves.png is no image of a class.
_RUN = "checkpoint.safetensors"
# What damaged archives end in.
_ARCHIVE_ERRORS = (
    EOFError, KeyError, NotImplementedError, OSError, RuntimeError, ValueError, tarfile.TarError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class LabelledImages:
    """Images with the index of their class; nothing is decoded before ``read(name)`` is asked for.

    ``splits[i]`` says which split image ``i`` belongs to ("all" when the source does not tell).
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
        """An image's name with its source, for messages."""
        return f"{self.source}/{name}"

    def image(self, index: int) -> bytes | np.ndarray:
        """The encoded bytes, or the array, of one image."""
        return self.read(self.names[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> "LabelledImages":
        """The images at these positions, same classes."""
        return replace(
            self,
            names=tuple(self.names[i] for i in indices),
            labels=self.labels[np.asarray(indices, np.int64)],
            splits=tuple(self.splits[i] for i in indices),
        )

    def split(self, split: Split) -> "LabelledImages | None":
        """The images of a split that the source itself names, or ``None``."""
        chosen = [i for i, name in enumerate(self.splits) if name == split]
        return self.subset(chosen) if chosen else None


def open_images(source: str | Path) -> LabelledImages:
    """Open ``digits``, a folder of class folders, or a ``.tar`` or ``.zip`` of one (read without unpacking).

    ``train``, ``val`` and ``test`` folders above the class folders become splits. Links to folders are followed; run
    folders of trainings are passed by. Raises ``UsageError`` when there is nothing of that name and ``DataError`` when
    there are no images, fewer than two classes, or an empty folder beside those of the classes.
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
            # A device or a pipe may never come to an end.
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
        raise DataError(f"{path} is damaged or cut short: {error}") from error
    return _label(str(source), names, read)


def split_images(images: LabelledImages, fraction: float = 0.2, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Training and validation images, the same share of every class in both (stratified), by seed.

    The source's own ``train`` and ``val`` are kept when it names both; its ``test`` is never part of either. However
    large the ``fraction``, an image of each class is left to train on. Raises ``DataError`` for a class without one.
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
        raise DataError(f"{source} holds test images only; add a folder train")
    _check_classes(images)
    order = np.random.default_rng(seed).permutation(len(images))
    held: list[int] = []
    for label in range(len(images.classes)):
        members = order[images.labels[order] == label]
        if len(members) == 1:
            raise DataError(
                f"class {images.classes[label]!r} in {images.source} has one image; it takes two to validate"
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
    """``count`` images of each class, drawn by seed. Raises ``DataError`` naming a class with fewer."""
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = [order[images.labels[order] == label][:count] for label in range(len(images.classes))]
    for name, members in zip(images.classes, chosen, strict=True):
        if len(members) < count:
            where = f"class {name!r} in {images.source}"
            raise DataError(f"{where} has {len(members)} images, not {count}; ask for fewer")
    return images.subset(np.sort(np.concatenate(chosen)))


def sample(images: LabelledImages, count: int, seed: int = 0) -> LabelledImages:
    """At most ``count`` images chosen by seed, classes taken in turn so that few images cover many classes."""
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; give 0 or more")
    if count < 1:
        raise UsageError(f"a sample of {count} images is not possible; ask for at least 1")
    order = np.random.default_rng(seed).permutation(len(images))
    turn = np.empty(len(images), np.int64)
    for label in np.unique(images.labels):
        members = order[images.labels[order] == label]
        turn[members] = np.arange(len(members))
    return images.subset(order[np.argsort(turn[order], kind="stable")][:count])


def match_labels(images: LabelledImages, classes: Sequence[str], ids: Sequence[str] = ()) -> np.ndarray:
    """Labels of ``images`` as indices into a model's ``classes`` (or their ``ids``, such as WordNet synsets).

    A folder belongs to the class of the same name, or to the class whose id it is or starts with (``n01440764_tench``).
    Raises ``DataError`` naming the first folder that belongs to none.
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
            f"{source} holds no images in class folders (CLASS/image.jpg); known are {', '.join(sorted(_IMAGES))}"
        )
    classes = sorted({part[-2] for part in usable.values()})
    if len(classes) < 2:
        raise DataError(f"{source} holds one class only ({classes[0]!r}); at least two class folders are needed")
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
    """Those of the files in a collection that are images of a class, in order."""
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
            # A device or a pipe may never come to an end.
            raise DataError(f"{path} is not a regular file; remove it")
        _check_size(str(path), about.st_size)
        return path.read_bytes()

    return names, _named(str(folder), read)


def _is_followed(path: Path, top: Path) -> bool:
    """Whether a folder is a real one, or a link to one that is not above it, where images would come up twice."""
    if not path.is_symlink():
        return True
    target = path.resolve()
    if any(above.resolve().is_relative_to(target) for above in path.parents):
        return False
    links = [above for above in path.relative_to(top).parents if above.name and (top / above).is_symlink()]
    if len(links) > 1:
        # Folders that link to each other have more ways through them than can be walked.
        raise DataError(f"{path} is a link within a link within a link; give the real folder")
    return True


def _open_tar(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    with path.open("rb") as stream:
        if stream.read(2) == b"\x1f\x8b":
            raise DataError(f"{path} is compressed; unpack it to a plain .tar so that images can be read in any order")
    size = path.stat().st_size
    with tarfile.open(path, "r:") as archive:
        extents = {
            member.name.removeprefix("./"): (member.offset_data, member.size) for member in archive if member.isreg()
        }
    for name, (offset, length) in extents.items():
        if offset + length > size:
            raise DataError(f"{path} is cut short: {name} ends {offset + length - size:,} bytes past its end")

    def read(name: str) -> bytes:
        offset, length = extents[name]
        _check_size(f"{path}/{name}", length)
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    return list(extents), _named(str(path), read)


def _open_zip(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    # One open archive per process and thread: workers are forked, and ZipFile keeps a position.
    local = threading.local()

    def archive() -> zipfile.ZipFile:
        if getattr(local, "owner", None) != os.getpid():
            local.archive, local.owner = zipfile.ZipFile(path), os.getpid()
        return local.archive

    def read(name: str) -> bytes:
        _check_size(f"{path}/{name}", archive().getinfo(name).file_size)
        return archive().read(name)

    names = [info.filename for info in archive().infolist() if not info.is_dir()]
    return names, _named(str(path), read)


def _named(source: str, read: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """The same reader, whose failures name the image."""

    def guarded(name: str) -> bytes:
        try:
            return read(name)
        except _ARCHIVE_ERRORS as error:
            raise DataError(f"cannot read {source}/{name}: {error}") from error

    return guarded


def _check_size(name: str, size: int) -> None:
    if size > _MAX_FILE_BYTES:
        raise DataError(f"{name} has {size:,} bytes, more than the {_MAX_FILE_BYTES:,} an image may have")
