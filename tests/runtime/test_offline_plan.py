"""Offline plans of TFLite files: arena offsets for tflite-micro, written, read back and planned unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import GraphBuilder, graphs, in_any_8_bits
from waiting import processor_time

from firebox.export import write_tflite
from firebox.runtime import plan, read_graph
from firebox.runtime.errors import FormatError
from firebox.runtime.formats.tflite_reader import read_offsets, read_tflite_metadata
from firebox.runtime.formats.tflite_schema import OFFLINE_PLAN, pack_offline_plan, unpack_offline_plan
from firebox.runtime.graph import Graph, ops

offsets_or_none = st.lists(st.none() | st.integers(0, 2**31 - 1), max_size=20)


def network() -> Graph:
    build = GraphBuilder((1, 8, 8, 2))
    x = build.conv("input", 4, (3, 3), padding=(1, 1, 1, 1))
    return in_any_8_bits(build.graph(build.conv(x, 3)))


def entry(version: int = 1, subgraph: int = 0, count: int = 7, values: tuple[int, ...] = (-1,) * 7) -> bytes:
    return np.array([version, subgraph, count, *values], "<i4").tobytes()


def test_the_network_of_these_tests_has_seven_tensors():
    data = write_tflite(network(), None, {"input": 0})
    assert len(read_tflite_metadata(data, OFFLINE_PLAN) or b"") == len(entry())
    assert plan(write_tflite(network(), {OFFLINE_PLAN: entry()})) == plan(write_tflite(network()))


@given(offsets_or_none)
def test_packing_is_reversible(offsets):
    data = pack_offline_plan(offsets)
    assert np.frombuffer(data, "<i4")[:3].tolist() == [1, 0, len(offsets)]
    assert unpack_offline_plan(data, len(offsets)) == offsets
    with pytest.raises(FormatError):
        unpack_offline_plan(data, len(offsets) + 1)


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"\x01",
        entry()[:-1],
        entry()[:-4],
        entry()[:8],
        entry() + b"\0",
        entry() + bytes(4),
        entry(version=2),
        entry(version=0),
        entry(version=-1),
        entry(subgraph=1),
        entry(count=6),
        entry(count=-1),
        entry(count=2**31 - 1),
        entry(values=(-2,) + (-1,) * 6),
        entry(values=(-(2**31),) * 7),
        bytes(range(40)),
        bytes(1 << 20),
    ],
)
def test_an_entry_that_does_not_match_the_file_is_refused_in_one_line(hostile):
    data = write_tflite(network(), {OFFLINE_PLAN: hostile})
    with pytest.raises(FormatError, match="the TFLite file's offline plan") as caught:
        plan(data)
    assert "\n" not in str(caught.value)
    # The network without the entry is valid.
    assert read_graph(write_tflite(network())).ops


@pytest.mark.parametrize("offset", [16, 2**20, 2**31 - 16, 2**31 - 1])
def test_large_offsets_are_planned_unchanged(offset):
    with processor_time(1):
        data = write_tflite(network(), {OFFLINE_PLAN: entry(values=(offset,) * 7)})
        planned = plan(data)
        assert planned.arena_bytes >= offset + 4 * 64
        assert planned.total_bytes is not None
        assert planned.total_bytes > planned.arena_bytes
        assert not planned.verdict(offset).fits
        assert {buffer.offset for buffer in planned.buffers} == {offset}


@settings(max_examples=60)
@given(st.data(), graphs(leave_out=("groups",)))
def test_places_are_read_back_as_they_were_written(data, graph):
    graph = in_any_8_bits(graph)
    made = plan(graph)
    places = st.none() | st.integers(0, 1000)
    wanted = {b.tensor: offset for b in made.buffers if (offset := data.draw(places)) is not None}
    found = write_tflite(graph, None, wanted)
    assert read_offsets(found) == wanted == plan(found).offsets
    # Offsets concern tflite-micro only.
    assert plan(found, "litert-reference") == plan(write_tflite(graph), "litert-reference")
    assert {b.tensor: b.offset for b in plan(found).buffers}.items() >= wanted.items()


def test_plans_with_some_offsets_given_match_tflite_micro(arena_head):
    @settings(max_examples=60)
    @given(st.data(), graphs(leave_out=("groups",)))
    def check(data, graph):
        graph = in_any_8_bits(graph)
        made = plan(graph).buffers
        wanted = {b.tensor: b.offset for b in made if data.draw(st.booleans())}
        found = write_tflite(graph, None, wanted)
        assert arena_head(found) == plan(found).arena_bytes

    check()


def test_plans_with_any_offsets_match_tflite_micro(arena_head):
    @settings(max_examples=60)
    @given(st.data(), graphs(leave_out=("groups",)))
    def check(data, graph):
        graph = in_any_8_bits(graph)
        made = plan(graph).buffers
        places = st.none() | st.integers(0, 40).map(lambda unit: 16 * unit)
        wanted = {b.tensor: offset for b in made if (offset := data.draw(places)) is not None}
        found = write_tflite(graph, None, wanted)
        assert arena_head(found) == plan(found).arena_bytes

    check()


def in_rows(height: int = 6) -> Graph:
    """A network that slices an activation into rows, widens these and concatenates them."""
    build = GraphBuilder((1, height, 8, 1))
    x = build.conv("input", 8)
    rows = [build.add(ops.Slice, x, begin=(0, row, 0, 0), size=(1, 1, 8, 8)) for row in range(height)]
    return in_any_8_bits(build.graph(build.add(ops.Concat, *(build.conv(row, 8) for row in rows), axis=1)))


@pytest.mark.parametrize("names", [(), ("conv0",), ("conv0", "slice1"), ("input", "conv0", "concat13")])
def test_tensors_without_an_offset_are_planned_as_tflite_micro_allocates_them(arena_head, names):
    # tflite-micro does not reuse single rows: its own allocations do not overlap any part of the sliced tensor.
    graph = in_rows()
    wanted = {name: 512 * index for index, name in enumerate(names)}
    data = write_tflite(graph, None, wanted)
    assert arena_head(data) == plan(data).arena_bytes
