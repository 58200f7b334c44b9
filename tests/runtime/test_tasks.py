"""The tasks of a row plan that several threads share."""

from itertools import pairwise

import pytest

from firebox.runtime import read_graph
from firebox.runtime.memory.compiled import plan_compiled
from firebox.runtime.memory.tasks import TaskPlan, plan_tasks


@pytest.fixture(scope="module", params=[1, 2, 5])
def tasks(request, exported) -> TaskPlan:
    return plan_tasks(plan_compiled(read_graph(exported / "model.int8.tflite")), request.param)


def test_every_row_of_every_group_is_computed_once_and_in_order(tasks):
    done = [0] * (len(tasks.plan.groups) + 1)
    for task in tasks.tasks:
        # Whoever takes a task waits only for tasks that were taken before.
        assert all(done[group] >= rows for group, rows in task.needs)
        assert task.first == done[task.group] < task.end
        assert not task.first or (task.group, task.first) in task.needs
        done[task.group] = task.end
    steps = [group.steps for group in tasks.plan.groups]
    assert done == [*steps, sum(step.group < 0 for step in tasks.plan.schedule)]


def test_no_two_roots_share_bytes_and_no_row_is_overwritten(tasks):
    plan = tasks.plan
    spans = sorted(
        (plan.offset(name), plan.offset(name) + root.nbytes) for name, root in plan.roots.items() if root.nbytes
    )
    assert all(first[1] <= second[0] for first, second in pairwise(spans))
    assert spans[-1][1] <= plan.state_offset
    for root in plan.roots.values():
        if root.kind == "ring":
            assert root.rows == root.top + root.height + root.bottom


def test_threads_are_simulated(tasks):
    assert tasks.speedup == pytest.approx(1) if tasks.threads == 1 else 1 < tasks.speedup <= tasks.threads
