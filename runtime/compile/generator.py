"""The version of the code generator."""

from functools import cache
from pathlib import Path

# Changes with everything that changes the generated code.
GENERATOR = 1


@cache
def fingerprint() -> tuple[object, ...]:
    """What tells one generator from another: its version, and sizes and times of the files that it depends on.

    They are those of the generator, of the planner, and of the readers of model files. The files count because a
    checkout changes without a new version.
    """
    room = Path(__file__).parents[1]
    folders = [room / name for name in ("compile", "formats", "graph", "memory")]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".c"))
    found = [(path.name, path.stat()) for path in files]
    return (GENERATOR, *((name, facts.st_size, facts.st_mtime_ns) for name, facts in found))
