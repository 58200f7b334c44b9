"""Tilings and reorderings compute the same integers in all runtimes."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runners import answers, assert_same_answers, some_input
from strategies import GraphBuilder, fire_networks, in_any_8_bits, tilings

from firebox.export.fit.reorder import (
    reorderings,
    with_channels_split,
    with_padding_ahead,
    with_pools_before_concat,
)
from firebox.export.fit.search import cut_points
from firebox.export.fit.tiling import MAX_JOINED, Region, can_tile, needs, tile, tile_of
from firebox.export.quantization import with_input_type
from firebox.runtime.graph import Graph, Op, ops

# The same networks every time, as in test_formats.py.
runs = settings(max_examples=24)


def between(graph: Graph, here: tuple[int, str], there: tuple[int, str]) -> Graph:
    """The segment between two cut points."""
    operations = graph.ops[here[0] : there[0]]
    return Graph.of(graph.name, graph.tensors.values(), operations, [here[1]], [there[1]])


def put_together(graph: Graph, parts: list[Graph]) -> Graph:
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    operations: list[Op] = [op for part in parts for op in part.ops]
    return Graph.of(graph.name, tensors.values(), operations, graph.inputs, graph.outputs)


@st.composite
def segments(draw, graph: Graph) -> list[Graph]:
    """Segments between some of the cut points, or between all of them where a segment cannot be tiled."""
    points = cut_points(graph)
    chosen = [points[0], *(point for point in points[1:-1] if draw(st.booleans())), points[-1]]
    found = []
    for here, there in pairwise(chosen):
        if can_tile(between(graph, here, there)):
            found.append(between(graph, here, there))
        else:
            inside = [point for point in points if here[0] <= point[0] <= there[0]]
            found += [between(graph, *ends) for ends in pairwise(inside)]
    return found


@st.composite
def tiled(draw, graph: Graph) -> Graph:
    """The network with random tilings of the segments that can be tiled."""
    parts = []
    for part in draw(segments(graph)):
        shape = part.tensors[part.outputs[0]].shape
        bands = draw(tilings(shape)) if can_tile(part) else []
        # A tile that depends only on padding is not possible.
        possible = all(tile_of(part, region, "tile") for band in bands for region in band)
        parts.append(tile(part, bands) if bands and possible else part)
    return put_together(graph, parts)


@runs
@given(st.data(), fire_networks())
def test_any_tiling_of_any_stretch_gives_the_same_integers(data, graph):
    x = some_input(graph)
    expected = answers(graph, x)
    other = data.draw(st.sampled_from(reorderings(graph)))
    assert_same_answers(data.draw(tiled(graph)), expected, x)
    assert_same_answers(data.draw(tiled(other)), expected, x)


@runs
@given(fire_networks())
def test_equivalent_graphs_give_the_same_integers(graph):
    x = some_input(graph)
    expected = answers(graph, x)
    others = reorderings(graph)
    assert others[0] == graph
    for other in others[1:]:
        assert_same_answers(other, expected, x)


@settings(runs, max_examples=100)
@given(fire_networks())
def test_equivalent_graphs_have_the_same_ends_and_change_no_tensor(graph):
    for other in reorderings(graph):
        assert (other.inputs, other.outputs) == (graph.inputs, graph.outputs)
        assert other.macs == graph.macs
        for name in graph.tensors.keys() & other.tensors.keys():
            assert other.tensors[name] == graph.tensors[name]
        assert {*graph.inputs, *graph.outputs} <= {name for _, name in cut_points(other)}
        made = [op.output for op in other.ops]
        assert len(set(made)) == len(made)


def test_a_cut_point_between_two_changes_keeps_its_name():
    build = GraphBuilder((1, 16, 16, 3))
    x = build.conv("input", 8, (3, 3), padding=(1, 1, 1, 1))
    first = build.add(ops.MaxPool, x, window=(3, 3), stride=(2, 2), padding=(0, 1, 0, 1))
    squeezed = build.conv(first, 2)
    joined = build.add(ops.Concat, build.conv(squeezed, 4), build.conv(squeezed, 4, (3, 3), padding=(1, 1, 1, 1)))
    second = build.add(ops.MaxPool, joined, window=(2, 2), stride=(2, 2))
    graph = in_any_8_bits(build.graph(build.add(ops.GlobalAveragePool, build.conv(second, 16))))
    found = [{name for _, name in cut_points(other)} for other in reorderings(graph)]
    assert all({"input", first, second, *graph.outputs} <= names for names in found)
    padded = with_padding_ahead(graph)
    assert [op.padding for op in padded.ops if isinstance(op, ops.Pad)] == [(1, 1, 1, 1)] * 2
    assert not any(any(op.padding) for op in padded.ops if isinstance(op, ops.Conv))
    pooled = with_pools_before_concat(graph)
    assert [type(op) for op in pooled.ops][3:8] == [ops.Conv, ops.MaxPool, ops.Conv, ops.MaxPool, ops.Concat]
    split = with_channels_split(graph, 4)
    assert sum(isinstance(op, ops.Conv) for op in split.ops) == 5 + 3 + 3
    assert sum(isinstance(op, ops.GlobalAveragePool) for op in split.ops) == 4


@settings(runs, max_examples=100)
@given(st.data(), fire_networks())
def test_tiles_reach_all_that_they_need_and_no_further(data, graph):
    part = data.draw(st.sampled_from(data.draw(segments(graph))))
    if not can_tile(part):
        return
    (name,) = part.outputs
    for band in data.draw(tilings(part.tensors[name].shape)):
        for region in band:
            wanted = needs(part, region)
            assert wanted[name] == region
            for tensor, found in wanted.items():
                _, rows, columns, _ = part.tensors[tensor].shape
                empty = found.top >= found.bottom or found.left >= found.right
                assert empty or (0 <= found.top < found.bottom <= rows and 0 <= found.left < found.right <= columns)
            one = tile_of(part, region, "tile")
            assert one is None or one.tensors[one.outputs[0]].shape == region.shape(part.tensors[name].shape)
            assert one is None or one.macs <= part.macs


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 25, 31])
def test_any_number_of_bands_is_concatenated(rows):
    build = GraphBuilder((1, rows, 5, 2))
    graph = in_any_8_bits(build.graph(build.conv("input", 3, (3, 3), padding=(1, 1, 1, 1))))
    bands = [[Region(row, row + 1, 0, 5)] for row in range(rows)]
    found = tile(graph, bands[::-1])
    assert all(len(op.inputs) <= MAX_JOINED for op in found.ops if isinstance(op, ops.Concat))
    x = some_input(graph)
    assert_same_answers(found, answers(graph, x), x)


def test_a_tile_computes_its_region_and_the_halo():
    build = GraphBuilder((1, 12, 12, 2))
    x = build.conv("input", 4, (3, 3), padding=(1, 1, 1, 1))
    graph = in_any_8_bits(build.graph(build.add(ops.MaxPool, x, window=(3, 3), stride=(2, 2), padding=(0, 1, 0, 1))))
    assert needs(graph, Region(0, 3, 0, 6)) == {
        "maxpool1": Region(0, 3, 0, 6),
        "conv0": Region(0, 7, 0, 12),
        "input": Region(0, 8, 0, 12),
    }
    halves = [[Region(0, 3, 0, 6)], [Region(3, 6, 0, 6)]]
    found = tile(graph, halves)
    assert found.macs == graph.macs * (7 + 6) // 12
    parts = [(op.begin[1], op.size[1]) for op in found.ops if isinstance(op, ops.Slice)]
    assert parts == [(0, 8), (5, 7)]


def test_can_tile_is_false_for_operations_that_need_the_whole_input():
    build = GraphBuilder((1, 8, 8, 4))
    padded = build.graph(build.add(ops.AveragePool, "input", window=(3, 3), padding=(1, 1, 1, 1)))
    build = GraphBuilder((1, 8, 8, 4))
    channels = build.graph(build.add(ops.Slice, "input", begin=(0, 0, 0, 1), size=(1, 8, 8, 2)))
    build = GraphBuilder((1, 8, 8, 4))
    joined = build.graph(build.add(ops.Concat, "input", build.conv("input", 4), axis=1))
    build = GraphBuilder((1, 8, 8, 4))
    flat = build.graph(build.linear("input", 3))
    build = GraphBuilder((1, 8, 8, 4))
    mean = build.graph(build.add(ops.GlobalAveragePool, "input"))
    for graph in (padded, channels, joined, flat, mean):
        assert not can_tile(graph)
    build = GraphBuilder((1, 8, 8, 4))
    plain = in_any_8_bits(build.graph(build.conv("input", 4)))
    assert can_tile(plain)
    assert not can_tile(with_input_type(plain, "uint8"))


def test_a_tile_that_depends_only_on_padding_is_none():
    build = GraphBuilder((1, 4, 4, 1))
    graph = build.graph(build.add(ops.Pad, "input", padding=(2, 2, 0, 0)))
    assert tile_of(graph, Region(0, 2, 0, 4), "tile") is None
    assert tile_of(graph, Region(0, 3, 0, 4), "tile") is not None


def test_grouped_and_dilated_convolutions_are_tiled():
    # tflite-micro has no grouped convolution.
    build = GraphBuilder((1, 11, 9, 3))
    x = build.conv("input", 4, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2))
    graph = in_any_8_bits(build.graph(build.conv(x, 6, (3, 3), groups=2, stride=(2, 1), padding=(1, 0, 1, 1))))
    rows, columns = graph.tensors[graph.outputs[0]].shape[1:3]
    bands = [
        [Region(0, 1, 0, 2), Region(0, 1, 2, columns)],
        [Region(1, rows, 0, columns - 1), Region(1, rows, columns - 1, columns)],
    ]
    x = some_input(graph)
    assert_same_answers(tile(graph, bands), answers(graph, x, ("tflite-micro",)), x)
