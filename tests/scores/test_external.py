"""External sets by role: any number side by side, each with its name in scores, board and report."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.reports import CONFIG, Page, explain_without_network, make_report_work
from support.simulated import TASK, add_external_set, rewrite_prepared

from ichkit.core.errors import ContractError
from ichkit.stages.report import gallery
from ichkit.stages.report import run as report
from ichkit.stages.scores import evaluate, leaderboard, tables
from ichkit.stages.scores.book import ScoreBook, open_book
from ichkit.validation.scope import Scope
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder

SUBTYPES = [name for name in TASK.classes if name != "any"]
SITE_COLUMNS = ["site_auc_any", *(f"site_auc_{name}" for name in SUBTYPES), "site_auc_mean", "site_low_any"]
SITE_COLUMNS.append("site_high_any")
NO_UMBRELLA = replace(TASK, any_class=None, covers={})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """CQ500 as the only external set."""
    work = make_report_work(tmp_path_factory.mktemp("external") / "work", cq500_missing=2)
    do(evaluate, CONFIG, work)
    return work


@pytest.fixture(scope="module")
def both(alone, tmp_path_factory):
    """A second set beside it, whose rows are those of CQ500 under other ids."""
    root = tmp_path_factory.mktemp("both") / "work"
    shutil.copytree(alone.root, root)
    work = WorkFolder(root)
    add_external_set(work, "site")
    do(evaluate, CONFIG, work)
    return work


def scores_of(work, dataset):
    table = read_table(work.scores / "scores.parquet")
    return table[table.dataset == dataset].drop(columns="dataset").reset_index(drop=True)


def test_a_second_set_is_scored_as_the_first_and_changes_no_number_of_it(alone, both):
    pd.testing.assert_frame_equal(scores_of(both, "cq500"), scores_of(alone, "cq500"))
    pd.testing.assert_frame_equal(scores_of(both, "rsna"), scores_of(alone, "rsna"))
    keys = ["source", "split", "level", "aggregation", "subgroup", "fold", "metric", "class"]
    first, second = (scores_of(both, name).set_index(keys) for name in ("cq500", "site"))
    # What the source of CQ500 alone knows, its batches, is unknown of the other.
    first = first[~first.index.get_level_values("subgroup").str.startswith("batch")]
    assert list(second.index) == list(first.index)
    np.testing.assert_array_equal(second[["value", "n", "n_positive"]], first[["value", "n", "n_positive"]])


def test_pairs_are_compared_on_every_set(alone, both):
    before, after = (read_table(work.scores / "comparisons.parquet") for work in (alone, both))
    named = ["source", "other", "metric", "class", "method"]
    first, second = (after[after.dataset == name].set_index(named) for name in ("cq500", "site"))
    assert len(second)
    np.testing.assert_array_equal(second.difference, first.difference.loc[second.index])
    kept = after[after.dataset != "site"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before)


def test_studies_without_slices_are_counted_for_the_set_they_belong_to(both):
    missing = open_book(both, TASK).tables.missing
    assert missing["cq500"] == ["CQ500-CT-20", "CQ500-CT-21"]
    assert missing["site"] == ["site-CQ500-CT-20", "site-CQ500-CT-21"]


def test_the_board_keeps_its_columns_and_a_further_set_adds_its_own_behind_them(alone, both, tmp_path):
    before = do(leaderboard, CONFIG, alone, submissions=tmp_path / "one")
    after = do(leaderboard, CONFIG, both, submissions=tmp_path / "two")
    assert list(after.columns) == [*before.columns, *SITE_COLUMNS]
    assert list(pd.read_csv(tmp_path / "two" / "leaderboard.csv").columns) == list(after.columns)
    for name in ("auc_any", "auc_epidural", "auc_mean"):
        np.testing.assert_array_equal(after[f"site_{name}"], after[f"cq500_{name}"])
    known = after.site_low_any.notna()
    assert (after.site_low_any[known] <= after.site_auc_any[known]).all()


def test_published_numbers_stand_beside_the_set_that_has_them_alone(both):
    book = open_book(both, TASK)
    assert book.external_sets == ("cq500", "site")
    first, second = (tables.external(book, book.sources[0], name) for name in book.external_sets)
    assert first.columns == ("class", "AUC", "DeLong", "paper", "baseline", "positive")
    assert second.columns == ("class", "AUC", "DeLong", "positive")
    assert [row[1].text for row in first.rows] == [row[1].text for row in second.rows]
    assert "Published" not in second.note
    assert "on CQ500," in first.title
    assert "on site," in second.title
    assert tables.board(book).columns[5:9] == ("CQ500\nany", "CQ500\nmean", "site\nany", "site\nmean")


def test_the_report_has_every_set_in_curves_tables_and_subgroups(both, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "explain_slices", explain_without_network)
    page = Page(do(report, CONFIG, both, submissions=tmp_path).read_text())
    best = open_book(both, TASK).sources[0].name
    assert "External test: CQ500 (phantom), site (phantom)" in page.headings
    for shown in ("CQ500", "site"):
        assert f"{best} on {shown}, by study" in page.tables
        assert f"{best} on {shown}: AUC by slice-to-study aggregation" in page.tables
        assert f"{best}: studies of {shown}, maximum over the slices" in page.text
    assert {row[1] for row in page.tables[f"{best}: performance by subgroup"][1:]} == {"out of fold", "CQ500", "site"}
    assert len(page.ids) == len(set(page.ids))


def test_a_source_that_never_predicted_a_set_is_named_with_what_to_do(alone, tmp_path):
    shutil.copytree(alone.root, tmp_path / "work")
    work = WorkFolder(tmp_path / "work")
    studies, slices = (read_table(work.prepared / name) for name in ("studies.parquet", "slices.parquet"))
    of_both = [pd.concat([one, one[one.dataset == "cq500"].assign(dataset="site")]) for one in (studies, slices)]
    rewrite_prepared(work, {"studies.parquet": of_both[0], "slices.parquet": of_both[1]})
    with pytest.raises(
        ContractError,
        match=r"runs/a \(site\): expected a table of the \d+ prepared slices, found none.*run `ichkit train`",
    ):
        do(evaluate, CONFIG, work)


def test_without_an_umbrella_class_the_first_class_takes_its_place(alone):
    book = open_book(alone, TASK)
    book = ScoreBook(book.tables, [replace(source, scope=Scope.of(NO_UMBRELLA)) for source in book.sources])
    assert leaderboard.make_board(book, alone, alone.root / "submissions").columns[12:21].to_list() == [
        "cv_auc_epidural",
        "cq500_auc_epidural",
        *(f"cq500_auc_{name}" for name in TASK.classes[1:]),
        "cq500_auc_mean",
        "cq500_low_epidural",
    ]
    board = tables.board(book)
    assert board.columns[4:7] == ("AUC epidural", "CQ500\nepidural", "CQ500\nmean")
    auc = book.find(book.sources[0], "roc_auc", "epidural")
    assert board.rows[0][4].text == f"{auc.value:.4f}"
    assert tables.subgroups(book, book.sources[0]).columns[3] == "AUC epidural"
