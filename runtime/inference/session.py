"""One class over all runtimes: it takes images and returns predictions."""

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
from .backends import load_backend, load_library
from .classifier import Classifier, softmax
from .golden import Check, CheckMode, GoldenResult, check_mode, check_once, compare_golden, warn
from .installed import backend_version

if TYPE_CHECKING:
    from ..images import ImageLike, Preprocessing

# With many more threads than cores, runtimes take minutes to start.
_MAX_THREADS = 128


@dataclass(frozen=True)
class Prediction:
    """A class and its probability."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Facts:
    """The ``backend`` of a session with its ``version``, the ``processor``, the form in which the runtime stores the
    ``weights``, and the result of the ``golden`` check."""

    backend: str
    version: str
    processor: str
    weights: str
    golden: GoldenResult

    def to_json(self) -> dict[str, str]:
        """The fields as a dictionary for JSON."""
        return asdict(self)


def check_threads(threads: int) -> None:
    """Raise ``UsageError`` unless a session can run with this number of threads."""
    if not 1 <= threads <= _MAX_THREADS:
        raise UsageError(f"threads is {threads}; give 1 to {_MAX_THREADS}")


class Session:
    """A loaded ``.onnx`` or ``.tflite`` file, or compiled library, ready for inference.

    >>> with Session("model.int8.tflite") as session:
    ...     session.classify("cat.jpg", top=3)

    ``model`` is a path or the bytes of a file; ``backend`` is ``auto``, ``onnxruntime``, ``litert``,
    ``tflite-runtime`` or ``native``, which compiles an int8 file with the C compiler of this machine and keeps the
    library in the cache folder. A path that ends in ``.so`` is such a library, built on this machine. A file that
    firebox did not write carries no preprocessing and no classes; it takes those of ``like``, a model of which it is
    another version. Several threads may share a session.

    If onnxruntime's fast kernels saturate on this processor, the weights are loaded in a form whose kernels are exact;
    ``exact=False`` keeps the fast kernels and their errors. The golden pair of a file is checked the first time the
    file is loaded with this version of the runtime on this kind of processor. ``check`` is ``warn``, ``strict`` (raise
    an error) or ``off``; the default is the environment variable ``FIREBOX_CHECK``, or ``warn``. ``facts`` holds the
    result.

    Raises ``UsageError`` for a missing file or unknown backend, ``MissingExtraError`` for a backend that is not
    installed, ``MissingCompilerError`` if ``native`` finds no C compiler, ``FormatError`` for a file that cannot be
    read, ``WrongAnswerError`` if a strict check fails.
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
        is_library = not isinstance(model, bytes) and Path(model).suffix == ".so"
        format_ = None if is_library else format_of(model)
        data = model if isinstance(model, bytes) else read_file(model)
        try:
            if format_ is None:
                self.backend, self._backend = load_library(backend, self.name, data, threads)
            else:
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
        """Shape of the input of ``run``, with the batch, in the file's own layout."""
        return self._running().input_shape

    @property
    def input_dtype(self) -> str:
        """Type of the input of ``run``."""
        return self._running().input_dtype

    @property
    def contract(self) -> Contract:
        """The file's contract. Raises ``UsageError`` if firebox did not write the file and there is no ``like``."""
        if self._contract is None:
            raise UsageError(
                f"{self.name} has no firebox metadata; pass like= (or --like) with a model that shares its "
                "preprocessing and classes, or call run() with an array"
            )
        return self._contract

    @property
    def preprocessing(self) -> "Preprocessing":
        """The preprocessing of images, as in training."""
        return self.contract.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """A name for each output."""
        return self.contract.classes

    @property
    def class_ids(self) -> tuple[str, ...]:
        """An id for each output (WordNet), or an empty tuple."""
        return self.contract.class_ids

    @property
    def answer(self) -> Literal["logits", "probabilities"]:
        """The kind of the output; logits still need a softmax."""
        return self.contract.answer

    def run(self, x: np.ndarray) -> np.ndarray:
        """Run one inference with input and output in the file's own layout, type and quantization.

        Raises ``UsageError`` if ``x`` has another shape or type.
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
        """The dequantized output for one image (path, bytes, array or PIL image), shape (classes,)."""
        return self.predict_pixels(self.contract.preprocessing.crop(image))

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The dequantized output for pixels after resize and crop: uint8, shape (height, width, channels)."""
        contract = self.contract
        values = contract.preprocessing.normalize(pixels)[None]
        if contract.layout == "NCHW":
            values = values.transpose(0, 3, 1, 2)
        output = contract.output.decode(self.run(contract.input.encode(values))).reshape(-1)
        if len(output) != len(contract.classes):
            raise FormatError(f"{self.name} returned {len(output)} values for {len(contract.classes)} classes")
        return output

    def classify(self, image: "ImageLike", top: int = 5) -> list[Prediction]:
        """The ``top`` most probable classes of one image, most probable first."""
        if top < 1:
            raise UsageError(f"top is {top}; use 1 or more")
        scores = self.predict(image)
        if self.contract.answer == "logits":
            scores = softmax(scores)
        order = np.argsort(-scores, kind="stable")[:top]
        return [Prediction(self.contract.classes[i], int(i), float(scores[i])) for i in order]

    def check(self) -> Check:
        """Run the file's golden image and compare the output with the file's golden output."""
        golden = self.contract.golden
        if golden is None:
            raise UsageError(f"{self.name} has no golden pair")
        return compare_golden(golden, self.predict_pixels)

    def op_times_ms(self, x: np.ndarray, runs: int) -> dict[str, float] | None:
        """Mean time of each operation in milliseconds, or ``None`` if the backend does not report it."""
        return self._running().op_times_ms(x, runs)

    def close(self) -> None:
        """Release the runtime; the session cannot be used afterwards."""
        self._backend = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, data: bytes, mode: CheckMode) -> Facts:
        """The session's facts, after the check of its golden pair. Raises ``WrongAnswerError``."""
        backend, processor = self._running(), str(this_processor())
        version, weights = backend_version(self.backend), backend.weights
        if backend.doubt and mode != "off":
            warn(f"{self.name}: {backend.doubt} in {self.backend} {version} on {processor}", mode)
        golden = self._contract.golden if self._contract else None
        circumstances = (f"{self.backend} {version}", processor, f"weights {weights}")
        result = check_once(golden, mode, data, circumstances, self.predict_pixels, self.name)
        return Facts(self.backend, version, processor, weights, result)

    def _borrowed(self, like: Classifier) -> Contract:
        """A contract for a file without one: its own input and output, everything else from another model."""
        source, target = self._running().io_specs()
        height, width = like.preprocessing.size
        layouts: dict[tuple[int, ...], Layout] = {
            (1, height, width, like.preprocessing.depth): "NHWC",
            (1, like.preprocessing.depth, height, width): "NCHW",
        }
        if source.shape not in layouts:
            shapes = " or ".join(map(str, layouts))
            raise UsageError(f"{self.name} takes {source.shape}, but the images of the like= model are {shapes}")
        classes, ids = tuple(like.classes), tuple(like.class_ids)
        return Contract(self.name, like.preprocessing, classes, ids, layouts[source.shape], "logits", source, target)

    def _running(self) -> Any:
        backend = self._backend
        if backend is None:
            raise UsageError(f"the session of {self.name} is closed; open a new one")
        return backend
