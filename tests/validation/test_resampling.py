"""The bootstrap against a plain one that puts the rows of every drawn patient one below the other."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from ichkit.core.seeding import make_generator
from ichkit.core.tasks import Task
from ichkit.validation.intervals import interval_of
from ichkit.validation.metrics import log_loss_by_class, roc_auc_by_class
from ichkit.validation.reliability import COUNT, POSITIVES, PROBABILITY
from ichkit.validation.resampling import Ranking, draw_counts, resample, score_once
from ichkit.validation.scores import METRICS, score_rows
from ichkit.validation.tallies import ScoredRows, draw_blocks
from ichkit.validation.thresholds import F1_AIM, FALSE_POSITIVE, HALF_AIM, TRUE_POSITIVE, YOUDEN_AIM, decide

THREE = Task("three", ("a", "b", "c"), (0.25, 0.25, 0.5), "c", "three classes", "this test")
PLACE = {"dataset": "d", "split": "train", "level": "slice", "aggregation": "none", "subgroup": "all", "fold": -1}
THRESHOLDS = {HALF_AIM: [0.5, 0.5, 0.5], F1_AIM: [0.3, 0.4, 0.6], YOUDEN_AIM: [0.2, 0.25, np.nan]}


def draw_rows(num_groups: int, per_group: int, digits: int, unknown: float = 0.0, seed: int = 0) -> ScoredRows:
    """Rows of three classes in mixed order; groups bleed or not as a whole, mostly."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(num_groups), per_group)
    tendency = rng.random((num_groups, 3))[group] * np.array([0.2, 0.5, 1.0])
    y = (rng.random((len(group), 3)) < tendency).astype(float)
    p = np.round(np.clip(0.4 * y + 0.5 * rng.random(y.shape), 0.01, 0.99), digits)
    y[rng.random(y.shape) < unknown] = np.nan
    order = rng.permutation(len(group))
    return with_decisions(ScoredRows(PLACE, p[order], y[order], group[order]))


def with_decisions(rows: ScoredRows) -> ScoredRows:
    nowhere = np.zeros(len(rows.labels), int)
    made = {aim: decide(rows.probabilities, {0: np.array(of)}, nowhere) for aim, of in THRESHOLDS.items()}
    return rows.with_decisions(made)


def pile_up(rows: ScoredRows, num_draws: int, seed: int) -> list[np.ndarray]:
    """The definition: for each draw, the row numbers of the groups drawn with replacement, one below the other."""
    rng, names = make_generator(seed, "bootstrap"), np.unique(rows.members)
    of = {name: np.flatnonzero(rows.members == name) for name in names}
    return [np.concatenate([of[names[g]] for g in rng.integers(len(names), size=len(names))]) for _ in range(num_draws)]


def plain_counts(p: np.ndarray, y: np.ndarray, thresholds: list[float]) -> np.ndarray:
    """(C, 4) true positives, false positives, positives and negatives."""
    yes = p >= np.array(thresholds)
    return np.stack([(yes & (y == 1)).sum(0), (yes & (y == 0)).sum(0), (y == 1).sum(0), (y == 0).sum(0)], 1)


def plain_precision(p: np.ndarray, y: np.ndarray) -> list[float]:
    """(C,) by scikit-learn, of the labelled rows; NaN without a positive."""
    known = [(y[~np.isnan(y[:, c]), c], p[~np.isnan(y[:, c]), c]) for c in range(3)]
    return [sklearn.metrics.average_precision_score(*one) if one[0].any() else np.nan for one in known]


def plain_bins(p: np.ndarray, y: np.ndarray, num_bins: int) -> np.ndarray:
    """(C, B, 3) rows, positives and sum of probabilities of the labelled rows of each bin."""
    bins = np.zeros((3, num_bins, 3))
    for c in range(3):
        for one, label in zip(p[:, c], y[:, c], strict=True):
            if not np.isnan(label):
                b = min(int(one * num_bins), num_bins - 1)
                bins[c, b] += [1, label, one]
    return bins


@pytest.mark.parametrize("digits", [1, 12], ids=["ties", "no ties"])
@pytest.mark.parametrize("unknown", [0.0, 0.3], ids=["labelled", "partly labelled"])
def test_every_draw_scores_like_the_rows_of_its_groups_piled_up(digits, unknown):
    rows = draw_rows(12, 5, digits, unknown)
    asked = {"loss", "ranks", "bins", *THRESHOLDS}
    whole, drawn = draw_blocks(rows, asked, num_bins=4, num_draws=70, seed=4)
    piles = [np.arange(len(rows.labels)), *pile_up(rows, 70, 4)]
    for number, pile in enumerate(piles):
        got = whole if number == 0 else {name: block[number - 1] for name, block in drawn.items()}
        p, y = rows.probabilities[pile], rows.labels[pile]
        np.testing.assert_allclose(got["loss"], log_loss_by_class(p, y), atol=1e-12)
        np.testing.assert_allclose(got["roc_auc"], roc_auc_by_class(p, y), atol=1e-12)
        np.testing.assert_allclose(got["average_precision"], plain_precision(p, y), atol=1e-9)
        np.testing.assert_allclose(got["bins"], plain_bins(p, y, 4), atol=1e-12)
        for aim in (HALF_AIM, F1_AIM):
            np.testing.assert_array_equal(got[aim], plain_counts(p, y, THRESHOLDS[aim]))
        # A threshold that could not be chosen decides nothing.
        np.testing.assert_array_equal(got[YOUDEN_AIM][:2], plain_counts(p, y, THRESHOLDS[YOUDEN_AIM])[:2])
        assert np.isnan(got[YOUDEN_AIM][2]).all()
    assert whole["bins"].shape[-1] == 1 + max(COUNT, POSITIVES, PROBABILITY)
    assert whole[HALF_AIM][0, [TRUE_POSITIVE, FALSE_POSITIVE]].sum() > 0


@pytest.mark.parametrize("digits", [1, 2, 12], ids=["many ties", "some ties", "no ties"])
def test_the_auc_alone_is_the_auc_beside_the_average_precision(digits):
    rows = draw_rows(30, 9, digits, unknown=0.1)
    both, alone = (draw_blocks(rows, {name}, num_bins=4, num_draws=70, seed=4) for name in ("ranks", "auc"))
    for with_precision, without in zip(both, alone, strict=True):
        assert without.keys() == {"roc_auc"}
        np.testing.assert_array_equal(without["roc_auc"], with_precision["roc_auc"])


def test_a_ranking_is_cut_into_single_rows_and_ties_with_both_classes():
    """Scores 9 to 1: two negatives tied, a positive, a tie of both classes, a tie of positives, a negative."""
    scores = np.array([9, 9, 8, 7, 7, 7, 6, 6, 5.0])
    labels = np.array([0, 0, 1, 0, 1, 0, 1, 1, 0.0])
    ranking = Ranking.of(scores, labels, np.arange(9), np.arange(9))
    assert ranking.end.tolist() == [3, 6, 8, 9]
    assert ranking.first_positive.tolist() == [2, 5, 6, 9]
    assert ranking.is_tied.tolist() == [False, True, True, False]
    assert ranking.owner.tolist() == [0, 1, 2, 3, 5, 4, 6, 7, 8]


def test_a_long_run_of_negatives_does_not_overflow_its_counter():
    """70,000 negatives above the only positive and 30,000 below it: 16 bits hold 65,535."""
    scores = np.concatenate([np.linspace(1, 0.5, 70_000), [0.4], np.linspace(0.3, 0.1, 30_000)])
    labels = (scores == 0.4).astype(float)
    ranking = Ranking.of(scores, labels, labels.astype(int), np.argsort(-scores, kind="stable"))
    assert score_once(np.zeros((2, 0)), [ranking]).roc_auc[0, 0] == 0.3
    drawn = resample(np.zeros((2, 0)), [ranking], num_draws=40, seed=0).roc_auc[:, 0]
    assert set(drawn[np.isfinite(drawn)]) == {0.3}


def test_draws_are_those_of_the_generator_whatever_is_asked_for_at_once():
    rng = make_generator(3, "bootstrap")
    plain = [np.bincount(rng.integers(7, size=7), minlength=7) for _ in range(100)]
    tables = list(draw_counts(7, 100, 3))
    np.testing.assert_array_equal(np.concatenate(tables, 1).T[:100], plain)
    assert all((table.sum(0) == 7).all() for table in tables)


def test_the_same_seed_gives_the_same_bytes_and_the_order_of_the_rows_changes_no_auc():
    rows = draw_rows(20, 4, 2)
    first, again = (draw_blocks(rows, {"ranks", "loss"}, num_bins=4, num_draws=50, seed=0)[1] for _ in range(2))
    assert first["roc_auc"].tobytes() == again["roc_auc"].tobytes()
    assert first["loss"].tobytes() == again["loss"].tobytes()
    turned = ScoredRows(PLACE, rows.probabilities[::-1], rows.labels[::-1], rows.members[::-1])
    other = draw_blocks(turned, {"ranks"}, num_bins=4, num_draws=50, seed=0)[1]
    np.testing.assert_array_equal(other["roc_auc"], first["roc_auc"])
    np.testing.assert_array_equal(other["average_precision"], first["average_precision"])
    reseeded = draw_blocks(rows, {"ranks"}, num_bins=4, num_draws=50, seed=1)[1]
    assert not np.array_equal(reseeded["roc_auc"], first["roc_auc"])


def test_more_draws_begin_with_the_fewer():
    rows = draw_rows(10, 4, 2)
    few, many = (draw_blocks(rows, {"ranks"}, num_bins=4, num_draws=count, seed=0)[1]["roc_auc"] for count in (33, 100))
    assert (len(few), len(many)) == (33, 100)
    np.testing.assert_array_equal(many[:33], few)


def test_rows_of_one_patient_that_say_the_same_do_not_narrow_the_interval():
    """Twenty copies of each row are no more patients: resampling rows would shrink the interval by 4.5."""
    rows = draw_rows(60, 1, 6)
    copies = [np.repeat(part, 20, 0) for part in (rows.probabilities, rows.labels, rows.members)]
    once, copied = (
        draw_blocks(one, {"ranks", "loss"}, num_bins=4, num_draws=400, seed=0)[1]
        for one in (rows, ScoredRows(PLACE, *copies))
    )
    np.testing.assert_allclose(copied["roc_auc"], once["roc_auc"], atol=1e-12)
    np.testing.assert_allclose(copied["loss"], once["loss"], atol=1e-12)


def test_some_rows_score_as_if_they_had_been_sorted_for_themselves():
    rows = draw_rows(15, 6, 1, unknown=0.2)
    kept = np.random.default_rng(1).random(len(rows.labels)) < 0.4
    taken = rows.take(kept, subgroup="some")
    fresh = ScoredRows({**PLACE, "subgroup": "some"}, taken.probabilities, taken.labels, taken.members)
    np.testing.assert_array_equal(taken.order, fresh.order)
    np.testing.assert_array_equal(taken.probabilities, rows.probabilities[kept])
    assert taken.place == fresh.place
    assert rows.place["subgroup"] == "all"


def test_a_class_with_one_positive_patient_has_no_interval():
    rows = draw_rows(30, 3, 6)
    y = rows.labels.copy()
    y[:, 0] = rows.members == 7
    drawn = draw_blocks(
        ScoredRows(PLACE, rows.probabilities, y, rows.members), {"ranks"}, num_bins=4, num_draws=400, seed=0
    )
    interval = interval_of(drawn[1]["roc_auc"][:, 0], 0.95)
    assert np.isnan(interval.low)
    # A draw of 30 patients misses one of them with probability (29/30)^30 = 0.36.
    assert 0.28 < interval.num_left_out / 400 < 0.45


def score(rows: ScoredRows) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scores and the reliability curve."""
    scored = score_rows(rows, THREE, tuple(METRICS), num_draws=100, level=0.95, num_bins=4, seed=0)
    assert [draws.shape for draws in scored.draws] == [(100,)] * len(scored.rows)
    return pd.DataFrame(scored.rows), pd.DataFrame(scored.curve)


def test_every_metric_has_its_rows_counts_and_an_interval_that_holds_it():
    table, _ = score(draw_rows(40, 5, 3))
    at_half = [name for name in METRICS if name.endswith("at_half")]
    assert len(at_half) == 4
    assert table.metric.value_counts().to_dict() == {
        **dict.fromkeys(METRICS, 3),
        "weighted_log_loss": 1,
        "roc_auc": 4,
        **dict.fromkeys(at_half, 5),
    }
    told = table[table.low.notna()]
    assert ((told.low <= told.value) & (told.value <= told.high)).all()
    assert set(table.metric) == set(told.metric)
    undefined = table[(table["class"] == "c") & table.metric.str.endswith("youden")]
    assert undefined.value.isna().all()
    assert (undefined.num_left_out == 100).all()
    assert (table.n == np.where(table["class"] == "micro", 600, 200)).all()


def test_a_single_patient_has_scores_but_no_interval():
    """Drawn for himself he is the same every time; an interval without width would be a lie."""
    table, _ = score(draw_rows(1, 60, 3))
    assert table.value.notna().any()
    assert table.low.isna().all()
    assert table.high.isna().all()


def test_the_curve_holds_every_row_once_and_its_points_give_the_calibration_error():
    rows = draw_rows(40, 5, 3)
    table, points = score(rows)
    for c, name in enumerate(THREE.classes):
        curve = points[points["class"] == name]
        assert curve.n.sum() == 200
        assert curve.n_positive.sum() == rows.labels[:, c].sum()
        assert curve.mean_probability.between(curve.bin_low, curve.bin_high).all()
        error = (curve.n * (curve.mean_probability - curve.positive_share).abs()).sum() / 200
        row = table[(table.metric == "calibration_error") & (table["class"] == name)]
        assert row.value.iloc[0] == pytest.approx(error, abs=1e-12)
        inside = curve[curve.low.notna()]
        assert ((inside.low <= inside.positive_share) & (inside.positive_share <= inside.high)).all()
