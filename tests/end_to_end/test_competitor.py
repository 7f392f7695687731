"""A competitor: the lines of docs/coming-from.md, typed in an empty folder, lead from scans to an offline notebook."""

import ast
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from support.commands import FAST_STACK, SMALL
from support.typed import Shell, lines_below

pytestmark = pytest.mark.slow
# The page's are those of the demo: with these all lines together take two minutes.
SMALLER = {
    "phantom": ("--studies", 16, "--test-studies", 5, "--cq500-studies", 6, "--size", 64),
    "stack": [*SMALL, *FAST_STACK],
    **dict.fromkeys(("prepare", "train", "blend", "evaluate", "submit", "report", "kernel"), SMALL),
}
FOLDS = 3
RUNS = ("three-windows", "neighbours")
SOURCES = {*RUNS, "both-fusion", "both-lightgbm", "both-blend", "mine-hand"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder after all lines of the page."""
    shell = Shell(tmp_path_factory.mktemp("competitor"))
    for line in lines_below("docs/coming-from.md", "## A competition"):
        shell.types(line, SMALLER)
    return shell.folder


@pytest.mark.parametrize("run", RUNS)
def test_every_fold_of_a_run_has_a_log_of_its_training(place, run):
    paths = sorted((place / "work" / "runs" / run).glob("fold*/history.csv"))
    assert len(paths) == FOLDS
    for path in paths:
        history = pd.read_csv(path)
        assert history["epoch"].to_list() == [1]
        assert history["loss"].between(0, 2, inclusive="neither").all()


def test_the_second_run_is_logged_for_tensorboard(place):
    for fold in range(FOLDS):
        (path,) = (place / "work" / "tracking" / "tensorboard" / "neighbours" / f"fold{fold}").iterdir()
        assert b"epoch/loss" in path.read_bytes()
    assert not (place / "work" / "tracking" / "tensorboard" / "three-windows").exists()


def test_the_second_run_sees_one_window_of_three_slices(place):
    config = (place / "work" / "runs" / "neighbours" / "fold0" / "config.yaml").read_text(encoding="utf-8")
    assert "kind: neighbours" in config


def test_every_run_stack_and_blend_is_scored_and_on_the_board(place):
    scores = pd.read_parquet(place / "work" / "scores" / "scores.parquet")
    pooled = scores[(scores["metric"] == "weighted_log_loss") & (scores["subgroup"] == "all") & (scores["fold"] == -1)]
    loss = pooled[(pooled["level"] == "slice") & (pooled["split"] == "train")].set_index("source")["value"]
    board = pd.read_csv(place / "submissions" / "leaderboard.csv").set_index("name")
    assert set(loss.index) == set(board.index) == SOURCES
    assert loss.between(0, np.log(2), inclusive="neither").all()
    pd.testing.assert_series_equal(loss.sort_index(), board["cv_weighted_log_loss"].sort_index(), check_names=False)
    assert board.loc["mine-hand", "submission"] == "mine-hand.csv"
    assert board["rank"].to_list() == list(range(1, len(SOURCES) + 1))


def test_the_submission_is_the_blend_that_was_asked_for(place):
    submission = pd.read_csv(place / "submissions" / "mine-hand.csv").set_index("ID")["Label"]
    sample = pd.read_csv(place / "competition" / "rsna" / "stage_2_sample_submission.csv")
    assert submission.index.to_list() == sample["ID"].to_list()
    second = pd.read_parquet(place / "work" / "stacks" / "both" / "lightgbm_test.parquet").set_index("slice_id")
    folds = [place / "work" / "runs" / "three-windows" / f"fold{k}" / "test.parquet" for k in range(FOLDS)]
    first = pd.concat([pd.read_parquet(path) for path in folds]).groupby("slice_id")[["p_any"]].mean()
    expected = (0.75 * second["p_any"] + 0.25 * first["p_any"]).rename(lambda name: f"{name}_any")
    np.testing.assert_allclose(submission[expected.index], expected, atol=1e-4)  # with equal weights off by 0.005


def test_the_report_draws_both_trainings(place):
    text = (place / "work" / "report.html").read_text(encoding="utf-8")
    assert all(name in text for name in SOURCES)


def test_the_bundle_and_the_notebook_are_what_the_site_takes(place):
    bundle, notebook = place / "kernel" / "bundle", place / "kernel" / "notebook"
    (wheel,) = (bundle / "wheels").glob("ichkit-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"ichkit/__init__.py", "ichkit/configs/default.yaml"} <= names
    dataset = json.loads((bundle / "dataset-metadata.json").read_text(encoding="utf-8"))
    kernel = json.loads((notebook / "kernel-metadata.json").read_text(encoding="utf-8"))
    assert dataset["id"] == "me/ichkit-both-blend"
    assert kernel["dataset_sources"] == [dataset["id"]]
    assert kernel["enable_internet"] is False
    cells = json.loads((notebook / kernel["code_file"]).read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code
    for text in code:
        ast.parse(text)
    card = (bundle / "model" / "model-card.md").read_text(encoding="utf-8")
    assert "both-blend" in card
