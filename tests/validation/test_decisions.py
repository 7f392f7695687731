"""F1, precision, recall and accuracy at 0.5, per class, as their mean and of all decisions together."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from support.simulated import TASK

from ichkit.validation.scores import MEAN_CLASS, METRICS, MICRO_CLASS, score_rows
from ichkit.validation.tallies import ScoredRows
from ichkit.validation.thresholds import HALF_AIM, decide

ORACLES = {
    "f1_at_half": f1_score,
    "precision_at_half": precision_score,
    "recall_at_half": recall_score,
    "accuracy_at_half": accuracy_score,
}


def score(probabilities, labels):
    place = {"dataset": "d", "split": "train", "level": "slice", "aggregation": "none", "subgroup": "all", "fold": -1}
    part = np.zeros(len(labels), np.int64)
    rows = ScoredRows(place, probabilities, labels, np.arange(len(labels)) // 3)
    rows = rows.with_decisions({HALF_AIM: decide(probabilities, {0: np.full(6, 0.5)}, part)})
    found = score_rows(rows, TASK, tuple(ORACLES), num_draws=20, level=0.95, num_bins=4, seed=0)
    return {(row["metric"], row["class"]): row for row in found.rows}


def random_case():
    rng = np.random.default_rng(3)
    labels = (rng.random((60, 6)) < 0.3).astype(np.float64)
    return np.clip(labels * 0.4 + rng.random((60, 6)) * 0.6, 0, 1), labels


@pytest.mark.parametrize("name", ORACLES)
def test_the_scores_at_half_are_those_of_scikit_learn(name):
    p, y = random_case()
    found = score(p, y)
    each = [ORACLES[name](y[:, c], p[:, c] >= 0.5) for c in range(6)]
    assert [found[name, label]["value"] for label in TASK.classes] == pytest.approx(each)
    assert found[name, MEAN_CLASS]["value"] == pytest.approx(np.mean(each))
    assert found[name, MICRO_CLASS]["value"] == pytest.approx(ORACLES[name](y.ravel(), p.ravel() >= 0.5))
    assert METRICS[name].has_micro
    assert found[name, MICRO_CLASS]["n"] == y.size
    assert found[name, MICRO_CLASS]["low"] <= found[name, MICRO_CLASS]["value"] <= found[name, MICRO_CLASS]["high"]


@pytest.mark.parametrize("name", ORACLES)
def test_decisions_on_unknown_labels_do_not_count(name):
    p, y = random_case()
    kept = np.random.default_rng(4).random(y.shape) < 0.7
    found = score(p, np.where(kept, y, np.nan))
    assert found[name, MICRO_CLASS]["value"] == pytest.approx(ORACLES[name](y[kept], p[kept] >= 0.5))
    assert found[name, "subdural"]["n"] == kept[:, TASK.classes.index("subdural")].sum()


def test_without_a_positive_decision_there_is_no_precision():
    p, y = random_case()
    found = score(p * 0.4, y)
    assert np.isnan(found["precision_at_half", "any"]["value"])
    assert found["recall_at_half", "any"]["value"] == 0
