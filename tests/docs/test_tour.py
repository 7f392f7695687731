"""docs/tour.md: what it shows is what its commands print, numbers aside."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from support.commands import FAST_STACK, SMALL, call

from ichkit.core.tasks import find_task

DOCS = Path(__file__).parents[2] / "docs"
TOUR = runpy.run_path(str(DOCS / "run_tour.py"))
PAGE = (DOCS / "tour.md").read_text(encoding="utf-8")
# What other scans and another machine may say otherwise: how long it took, and which bleeds were missed.
OTHERWISE = {"min", "none", "highest", *find_task("hemorrhage").subtypes}
SMALL_PHANTOM = ["--set", "phantom.studies=24", "--set", "phantom.size=64"]
SMALL_PHANTOM += ["--set", "phantom.test_studies=4", "--set", "phantom.cq500_studies=6"]


def words_of(text):
    """Words of three letters or more, without those that a smaller run may not need."""
    return set(re.findall(r"[A-Za-z_]{3,}", re.sub(r"\[\d+ s\]", "", text))) - OTHERWISE


def test_the_lines_of_an_output_are_chosen_as_the_page_asks():
    lines = ["", "a", "b  ", "c", ""]
    assert TOUR["choose"](lines, "") == ["a", "b", "c"]
    assert TOUR["choose"](lines, " head=1") == ["a"]
    assert TOUR["choose"](lines, " tail=2") == ["b", "c"]


def test_every_block_of_commands_shows_what_it_printed_and_how_long_it_took():
    steps = list(TOUR["STEP"].finditer(PAGE))
    assert len(steps) == PAGE.count("```sh")
    assert all(re.search(r"\[\d+ s\]\n$", step["shown"]) for step in steps)
    seconds = sum(int(step["shown"].rsplit("[", 1)[1].split()[0]) for step in steps)
    assert seconds < 600


@pytest.mark.slow
def test_what_the_tour_shows_is_what_its_commands_print(tmp_path, monkeypatch):
    """Each command in this process, with a smaller phantom, network and second stage; their words are those shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    small = [*SMALL, *FAST_STACK, "--set", "prepare.num_folds=4"]
    for step in TOUR["STEP"].finditer(PAGE):
        printed = ""
        for line in step["commands"].splitlines():
            name, *words = shlex.split(line)
            if name == "cd":
                monkeypatch.chdir(words[0])
            else:
                # The shipped values stand where the tour itself sets one.
                printed += call(*words[:1], *small, *(SMALL_PHANTOM if words[0] == "demo" else []), *words[1:])
        missing = words_of(step["shown"]) - words_of(printed)
        assert not missing, step["commands"]
