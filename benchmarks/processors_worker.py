"""Runs files on given inputs and counts the expected outputs, in a process that may be emulated.

Its argument is the path of a list of jobs (JSON); it prints one line of JSON per job. It imports only the modules that
sessions need.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from firebox.runtime import Session


def main() -> None:
    """Run every job."""
    for job in json.loads(Path(sys.argv[1]).read_text()):
        arrays = np.load(job["arrays"])
        run, weights = _open(Path(job["file"]), job["runtime"])
        outputs = [run(x).ravel() for x in arrays["inputs"]]
        print(json.dumps({"weights": weights, **_compared(outputs, arrays["outputs"], job["step"])}), flush=True)


def _open(file: Path, runtime: str) -> tuple[Any, str]:
    if runtime != "plain onnxruntime":
        session = Session(file, runtime, check="off")
        return session.run, session.facts.weights
    import onnxruntime

    plain = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = plain.get_inputs()[0].name
    return lambda x: plain.run(None, {name: x})[0], "as in the file"


def _compared(outputs: list[np.ndarray], expected: np.ndarray, step: float) -> dict[str, Any]:
    steps = [np.abs(a.astype(float) - e.astype(float)) / step for a, e in zip(outputs, expected, strict=True)]
    same = [int(a.argmax() == e.argmax()) for a, e in zip(outputs, expected, strict=True)]
    return {
        "inputs": len(outputs),
        "outputs": int(sum(one.size for one in steps)),
        "identical": int(sum((one == 0).sum() for one in steps)),
        "same_class": sum(same),
        "largest_steps": round(float(max(one.max() for one in steps))),
    }


if __name__ == "__main__":
    main()
