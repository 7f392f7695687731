"""A kill, a full disk or a refused write at points of every command that writes: the command again mends it."""

import pytest
from support.faults import COMMANDS, Harness, chosen

NUM_POINTS = 2
"""Of each command and fault; `benchmarks/faults.py` tries every one."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Harness:
    return Harness(tmp_path_factory.mktemp("faults"))


def every(num_points):
    return max(1, num_points // NUM_POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "ENOSPC", "EACCES"])
@pytest.mark.parametrize("command", list(chosen([])), ids=lambda command: command.name)
def test_after_a_fault_the_command_run_again_leaves_what_an_undisturbed_one_does(harness, command, fault):
    if command.name in ("phantom", "report", "predict") and fault != "kill":
        pytest.skip("tried at every point by the benchmark")
    harness.state(command.name)
    step = every(harness.count_points(command))
    found = harness.try_points(command, fault, every=step, first=(step + 1) // 2)
    assert found.num_tried >= NUM_POINTS
    assert found.failures == []


def test_every_command_that_writes_is_tried():
    words = {command.words[0] for command in COMMANDS}
    assert words == {"phantom", "prepare", "train", "stack", "evaluate", "submit", "report", "export", "predict"}
