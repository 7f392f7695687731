"""The tables of scores: each once, said alike in a terminal and in the report, with what a reader must know beside."""

import math
from dataclasses import replace

import pandas as pd
import pytest
from support.commands import do
from support.simulated import TASK, make_stack, make_work

from ichkit.core.config import Config, EvaluateConfig
from ichkit.core.tasks import find_task
from ichkit.stages.scores import evaluate, summary, tables
from ichkit.stages.scores.book import SLICES, STUDIES, Difference, Score, ScoreBook, external_studies, open_book
from ichkit.validation.comparisons import BASELINE, COMPARISON_DTYPES, make_comparisons
from ichkit.validation.scores import ROC_AUC

CONFIG = Config(evaluate=EvaluateConfig(num_draws=60))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables") / "work"
    work = make_work(root, runs=("a",), num_patients=24, num_folds=2, folds=(0, 1), cq500_studies=20)
    make_stack(work, runs=("a",), kinds=("fusion", "lightgbm", "blend"))
    do(evaluate, CONFIG, work)
    return work


@pytest.fixture(scope="module")
def book(work):
    return open_book(work, TASK)


def test_the_mean_of_an_external_set_has_its_interval_or_the_reason_why_it_has_none(book):
    source = book.sources[0]

    def shown(low, high):
        scores = book.tables.scores.copy()
        is_mean = (scores["dataset"] == "cq500") & (scores["metric"] == ROC_AUC) & (scores["class"] == "mean")
        scores.loc[is_mean, ["value", "low", "high"]] = (0.8, low, high)
        of_class = scores["class"].isin(TASK.classes)
        scores.loc[of_class, ["value", "low", "high"]] = (0.8, 0.7, 0.9)
        one = changed(book, scores=scores)
        made = [tables.board(one), tables.external(one, source, "cq500"), tables.aggregations(one, source, "cq500")]
        return [made[0].rows[0][6].small, made[1].rows[-1][1].small, made[2].rows[-1][1].small], [t.note for t in made]

    cells, notes = shown(0.71, 0.88)
    assert cells == ["0.71-0.88", "0.710-0.880", "0.710-0.880"]
    assert not any("No interval" in note for note in notes)
    cells, notes = shown(math.nan, math.nan)
    assert cells == ["", "", ""]
    assert all("No interval: the AUC is undefined" in note for note in notes)


def source_of(book, name):
    return next(source for source in book.sources if source.name == name)


def changed(book, **parts):
    return ScoreBook(replace(book.tables, **parts), book.sources)


@pytest.mark.parametrize(
    ("low", "high", "is_lower_better", "tone", "star"),
    [
        (0.1, 0.3, True, "bad", "*"),
        (0.1, 0.3, False, "good", "*"),
        (-0.3, -0.1, True, "good", "*"),
        (-0.3, -0.1, False, "bad", "*"),
        (-0.1, 0.3, True, "", ""),
        (math.nan, math.nan, True, "", ""),
    ],
)
def test_a_difference_has_one_look(low, high, is_lower_better, tone, star):
    cell = Difference(0.2, low, high, 0.04, is_lower_better).cell(3, 2)
    assert (cell.text, cell.tone) == (f"+0.200{star}", tone)
    assert cell.small == ("" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}")


def test_a_difference_of_nothing_has_no_minus_and_an_unknown_one_is_a_dash():
    assert Difference(-1e-9, -1e-9, 1e-9).cell(4).text == "+0.0000"
    assert Difference(-1e-9, -1e-9, 1e-9).cell(4).small == "+0.0000 to +0.0000"
    assert Difference().cell(4).text == "-"


def test_the_board_ranks_within_equal_folds_and_says_that_the_best_was_chosen(book):
    table = tables.board(book)
    assert [row[0] for row in table.rows] == ["1", "2", "3", "4"]
    assert table.best == {0}
    assert "because it was chosen by that loss" in table.note
    assert table.rows[0][3].text == "-"
    sites = {book.sources[1].name: (0.66, 0.05)}
    assert tables.board(book, sites).columns[-1] == "public\nprivate"
    assert [row[-1].text for row in tables.board(book, sites).rows] == ["-", "0.66000", "-", "-"]


def test_the_page_and_the_terminal_call_the_baselines_own_column_the_same(book):
    row = dict.fromkeys(COMPARISON_DTYPES, "") | {"source": "a", "other": BASELINE, "class": "any"}
    row |= {"dataset": "cq500", "metric": ROC_AUC, "other_value": 0.876, "p_value": 0.034}
    row |= dict.fromkeys(["value", "difference", "low", "high"], 0.1) | {"n": 19, "n_positive": 7, "num_left_out": 0}
    known = changed(book, comparisons=make_comparisons([row]))
    table = tables.external(known, source_of(known, "a"), "cq500")
    at = table.columns.index("baseline\nsame studies")
    said = {row[0]: row[at] for row in table.rows}
    assert (said["any"].text, said["any"].small) == ("0.876", "p 0.034")
    assert said["epidural"] == "-"
    assert "baseline\nsame studies" not in tables.external(book, source_of(book, "a"), "cq500").columns


@pytest.mark.parametrize(
    ("name", "is_said"), [("a", False), ("a-fusion", False), ("a-lightgbm", True), ("a-blend", True)]
)
def test_lightgbms_external_scores_come_with_the_word_that_its_position_features_tell_sources_apart(
    book, name, is_said
):
    note = tables.external(book, source_of(book, name), "cq500").note
    assert ("position features" in note) == is_said


def test_classes_without_both_labels_are_named_beside_the_headline(book):
    scores = book.tables.scores.copy()
    of_slices = (scores["split"] == "train") & (scores["level"] == "slice")
    scores.loc[of_slices & (scores["class"] == "epidural"), "n_positive"] = 0
    is_subdural = of_slices & (scores["class"] == "subdural")
    scores.loc[is_subdural, "n_positive"] = scores.loc[is_subdural, "n"]
    lacking = changed(book, scores=scores)
    said = "4 of 6 classes scored: epidural, subdural without both positives and negatives"
    assert tables.scored_classes_note(lacking, lacking.sources[0]) == said
    assert said in tables.board(lacking).note
    assert tables.scored_classes_note(book, book.sources[0]) == ""
    assert "classes scored" not in tables.board(book).note


def test_counts_stand_below_each_other_and_intervals_below_values():
    score = Score(0.5, 0.25, 0.75, 5102, 147)
    assert (score.counts.text, score.counts.small) == ("147", "/ 5,102")
    assert (score.cell(3).text, score.cell(3, 2).small) == ("0.500", "0.25-0.75")
    assert score.has_both
    assert not Score(0.5, n=3, n_positive=3).has_both


def test_whatever_was_not_scored_is_empty(book):
    source = book.sources[0]
    missing = book.find(source, ROC_AUC, "any", external_studies("elsewhere"))
    assert (missing.n, math.isnan(missing.value)) == (0, True)
    assert book.baseline(source, "cq500").empty
    assert isinstance(book.baseline(source, "cq500"), pd.DataFrame)


def test_every_table_of_one_source_has_a_row_for_every_class(book):
    source = book.sources[0]
    made = summary.render_source(book, source, is_whole=True)
    assert len({table.title for table in made}) == len({(table.title, table.columns) for table in made}) - 2
    by_class = [table for table in made if table.columns[0] == "class"]
    assert len(by_class) == 9
    for table in by_class:
        assert [row[0] for row in table.rows][: TASK.num_classes] == list(TASK.classes)
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_thresholds_of_the_folds_lie_within_their_range(book):
    source = book.sources[0]
    for group in (SLICES, STUDIES):
        pooled, of_folds = book.thresholds(source, group, "threshold_best_f1", "any")
        assert len(of_folds) == len(source.folds)
        assert 0 <= pooled <= 1
    table = tables.thresholds(book, source)
    assert table.columns == ("class", "slice\nbest f1", "slice\nyouden", "study\nbest f1", "study\nyouden")
    assert find_task("hemorrhage") == TASK


def test_the_best_source_is_named_with_the_optimism_of_its_choice(book):
    table = book.tables.selection
    assert table.folds.tolist() == ["0+1"]
    best = book.sources[0]
    choice = book.choice(best)
    assert choice.num_sources == len(book.sources) == 4
    assert table.value[0] == pytest.approx(book.loss(best).value, abs=1e-12)
    assert choice.corrected == pytest.approx(book.loss(best).value + choice.optimism)
    assert f"optimism of the choice {choice.optimism:+z.5f}" in tables.board(book).note
    assert book.choice(book.sources[1]) is None
    alone = changed(book, selection=table.assign(num_sources=1))
    assert "optimism of the choice" not in tables.board(alone).note


def test_the_stars_of_pairs_follow_the_corrected_p_values(book):
    pairs = book.tables.comparisons.copy()
    is_loss = (pairs.metric == "weighted_log_loss") & (pairs["class"] == "all")
    pairs.loc[is_loss, ["low", "high", "p_value"]] = 0.1, 0.2, 0.02
    table = tables.pairs(changed(book, comparisons=pairs), book.sources)
    assert {row[2] for row in table.rows} == {"0.120"}  # 6 pairs
    assert not any(row[1].text.endswith("*") for row in table.rows)
    pairs.loc[is_loss, "p_value"] = 0.002
    table = tables.pairs(changed(book, comparisons=pairs), book.sources)
    assert {row[2] for row in table.rows} == {"0.012"}
    assert all(row[1].text.endswith("*") for row in table.rows)
    assert "Holm's method for the 6 pairs" in table.note
