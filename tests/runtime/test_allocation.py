"""Allocation of activations in an arena: as tflite-micro does it, and with rows that are freed one by one."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import GraphBuilder, graphs, in_any_8_bits

from firebox.export import write_tflite
from firebox.runtime import plan
from firebox.runtime.graph import Graph, ops
from firebox.runtime.memory import Block, Buffer, LiveRange, allocate, allocate_within, live_ranges
from firebox.runtime.memory.allocation import ALIGNMENT


@st.composite
def drawn_ranges(draw, most: int = 12) -> list[LiveRange]:
    """Live ranges of any size and length, some of them row by row, ordered by their first operation."""
    found = []
    for index in range(draw(st.integers(1, most))):
        first = draw(st.integers(0, 15))
        rows = draw(st.integers(1, 4))
        row = ALIGNMENT * draw(st.integers(1, 20)) if rows > 1 else draw(st.integers(1, 300))
        edges = [row * i for i in range(rows)] + [-(-row * rows // ALIGNMENT) * ALIGNMENT]
        last = [first + draw(st.integers(0, 8)) for _ in range(rows)]
        blocks = tuple(Block(first, end, *span) for end, span in zip(last, pairwise(edges), strict=True))
        found.append(LiveRange(f"t{index}", row * rows, blocks))
    return sorted(found, key=lambda live: live.first)


def assert_apart(buffers: Sequence[Buffer]) -> None:
    """Assert that no two live blocks share a byte and that no offset is negative."""
    for one, other in combinations(buffers, 2):
        for a in one.blocks:
            for b in other.blocks:
                together = a.first <= b.last and b.first <= a.last
                assert not together or a.end <= b.offset or b.end <= a.offset, f"{one.tensor} and {other.tensor}"
    assert all(block.offset >= 0 for buffer in buffers for block in buffer.blocks)


def assert_allocated(found: Sequence[Buffer], wanted: Sequence[LiveRange]) -> None:
    """Assert that the buffers are the live ranges, in the same order, at aligned offsets, and do not overlap."""
    assert [buffer.tensor for buffer in found] == [live.tensor for live in wanted]
    for buffer, live in zip(found, wanted, strict=True):
        assert buffer == live.at(buffer.offset)
        assert buffer.offset % ALIGNMENT == 0
    assert_apart(found)


def most_alive(wanted: Sequence[LiveRange]) -> int:
    """A lower bound of every allocation."""
    blocks = [block for live in wanted for block in live.blocks]
    steps = range(max(block.last for block in blocks) + 1)
    return max(sum(b.end - b.offset for b in blocks if b.first <= step <= b.last) for step in steps)


@settings(max_examples=150)
@given(drawn_ranges())
def test_live_tensors_share_no_byte(wanted):
    found = allocate(wanted)
    assert_allocated(found, wanted)
    assert max(buffer.end for buffer in found) >= most_alive(wanted)
    assert allocate(wanted) == found


@settings(max_examples=150)
@given(st.data(), drawn_ranges())
def test_fixed_buffers_stay_and_are_not_overlapped(data, wanted):
    fixed = []
    for live in data.draw(st.lists(st.sampled_from(wanted), unique=True)):
        pinned = live.at(ALIGNMENT * data.draw(st.integers(0, 100)))
        fixed += [pinned] if not clash(pinned, fixed) else []
    there = {buffer.tensor for buffer in fixed}
    free = [live for live in wanted if live.tensor not in there]
    found = allocate(free, fixed=fixed)
    assert_allocated(found, free)
    assert_apart([*found, *fixed])


def clash(buffer: Buffer, others: Sequence[Buffer]) -> bool:
    try:
        assert_apart([buffer, *others])
    except AssertionError:
        return True
    return False


@settings(max_examples=40)
@given(drawn_ranges(most=6), st.integers(85, 150))
def test_an_allocation_within_a_limit_never_exceeds_it(wanted, percent):
    limit = most_alive(wanted) * percent // 100
    found = allocate_within(wanted, limit)
    if percent < 100 and limit // ALIGNMENT < most_alive(wanted) // ALIGNMENT:
        assert found is None
    if max(buffer.end for buffer in allocate(wanted)) <= limit:
        assert found is not None
    if found is not None:
        assert_allocated(found, wanted)
        assert max(buffer.end for buffer in found) <= limit
        assert allocate_within(wanted, limit) == found


def test_a_tensor_does_not_fit_a_limit_below_its_size():
    (alone,) = [LiveRange("t0", 40, (Block(0, 0, 0, 48),))]
    assert allocate_within([alone], 47) is None
    assert allocate_within([alone], 48) == (alone.at(0),)


def chain(*sizes: int) -> list[LiveRange]:
    """A network without branches: each activation is computed from the one before."""
    return [LiveRange(f"t{i}", size, (Block(max(i - 1, 0), i, 0, size),)) for i, size in enumerate(sizes)]


def test_a_chain_fits_its_peak_of_live_bytes():
    wanted = chain(160, 320, 64, 400, 16, 320, 96, 384)
    found = allocate_within(wanted, most_alive(wanted))
    assert found is not None
    assert_allocated(found, wanted)
    assert allocate_within(wanted, most_alive(wanted) - 1) is None


def rows_of(height: int, width: int = 16) -> Graph:
    """An activation sliced into rows, each of which is convolved to a row of the same size."""
    build = GraphBuilder((1, height, width, 1))
    x = build.conv("input", 4)
    for row in range(height):
        build.conv(build.add(ops.Slice, x, begin=(0, row, 0, 0), size=(1, 1, width, 4)), 4)
    return in_any_8_bits(build.graph(*(op.output for op in build.ops if isinstance(op, ops.Conv) and op.output != x)))


def test_rows_are_freed_one_by_one_if_only_slices_read_them():
    graph = rows_of(4)
    (_, whole, *_) = live_ranges(graph)
    (_, live, *_) = live_ranges(graph, rowwise=True)
    assert whole.blocks == (Block(0, 7, 0, 256),)
    assert live.blocks == tuple(Block(0, 1 + 2 * row, 64 * row, 64 * (row + 1)) for row in range(4))
    assert (live.first, live.last, live.nbytes) == (0, 7, 256)
    # A later reader of the whole activation keeps all rows alive.
    build = GraphBuilder((1, 4, 4, 2))
    x = build.conv("input", 4)
    top = build.conv(build.add(ops.Slice, x, begin=(0, 0, 0, 0), size=(1, 2, 4, 4)), 2)
    (_, live, *_) = live_ranges(build.graph(top, build.conv(x, 4)), rowwise=True)
    assert [block.last for block in live.blocks] == [3]
    # Rows without readers are alive only while they are written.
    build = GraphBuilder((1, 4, 4, 4))
    x = build.conv("input", 4)
    part = build.add(ops.Slice, x, begin=(0, 1, 0, 0), size=(1, 2, 4, 4))
    (_, live, *_) = live_ranges(build.graph(build.conv(build.conv(part, 1), 1)), rowwise=True)
    assert [(block.last, block.offset, block.end) for block in live.blocks] == [
        (0, 0, 64),
        (1, 64, 192),
        (0, 192, 256),
    ]
    # An output stays alive to the end.
    build = GraphBuilder((1, 4, 4, 4))
    x = build.conv("input", 4)
    part = build.conv(build.add(ops.Slice, x, begin=(0, 1, 0, 0), size=(1, 2, 4, 4)), 1)
    (_, live, *_) = live_ranges(build.graph(x, part), rowwise=True)
    assert [block.last for block in live.blocks] == [2]


@settings(max_examples=40)
@given(graphs(leave_out=("groups",)))
def test_rows_are_never_freed_before_they_are_read(graph):
    whole = {live.tensor: live for live in live_ranges(graph)}
    for live in live_ranges(graph, rowwise=True):
        assert (live.first, live.last) == (whole[live.tensor].first, whole[live.tensor].last)
        # The blocks are the whole tensor, one after the other.
        assert live.blocks[0].offset == 0
        assert all(above.end == below.offset for above, below in pairwise(live.blocks))
        assert live.blocks[-1].end == whole[live.tensor].blocks[-1].end
        for step, op in enumerate(graph.ops):
            if live.tensor not in op.inputs:
                continue
            row = live.nbytes // graph.tensors[live.tensor].shape[1]
            first, last = (0, live.nbytes)
            if isinstance(op, ops.Slice):
                first, last = op.begin[1] * row, (op.begin[1] + op.size[1]) * row
            for block in live.blocks:
                assert block.last >= step or block.end <= first or block.offset >= last


@pytest.mark.parametrize("kinds", [("groups",), ("groups", "average", "slice")])
def test_offsets_are_those_of_tflite_micro(arena_head, kinds):
    @settings(max_examples=25)
    @given(graphs(leave_out=kinds), st.integers(0, 100))
    def check(graph, seed):
        data = write_tflite(in_any_8_bits(graph, seed))
        planned = plan(data)
        assert arena_head(data) == planned.arena_bytes
        assert_apart([*planned.buffers, *(planned.layout.scratch or ())])

    check()
