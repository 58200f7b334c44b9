"""The version of the code generator."""

from functools import cache
from pathlib import Path

# Changes with everything that changes the generated code.
GENERATOR = 1


@cache
def fingerprint() -> tuple[object, ...]:
    """What tells one generator from another: its version, and sizes and times of its files.

    The files count because a checkout changes without a new version.
    """
    here = Path(__file__).parent
    files = sorted(
        [*here.glob("*.py"), *here.glob("*.c"), *here.glob("tiles/*.py"), *here.parent.joinpath("memory").rglob("*.py")]
    )
    found = [(path.name, path.stat()) for path in files]
    return (GENERATOR, *((name, facts.st_size, facts.st_mtime_ns) for name, facts in found))
