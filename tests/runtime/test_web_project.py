"""Web projects: the module, its page and its types, in Node and in a browser."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
from browser import chromium, find_chromium
from PIL import Image
from waiting import CEILING

from firebox.export import write_tflite
from firebox.runtime import Session
from firebox.runtime.compile import web_project
from firebox.runtime.compile.projects.wasm import sections
from firebox.runtime.contract import KEY, read_contract
from firebox.runtime.formats.read import read_graph
from firebox.runtime.graph.reference import run_reference

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&`${x}\\\N{RIGHT-TO-LEFT OVERRIDE}\N{LINE SEPARATOR}\n"
needs_clang = pytest.mark.skipif(not (shutil.which("clang") and shutil.which("wasm-ld")), reason="no clang or lld")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node")
IMPORTS, EXPORTS = 2, 7


def node(folder: Path, body: str, *given: object) -> object:
    """What a body of JavaScript returns, with the ``network`` of a folder and the ``given`` values."""
    script = f"""
import {{ readFileSync }} from "node:fs";
import {{ Network }} from "./micro.js";
const network = await Network.load(readFileSync("micro.wasm"));
const given = JSON.parse(readFileSync(0));
const answer = await (async () => {{ {body} }})();
process.stdout.write(JSON.stringify(answer, (_, value) => ArrayBuffer.isView(value) ? Array.from(value) : value));
"""
    ran = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        cwd=folder,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=CEILING,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def rgba(pixels: np.ndarray) -> list[int]:
    """Pixels (height, width, 3) with a meaningless alpha channel, as browsers store them."""
    alpha = np.full((*pixels.shape[:2], 1), 7, np.uint8)
    return np.concatenate([pixels, alpha], axis=2).reshape(-1).tolist()


def with_contract(model: Path, folder: Path, **changes: object) -> Path:
    """A copy of a .tflite file with another contract."""
    data = model.read_bytes()
    contract = read_contract(data)
    assert contract is not None
    path = folder / "changed.int8.tflite"
    path.write_bytes(write_tflite(read_graph(data), metadata={KEY: replace(contract, **changes).to_bytes()}))
    return path


@pytest.fixture(scope="module")
def model(exported) -> Path:
    return exported / "model.int8.tflite"


@pytest.fixture(scope="module")
def projects(once, model) -> Path:
    """The projects of squeezenet_micro with each type of output, in folders ``float`` and ``int8``."""

    def fill(folder: Path) -> None:
        from firebox.runtime.files import write_files

        for output in ("float", "int8"):
            write_files(folder / output, web_project(model, output=output, name="micro").files())

    return once("web_projects", fill)


@needs_clang
def test_the_command_writes_a_module_that_imports_nothing(command, model, tmp_path):
    ran = command("compile", model, "--project", "web", "--name", "micro", "--json", "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    names = {"micro.wasm", "micro.js", "micro.d.ts", "index.html", "README.md", "package.json"}
    assert {Path(path).name for path in json.loads(ran.out)["files"]} == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    found = sections((tmp_path / "out" / "micro.wasm").read_bytes())
    assert IMPORTS not in found
    assert all(name in found[EXPORTS] for name in (b"memory", b"input", b"output", b"run"))
    again = command("compile", model, "--project", "web", "--name", "micro", "-o", tmp_path / "again")
    assert again.code == 0
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in names)


@needs_clang
@needs_node
@pytest.mark.parametrize("output", ["float", "int8"])
def test_random_inputs_give_the_bits_of_the_reference(projects, model, output):
    project = web_project(model, output=output)
    graph = project.graph
    shape = graph.tensors[graph.inputs[0]].shape
    inputs = np.random.default_rng(1).integers(-128, 128, (6, *shape), np.int8)
    body = "return given.map(x => Array.from(network.run(Int8Array.from(x))))"
    found = node(projects / output, body, *(x.reshape(-1).tolist() for x in inputs))
    expected = [project.expected(x).reshape(-1).tolist() for x in inputs]
    assert found == expected
    if output == "int8":
        assert expected == [run_reference(graph, x)[graph.outputs[0]].reshape(-1).tolist() for x in inputs]


@needs_clang
@needs_node
@pytest.mark.parametrize("output", ["float", "int8"])
def test_the_golden_pair_passes_and_a_wrong_weight_is_noticed(projects, output, tmp_path):
    assert node(projects / output, "return network.selfTest()") is True
    shutil.copytree(projects / output, tmp_path / "wrong")
    wasm = tmp_path / "wrong" / "micro.wasm"
    data = bytearray(wasm.read_bytes())
    # The constants fill most of the file.
    for at in range(len(data) // 2, len(data) // 2 + 4000):
        data[at] ^= 5
    wasm.write_bytes(data)
    assert node(tmp_path / "wrong", "return network.selfTest()") is False


@needs_clang
@needs_node
def test_pixels_are_classified_as_by_a_session(projects, model):
    rng = np.random.default_rng(2)
    with Session(model, check="off") as session:
        height, width = session.preprocessing.size
        images = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(5)]
        logits = [session.predict_pixels(pixels) for pixels in images]
        classified = [session.classify(pixels, top=3) for pixels in images]
    given = [rgba(pixels) for pixels in images]
    for body in ("Uint8ClampedArray.from(x)", "Uint8Array.from(x.filter((_, i) => i % 4 != 3))"):
        found = node(projects / "int8", f"return given.map(x => network.predict({body}))", *given)
        assert np.array_equal(np.asarray(found, np.float32), np.asarray(logits, np.float32))
    found = node(projects / "float", "return given.map(x => network.classify(Uint8ClampedArray.from(x), 3))", *given)
    assert isinstance(found, list)
    for predictions, expected, values in zip(found, classified, logits, strict=True):
        # Int8 logits have ties, and the file without the last rounding decides them.
        assert values[predictions[0]["index"]] == values.max()
        assert predictions[0]["score"] == pytest.approx(expected[0].score, abs=0.05)
        assert {p["label"] for p in predictions} == {p.label for p in expected}


@needs_clang
@needs_node
@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
def test_images_of_any_size_are_resized_and_cropped_as_in_training(tmp_path, model, channels):
    project = web_project(model, name="micro")
    height, width = project.contract.preprocessing.size
    rng = np.random.default_rng(3)
    # Earlier versions of Pillow round tall images in another order.
    tall = ((61, 24), (100, 33)) if int(PIL.__version__.partition(".")[0]) >= 13 else ()
    for resize in (None, 29):
        depth = len(channels)
        preprocessing = replace(
            project.contract.preprocessing, channels=channels, resize=resize, mean=(0.4,) * depth, std=(0.2,) * depth
        )
        contract = replace(project.contract, preprocessing=preprocessing, golden=None)
        folder = tmp_path / str(resize)
        folder.mkdir()
        changed = replace(project, contract=contract)
        for name, content in changed.files().items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        images = [
            rng.integers(0, 256, (*size, 3), np.uint8) for size in ((height, width), (7, 90), (29, 29), (30, 41), *tall)
        ]
        given = [{"height": len(image), "width": len(image[0]), "data": rgba(image)} for image in images]
        found = node(folder, "return given.map(image => network.crop(image))", *given)
        assert found == [preprocessing.crop(image).reshape(-1).tolist() for image in images]


@needs_clang
@needs_node
def test_wrong_lengths_are_refused(projects):
    body = """
const said = [];
for (const wrong of [() => network.run(new Int8Array(5)), () => network.classify(new Uint8Array(5)),
    () => new Network({}).run(new Int8Array(0))]) {
  try { wrong(); said.push(null); } catch (error) { said.push(error.message); }
}
return said"""
    said = node(projects / "float", body)
    assert isinstance(said, list)
    assert said[0].startswith("the input has 5 values, not ")
    assert said[1].startswith("the image has 5 values, not ")
    assert said[2]


@needs_clang
def test_names_from_a_file_are_text_not_markup(model, tmp_path):
    contract = read_contract(model.read_bytes())
    assert contract is not None
    names = (HOSTILE, *contract.classes[1:])
    changed = with_contract(model, tmp_path, name=HOSTILE + "\udcff", classes=names)
    project = web_project(changed, name="micro")
    files = project.files()
    page = files["index.html"]
    assert isinstance(page, str)
    assert page.encode()
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img" not in page
    for name in ("micro.js", "README.md", "package.json", "micro.d.ts"):
        assert "<img" not in str(files[name])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "unsafe-inline" not in policy[1]
    assert policy[1].startswith("default-src 'none'; ")
    if shutil.which("node"):
        for name, content in files.items():
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        assert node(tmp_path, "return [Network.classes[0], await network.selfTest()]") == [HOSTILE, True]


@needs_clang
def test_the_page_works_from_a_file(projects, model, tmp_path):
    command = find_chromium()
    if command is None:
        pytest.skip("no chromium")
    contract = read_contract(model.read_bytes())
    assert contract is not None
    names = tuple(HOSTILE + str(number) for number in range(len(contract.classes)))
    changed = with_contract(model, tmp_path, name=HOSTILE, classes=names)
    path = tmp_path / "index.html"
    page_text = web_project(changed, name="micro").files()["index.html"]
    assert isinstance(page_text, str)
    path.write_text(page_text)
    pixels = np.random.default_rng(4).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    data = base64.b64encode((tmp_path / "image.png").read_bytes()).decode()
    with chromium(command, tmp_path / "profile") as page:
        page.send("Page.navigate", url=path.as_uri())
        page.until("document.getElementById('golden')?.textContent")
        assert page.evaluate("document.getElementById('golden').className") == "good"
        page.evaluate(f"""
const bytes = Uint8Array.from(atob("{data}"), c => c.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], "image.png", {{ type: "image/png" }}));
document.getElementById("file").files = files.files;
document.getElementById("file").dispatchEvent(new Event("change"));
""")
        page.until("document.body.dataset.answer")
        found = int(page.evaluate("document.body.dataset.answer"))
        labels = page.evaluate("Array.from(document.querySelectorAll('#answer bdi'), e => e.textContent)")
        assert page.evaluate("document.querySelectorAll('img').length") == 0
        assert page.problems() == []
        assert page.requests() == set()
    assert labels[0] == names[found]
    with Session(model, check="off") as session:
        logits = session.predict(pixels)
    assert logits[found] == logits.max()


def test_what_cannot_be_a_project_is_refused(command, model, monkeypatch, tmp_path):
    project = ("compile", model, "--project", "web", "-o", tmp_path / "out")
    for options, reason in (
        (("--isa", "x86"), "takes no --isa"),
        (("--input", "rows"), "takes no --input"),
        (("--sram", "1MiB"), "takes no memory budget"),
    ):
        ran = command(*project, *options)
        assert (ran.code, ran.out) == (2, "")
        assert reason in ran.err
    assert command(*project[:-1], tmp_path / "out.c").code == 2
    foreign = tmp_path / "foreign.tflite"
    foreign.write_bytes(write_tflite(read_graph(model.read_bytes())))
    ran = command("compile", foreign, "--project", "web", "-o", tmp_path / "out")
    assert ran.code == 2
    assert "has no firebox metadata" in ran.err
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = command(*project)
    assert ran.code == 1
    assert "apt-get install clang lld" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
