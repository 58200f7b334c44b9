"""SqueezeNet v1.1 as WebAssembly compared with onnxruntime-web in Node: identity, size and speed.

Writes ``results/web.json``, from which ``fragment`` makes a section of docs/compile.md. Needs Node, and npm to install
onnxruntime-web into ``build/web``.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import IMAGES, data_option, load_reference, table, terminal

from firebox.export import ExportConfig
from firebox.model_zoo import export_network
from firebox.runtime import Session, open_images, sample
from firebox.runtime.compile import web_project
from firebox.runtime.files import write_file, write_files
from firebox.runtime.processor import this_processor

KEPT = Path(__file__).resolve().parent / "results" / "web.json"
_BUILD = Path(__file__).resolve().parent.parent / "build" / "web"
_PACKAGE = "onnxruntime-web@1.30.0"


@click.command(help=__doc__)
@data_option
@click.option("--exported", type=click.Path(path_type=Path), help="Folder of exported files.  [default: export v1.1]")
@click.option("--images", "count", default=40, show_default=True, help="Number of images.")
@click.option("--rounds", default=80, show_default=True, help="Number of timed inferences of each.")
def main(data_folder: Path, exported: Path | None, count: int, rounds: int) -> None:
    """Measure, print the ratio, and keep the figures."""
    folder = exported or _exported(data_folder)
    if not (_BUILD / "node_modules").is_dir():
        subprocess.run(["npm", "install", "--no-save", "--prefix", str(_BUILD), _PACKAGE], check=True, stdout=2)
    found = measured(folder, data_folder, count, rounds)
    write_file(KEPT, json.dumps(found, indent=1) + "\n")
    click.echo("\n\n".join(fragment(found)))


def measured(folder: Path, data_folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """The figures of one run."""
    model = folder / "model.int8.tflite"
    projects = {output: web_project(model, output=output, name="net") for output in ("int8", "float")}
    for output, project in projects.items():
        write_files(_BUILD / output, project.files())
    images = sample(open_images(data_folder / IMAGES), count)
    graph = projects["int8"].graph
    with Session(model, "litert") as session:
        pixels = np.stack(session.preprocessing.crop_all(images))
        inputs = np.stack([session.contract.input.encode(session.preprocessing.normalize(image)) for image in pixels])
        litert = [session.run(x[None]).reshape(-1) for x in inputs]
    reference = []
    with terminal.task("reference", len(inputs)) as advance:
        for x in inputs:
            reference.append(projects["float"].expected(x[None]).reshape(-1))
            advance()
    (_BUILD / "inputs").write_bytes(inputs.tobytes())
    height, width = projects["int8"].contract.preprocessing.size
    given = {output: str(_BUILD / output) for output in projects} | {
        "packages": str(_BUILD),
        "onnx": str(folder / "model.int8.onnx"),
        "inputs": str(_BUILD / "inputs"),
        "shape": [1, projects["int8"].contract.preprocessing.depth, height, width],
        "rounds": rounds,
    }
    write_file(_BUILD / "arguments.json", json.dumps(given))
    script = Path(__file__).with_name("web.mjs")
    ran = subprocess.run(["node", script, _BUILD / "arguments.json"], check=True, capture_output=True, text=True)
    seen = json.loads(ran.stdout)
    expected = {"int8": litert, "ort": litert, "float": reference}
    ours, theirs = (np.asarray(seen["ms"][name]) for name in ("firebox", "ort"))
    dist = _BUILD / "node_modules" / "onnxruntime-web" / "dist" / "ort-wasm-simd-threaded.wasm"
    return {
        "network": graph.name,
        "images": len(inputs),
        "identical": {
            name: int((np.asarray(outputs, np.float32) == np.stack(expected[name])).all(axis=1).sum())
            for name, outputs in seen["outputs"].items()
        },
        "faster": {"min": float(theirs.min() / ours.min()), "median": float(np.median(theirs) / np.median(ours))},
        "wasm_bytes": len(projects["float"].module.data),
        "memory_bytes": projects["float"].module.memory_bytes,
        "page_bytes": len(projects["float"].files()["index.html"]),
        "ort_wasm_bytes": dist.stat().st_size,
        "onnx_bytes": (folder / "model.int8.onnx").stat().st_size,
        "versions": {"node": seen["node"], "onnxruntime-web": seen["ort"]},
        "processor": str(this_processor()),
    }


def fragment(kept: dict[str, Any] | None = None) -> list[str]:
    """The Markdown about the kept figures: a paragraph and a table."""
    found = kept or json.loads(KEPT.read_text(encoding="utf-8"))
    versions, same, faster = found["versions"], found["identical"], found["faster"]
    text = (
        f"{found['network']} in Node {versions['node'].lstrip('v')} on {found['processor']}, one thread, in turns with "
        f"onnxruntime-web {versions['onnxruntime-web']}: {faster['min']:.2f} times as fast by the shortest times, "
        f"{faster['median']:.2f} times by the medians. The page with everything in it has {found['page_bytes']:,} "
        f"bytes, and the module takes {found['memory_bytes']:,} bytes of memory."
    )
    rows = [
        ("compiled, int8 output", same["int8"], "LiteRT", found["wasm_bytes"]),
        ("compiled, float output", same["float"], "the reference", found["wasm_bytes"]),
        ("onnxruntime-web", same["ort"], "LiteRT", found["ort_wasm_bytes"] + found["onnx_bytes"]),
    ]
    cells = [(name, f"{n} of {found['images']}, with {other}", f"{size:,}") for name, n, other, size in rows]
    return [text, table(("", "identical images", "bytes to load, without JavaScript"), cells)]


def _exported(data_folder: Path) -> Path:
    """The folder of SqueezeNet v1.1, exported once."""
    folder = _BUILD / "exported"
    if not folder.is_dir():
        network = load_reference("squeezenet1_1", data_folder)
        export_network(network, folder, images=sample(open_images(data_folder / IMAGES), 100), config=ExportConfig())
    return folder


if __name__ == "__main__":
    main()
