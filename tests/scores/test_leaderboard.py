"""The board: rebuilt from artifacts, ranked within equal folds, and scores of the site only where they belong."""

import io
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from support.commands import do
from support.scored import headlines
from support.simulated import TASK, make_stack, make_work

from ichkit.core.config import Config, EvaluateConfig
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.tasks import find_task
from ichkit.show.terminal import Printable
from ichkit.stages.scores import evaluate, leaderboard, submit
from ichkit.stages.scores.costs import measure_costs
from ichkit.validation.catalog import find_sources
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder

CONFIG = Config(evaluate=EvaluateConfig(num_draws=60))
SUBTYPES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"]
COLUMNS = [
    *["rank", "name", "kind", "data", "source", "cv_weighted_log_loss"],
    *[*(f"cv_{name}" for name in SUBTYPES), "cv_any", "cv_auc_any"],
    *["cq500_auc_any", *(f"cq500_auc_{name}" for name in SUBTYPES), "cq500_auc_mean"],
    *["cq500_low_any", "cq500_high_any", "folds", "num_slices", "config_digest", "git_commit", "created_utc"],
    *["public_score", "private_score", "submission"],
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> WorkFolder:
    root = tmp_path_factory.mktemp("board") / "work"
    knobs = {"num_patients": 20, "num_folds": 3, "cq500_studies": 20, "test_studies": 3}
    work = make_work(root, runs=("a",), folds=(0, 1, 2), **knobs)
    make_stack(work, runs=("a",), kinds=("fusion", "blend"))
    make_work(root, runs=("part",), folds=(1,), noise=0.1, **knobs)
    do(evaluate, CONFIG, work)
    return work


@pytest.fixture
def work(made, tmp_path) -> WorkFolder:
    shutil.copytree(made.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


def test_the_columns_are_those_of_the_contract_and_every_source_has_a_row(work, tmp_path):
    board = do(leaderboard, CONFIG, work, submissions=tmp_path / "out")
    assert list(board.columns) == COLUMNS
    assert set(board.name) == {"a", "part", "a-fusion", "a-blend"}
    told = pd.read_csv(tmp_path / "out" / "leaderboard.csv", dtype={"folds": str})
    assert list(told.columns) == COLUMNS
    pd.testing.assert_frame_equal(told[["name", "folds"]], board[["name", "folds"]])
    np.testing.assert_array_equal(told.cv_any, board.cv_any)


def test_ranks_begin_at_one_among_sources_of_equal_folds_and_larger_groups_come_first(work, tmp_path):
    board = do(leaderboard, CONFIG, work, submissions=tmp_path / "out")
    assert board["rank"].tolist() == [1, 2, 3, 1]
    assert board.folds.tolist() == ["0+1+2"] * 3 + ["1"]
    assert board.cv_weighted_log_loss[:3].is_monotonic_increasing
    assert board.name[3] == "part"
    assert board.cv_weighted_log_loss[3] < board.cv_weighted_log_loss[0]


def test_every_number_is_the_pooled_score_of_its_source(work, tmp_path):
    board = do(leaderboard, CONFIG, work, submissions=tmp_path / "out").set_index("name")
    scores = read_table(work.scores / "scores.parquet")
    is_main = (scores["level"] == "slice") | (scores.dataset == "cq500") & (scores.aggregation == "maximum")
    scores = scores[is_main & (scores.fold == -1) & (scores.subgroup == "all")]
    scores = scores.set_index(["source", "dataset", "metric", "class"])
    assert scores.index.is_unique
    for name, row in board.iterrows():
        assert row.cv_weighted_log_loss == scores.value[name, "rsna", "weighted_log_loss", "all"]
        assert row.num_slices == scores.n[name, "rsna", "weighted_log_loss", "all"]
        assert row.cv_auc_any == scores.value[name, "rsna", "roc_auc", "any"]
        for label in TASK.classes:
            assert row[f"cv_{label}"] == scores.value[name, "rsna", "log_loss", label]
            assert row[f"cq500_auc_{label}"] == scores.value[name, "cq500", "roc_auc", label]
        assert row.cq500_auc_mean == pytest.approx(np.mean([row[f"cq500_auc_{label}"] for label in TASK.classes]))
        assert row.cq500_low_any == scores.low[name, "cq500", "roc_auc", "any"]
        assert row.cq500_high_any == scores.high[name, "cq500", "roc_auc", "any"]


def test_rebuilding_gives_the_same_bytes_also_from_nothing(work, tmp_path):
    first = tmp_path / "out" / "leaderboard.csv"
    do(leaderboard, CONFIG, work, submissions=first.parent)
    before = first.read_bytes()
    first.write_text("rank,name,kind,data\n1,made up,blend,phantom\n")
    do(leaderboard, CONFIG, work, submissions=first.parent)
    assert first.read_bytes() == before
    shutil.rmtree(work.scores)
    do(leaderboard, CONFIG, work, submissions=tmp_path / "other")
    assert (tmp_path / "other" / "leaderboard.csv").read_bytes() == before


def test_a_recorded_score_stays_until_the_sources_tables_are_others(work, tmp_path):
    out = tmp_path / "out"
    do(submit, CONFIG, work, submissions=out, source="a")
    board = do(leaderboard, CONFIG, work, submissions=out, record="a", public_score=0.66, private_score=0.05).set_index(
        "name"
    )
    assert board.loc["a", ["public_score", "private_score", "submission"]].tolist() == [0.66, 0.05, "a.csv"]
    assert board.drop("a")[["public_score", "private_score", "submission"]].isna().all(axis=None)
    shutil.rmtree(work.fold("a", 2))
    shutil.rmtree(work.stacks)
    board = do(leaderboard, CONFIG, work, submissions=out).set_index("name")
    assert board.loc["a", ["public_score", "private_score", "submission"]].isna().all()


def test_a_submission_that_was_edited_is_no_longer_the_sources(work, tmp_path):
    out = tmp_path / "out"
    made = do(submit, CONFIG, work, submissions=out, source="a-blend")
    assert leaderboard.build(work, out, TASK).set_index("name").submission["a-blend"] == "a-blend.csv"
    made.csv_path.write_text(made.csv_path.read_text().replace("0.1", "0.2"))
    assert leaderboard.build(work, out, TASK).submission.isna().all()


def test_a_board_without_scores_names_the_command(work, tmp_path):
    shutil.rmtree(work.scores)
    with pytest.raises(ArtifactError, match=r"Run `ichkit evaluate` first"):
        leaderboard.build(work, tmp_path / "out", TASK)


def test_without_cq500_its_columns_are_empty(tmp_path):
    work = make_work(tmp_path / "work", num_patients=10, num_folds=2, folds=(0, 1), cq500_studies=0)
    board = do(leaderboard, CONFIG, work, submissions=tmp_path / "out")
    assert board.filter(like="cq500").isna().all(axis=None)
    assert board.cv_weighted_log_loss.notna().all()


def text_of(table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(Printable(table))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_every_number_whole_and_that_the_data_are_phantoms(work, tmp_path, width):
    out = tmp_path / "out"
    do(submit, CONFIG, work, submissions=out, source="a-fusion")
    board = do(leaderboard, CONFIG, work, submissions=out, record="a-fusion", public_score=0.66, private_score=0.05)
    text = text_of(leaderboard.render(work, board, TASK), width)
    assert "data: phantom" in text
    assert "Made from phantoms" in " ".join(text.split())
    assert "not a medical device" in " ".join(text.split())
    assert "0.66000" in text
    assert "0.05000" in text
    assert max(map(len, text.splitlines())) <= width
    for row in board.itertuples():
        assert row.name in text
        for number in (f"{row.cv_weighted_log_loss:.5f}", f"{row.cv_auc_any:.4f}", f"{row.cq500_auc_any:.3f}"):
            assert number in text
        assert f"{row.cq500_low_any:.2f}-{row.cq500_high_any:.2f}" in text
    main = headlines(read_table(work.scores / "scores.parquet"))
    for row in main[(main.metric == "weighted_log_loss") & (main.fold == -1)].itertuples():
        assert f"{row.low:.4f}-{row.high:.4f}" in text


def test_without_recorded_scores_the_terminal_has_no_column_for_them(work, tmp_path):
    board = do(leaderboard, CONFIG, work, submissions=tmp_path / "out")
    text = text_of(leaderboard.render(work, board, TASK), 140)
    assert "public" not in text


def test_the_difference_to_the_best_is_the_paired_one_and_starred_where_it_is_real(work, tmp_path):
    board = do(leaderboard, CONFIG, work, submissions=tmp_path / "out")
    lines = text_of(leaderboard.render(work, board, TASK), 200).splitlines()
    pairs = read_table(work.scores / "comparisons.parquet")
    pairs = pairs[pairs.metric == "weighted_log_loss"].set_index(["source", "other"])
    best = board.name[0]
    for name in board.name[1:3]:
        row, at = pairs.loc[(name, best)], next(i for i, line in enumerate(lines) if f" {name} " in line)
        star = "*" if row.low > 0 or row.high < 0 else " "
        assert f"{row.difference:+.5f}{star}" in lines[at]
        assert f"{row.low:+.4f} to {row.high:+.4f}" in lines[at + 1]
    # Red where the interval says that it is worse, plain where the difference could be none.
    console = Console(width=200, file=io.StringIO(), record=True, force_terminal=True, color_system="standard")
    console.print(Printable(leaderboard.render(work, board, TASK)))
    styled = console.export_text(styles=True)
    for row in (pairs.loc[(name, best)] for name in board.name[1:3]):
        assert (f"\x1b[31m{row.difference:+.5f}" in styled) == (row.low > 0)
        assert f"\x1b[32m{row.difference:+.5f}" not in styled
    # The best of each group of folds has nobody to be compared with.
    assert sum(re.search(r"^ *\d+ .* [+-]0\.\d", line) is not None for line in lines) == 2


def test_recorded_scores_move_no_rank(work, tmp_path):
    out = tmp_path / "out"
    before = do(leaderboard, CONFIG, work, submissions=out)
    worst = before.name[2]
    do(submit, CONFIG, work, submissions=out, source=worst)
    after = do(leaderboard, CONFIG, work, submissions=out, record=worst, public_score=0.0, private_score=0.0)
    pd.testing.assert_frame_equal(after[["rank", "name"]], before[["rank", "name"]])


@pytest.mark.parametrize(("suffix", "row"), [("md", "| a-blend"), ("tex", "& a-blend")])
def test_the_table_is_exported_in_the_format_of_the_suffix(work, tmp_path, suffix, row):
    path = tmp_path / "new" / f"board.{suffix}"
    board = do(leaderboard, CONFIG, work, submissions=tmp_path / "out", export=path)
    text = path.read_text(encoding="utf-8")
    assert row in text
    loss = board.set_index("name").cv_weighted_log_loss["a-blend"]
    assert f"{loss:.5f}" in next(line for line in text.splitlines() if row in line)


def test_the_export_as_csv_has_the_columns_of_the_file_with_every_digit_and_the_costs(work, tmp_path):
    path = tmp_path / "board.csv"
    board = do(leaderboard, CONFIG, work, submissions=tmp_path / "out", export=path)
    written = pd.read_csv(path)
    stored = pd.read_csv(tmp_path / "out" / "leaderboard.csv")
    pd.testing.assert_frame_equal(written[list(stored.columns)], stored, check_exact=True)
    assert list(written.columns[len(stored.columns) :]) == ["level", "hours", "seconds_per_study", "num_bytes"]
    costs = measure_costs(work, find_sources(work, TASK))
    assert written["num_bytes"].to_list() == [costs[name].num_bytes for name in board["name"]]


def test_an_export_without_a_known_suffix_is_refused_before_anything_is_written(work, tmp_path):
    with pytest.raises(ConfigError, match=r"leaderboard --export: expected a file name that ends in .csv, .md, .tex"):
        do(leaderboard, CONFIG, work, submissions=tmp_path / "out", export=tmp_path / "board.xlsx")
    assert not (tmp_path / "out").exists()


def test_boards_of_two_tasks_in_one_project_folder_are_two_files(tmp_path):
    """The board of the second task leaves that of the first as it is, and each call finds its own again."""
    first, second = (find_task(name) for name in ("hemorrhage", "ischemia"))
    head = {"rank": [1], "name": ["one"], "kind": ["base"], "cv_weighted_log_loss": [0.5]}

    def board_of(task, name):
        names = (*(f"cv_{one}" for one in task.classes), f"cv_auc_{task.headline_class}")
        classes = {name: [0.5] for name in names}
        return pd.DataFrame({**head, "name": [name], **classes, "cv_end": [0]})

    for turn in ("a", "b"):
        for task in (first, second):
            leaderboard.write(board_of(task, f"{task.name}-{turn}"), tmp_path, task)
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == ["leaderboard-ischemia.csv", "leaderboard.csv"]
    assert pd.read_csv(tmp_path / "leaderboard.csv")["name"].tolist() == ["hemorrhage-b"]
    assert pd.read_csv(tmp_path / "leaderboard-ischemia.csv")["name"].tolist() == ["ischemia-b"]
