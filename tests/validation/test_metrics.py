"""Scores against their definitions and against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from ichkit.core.tasks import find_task
from ichkit.validation.metrics import (
    log_loss_by_class,
    roc_auc,
    roc_auc_by_class,
    study_maximum,
    weighted_log_loss,
)

TASK = find_task("hemorrhage")


def plain_auc(y: np.ndarray, p: np.ndarray) -> float:
    """The definition: the share of (positive, negative) pairs in order, ties half."""
    positive, negative = p[y == 1][:, None], p[y == 0][None, :]
    return float((positive > negative).mean() + 0.5 * (positive == negative).mean())


@pytest.mark.parametrize("digits", [1, 2, 12], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auc_is_its_definition_over_all_pairs_and_that_of_scikit_learn(digits, dtype):
    rng = np.random.default_rng(digits)
    y = (rng.random(500) < 0.2).astype(float)
    p = np.round(0.3 * y + rng.random(500), digits).astype(dtype)
    assert roc_auc(y, p) == pytest.approx(plain_auc(y, p), abs=1e-12)
    assert roc_auc(y, p) == pytest.approx(sklearn.metrics.roc_auc_score(y, p), abs=1e-9)


def test_auc_stays_under_any_rising_change_of_scale_and_turns_with_the_sign():
    rng = np.random.default_rng(0)
    y, p = (rng.random(200) < 0.3).astype(float), rng.random(200)
    assert roc_auc(y, np.exp(5 * p)) == roc_auc(y, p)
    assert roc_auc(y, -p) == pytest.approx(1 - roc_auc(y, p), abs=1e-12)
    assert roc_auc(y, np.full(200, 0.5)) == 0.5


@pytest.mark.parametrize("y", [[0, 0, 0], [1, 1, 1], []])
def test_auc_without_both_classes_is_nan(y):
    assert np.isnan(roc_auc(np.array(y, float), np.linspace(0, 1, len(y))))


def test_a_probability_that_is_nan_makes_the_score_nan_unless_its_label_is_unknown():
    p = np.array([0.1, np.nan, 0.9])
    labelled, unknown = np.array([0, 1, 1.0]), np.array([0, np.nan, 1])
    assert np.isnan(roc_auc(labelled, p))
    assert roc_auc(unknown, p) == 1.0
    assert np.isnan(log_loss_by_class(p[:, None], labelled[:, None])).all()
    assert log_loss_by_class(p[:, None], unknown[:, None])[0] == pytest.approx(-np.log(0.9), abs=1e-15)


def test_unknown_labels_are_left_out():
    y = np.array([0, 1, np.nan, 1, 0, np.nan])
    p = np.array([0.1, 0.8, 0.9, 0.05, 0.3, 0.95])
    known = ~np.isnan(y)
    assert roc_auc(y, p) == roc_auc(y[known], p[known])
    both = log_loss_by_class(np.stack([p, p], 1), np.stack([y, np.full(6, np.nan)], 1))
    assert both[0] == pytest.approx(log_loss_by_class(p[known][:, None], y[known][:, None])[0], abs=1e-15)
    assert np.isnan(both[1])


@pytest.mark.parametrize("lowest", [1e-12, 1e-6, 1e-2])
def test_log_loss_agrees_with_scikit_learn_to_nine_digits(lowest):
    rng = np.random.default_rng(1)
    y = (rng.random((400, 6)) < 0.3).astype(int)
    p = np.clip(1 / (1 + np.exp(-20 * rng.standard_normal((400, 6)))), lowest, 1 - lowest)
    ours = log_loss_by_class(p, y)
    theirs = [sklearn.metrics.log_loss(y[:, c], p[:, c], labels=[0, 1]) for c in range(6)]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(roc_auc_by_class(p, y), sklearn.metrics.roc_auc_score(y, p, average=None), atol=1e-9)
    weights = np.tile(np.array(TASK.weights) * 7, (400, 1))
    pooled = sklearn.metrics.log_loss(y.ravel(), p.ravel(), sample_weight=weights.ravel(), labels=[0, 1])
    assert weighted_log_loss(p, y, TASK.weight_array()) == pytest.approx(pooled, abs=1e-9)


def test_log_loss_by_hand():
    p, y = np.array([[0.25], [0.5], [0.0], [1.0]]), np.array([[1], [0], [1], [1]])
    expected = (np.log(4) + np.log(2) - np.log(1e-15) - np.log(1 - 1e-15)) / 4
    assert log_loss_by_class(p, y)[0] == pytest.approx(expected, abs=1e-12)


def test_the_class_any_weighs_twice_as_much_as_a_subtype():
    y = np.zeros((10, 6))
    bad_any, bad_subtype = np.full((10, 6), 0.01), np.full((10, 6), 0.01)
    bad_any[:, 5], bad_subtype[:, 0] = 0.5, 0.5
    best = weighted_log_loss(np.full((10, 6), 0.01), y, TASK.weight_array())
    losses = [weighted_log_loss(p, y, TASK.weight_array()) - best for p in (bad_any, bad_subtype)]
    assert losses[0] == pytest.approx(2 * losses[1], abs=1e-12)


def test_a_study_is_scored_by_its_highest_slice_whatever_the_order():
    rng = np.random.default_rng(2)
    table = pd.DataFrame(rng.random((9, 6), np.float32), columns=TASK.probability_columns)
    table["study_id"] = list("bbbaaaacc")
    top = study_maximum(table, TASK)
    assert top.study_id.tolist() == ["a", "b", "c"]
    for study, row in zip("abc", top[TASK.probability_columns].to_numpy(), strict=True):
        expected = [max(table[column][table.study_id == study]) for column in TASK.probability_columns]
        np.testing.assert_array_equal(row, expected)
    pd.testing.assert_frame_equal(study_maximum(table.iloc[::-1], TASK), top)
