"""One small class over the runtimes: images in, answers out."""

from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..contract import Contract, Layout
from ..errors import FireboxError, FormatError, UsageError, first_line
from ..files import read_file
from ..formats.read import format_of
from ..processor import this_processor
from .backends import backend_version, load_backend
from .classifier import Classifier, softmax
from .golden import Check, CheckMode, GoldenResult, check_mode, check_once, compare_golden, complain

if TYPE_CHECKING:
    from ..images import ImageLike, Preprocessing

# With many more threads than cores, runtimes start for minutes.
_MAX_THREADS = 128


@dataclass(frozen=True)
class Prediction:
    """One class with its probability."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Facts:
    """What a session runs on: ``backend`` with its ``version``, the ``processor``, the form in which the runtime has
    the ``weights``, and how the check of the ``golden`` pair ended."""

    backend: str
    version: str
    processor: str
    weights: str
    golden: GoldenResult

    def to_json(self) -> dict[str, str]:
        """For programs."""
        return asdict(self)


def check_threads(threads: int) -> None:
    """Raise ``UsageError`` for a number of threads that no session takes."""
    if not 1 <= threads <= _MAX_THREADS:
        raise UsageError(f"threads is {threads}; give 1 to {_MAX_THREADS}")


class Session:
    """A loaded ``.onnx`` or ``.tflite`` file, ready to run.

    >>> with Session("model.int8.tflite") as session:
    ...     session.classify("cat.jpg", top=3)

    ``model`` is a path or the bytes of a file; ``backend`` is ``auto``, ``onnxruntime``, ``litert`` or
    ``tflite-runtime``. A file that firebox did not write has no preprocessing and no classes: ``like`` is a model that
    it is a version of, whose it takes. A session may be used from several threads.

    Where onnxruntime's fast kernels would saturate, weights are loaded in a form whose kernels are exact;
    ``exact=False`` takes the speed and the errors. The golden pair of a file is checked the first time that the file
    meets this version of the runtime on this kind of processor: ``check`` is ``warn``, ``strict`` (an error) or
    ``off``; the default is the environment variable ``FIREBOX_CHECK``, or ``warn``. ``facts`` says what was done.

    Raises ``UsageError`` for a file or backend that is not there, ``MissingExtraError`` for one that is not installed,
    ``FormatError`` for a file that cannot be read, ``WrongAnswerError`` where a strict check fails.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        backend: str = "auto",
        threads: int = 1,
        like: Classifier | None = None,
        *,
        exact: bool = True,
        check: CheckMode | None = None,
    ):
        check_threads(threads)
        mode = check_mode(check)
        self.name = "model" if isinstance(model, bytes) else str(model)
        format_ = format_of(model)
        data = model if isinstance(model, bytes) else read_file(model)
        try:
            self.backend, self._backend = load_backend(backend, data, format_, threads, exact)
            found = self._backend.contract()
            self._contract = Contract.from_bytes(found) if found is not None else None
        except FormatError as error:
            raise FormatError(f"{self.name}: {error}") from error
        if self._contract is None and like is not None:
            self._contract = self._borrowed(like)
        self.facts = self._checked(data, mode)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape that ``run`` takes, batch included, in the file's own layout."""
        return self._running().input_shape

    @property
    def input_dtype(self) -> str:
        """Type that ``run`` takes."""
        return self._running().input_dtype

    @property
    def contract(self) -> Contract:
        """What the file says about itself. Raises ``UsageError`` for a file that firebox did not write."""
        if self._contract is None:
            raise UsageError(
                f"{self.name} carries no contract: firebox did not write it; say which model it is a version of "
                "(firebox evaluate --like, Session(like=...)), or use run() with an array of your own"
            )
        return self._contract

    @property
    def preprocessing(self) -> "Preprocessing":
        """How images were prepared in training."""
        return self.contract.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each output."""
        return self.contract.classes

    @property
    def class_ids(self) -> tuple[str, ...]:
        """An id for each output (WordNet), or nothing."""
        return self.contract.class_ids

    @property
    def answer(self) -> Literal["logits", "probabilities"]:
        """What the output is: whether it still needs a softmax."""
        return self.contract.answer

    def run(self, x: np.ndarray) -> np.ndarray:
        """One inference with the file's own input and output: layout, type and quantization as they are in the file.

        Raises ``UsageError`` when shape or type are others.
        """
        backend = self._running()
        x = np.asarray(x)
        if x.shape != backend.input_shape or x.dtype != backend.input_dtype:
            wanted = f"{backend.input_dtype} {backend.input_shape}"
            raise UsageError(
                f"{self.name} takes {wanted}, got {x.dtype} {x.shape}; use classify() for images of any size"
            )
        try:
            return backend.run(np.ascontiguousarray(x))
        except Exception as error:
            if isinstance(error, FireboxError):
                raise
            raise FormatError(f"{self.name} failed while running: {first_line(error)}") from error

    def predict(self, image: "ImageLike") -> np.ndarray:
        """The real-valued output for one image (path, bytes, array or PIL image), shape (classes,)."""
        return self.predict_pixels(self.contract.preprocessing.crop(image))

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The same for pixels that are resized and cropped already: uint8, (height, width, channels)."""
        contract = self.contract
        values = contract.preprocessing.normalize(pixels)[None]
        if contract.layout == "NCHW":
            values = values.transpose(0, 3, 1, 2)
        answer = contract.output.decode(self.run(contract.input.encode(values))).reshape(-1)
        if len(answer) != len(contract.classes):
            raise FormatError(f"{self.name} gives {len(answer)} values for {len(contract.classes)} classes")
        return answer

    def classify(self, image: "ImageLike", top: int = 5) -> list[Prediction]:
        """The ``top`` most probable classes of one image, the best first."""
        if top < 1:
            raise UsageError(f"top is {top}; ask for at least 1 class")
        scores = self.predict(image)
        if self.contract.answer == "logits":
            scores = softmax(scores)
        order = np.argsort(-scores, kind="stable")[:top]
        return [Prediction(self.contract.classes[i], int(i), float(scores[i])) for i in order]

    def check(self) -> Check:
        """Run the golden image that the file carries and compare the answers."""
        golden = self.contract.golden
        if golden is None:
            raise UsageError(f"{self.name} carries no golden pair")
        return compare_golden(golden, self.predict_pixels)

    def op_times_ms(self, x: np.ndarray, runs: int) -> dict[str, float] | None:
        """Mean time of each operation in milliseconds, or ``None`` where the backend does not tell."""
        return self._running().op_times_ms(x, runs)

    def close(self) -> None:
        """Let go of the runtime; the session cannot be used afterwards."""
        self._backend = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, data: bytes, mode: CheckMode) -> Facts:
        """The session's facts, once its golden pair has been checked. Raises ``WrongAnswerError``."""
        backend, processor = self._running(), str(this_processor())
        version, weights = backend_version(self.backend), backend.weights
        if backend.doubt and mode != "off":
            complain(f"{self.name}: {backend.doubt} in {self.backend} {version} on {processor}", mode)
        golden = self._contract.golden if self._contract else None
        circumstances = (f"{self.backend} {version}", processor, f"weights {weights}")
        result = check_once(golden, mode, data, circumstances, self.predict_pixels, self.name)
        return Facts(self.backend, version, processor, weights, result)

    def _borrowed(self, like: Classifier) -> Contract:
        """The contract of a file that has none: its own input and output, all else from another model."""
        source, target = self._running().ends()
        height, width = like.preprocessing.size
        layouts: dict[tuple[int, ...], Layout] = {
            (1, height, width, like.preprocessing.depth): "NHWC",
            (1, like.preprocessing.depth, height, width): "NCHW",
        }
        if source.shape not in layouts:
            shapes = " or ".join(map(str, layouts))
            raise UsageError(f"{self.name} takes {source.shape}, but the images of the model it is like are {shapes}")
        classes, ids = tuple(like.classes), tuple(like.class_ids)
        return Contract(self.name, like.preprocessing, classes, ids, layouts[source.shape], "logits", source, target)

    def _running(self) -> Any:
        backend = self._backend
        if backend is None:
            raise UsageError(f"the session of {self.name} is closed; open another one")
        return backend
