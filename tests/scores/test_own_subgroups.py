"""Facts of the studies as subgroups, and the slices of an external set that has labels per slice."""

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.reports import CONFIG, Page, explain_without_network, make_report_work
from support.simulated import TASK, add_external_set, rewrite_prepared

from ichkit.stages.report import gallery
from ichkit.stages.report import run as report
from ichkit.stages.scores import evaluate, leaderboard, summary, tables
from ichkit.stages.scores.book import SLICES, external_slices, external_studies, open_book
from ichkit.validation.catalog import load_split
from ichkit.validation.metrics import roc_auc_by_class, weighted_log_loss
from ichkit.validation.subgroups import name_parts
from ichkit.work.artifacts import read_table


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """CQ500 beside a set with labels per slice; hospitals and ages of every study."""
    work = make_report_work(tmp_path_factory.mktemp("own") / "work")
    do(evaluate, CONFIG, work)
    add_external_set(work, "site")
    slices = read_table(work.prepared / "slices.parquet")
    is_site = slices.dataset == "site"
    for c, name in enumerate(TASK.subtypes):
        slices.loc[is_site, name] = ((slices.slice_index[is_site] + c) % 3 == 0).astype("Int8")
    slices.loc[is_site, "any"] = slices.loc[is_site, list(TASK.subtypes)].max(axis=1)
    studies = slices[["dataset", "study_id"]].drop_duplicates(ignore_index=True)
    number = np.arange(len(studies))
    studies["hospital"] = pd.array(np.where(number % 3 == 0, "North", "South"), dtype="str")
    studies["beds"] = pd.array([str(10 * (i % 2) + 2) for i in number], dtype="str")
    rewrite_prepared(work, {"slices.parquet": slices, "subgroups.parquet": studies})
    do(evaluate, CONFIG, work)
    return work


@pytest.fixture(scope="module")
def book(work):
    return open_book(work, TASK)


def test_slices_of_a_set_are_scored_by_their_own_labels(work, book):
    source = book.sources[0]
    slices = read_table(work.prepared / "slices.parquet")
    own = slices[slices.dataset == "site"].sort_values(["study_id", "slice_index"])
    table = load_split(source, "site")
    assert table.slice_id.to_list() == own.slice_id.to_list()
    p, y = table[TASK.probability_columns].to_numpy(float), own[list(TASK.classes)].to_numpy(float)
    group = external_slices("site")
    assert book.find(source, "weighted_log_loss", "all", group).value == pytest.approx(
        weighted_log_loss(p, y, TASK.weight_array())
    )
    aucs = [book.find(source, "roc_auc", name, group).value for name in TASK.classes]
    np.testing.assert_allclose(aucs, roc_auc_by_class(p, y))
    assert book.find(source, "roc_auc", "any", group).n == len(own)
    assert not book.has_slices(source, "cq500")
    shown = [table.title for table in summary.render_source(book, source)]
    assert f"{source.name} on site, by slice" in shown
    assert f"{source.name} on CQ500, by slice" not in shown
    assert book.aggregations(source, "site") == book.aggregations(source, "cq500")


def test_facts_of_studies_are_subgroups_everywhere_in_the_order_of_their_numbers(work, book):
    source = book.sources[0]
    for group in (SLICES, external_studies("cq500"), external_studies("site"), external_slices("site")):
        own = [name for name in book.subgroups(source, group) if name.startswith(("hospital", "beds"))]
        assert own == ["hospital=North", "hospital=South", "beds=2", "beds=12"]
    slices = read_table(work.prepared / "slices.parquet")
    groups = read_table(work.prepared / "subgroups.parquet")
    train = slices[slices.split == "train"].merge(groups, on=["dataset", "study_id"])
    found = book.find(source, "roc_auc", "any", SLICES, "hospital=North")
    is_own = (train.hospital == "North") & train.fold.isin(source.folds)
    assert (found.n, found.n_positive) == (int(is_own.sum()), int(train["any"][is_own].sum()))


def test_small_groups_are_marked_and_large_ones_are_not(book):
    table = tables.subgroups(book, book.sources[0])
    for row in table.lines:
        positive, total = int(row[4].text.replace(",", "")), int(row[4].small.strip("/ ").replace(",", ""))
        assert (row[0].small == "small group") == (min(positive, total - positive) < 10)
    assert {row[0].small for row in table.lines} == {"", "small group"}


def test_the_board_and_the_report_have_the_set_and_its_groups(work, book, tmp_path, monkeypatch):
    board = do(leaderboard, CONFIG, work, submissions=tmp_path)
    assert next(name for name in board.columns if name.startswith("site_")) == "site_auc_any"
    monkeypatch.setattr(gallery, "explain_slices", explain_without_network)
    page = Page(do(report, CONFIG, work, submissions=tmp_path).read_text())
    best = book.sources[0].name
    assert f"{best} on site, by slice" in page.tables
    rows = {(row[0].split("|")[0], row[1]) for row in page.tables[f"{best}: performance by subgroup"][1:]}
    assert {("hospital: North", "out of fold"), ("hospital: North", "site"), ("beds: 12", "site, slices")} <= rows
    assert "Calibration: slices of site" in page.tables
    assert "Sensitivity at fixed specificity, and the reverse: slices of site" in page.tables
    assert len(page.ids) == len(set(page.ids))


def test_numbers_of_many_values_are_cut_at_quartiles_and_rare_words_are_other():
    many = name_parts(pd.Series([float(i) for i in range(1, 101)]))
    assert many.value_counts().to_dict() == {"<25.8": 25, "25.8-50.5": 25, "50.5-75.2": 25, ">=75.2": 25}
    words = name_parts(pd.Series([f"k{i:02d}" for i in range(14) for _ in range(14 - i)] + [None]))
    assert words.iloc[-1] != words.iloc[-1]
    assert set(words.dropna()) == {*(f"k{i:02d}" for i in range(11)), "other"}
    assert (words == "other").sum() == 3 + 2 + 1
