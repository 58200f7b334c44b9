"""The errors of firebox. Each message is one sentence with the offending value and what to do next."""

from collections.abc import Iterable, Mapping


class FireboxError(Exception):
    """Base class of all errors that firebox raises; the command line exits with ``exit_code``."""

    exit_code = 1


class UsageError(FireboxError):
    """An invalid argument: an unknown name, a missing file, a size that does not parse."""

    exit_code = 2


class MissingExtraError(FireboxError):
    """A package of an optional extra is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed; run: pip install 'firebox[{extra}]'")
        self.package = package
        self.extra = extra

    @classmethod
    def from_import(cls, error: ModuleNotFoundError, extras: Mapping[str, str]) -> "MissingExtraError | None":
        """The error for a failed import, if its package is in ``extras`` (package to extra); otherwise ``None``."""
        package = (error.name or "").partition(".")[0]
        return cls(package, extras[package]) if package in extras else None


class MissingCompilerError(FireboxError):
    """No C compiler is installed, or the one that is does not compile; the message says what to install."""


class FormatError(FireboxError):
    """A file has another format than its name says, is truncated, or is inconsistent."""


class UnsupportedError(FireboxError):
    """A network uses an operation or attribute that firebox does not support; the message names it."""


class UnknownOperationError(UnsupportedError):
    """A network contains an unknown kind of operation."""


class DataError(FireboxError):
    """Images or labels are unusable."""


class CheckpointError(FireboxError):
    """Weights do not match the network, or a checkpoint cannot be read."""


class DownloadError(FireboxError):
    """A download failed, or the downloaded file has another hash than expected and was discarded."""


class TrainingError(FireboxError):
    """Training cannot continue, for example because the loss is NaN."""


class QuantizationError(FireboxError):
    """A network cannot be quantized: no calibration images, or values that are not finite."""


class ParityError(FireboxError):
    """The exported files do not match the network; nothing was written."""


class WrongAnswerError(FireboxError):
    """The output of a runtime on this processor does not match the file's golden output."""


class PlanError(FireboxError):
    """A row plan contradicts itself: an operation reads what another has overwritten. It is a fault of firebox."""


class WrongAnswerWarning(UserWarning):
    """The warning that a session issues in place of ``WrongAnswerError``, before it continues."""


class WriteError(FireboxError):
    """A file could not be written; no partial file remains."""


def first_line(error: BaseException) -> str:
    """First line of another library's error message, or the error's type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggestion(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: ``did you mean A or B?``.

    If no known name is close, it is ``otherwise`` or, by default, the list of all known names.
    """
    # Needed only when something went wrong.
    from difflib import get_close_matches

    names = sorted(known)
    near = get_close_matches(name, names, n=2)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return otherwise or f"choose one of {', '.join(names)}"
