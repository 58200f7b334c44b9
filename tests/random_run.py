"""Run the property tests on new random examples: ``make test-random``.

The examples follow from a seed, which is printed first; ``--seed`` repeats them. Each round runs all these tests with
the next seed, and the first failing round is the last.
"""

import argparse
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the property tests on new random examples.")
    parser.add_argument("--seed", type=int, help="seed of the first round (default: random)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds, a seed each (default: %(default)s)")
    parser.add_argument("files", nargs="*", help="test files (default: all with property tests)")
    given = parser.parse_args()
    first = secrets.randbelow(2**31) if given.seed is None else given.seed
    files = given.files or [str(path) for path in sorted(_TESTS.rglob("test_*.py")) if "hypothesis" in path.read_text()]
    for seed in range(first, first + given.rounds):
        again = shlex.join([sys.executable, __file__, "--seed", str(seed), "--rounds", "1", *given.files])
        print(f"seed {seed}; to repeat: {again}", flush=True)
        options = ["--hypothesis-profile=random", f"--hypothesis-seed={seed}", "-n", "2"]
        ran = subprocess.run([sys.executable, "-m", "pytest", *options, *files], cwd=_TESTS.parent, check=False)
        if ran.returncode:
            print(f"seed {seed} failed; to repeat: {again}", flush=True)
            return ran.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
