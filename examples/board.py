"""Check and measure files on a board, and write the results as JSON.

    pip install 'firebox[litert]'          # on the board; torch is not needed
    python board.py model.int8.tflite model.float32.tflite --sram 256KiB --out board.json

For each file: the golden check (does the board compute the expected output?), the latency with one thread and with all
cores, and the planned memory.
"""

import argparse
import json
import os
import platform
from pathlib import Path

from firebox import Session, plan, profile
from firebox.runtime import format_size, parse_size


def measure(model: Path, sram_bytes: int | None, seconds: float) -> dict:
    """Everything about one file, with units in the names."""
    with Session(model, check="off") as session:
        golden = session.check()
    profiles = [
        profile(model, sram=sram_bytes, threads=threads, max_seconds=seconds)
        for threads in sorted({1, os.cpu_count() or 1})
    ]
    return {
        "golden": {"passed": golden.passed, "max_abs": golden.max_abs, "tolerance": golden.tolerance},
        "profiles": [found.to_json() for found in profiles],
        "plan": plan(model).to_json(),
    }


def main() -> None:
    """Measure, print one line per file and thread count, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--sram", type=parse_size, help="budget, such as 256KiB")
    parser.add_argument("--seconds", type=float, default=10.0, help="time limit per measurement")
    parser.add_argument("--out", type=Path, default=Path("board.json"))
    options = parser.parse_args()
    results = {}
    for model in options.models:
        results[model.name] = found = measure(model, options.sram, options.seconds)
        for run in found["profiles"]:
            print(f"{model.name}: {run['threads']} threads, p50 {run['p50_ms']:.3f} ms, p99 {run['p99_ms']:.3f} ms")
        golden = "passed" if found["golden"]["passed"] else "FAILED"
        print(f"{model.name}: arena {format_size(found['plan']['arena_bytes'])}, golden check {golden}")
    host = {"machine": platform.machine(), "system": platform.platform(), "cores": os.cpu_count()}
    options.out.write_text(json.dumps({"host": host, "files": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
