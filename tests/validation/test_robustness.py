"""Paired scores: against the scores themselves, a bootstrap by hand, and the laws of a pair."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from support.simulated import TASK

from ichkit.validation.resampling import draw_counts
from ichkit.validation.robustness import compare_perturbed
from ichkit.validation.scores import LOG_LOSS, ROC_AUC, WEIGHTED_LOG_LOSS
from ichkit.validation.tallies import ScoredRows

SETTINGS = {"num_draws": 256, "level": 0.9, "seed": 3}
METRICS = (WEIGHTED_LOG_LOSS, LOG_LOSS, ROC_AUC)


def draw(num_patients=40, per_patient=5, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random((num_patients * per_patient, TASK.num_classes)) < 0.3).astype(float)
    p, other = (np.clip(0.3 * y + 0.7 * rng.random(y.shape), 0.01, 0.99) for _ in range(2))
    return ScoredRows({}, p, y, np.repeat(np.arange(num_patients), per_patient)), other


def by_place(found):
    return {(score.metric, score.class_name): score for score in found}


def test_values_are_those_of_scikit_learn_and_the_difference_is_after_minus_before():
    rows, other = draw()
    found = by_place(compare_perturbed(rows, other, TASK, METRICS, **SETTINGS))
    for c, name in enumerate(TASK.classes):
        y, p, q = rows.labels[:, c], rows.probabilities[:, c], other[:, c]
        for metric, measure in ((LOG_LOSS, log_loss), (ROC_AUC, roc_auc_score)):
            score = found[metric, name]
            assert (score.before, score.after) == (pytest.approx(measure(y, p)), pytest.approx(measure(y, q)))
            assert score.difference == pytest.approx(measure(y, q) - measure(y, p))
    whole = found[WEIGHTED_LOG_LOSS, "all"]
    losses = np.array([found[LOG_LOSS, name].difference for name in TASK.classes])
    assert whole.difference == pytest.approx(losses @ TASK.weight_array())


def test_intervals_are_of_the_same_patients_before_and_after():
    rows, other = draw()
    score = by_place(compare_perturbed(rows, other, TASK, METRICS, **SETTINGS))[LOG_LOSS, "any"]
    c = TASK.classes.index("any")
    y, p, q = rows.labels[:, c], rows.probabilities[:, c], other[:, c]
    of_rows = -(y * np.log(q / p) + (1 - y) * np.log((1 - q) / (1 - p)))
    of_patients = of_rows.reshape(40, 5).mean(1)
    draws = np.concatenate([of_patients @ counts / counts.sum(0) for counts in draw_counts(40, 256, 3)])[:256]
    assert (score.low, score.high) == pytest.approx(np.quantile(draws, [0.05, 0.95]))


def test_rounding_is_no_difference_and_a_worse_table_is_found_worse():
    rows, _ = draw()
    same = compare_perturbed(rows, rows.probabilities + 1e-8, TASK, METRICS, **SETTINGS)
    assert {(score.difference, score.low, score.high) for score in same} == {(0, 0, 0)}
    worse = compare_perturbed(rows, 0.5 + 0.1 * (rows.probabilities - 0.5), TASK, METRICS, **SETTINGS)
    losses = [score for score in worse if score.metric == LOG_LOSS]
    assert all(score.low > 0 and score.p_value < 0.05 for score in losses)
    assert all(score.difference == 0 for score in worse if score.metric == ROC_AUC)


def test_a_single_patient_has_differences_and_no_intervals():
    rows, other = draw(num_patients=1, per_patient=60)
    found = compare_perturbed(rows, other, TASK, METRICS, **SETTINGS)
    assert all(np.isfinite(score.difference) for score in found)
    assert all(np.isnan([score.low, score.high, score.p_value]).all() for score in found)
