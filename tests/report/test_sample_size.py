"""Sample size: positives and AUCs of the scores, the formula's width beside the one obtained, events by fold."""

import pytest
from support.reports import CONFIG, make_report_work
from support.scored import pick, read
from support.simulated import TASK

from ichkit.stages.report import run as report
from ichkit.stages.report.sample_size import make_sample_size
from ichkit.validation.sample_size import auc_half_width, positives_needed
from ichkit.work.artifacts import read_table


def collect(work):
    return report.collect(report.plan(CONFIG, work, report.ReportOptions(work.root / "submissions")))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return collect(make_report_work(tmp_path_factory.mktemp("size") / "work", num_folds=3, folds=(0, 1, 2)))


def tables_of(given):
    return {
        block.title: {row[0].text: row[1:] for row in block.lines}
        for block in make_sample_size(given).blocks
        if block.kind == "table"
    }


@pytest.mark.parametrize(("title", "dataset"), [("out of fold", "rsna"), ("CQ500", "cq500")])
def test_widths_are_those_of_the_formula_and_of_the_scores(given, title, dataset):
    rows = tables_of(given)[f"Half-width of the 95% interval of the AUC, studies {title}"]
    scores = read(given.work)
    for name in TASK.classes:
        place = {"source": given.best.name, "dataset": dataset, "level": "study", "aggregation": "maximum"}
        score = pick(scores, **place, metric="roc_auc", class_=name, fold=-1)
        positive, stated, auc, expected, obtained, needed = rows[name]
        assert (positive.text, positive.small) == (f"{score.n_positive:,}", f"/ {score.n:,}")
        negative = score.n - score.n_positive
        assert stated.text == f"±{auc_half_width(0.9, score.n_positive, negative, 0.95):.3f}"
        assert auc.text == f"{score.value:.3f}"
        assert expected.text == f"±{auc_half_width(score.value, score.n_positive, negative, 0.95):.3f}"
        obtained_half = (score.high - score.low) / 2
        assert obtained.text == ("-" if score.high != score.high else f"±{obtained_half:.3f}")
        number = positives_needed(score.value, score.n_positive / score.n, 0.05, 0.95)
        assert needed.text == ("-" if number is None else f"{number:,}")


def test_events_are_those_outside_each_fold(given):
    rows = tables_of(given)["Positives in the training part of a fold, fewest to most"]
    slices = read_table(given.prepared.folder / "slices.parquet")
    train = slices[slices.split == "train"]
    for name in TASK.classes:
        counts = sorted(int((train[train.fold != k][name] == 1).sum()) for k in train.fold.unique())
        assert rows[name][2].text == (f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}")


def test_before_training_the_positives_are_those_of_the_store(tmp_path):
    given = collect(make_report_work(tmp_path / "work", folds=(), is_stacked=False))
    rows = tables_of(given)["Half-width of the 95% interval of the AUC, studies out of fold"]
    studies = given.prepared.studies
    for name in TASK.classes:
        known = studies[studies.split == "train"][name].dropna()
        assert rows[name][0].text == f"{int(known.sum())}"
        assert rows[name][2].text == rows[name][4].text == "-"
