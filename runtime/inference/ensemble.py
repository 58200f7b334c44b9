"""Several classifiers that answer as one: by vote, or by the mean of their probabilities or of their logits."""

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

# Infinite logits are taken for these, so that differences and means of them are numbers.
_LARGEST = 1e300


@dataclass(frozen=True)
class Ensemble:
    """Classifiers of the same classes, by a name to print, that answer as one; a ``Classifier`` itself.

    >>> Ensemble({"a": Session("a.onnx"), "b": Session("b.int8.tflite")}, "vote").predict("cat.jpg")

    ``combine`` says how: ``softmax``, the mean of the members' probabilities; ``logits``, the mean of their logits;
    ``vote``, where each member names its best class (of equal ones the first) and the mean of the probabilities decides
    between classes of equally many votes. Classes are the same when all names are, or all ids, in the same order;
    architecture, precision and preprocessing may differ. The order of the members changes no bit of the answer. Raises
    ``UsageError`` for no member, a way to combine that there is not, and naming a member of other classes.
    """

    members: Mapping[str, Classifier]
    combine: Combine = "softmax"

    def __post_init__(self) -> None:
        if self.combine not in get_args(Combine):
            raise UsageError(f"combine is {self.combine!r}; use {', '.join(get_args(Combine))}")
        if not self.members:
            raise UsageError("an ensemble has no member; give at least one classifier")
        (first, lead), *others = self.members.items()
        for name, member in others:
            if difference := _other_classes(lead, member):
                raise UsageError(f"{name} has other classes than {first}: {difference}; combine models of one task")

    @property
    def answer(self) -> Literal["logits", "probabilities"]:
        """What the values are."""
        return "logits" if self.combine == "logits" else "probabilities"

    @property
    def classes(self) -> Sequence[str]:
        """A name for each output."""
        return next(iter(self.members.values())).classes

    @property
    def class_ids(self) -> Sequence[str]:
        """An id for each output, or nothing."""
        return next((member.class_ids for member in self.members.values() if member.class_ids), ())

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for all members. Raises ``UsageError`` where members differ in that."""
        self._check_preprocessing()
        return next(iter(self.members.values())).preprocessing

    def predict(self, image: "ImageLike") -> np.ndarray:
        """The answer to one image (path, bytes, array or PIL image), shape (classes,); each member crops its own."""
        return View(image).answer(self)

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The same for pixels (uint8, height, width, channels), where all members have the same preprocessing."""
        self._check_preprocessing()
        return self.combined([member.predict_pixels(pixels) for member in self.members.values()])

    def combined(self, answers: Sequence[np.ndarray]) -> np.ndarray:
        """One answer, shape (classes,), from those of the members, in their order.

        Logits, or else probabilities: of a vote, (votes + mean of the probabilities) / (members + 1).
        Raises ``FormatError`` naming a member whose answer has another shape or is not a number somewhere.
        """
        logits = np.array([self._logits(name, answer) for name, answer in zip(self.members, answers, strict=True)])
        if self.combine == "logits":
            return _mean(logits)
        mean = _mean(softmax(logits))
        if self.combine == "softmax":
            return mean
        votes = np.bincount(logits.argmax(axis=1), minlength=len(mean))
        # The mean is one vote more, divided. It cannot turn a majority, since each who votes also adds to the mean.
        return (votes + mean) / (len(logits) + 1)

    def _check_preprocessing(self) -> None:
        (first, lead), *others = self.members.items()
        for name, member in others:
            if member.preprocessing != lead.preprocessing:
                raise UsageError(
                    f"{name} prepares its images otherwise than {first}, so there are no pixels for both; use "
                    "predict(), which takes whole images"
                )

    def _logits(self, name: str, answer: np.ndarray) -> np.ndarray:
        if answer.shape != (len(self.classes),) or np.isnan(answer).any():
            what = "values that are not numbers" if np.isnan(answer).any() else f"values of shape {answer.shape}"
            raise FormatError(f"{name} answers with {what}, not with one for each of its {len(self.classes)} classes")
        values = answer.astype(np.float64)
        if self.members[name].answer == "probabilities":
            values = np.log(np.maximum(values, np.finfo(np.float64).tiny))
        return values.clip(-_LARGEST, _LARGEST)


class View:
    """One image as models see it: cropped once for each preprocessing, answered once by each model or member."""

    def __init__(self, image: "ImageLike", name: str = "image"):
        self._image, self._name = image, name
        self._crops: dict[Preprocessing, np.ndarray] = {}
        self._answers: dict[int, np.ndarray] = {}

    def answer(self, model: Classifier) -> np.ndarray:
        """What a model answers, shape (classes,). Raises ``DataError`` for an image that cannot be read."""
        if id(model) not in self._answers:
            self._answers[id(model)] = (
                model.combined([self.answer(member) for member in model.members.values()])
                if isinstance(model, Ensemble)
                else model.predict_pixels(self._pixels(model.preprocessing))
            )
        return self._answers[id(model)]

    def _pixels(self, preprocessing: Preprocessing) -> np.ndarray:
        if preprocessing not in self._crops:
            self._crops[preprocessing] = preprocessing.crop(self._image, self._name)
        return self._crops[preprocessing]


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over members, summed in the order of size so that it does not depend on theirs."""
    return np.sort(values, axis=0).mean(axis=0)


def _other_classes(one: Classifier, other: Classifier) -> str:
    """How the classes of a model differ from those of another; empty when they are the same."""
    ours, theirs = tuple(one.classes), tuple(other.classes)
    if ours == theirs or (one.class_ids and tuple(one.class_ids) == tuple(other.class_ids)):
        return ""
    if len(ours) != len(theirs):
        return f"it has {len(theirs)}, not {len(ours)}"
    index = next(index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"class {index} is {theirs[index]!r}, not {ours[index]!r}"
