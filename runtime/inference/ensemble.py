"""Several classifiers combined into one: by vote, or by the mean of their probabilities or logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from ..errors import FormatError, UsageError
from ..images import Preprocessing
from .classifier import Classifier, softmax

if TYPE_CHECKING:
    from ..images import ImageLike

Combine: TypeAlias = Literal["vote", "softmax", "logits"]

# Logits are clipped to this magnitude, so that differences and means of infinite ones are numbers.
_LARGEST = 1e300


@dataclass(frozen=True)
class Ensemble:
    """Classifiers of the same classes, by name, combined into one ``Classifier``.

    >>> Ensemble({"a": Session("a.onnx"), "b": Session("b.int8.tflite")}, "vote").predict("cat.jpg")

    ``combine`` is ``softmax`` (mean of the members' probabilities), ``logits`` (mean of their logits) or ``vote``: each
    member votes for its most probable class (the first of equal ones), and the mean of the probabilities breaks ties.
    Members must have the same class names, or the same ids, in the same order; architecture, precision and
    preprocessing may differ. The output is bit-identical for any order of the members. Raises ``UsageError`` if there
    is no member, ``combine`` is unknown, or a member has other classes.
    """

    members: Mapping[str, Classifier]
    combine: Combine = "softmax"

    def __post_init__(self) -> None:
        if self.combine not in get_args(Combine):
            raise UsageError(f"combine {self.combine!r} is not one of {', '.join(get_args(Combine))}")
        if not self.members:
            raise UsageError("the ensemble has no members; pass at least one classifier")
        (first, lead), *others = self.members.items()
        for name, member in others:
            if difference := _other_classes(lead, member):
                raise UsageError(f"{name} has other classes than {first}: {difference}; combine models of one task")

    @property
    def answer(self) -> Literal["logits", "probabilities"]:
        """The kind of the output."""
        return "logits" if self.combine == "logits" else "probabilities"

    @property
    def classes(self) -> Sequence[str]:
        """A name for each output."""
        return next(iter(self.members.values())).classes

    @property
    def class_ids(self) -> Sequence[str]:
        """An id for each output, or an empty sequence."""
        return next((member.class_ids for member in self.members.values() if member.class_ids), ())

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that all members share. Raises ``UsageError`` if they differ in it."""
        self._check_preprocessing()
        return next(iter(self.members.values())).preprocessing

    def predict(self, image: "ImageLike") -> np.ndarray:
        """The output for one image (path, bytes, array or PIL image), shape (classes,); each member crops it itself."""
        return View(image).output(self)

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The output for pixels (uint8, height, width, channels), if all members have the same preprocessing."""
        self._check_preprocessing()
        return self.combined([member.predict_pixels(pixels) for member in self.members.values()])

    def combined(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """The ensemble's output, shape (classes,), from the outputs of the members in their order.

        Logits or probabilities; for a vote, (votes + mean of the probabilities) / (members + 1).
        Raises ``FormatError`` if a member's output has another shape or contains NaN.
        """
        logits = np.array([self._logits(name, output) for name, output in zip(self.members, outputs, strict=True)])
        if self.combine == "logits":
            return _mean(logits)
        mean = _mean(softmax(logits))
        if self.combine == "softmax":
            return mean
        votes = np.bincount(logits.argmax(axis=1), minlength=len(mean))
        # The mean acts as one more vote, divided among the classes. It cannot overturn a majority, since each member
        # that votes for a class also raises its mean.
        return (votes + mean) / (len(logits) + 1)

    def _check_preprocessing(self) -> None:
        (first, lead), *others = self.members.items()
        for name, member in others:
            if member.preprocessing != lead.preprocessing:
                raise UsageError(
                    f"{name} and {first} have different preprocessing, so no pixels suit both; call predict(), which "
                    "takes whole images"
                )

    def _logits(self, name: str, output: np.ndarray) -> np.ndarray:
        if np.isnan(output).any():
            raise FormatError(f"{name} returned NaN; use another backend or weights")
        if output.shape != (len(self.classes),):
            raise FormatError(f"{name} returned shape {output.shape} for {len(self.classes)} classes")
        values = output.astype(np.float64)
        if self.members[name].answer == "probabilities":
            values = np.log(np.maximum(values, np.finfo(np.float64).tiny))
        return values.clip(-_LARGEST, _LARGEST)


class View:
    """One image for many models: cropped once per preprocessing and run once per model or member."""

    def __init__(self, image: "ImageLike", name: str = "image"):
        self._image, self._name = image, name
        self._crops: dict[Preprocessing, np.ndarray] = {}
        self._outputs: dict[int, np.ndarray] = {}

    def output(self, model: Classifier) -> np.ndarray:
        """A model's output, shape (classes,). Raises ``DataError`` if the image cannot be read."""
        if id(model) not in self._outputs:
            self._outputs[id(model)] = (
                model.combined([self.output(member) for member in model.members.values()])
                if isinstance(model, Ensemble)
                else model.predict_pixels(self._pixels(model.preprocessing))
            )
        return self._outputs[id(model)]

    def _pixels(self, preprocessing: Preprocessing) -> np.ndarray:
        if preprocessing not in self._crops:
            self._crops[preprocessing] = preprocessing.crop(self._image, self._name)
        return self._crops[preprocessing]


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over members, summed in sorted order so that it does not depend on the order of the members."""
    return np.sort(values, axis=0).mean(axis=0)


def _other_classes(one: Classifier, other: Classifier) -> str:
    """The first difference between the classes of two models; empty if they are the same."""
    ours, theirs = tuple(one.classes), tuple(other.classes)
    if ours == theirs or (one.class_ids and tuple(one.class_ids) == tuple(other.class_ids)):
        return ""
    if len(ours) != len(theirs):
        return f"{len(theirs)}, not {len(ours)}"
    index = next(index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"class {index} is {theirs[index]!r}, not {ours[index]!r}"
