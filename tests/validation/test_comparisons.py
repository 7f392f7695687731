"""Paired differences: the same patients for both, seen from either side, and as narrow as pairing makes them."""

import numpy as np
import pandas as pd
import pytest
from support.simulated import TASK

from ichkit.validation.comparisons import (
    BOOTSTRAP,
    COMPARISON_DTYPES,
    DELONG,
    StudyScores,
    compare_pairs,
    compare_studies,
    holm,
)
from ichkit.validation.delong import delong_test
from ichkit.validation.intervals import interval_of

PLACE = {"dataset": "cq500", "split": "external", "level": "study", "aggregation": "maximum"}
SCORE = {
    "dataset": "rsna",
    "split": "train",
    "level": "slice",
    "aggregation": "none",
    "metric": "log_loss",
    "class": "any",
}


def make_draws(name: str, values: np.ndarray) -> pd.DataFrame:
    row = {"source": name, **SCORE, "value": float(np.nanmean(values)), "n": 100, "n_positive": 30}
    return pd.DataFrame([row]).assign(draws=pd.Series([values], dtype=object))


def make_studies(scores: np.ndarray, labels: np.ndarray, first: int = 0) -> StudyScores:
    names = pd.Index([f"CQ500-CT-{first + i}" for i in range(len(scores))], name="study_id")
    columns = TASK.probability_columns
    return StudyScores(
        PLACE, pd.DataFrame(scores, names, columns), pd.DataFrame(labels, names, list(TASK.classes), dtype=float)
    )


def test_a_difference_is_taken_draw_by_draw_so_what_both_share_cancels():
    rng = np.random.default_rng(0)
    shared, own = rng.standard_normal(1000), 0.01 * rng.standard_normal(1000)
    table = compare_pairs(
        {"a": make_draws("a", 1 + shared), "b": make_draws("b", shared + own)}, {}, ["a", "b"], TASK, 0.95
    )
    row = table[table.source == "a"].iloc[0]
    expected = interval_of(1 - own, 0.95)
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert row.difference == pytest.approx(row.value - row.other_value, abs=1e-15)
    assert (row.method, row.n, row.n_positive, row.num_left_out) == (BOOTSTRAP, 100, 30, 0)
    assert row.p_value == pytest.approx(2 / 1001)


def test_every_pair_is_seen_from_both_sides():
    rng = np.random.default_rng(1)
    draws = {name: make_draws(name, rng.standard_normal(200)) for name in "abc"}
    table = compare_pairs(draws, {}, list("abc"), TASK, 0.95).set_index(["source", "other"])
    assert table.index.is_unique
    assert len(table) == 6
    for one, two in table.index:
        here, there = table.loc[(one, two)], table.loc[(two, one)]
        assert (here.difference, here.low, here.high) == (-there.difference, -there.high, -there.low)
        assert (here.value, here.p_value) == (there.other_value, there.p_value)


def test_over_five_percent_of_undefined_draws_leave_a_difference_without_interval_and_p():
    values = np.random.default_rng(2).standard_normal(100)
    half = np.where(np.arange(100) < 6, np.nan, values)
    table = compare_pairs({"a": make_draws("a", values), "b": make_draws("b", half)}, {}, ["a", "b"], TASK, 0.95)
    assert table.low.isna().all()
    assert table.p_value.isna().all()
    assert (table.num_left_out == 6).all()


def test_one_source_alone_has_no_comparisons_but_a_table_with_its_columns():
    table = compare_pairs({"a": make_draws("a", np.zeros(5))}, {}, ["a"], TASK, 0.95)
    assert list(table.columns) == list(COMPARISON_DTYPES)
    assert not len(table)


def test_studies_are_compared_by_delong_where_both_score_them_and_the_label_is_known():
    rng = np.random.default_rng(3)
    labels = (rng.random((60, 6)) < 0.4).astype(float)
    labels[5, 2] = np.nan
    own = make_studies(labels.clip(0, 1) + rng.standard_normal((60, 6)), labels)
    other = make_studies(rng.standard_normal((50, 6)), np.full((50, 6), np.nan), first=20)
    rows = pd.DataFrame(compare_studies(own, other, TASK, 0.95)).set_index("class")
    assert (rows.method == DELONG).all()
    assert (rows.n == 40).all()
    both = own.labels.index[20:]
    for c, name in enumerate(TASK.classes):
        y = own.labels.loc[both].to_numpy()[:, c]
        mine, theirs = own.probabilities.loc[both].to_numpy()[:, c], other.probabilities.loc[both].to_numpy()[:, c]
        test = delong_test(y, mine, theirs, 0.95)
        assert rows.difference[name] == pytest.approx(test.difference, abs=1e-12)
        assert rows.p_value[name] == pytest.approx(test.p_value, abs=1e-12)
        assert (rows.low[name], rows.high[name]) == pytest.approx((test.low, test.high), abs=1e-12)
        assert (rows.value[name], rows.other_value[name]) == pytest.approx((test.auc, test.other_auc), abs=1e-12)
        assert rows.n_positive[name] == y.sum()
    everybody = pd.DataFrame(compare_studies(own, own, TASK, 0.95)).set_index("class")
    assert everybody.n["intraventricular"] == 59
    assert (everybody.p_value == 1).all()


def test_holm_is_its_definition_step_by_step_and_ignores_what_is_undefined():
    rng = np.random.default_rng(5)
    given = np.append(rng.random(7) ** 2, np.nan)
    order, last = np.argsort(given)[:7], 0.0
    expected = np.full(8, np.nan)
    for rank, at in enumerate(order):
        last = max(last, min(1.0, (7 - rank) * given[at]))
        expected[at] = last
    np.testing.assert_allclose(holm(given), expected)
    assert holm([]).tolist() == []
    # Of 20 true hypotheses, one or more is rejected in 5 % of the cases at most.
    rejected = [(holm(rng.random(20)) < 0.05).any() for _ in range(2000)]
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.015)
