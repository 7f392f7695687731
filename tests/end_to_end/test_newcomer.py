"""A newcomer: the lines of the README's quick start, typed in an empty folder, end at scans in a slice viewer."""

import html
import json
import re
import time

import pandas as pd
import pytest
from support.browsers import find_browser
from support.commands import FAST_STACK, SMALL
from support.tab import open_tab
from support.typed import Shell, lines_below

from ichkit.core.tasks import find_task

pytestmark = pytest.mark.slow
STUDIES = {"phantom.studies": 24, "phantom.test_studies": 4, "phantom.cq500_studies": 6, "phantom.size": 64}
# The README's are larger: with these both lines take a minute.
SMALLER = [*SMALL, *FAST_STACK, *(word for key, value in STUDIES.items() for word in ("--set", f"{key}={value}"))]
MINUTES = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder that the quick start ends in."""
    shell = Shell(tmp_path_factory.mktemp("newcomer"))
    lines = [line for line in lines_below("README.md", "## Quick start") if "pytest" not in line]
    words = [part.split()[:2] for line in lines for part in line.split("&&") if part.split()[0] == "ichkit"]
    assert words == [["ichkit", "demo"], ["ichkit", "predict"]]
    began = time.monotonic()
    printed = "".join(shell.types(line, {"demo": SMALLER}) for line in lines)
    assert time.monotonic() - began < 60 * MINUTES
    # What to open is said.
    assert {"work/report.html", "predictions/predictions.html"} <= set(re.findall(r"\w+/\w+\.html", printed))
    return shell.folder


def test_the_demo_leaves_a_board_of_every_source_and_a_submission_of_every_row(place):
    board = pd.read_csv(place / "submissions" / "leaderboard.csv")
    assert set(board["name"]) == {"demo", "demo-fusion", "demo-lightgbm", "demo-blend"}
    assert board["cv_weighted_log_loss"].between(0, 0.6931).all()  # 0.5 for every slice has ln 2
    assert board["cv_weighted_log_loss"].is_monotonic_increasing
    assert set(board["data"]) == {"phantom"}
    (path,) = (place / "submissions").glob("demo*.csv")
    sample = pd.read_csv(place / "phantom" / "rsna" / "stage_2_sample_submission.csv")
    submission = pd.read_csv(path)
    assert submission["ID"].to_list() == sample["ID"].to_list()
    assert submission["Label"].between(0, 1, inclusive="neither").all()


def test_the_test_scans_have_probabilities_and_the_verdict_that_it_is_no_medical_device(place):
    studies = pd.read_csv(place / "predictions" / "studies.csv")
    assert len(studies) == STUDIES["phantom.test_studies"]
    columns = [f"p_{name}" for name in find_task("hemorrhage").classes]
    assert ((studies[columns] > 0) & (studies[columns] < 1)).all(axis=None)
    assert "not a medical device" in (place / "predictions" / "predictions.html").read_text(encoding="utf-8")


def test_every_viewer_of_the_test_scans_shows_the_truth(place):
    text = (place / "predictions" / "predictions.html").read_text(encoding="utf-8")
    contents = [json.loads(html.unescape(found)) for found in re.findall(r'data-viewer="(.*?)"', text)]
    assert [content["truth"] is not None for content in contents] == [True] * STUDIES["phantom.test_studies"]


@pytest.mark.parametrize("name", ["work/report.html", "predictions/predictions.html"])
def test_the_page_is_one_file_that_can_be_mailed_and_holds_viewers(place, name):
    path = place / name
    text = path.read_text(encoding="utf-8")
    least = STUDIES["phantom.test_studies"] if name.startswith("predictions") else 1
    assert text.count('<figure class="viewer"') >= least
    assert path.stat().st_size < 6e6
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)


@pytest.mark.parametrize("name", ["work/report.html", "predictions/predictions.html"])
@pytest.mark.skipif(find_browser() is None, reason="no chromium or google-chrome on PATH")
def test_the_first_study_is_scrolled_with_the_keyboard(place, tmp_path, name):
    with open_tab(find_browser(), place / name, tmp_path) as tab:
        tab.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        tab.run("document.querySelector('.viewer').scrollIntoView({ behavior: 'instant' })")
        drawn = "document.querySelector('.viewer').dataset.drawn"
        tab.wait_for(drawn)
        tab.click(".viewer canvas")
        found = []
        for key in ("Home", "ArrowUp", "ArrowUp", "ArrowDown"):
            tab.press(key)
            found.append(tab.run(drawn))
        assert found == ["0", "1", "2", "1"]
        assert tab.console == []
