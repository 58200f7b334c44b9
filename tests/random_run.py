"""Tests of properties on random examples that nobody has tried yet: ``make test-random``.

What they draw follows from a seed, which is printed first; with ``--seed`` the same is drawn again. Each round is a run
of all these tests with the next seed; the first round that fails is the last.
"""

import argparse
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Try the tests of properties on new random examples.")
    parser.add_argument("--seed", type=int, help="of the first round; drawn if it is not given")
    parser.add_argument("--rounds", type=int, default=5, help="each with the next seed (default: %(default)s)")
    parser.add_argument("files", nargs="*", help="of tests (default: all that have random examples)")
    given = parser.parse_args()
    first = secrets.randbelow(2**31) if given.seed is None else given.seed
    files = given.files or [str(path) for path in sorted(_TESTS.rglob("test_*.py")) if "hypothesis" in path.read_text()]
    for seed in range(first, first + given.rounds):
        again = shlex.join([sys.executable, __file__, "--seed", str(seed), "--rounds", "1", *given.files])
        print(f"seed {seed}; the same again: {again}", flush=True)
        options = ["--hypothesis-profile=random", f"--hypothesis-seed={seed}", "-n", "2"]
        ran = subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=_TESTS.parent, check=False)
        if ran.returncode:
            print(f"seed {seed} failed; the same again: {again}", flush=True)
            return ran.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
