"""The page of a report: its content, that it loads nothing, and its look in a real browser."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Page, chromium, find_chromium
from hypothesis import given, settings
from PIL import Image
from strategies import GraphBuilder, graphs

from firebox.runtime import Facts, Graph, MemoryPlan, Profile, Verdict, plan
from firebox.runtime.errors import MissingExtraError
from firebox.runtime.graph import Tensor, ops
from firebox.runtime.memory import MemoryLine
from firebox.runtime.report import model_explorer_node_data, report_html, summary_csv
from firebox.runtime.report.charts import BUDGET_COLOUR, COLOURS, printable, tensor_kind
from firebox.runtime.report.summary import op_times

HOSTILE = "</script></title><img src=https://a.example/x onerror=alert(1)>'\"&`${x}\\\N{RIGHT-TO-LEFT OVERRIDE}\n"


def fire(name: str = "") -> MemoryPlan:
    """The plan of a Fire module with a convolution before and after it; ``name`` prefixes all tensor names."""
    build = GraphBuilder((1, 32, 32, 3))
    squeezed = build.conv(build.conv("input", 32), 8)
    wide = [build.conv(squeezed, 32), build.conv(squeezed, 32, (3, 3), padding=(1, 1, 1, 1))]
    joined = build.conv(build.add(ops.Concat, *wide), 8)
    graph = build.graph(joined)
    names = {tensor: name + tensor for tensor in graph.tensors}
    tensors = [replace(tensor, name=names[tensor.name]) for tensor in graph.tensors.values()]
    operations = [ops.rename(op, names) for op in graph.ops]
    return plan(Graph.of(name + graph.name, tensors, operations, [names["input"]], [names[joined]]))


def profiled(planned: MemoryPlan, op_ms: dict[str, float] | None, verdict: Verdict | None = None) -> Profile:
    account = (*planned.account()[:3], MemoryLine("runtime overhead", 20_000, "measured"))
    facts = Facts("onnxruntime", "1.0", "processor", "as in the file", "none")
    return Profile("m.onnx", "onnxruntime", 1, 1.0, 2.0, 0.5, 0.6, 0.7, 100, True, account, op_ms, verdict, facts)


class Seen(HTMLParser):
    """Elements, text and everything by which a page could load something."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text, self.links, self.handlers = Counter[str](), "", [], []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster", "background"):
                self.links.append(value)
            if name.startswith("on"):
                self.handlers.append(value)
            if name == "id":
                self.ids.append(str(value))
            if name == "style":
                self.links += re.findall(r"url\(([^)]*)\)", str(value))
        if tag not in ("meta", "rect", "path", "br", "img", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["style"]:
            self.links += re.findall(r"url\(([^)]*)\)|@import (\S+)", data)
        elif self._open[-1:] != ["script"]:
            self.text += data


@settings(max_examples=15)
@given(graphs(), graphs())
def test_the_page_of_any_network_is_complete_and_loads_nothing(graph, earlier):
    after, before = plan(graph), plan(earlier)
    html = report_html(after, before, after.verdict(1024))
    seen = Seen(html)
    assert seen.links == seen.handlers == []
    assert not {"link", "iframe", "object", "embed", "img", "base", "form"} & set(seen.tags)
    assert len(seen.ids) == len(set(seen.ids))
    assert seen.tags["h1"] == seen.tags["main"] == seen.tags["title"] == 1
    assert all(op.name in seen.text for op in after.graph.ops)
    assert f"{after.arena_bytes:,}" in seen.text
    assert 1_000_000 < len(html) < 2_000_000


def test_the_policy_allows_only_the_scripts_of_the_page():
    html = report_html(fire())
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert re.findall(r"'sha256-([^']*)'", policy[1]) == hashes
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy[1]
    assert "unsafe-inline" not in policy[1].partition("style-src")[0]


def test_names_from_a_file_are_text_not_markup():
    planned = fire(HOSTILE)
    html = report_html(planned, planned, profile=profiled(planned, {}), name=HOSTILE)
    seen = Seen(html)
    assert seen.tags["img"] == 0
    assert seen.links == []
    assert seen.tags["script"] == html.count("</script>") == Seen(report_html(fire(), fire())).tags["script"]
    assert "<img src=https://a.example/x" in seen.text
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in html
    assert report_html(plan(Graph("\udcff", {"\udcff": Tensor("\udcff", (1,))}, (), ("\udcff",), ("\udcff",))))


def test_long_names_are_shortened():
    assert printable("features.0/expand1x1") == "features.0/expand1x1"
    long = printable("a" * 50_000 + "end")
    assert len(long) == 120
    assert long.endswith("aend")


@pytest.mark.parametrize(("budget", "said"), [(2**20, "Fits 1,024.0 KiB"), (1024, "Does not fit 1.0 KiB")])
def test_the_verdict_is_in_words(budget, said):
    planned = fire()
    text = Seen(report_html(planned, None, planned.verdict(budget))).text
    assert said in text
    assert "budget" in text
    assert "Before" not in text


def test_unknown_figures_are_marked():
    planned = fire()
    text = Seen(report_html(plan(planned.graph, "litert"))).text
    assert "the overhead of the runtime is unknown" in text
    assert "unknown" in text
    assert "No budget given" in text
    assert "Latency was not measured" in text
    data = b"the file"
    text = Seen(report_html(planned, profile=profiled(planned, None), data=data)).text
    assert "Per-operation timing is not available from onnxruntime" in text
    assert "20,000" in text
    assert "8 B (8 bytes)" in text


def test_a_network_without_operations_has_a_page():
    graph = Graph("nothing", {"x": Tensor("x", (1, 4))}, (), ("x",), ("x",))
    assert "the input" in Seen(report_html(plan(graph))).text


def test_kinds_of_tensors():
    build = GraphBuilder((1, 8, 8, 4))
    squeezed = build.conv("input", 2)
    wide = build.conv(squeezed, 8)
    graph = build.graph(build.add(ops.Relu, wide))
    assert tensor_kind(graph, "input") == "input"
    assert tensor_kind(graph, squeezed) == "squeeze"
    assert tensor_kind(graph, wide) == "convolution"
    assert tensor_kind(graph, graph.outputs[0]) == "other"


def test_without_bokeh_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'firebox\[report\]'"):
        report_html(fire())


def test_the_summary_has_the_columns_of_vela():
    planned = fire()
    verdict = planned.verdict(64 * 1024)
    text = summary_csv({"before": planned, "after": planned}, profiled(planned, None), verdict, network="a,b")
    before, after = csv.DictReader(io.StringIO(text))
    assert (before["experiment"], after["experiment"], after["network"]) == ("before", "after", "a,b")
    assert float(after["sram_memory_used"]) == planned.arena_bytes / 1024
    assert float(after["arena_cache_size"]) == 64
    assert int(after["nn_macs"]) == planned.graph.macs
    assert (float(after["inference_time"]), float(after["inferences_per_second"])) == (0.0005, 2000)
    assert after["fits"] == str(verdict.fits).lower()
    assert before["inference_time"] == before["fits"] == ""
    (alone,) = csv.DictReader(io.StringIO(summary_csv({"default": planned})))
    assert alone["arena_cache_size"] == alone["backend"] == ""
    assert alone["network"] == "drawn"


def test_node_data_names_every_operation_by_its_tensor():
    planned = fire()
    names = [op.output for op in planned.graph.ops]
    found = model_explorer_node_data(planned, profiled(planned, dict.fromkeys(names, 0.25)))
    assert list(found) == ["alive_bytes", "output_bytes", "macs", "time_ms"]
    for text in found.values():
        assert list(json.loads(text)["results"]) == names
    macs = json.loads(found["macs"])
    assert sum(node["value"] for node in macs["results"].values()) == planned.graph.macs
    assert [stop["stop"] for stop in macs["gradient"]] == [0, 0.5, 1]
    # Equal values have no gradient.
    assert json.loads(found["time_ms"])["gradient"] == []
    assert "time_ms" not in model_explorer_node_data(planned)


def test_parts_of_an_operation_count_towards_it():
    planned = fire()
    first, second = (op.name for op in planned.graph.ops[:2])
    parts = {f"{first}/linear": 1.0, f"{first}/relu_token_3": 2.0, second: 4.0, "Transpose": 8.0}
    found = op_times(planned.graph, profiled(planned, parts))
    assert found is not None
    times, rest = found
    assert (times[first], times[second], rest) == (3, 4, 8)
    assert set(times) == {op.name for op in planned.graph.ops}


def test_the_command_writes_page_table_and_node_data(command, exported, tmp_path):
    model, before = exported / "model.int8.onnx", exported / "model.int8.tflite"
    options = ("--before", before, "--sram", "1KiB", "--measure-time", "--seconds", "0.1", "--json")
    files = ("-o", tmp_path / "r.html", "--csv", tmp_path / "r.csv", "--node-data", tmp_path / "nodes")
    ran = command("report", model, *options, *files)
    assert ran.code == 3, ran.err
    values = json.loads(ran.out)
    assert values["verdict"]["fits"] is False
    assert sorted(values["files"]) == sorted(str(path) for path in tmp_path.rglob("*.*"))
    text = Seen((tmp_path / "r.html").read_text()).text
    assert "model.int8.onnx" in text
    assert "Measured mean latency per operation" in text
    assert [row["experiment"] for row in csv.DictReader((tmp_path / "r.csv").read_text().splitlines())] == [
        "before",
        "after",
    ]
    people = command("report", before, "-o", tmp_path / "s.html")
    assert people.code == 0
    assert "s.html" in people.out
    (tmp_path / "file").touch()
    late = command("report", before, "-o", tmp_path / "t.html", "--csv", tmp_path / "file" / "t.csv")
    assert late.code == 1
    assert not (tmp_path / "t.html").exists()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A tab of Chromium; without Chromium the browser tests are skipped, except in CI, where they fail."""
    command = find_chromium()
    if command is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed: apt-get install chromium")
        pytest.skip("Chromium is not installed")
    with chromium(command, tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A page with every chart and hostile names."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    after, before = fire(HOSTILE), fire()
    profile = profiled(after, {op.name: 0.1 for op in after.graph.ops})
    path.write_text(report_html(after, before, after.verdict(80 * 1024), profile, name=HOSTILE))
    return path


def look(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def chart(page: Page, index: int) -> dict[str, float]:
    """Scroll to a chart; its rectangle in the window."""
    find = f"document.querySelectorAll('.chart')[{index}]"
    page.evaluate(f"{find}.scrollIntoView({{block: 'center'}})")
    return page.evaluate(f"{find}.getBoundingClientRect().toJSON()")


def amount(image: np.ndarray, colour: str) -> int:
    """Number of pixels of a colour, with a tolerance for blending."""
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return int((abs(image - wanted).max(axis=2) < 6).sum())


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_in_a_browser(page, drawn, width, dark):
    page.open(drawn, width, dark)
    image = look(page)
    assert image.shape[1] == width
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert (image[:, :2].mean() < 60) == dark
    for index in (0, 1):
        box, above = chart(page, index), page.evaluate("scrollY")
        top, left = int(box["top"] + above), int(box["left"])
        part = image[top : top + int(box["height"]), left : left + int(box["width"])]
        for kind in ("input", "squeeze", "convolution", "concat"):
            assert amount(part, COLOURS[kind]) > 100, kind
        assert amount(part, BUDGET_COLOUR) > 100
    assert page.evaluate("document.querySelectorAll('.chart').length") == 5
    assert page.requests() == set()
    assert page.problems() == []
    assert page.evaluate("document.querySelectorAll('img').length") == 0


def test_colours_follow_the_theme_at_once(page, drawn):
    page.open(drawn, 1280, dark=False)
    light = look(page)
    page.theme(dark=True)
    page.drawn()
    dark = look(page)
    page.theme(dark=False)
    page.drawn()
    assert np.array_equal(look(page), light)
    page.open(drawn, 1280, dark=True)
    assert np.array_equal(look(page), dark)
    assert not np.array_equal(light, dark)


@pytest.mark.parametrize("index", [0, 1], ids=["before", "after"])
def test_hovering_names_the_tensor(page, drawn, index):
    page.open(drawn, 1280, dark=False)
    box = chart(page, index)
    # The first operations, right of the axis, at the bottom of the arena.
    page.hover(box["left"] + 110, box["bottom"] - 90)
    tips = (
        "[...document.querySelectorAll('.bk-Tooltip')].map(tip => tip.shadowRoot.querySelector('.bk-tooltip-content'))"
    )
    page.until(f"{tips}.some(tip => tip?.textContent.includes('alive'))")
    said = page.evaluate(f"{tips}.map(tip => tip.textContent).join()")
    assert page.evaluate(f"{tips}.every(tip => tip.querySelector('img, script') == null)")
    assert ("onerror=alert(1)" in said) == (index == 1)
    assert "conv" in said
    assert "KiB" in said
    assert "alive" in said
    assert page.requests() == set()
    assert page.problems() == []
