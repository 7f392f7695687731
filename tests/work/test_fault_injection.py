"""A kill, a full disk or a refused write at points of every command that writes: the command again mends it."""

import pytest
from support.faults import COMMANDS, FAULTS, KILL, TORN, Harness, chosen

NUM_POINTS = 2
"""Of each command and fault; `benchmarks/faults.py` tries every one."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Harness:
    return Harness(tmp_path_factory.mktemp("faults"))


def every(num_points):
    return max(1, num_points // NUM_POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", list(chosen([])), ids=lambda command: command.name)
def test_after_a_fault_the_command_run_again_leaves_what_an_undisturbed_one_does(harness, command, fault):
    if command.is_long or (command.name in ("phantom", "report", "predict", "watch") and fault != KILL):
        pytest.skip("tried by the benchmark")
    if command.has_company and fault == TORN:
        pytest.skip("its writes are not its own")
    harness.state(command.name)
    step = every(len(harness.list_points(command, fault)))
    found = harness.try_points(command, fault, every=step, first=step // 2)
    assert found.num_tried >= NUM_POINTS
    assert found.failures == []


def test_every_command_that_writes_is_tried():
    words = {command.words[0] for command in COMMANDS}
    steps = {"phantom", "prepare", "train", "stack", "evaluate", "submit", "leaderboard", "report"}
    assert words == steps | {"export", "predict", "explain", "watch"}
