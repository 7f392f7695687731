"""The same command twice at the same moment: one does the work, the other waits for it, and the folder is as of one."""

import multiprocessing
import shutil

import pytest
from support.faults import COMMANDS, Harness, describe_difference, normalise, run

FORK = multiprocessing.get_context("fork")
NAMES = ("prepare", "train", "stack", "evaluate", "submit", "report", "explain", "export", "predict", "watch")
NAMES += ("evaluate --protocols", "evaluate --robustness")


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Harness:
    return Harness(tmp_path_factory.mktemp("two"))


def run_one(work, words, codes, number):
    codes[number] = run(work, words, log=f"log{number}")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.name in NAMES], ids=lambda one: one.name
)
def test_two_at_once_leave_what_one_leaves(harness, command):
    expected = normalise(harness.state(command.name))
    work, codes = harness.copy(command.base), FORK.Array("i", [-1, -1])
    both = [FORK.Process(target=run_one, args=(work, command.words, codes, number)) for number in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
    assert list(codes) == [0, 0]
    assert describe_difference(expected, normalise(work)) == ""
    shutil.rmtree(work)
