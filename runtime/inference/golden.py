"""The check of a file's golden pair, once per runtime version and kind of processor.

Kernels differ between processors, and some kernels are wrong on some processors. The file's own input and output show
this the first time a file is loaded, before anybody relies on a prediction.
"""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ..contract import Golden
from ..errors import UsageError, WriteError, WrongAnswerError, WrongAnswerWarning
from ..files import cache_folder, sha256, write_file

CheckMode = Literal["warn", "strict", "off"]
# ``passed`` in this session or ``remembered`` from an earlier one; ``none``: the file has no golden pair.
GoldenResult = Literal["passed", "remembered", "failed", "off", "none"]

# The mode of sessions that set none.
VARIABLE = "FIREBOX_CHECK"

# Files that passed in this process, in case the cache folder is not writable.
_passed: set[str] = set()


@dataclass(frozen=True)
class Check:
    """The largest difference between a file's output for its golden image and its golden output, dequantized."""

    max_abs: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """True if the difference is within the tolerance."""
        return self.max_abs <= self.tolerance


def compare_golden(golden: Golden, predict: Callable[[np.ndarray], np.ndarray]) -> Check:
    """Run the golden image through ``predict`` (pixels to dequantized output) and compare the outputs."""
    difference = np.abs(predict(golden.pixels) - np.asarray(golden.output, np.float32))
    # A NaN counts as an infinite difference.
    return Check(float(np.nan_to_num(difference, nan=np.inf).max()), golden.tolerance)


def check_mode(mode: CheckMode | None) -> CheckMode:
    """The given mode, else that of ``FIREBOX_CHECK``, else ``warn``. Raises ``UsageError`` for an unknown mode."""
    found = mode or os.environ.get(VARIABLE) or "warn"
    for known in get_args(CheckMode):
        if found == known:
            return known
    raise UsageError(f"check {found!r} is not one of {', '.join(get_args(CheckMode))}")


def check_once(
    golden: Golden | None,
    mode: CheckMode,
    data: bytes,
    circumstances: tuple[str, ...],
    predict: Callable[[np.ndarray], np.ndarray],
    name: str,
) -> GoldenResult:
    """Check a golden pair unless this file has passed under the same ``circumstances`` (runtime, processor, ...).

    A failure warns with ``WrongAnswerWarning`` (mode ``strict`` raises ``WrongAnswerError``) and is not remembered.
    """
    if golden is None or mode == "off":
        return "none" if golden is None else "off"
    key = sha256(json.dumps([sha256(data), *circumstances]).encode())
    if _is_remembered(key):
        return "remembered"
    check = compare_golden(golden, predict)
    if check.passed:
        _remember(key, [name, *circumstances])
        return "passed"
    off = f"is off by {check.max_abs:.3g} (tolerance {check.tolerance:.3g})"
    warn(f"{name}: the output for the golden image {off} in {', '.join(circumstances)}", mode)
    return "failed"


def warn(problem: str, mode: CheckMode) -> None:
    """Warn that outputs may be wrong (``WrongAnswerWarning``); in mode ``strict`` raise ``WrongAnswerError``."""
    message = f"{problem}; use another backend or version of it, or set {VARIABLE}=off to accept it"
    if mode == "strict":
        raise WrongAnswerError(message)
    warnings.warn(message, WrongAnswerWarning, stacklevel=5)


def forget() -> None:
    """Forget the checks of this process; the cache folder stays."""
    _passed.clear()


def _file(key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "golden" / key[:2] / key


def _is_remembered(key: str) -> bool:
    file = _file(key)
    try:
        return key in _passed or (file is not None and file.is_file())
    except OSError:
        return False


def _remember(key: str, facts: list[str]) -> None:
    _passed.add(key)
    file = _file(key)
    if file is None:
        return
    try:
        write_file(file, json.dumps(facts) + "\n")
    except WriteError:
        # Without a writable cache folder, the next process runs one more inference.
        return
