"""One family of errors. Each message is one sentence with the offending value and what to do next."""

from collections.abc import Iterable


class FireboxError(Exception):
    """Base of every error firebox raises on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(FireboxError):
    """A value the caller gave cannot be used: an unknown name, a size that does not parse."""

    exit_code = 2


class MissingExtraError(FireboxError):
    """A package that belongs to an optional extra is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed; run: pip install 'firebox[{extra}]'")
        self.package = package
        self.extra = extra


class FormatError(FireboxError):
    """A file is not what its name says, is cut short, or contradicts itself."""


class UnsupportedError(FireboxError):
    """A network holds an operation firebox does not know; the message says which and where."""


class UnknownOperationError(UnsupportedError):
    """A network holds an operation of a kind that firebox does not know."""


class DataError(FireboxError):
    """Images or labels that cannot be used."""


class CheckpointError(FireboxError):
    """Weights that do not belong to the network, or a checkpoint that cannot be read."""


class DownloadError(FireboxError):
    """A file could not be had from the network, or is not the one that was asked for; what came is not used."""


class TrainingError(FireboxError):
    """Training cannot go on, for example because the loss is not a number."""


class QuantizationError(FireboxError):
    """A network or its calibration cannot be quantized: no images, or values that are not finite."""


class ParityError(FireboxError):
    """The exported files do not agree with the network they were made from; nothing was written."""


class WrongAnswerError(FireboxError):
    """A runtime does not compute what a file says on this processor."""


class WrongAnswerWarning(UserWarning):
    """The same where a session goes on all the same."""


class WriteError(FireboxError):
    """A file could not be written; nothing of it was left behind."""


def first_line(error: BaseException) -> str:
    """First line of another library's error message, or the error's type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggestion(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """End of a message about an unknown name: ``did you mean A or B?``.

    If no known name is close, ``otherwise``, or by default the list of all known names.
    """
    from difflib import get_close_matches

    names = sorted(known)
    near = get_close_matches(name, names, n=2)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return otherwise or f"choose one of {', '.join(names)}"
