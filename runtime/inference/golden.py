"""The golden pair of a file, checked once for each runtime version and kind of processor, and remembered.

Kernels differ between processors, and some are wrong on some of them. A file's own input and output show that the first
time that they meet, before anybody relies on an answer.
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
# ``passed`` just now, or ``remembered`` from an earlier session; ``none``: the file carries no golden pair.
GoldenResult = Literal["passed", "remembered", "failed", "off", "none"]

# The mode of sessions that name none.
VARIABLE = "FIREBOX_CHECK"

# Where nothing can be written, this process remembers.
_passed: set[str] = set()


@dataclass(frozen=True)
class Check:
    """How far a file's answer to its golden image is from the one it carries, as real numbers."""

    max_abs: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Within the tolerance."""
        return self.max_abs <= self.tolerance


def compare_golden(golden: Golden, predict: Callable[[np.ndarray], np.ndarray]) -> Check:
    """Run the golden image (``predict``: pixels to real outputs) and compare the outputs."""
    difference = np.abs(predict(golden.pixels) - np.asarray(golden.output, np.float32))
    # A NaN is as far off as can be.
    return Check(float(np.nan_to_num(difference, nan=np.inf).max()), golden.tolerance)


def check_mode(mode: CheckMode | None) -> CheckMode:
    """The mode that was asked for, here or in ``FIREBOX_CHECK``; ``warn`` otherwise. Raises ``UsageError``."""
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
    """Check a golden pair unless the same file has passed under the same ``circumstances`` (runtime, processor, ...).

    A failure is a ``WrongAnswerWarning`` or, in mode ``strict``, a ``WrongAnswerError``, and is not remembered.
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
    complain(f"{name}: the output for the golden image {off} in {', '.join(circumstances)}", mode)
    return "failed"


def complain(what: str, mode: CheckMode) -> None:
    """Say that outputs may be wrong here: a ``WrongAnswerWarning``, or in mode ``strict`` a ``WrongAnswerError``."""
    message = f"{what}; use another backend or version of it, or {VARIABLE}=off to use it all the same"
    if mode == "strict":
        raise WrongAnswerError(message)
    warnings.warn(message, WrongAnswerWarning, stacklevel=5)


def forget() -> None:
    """Forget what this process remembers; the cache folder is the user's to clear."""
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
        # A folder that cannot be written costs the next process one more inference, nothing else.
        return
