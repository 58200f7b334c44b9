"""Row plans: a network computed row by row, with a few rows of each tensor in memory instead of all.

A *root* is a block of memory: a tensor, with the operands of a channel concat inside it. It is one of

* a *ring* of rows: as many as its readers' windows and lags need, row ``r`` in slot ``r % rows``;
* a *strip*: some columns of one row, which all readers take as soon as they are computed;
* rows of *running* maxima, of a pool that reads a strip: those whose windows are open;
* *sums*, integers of each channel, or real numbers;
* the input as a *whole*, whose rows die one by one.

Operations connected by strips form a *group*, which computes one row at a time, strip by strip. The *schedule* is the
order of these steps: after each row of input, everything that it makes possible, the last group first. It does not
depend on data, so that lives, heights and offsets of all roots follow from simulating it once.
"""

from ...graph import Graph
from .graph import row_graph
from .groups import Grouping
from .placement import placed
from .plan import SLACK, STRIPS, WHOLE, Group, Input, Root, RowPlan, Step, Strip, actions
from .schedule import Simulation
from .windows import Read, Window, reads_of

__all__ = [
    "SLACK",
    "STRIPS",
    "WHOLE",
    "Group",
    "Input",
    "Read",
    "Root",
    "RowPlan",
    "Step",
    "Strip",
    "Window",
    "actions",
    "plan_rows",
    "reads_of",
    "row_graph",
]


def plan_rows(graph: Graph, *, input: Input = "rows", strip_bytes: int | None = None) -> RowPlan:
    """Plan a graph in the form of ``row_graph``, with the input ``whole`` in the arena or delivered by ``rows``.

    Strips have at most ``strip_bytes`` bytes if their width allows it, and are whole rows without it.
    """
    grouping = Grouping(graph)
    groups = grouping.groups(strip_bytes)
    roots = grouping.roots(groups)
    simulated = Simulation(graph, grouping, groups, roots).run()
    return placed(graph, grouping, simulated, input)
