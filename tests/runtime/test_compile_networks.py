"""Row plans and generated C on random networks: every byte has an owner, and every integer is the reference's."""

import cProfile
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compiled import library, program, random_input, run, runs_here
from hypothesis import given, settings
from hypothesis import strategies as st
from row_networks import row_networks, seeded_network
from strategies import GraphBuilder, in_any_8_bits

from firebox.runtime.compile.source import CSource, compile_c
from firebox.runtime.errors import PlanError
from firebox.runtime.graph import Graph, ops
from firebox.runtime.memory.compiled import smallest_plan
from firebox.runtime.memory.rows import Input, plan_rows
from firebox.runtime.memory.rows.check import check_plan
from firebox.runtime.memory.rows.graph import row_graph

INPUTS: Sequence[Input] = ("rows", "whole")
PLAIN, X86 = range(30), range(100, 110)


@settings(max_examples=50)
@given(row_networks(), st.sampled_from(INPUTS), st.sampled_from([None, 2048, 300, 64]))
def test_each_read_finds_what_was_written_for_it(graph: Graph, input: Input, strip_bytes: int | None):
    check_plan(plan_rows(row_graph(graph), input=input, strip_bytes=strip_bytes))


def test_the_check_finds_a_ring_that_is_too_low():
    found = 0
    for seed in range(12):
        plan = plan_rows(row_graph(seeded_network(seed)))
        for name, root in plan.roots.items():
            # One row of padding may stand for another.
            if root.kind == "ring" and root.rows > 1 and not root.top and not root.bottom:
                lower = replace(plan, roots={**plan.roots, name: replace(root, rows=root.rows - 1)})
                with pytest.raises(PlanError, match=r"but it holds|computed|beyond"):
                    check_plan(lower)
                found += 1
    assert found > 10


def test_the_check_finds_tensors_that_overlap():
    found = 0
    for seed in range(12):
        plan = plan_rows(row_graph(seeded_network(seed)))
        first, *others = plan.buffers.values()
        for other in others:
            if first.last >= other.first and first.first <= other.last:
                moved = {**plan.buffers, other.tensor: replace(other, offset=first.offset)}
                try:
                    check_plan(replace(plan, buffers=moved))
                except PlanError:
                    found += 1
    assert found


def _compiled(seed: int, isa: str) -> CSource:
    graph, name, input = seeded_network(seed), f"n{seed}", INPUTS[seed % 2]
    if seed % 4 < 2:
        return compile_c(graph, input=input, isa=isa, name=name)
    smallest = smallest_plan(graph, input=input).arena_bytes
    return compile_c(graph, input=input, isa=isa, name=name, sram_bytes=smallest + 40 * (seed % 3))


@pytest.mark.parametrize(
    "isa, seeds", [("plain", PLAIN), *((isa, X86) for isa in ("amx", "avx512vnni", "avxvnni", "avx2"))]
)
def test_compiled_networks_give_the_integers_of_the_reference(tmp_path, isa: str, seeds: range):
    if not runs_here(isa):
        pytest.skip(f"this processor has no {isa}")
    sources = {seed: _compiled(seed, isa) for seed in seeds}
    built = library(tmp_path, list(sources.values()), "-O1")
    wrong = []
    for seed, source in sources.items():
        x, expected = random_input(seeded_network(seed), seed)
        if not np.array_equal(run(built, source, x).reshape(-1), expected.reshape(-1)):
            wrong.append(seed)
    assert not wrong, f"the networks of seeds {wrong} differ"


def _wide() -> Graph:
    """A pool over almost as many columns as C is generated for."""
    build = GraphBuilder((1, 3, 32000, 1))
    x = build.conv("input", 2, (3, 3), padding=(1, 1, 1, 1))
    return in_any_8_bits(build.graph(build.add(ops.MaxPool, x, window=(3, 3), stride=(2, 2))))


def test_extreme_networks_give_the_integers_of_the_reference(tmp_path):
    graphs = {"nothing": in_any_8_bits(GraphBuilder((1, 5, 5, 3)).graph("input")), "wide": _wide()}
    sources = {name: compile_c(graph, isa="plain", name=name) for name, graph in graphs.items()}
    built = library(tmp_path, list(sources.values()), "-O1")
    for name, graph in graphs.items():
        x, expected = random_input(graph, 0)
        assert np.array_equal(run(built, sources[name], x).reshape(-1), expected.reshape(-1)), name


def test_sanitizers_find_nothing_in_compiled_networks(tmp_path):
    seeds = range(200, 206)
    sources = [_compiled(seed, "plain") for seed in seeds]
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    runs = [random_input(seeded_network(seed), seed) for seed in seeds]
    inputs = b"".join(x.tobytes() for x, _ in runs)
    ran = subprocess.run([program(tmp_path, sources, *flags)], input=inputs, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")[:4000]
    assert ran.stdout == b"".join(expected.tobytes() for _, expected in runs)


def _deep(count: int) -> Graph:
    """A network of ``count`` operations: Fire modules with bypasses, and a pointwise chain."""
    build = GraphBuilder((1, 6, 6, 3))
    x = build.conv("input", 8, (3, 3), padding=(1, 1, 1, 1))
    while len(build.ops) < count // 2:
        squeezed = build.conv(x, 2)
        wide = build.conv(squeezed, 4, (3, 3), padding=(1, 1, 1, 1))
        x = build.add(ops.Add, x, build.add(ops.Concat, build.conv(squeezed, 4), wide))
    while len(build.ops) < count:
        x = build.conv(x, 8)
    return row_graph(in_any_8_bits(build.graph(x)))


def _calls(graph: Graph) -> int:
    """Calls of the planner's functions."""
    profile = cProfile.Profile()
    profile.runcall(plan_rows, graph)
    codes = ((entry.code, entry.callcount) for entry in profile.getstats())
    return sum(
        count for code, count in codes if not isinstance(code, str) and Path(code.co_filename).parent.name == "rows"
    )


def test_planning_takes_time_proportional_to_the_number_of_operations():
    few, many = _calls(_deep(200)), _calls(_deep(1600))
    assert many < 8 * few * 1.3, (few, many)


_COMPILERS = (
    "gcc -O3 -march=x86-64-v3",
    "gcc -O3 -march=x86-64-v3 -std=c99 -ffp-contract=fast",
    "clang -O3 -march=x86-64-v3",
    "aarch64-linux-gnu-gcc -O3",
    "arm-none-eabi-gcc -O2 -mcpu=cortex-m4 -mfloat-abi=hard -mfpu=fpv4-sp-d16",
)


def _averages_and_sums() -> Graph:
    build = GraphBuilder((1, 8, 8, 8))
    pooled = build.add(ops.AveragePool, "input", window=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
    x = build.add(ops.Add, pooled, build.conv("input", 8, (3, 3), padding=(1, 1, 1, 1)))
    return in_any_8_bits(build.graph(build.add(ops.Softmax, build.add(ops.GlobalAveragePool, x))))


@pytest.mark.parametrize("command", _COMPILERS)
def test_no_compiler_fuses_a_product_and_a_sum(tmp_path, command: str):
    compiler, *flags = command.split()
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    for name, text in compile_c(_averages_and_sums(), isa="plain", name="fused").files().items():
        (tmp_path / name).write_text(text)
    subprocess.run([compiler, *flags, "-S", "fused.c"], cwd=tmp_path, check=True)
    code = (tmp_path / "fused.s").read_text()
    assert not re.findall(r"vfn?m(?:add|sub)\w*|fn?m(?:add|sub)\t|\bfml[as]\b|vfn?m[as]\b", code)
