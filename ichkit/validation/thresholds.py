"""Decision thresholds, chosen on some rows, and the rates they give on others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np

HALF = 0.5
# Criteria for a threshold: fixed at 0.5, the best F1, the best Youden's J (sensitivity + specificity - 1).
HALF_AIM, F1_AIM, YOUDEN_AIM = "half", "best_f1", "youden"
# The counts of decisions, in the order of the last axis of every confusion array.
TRUE_POSITIVE, FALSE_POSITIVE, POSITIVE, NEGATIVE = range(4)


def choose_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, order: np.ndarray, part: np.ndarray, parts: Sequence[int]
) -> dict[int, dict[str, np.ndarray]]:
    """For each part the best thresholds on the rows of all others: part to criterion to (C,).

    A row is predicted positive if its probability is at least the threshold. Candidates are the probabilities of the
    rows, of equally good ones the highest; NaN without positives or negatives.

    Args:
        probabilities: (N, C) in [0, 1].
        labels: (N, C) of 0 and 1, or NaN where unknown (ignored).
        order: (C, N) rows of each class by descending probability.
        part: (N,) the part of each row, e.g. its fold.
        parts: the parts that need thresholds; for a part without rows they are chosen on all rows.

    Source: Youden, "Index for rating diagnostic tests", Cancer 3, 1950; van Rijsbergen, "Information Retrieval", 1979.
    """
    num_classes = labels.shape[1]
    found = np.full((2, len(parts), num_classes), np.nan)
    for c in range(num_classes):
        rows = order[c][~np.isnan(labels[order[c], c])]
        p, is_positive, own = probabilities[rows, c].astype(np.float64), labels[rows, c] > 0, part[rows]
        for i, number in enumerate(parts):
            found[:, i, c] = _best_thresholds(p, is_positive, own != number)
    return {number: {F1_AIM: found[0, i], YOUDEN_AIM: found[1, i]} for i, number in enumerate(parts)}


@dataclass(frozen=True)
class Decisions:
    """The rows predicted positive.

    Attributes:
        is_yes: (N, C) bool.
        is_defined: (C,) bool, False if a threshold of the class was NaN.
    """

    is_yes: np.ndarray
    is_defined: np.ndarray


def decide(probabilities: np.ndarray, thresholds: dict[int, np.ndarray], part: np.ndarray) -> Decisions:
    """Compares every row with the thresholds of its part.

    Args:
        probabilities: (N, C) in [0, 1].
        thresholds: part to (C,).
        part: (N,) keys of `thresholds`.
    """
    is_yes = np.zeros(probabilities.shape, bool)
    for number, of_class in thresholds.items():
        rows = part == number
        is_yes[rows] = probabilities[rows] >= of_class
    return Decisions(is_yes, np.isfinite(np.stack(list(thresholds.values()))).all(0))


def f1_score(confusion: np.ndarray) -> np.ndarray:
    """The harmonic mean of precision and sensitivity of (..., 4) counts; NaN without a positive."""
    hits, positives = confusion[..., TRUE_POSITIVE], confusion[..., POSITIVE]
    return _share(2 * hits, hits + confusion[..., FALSE_POSITIVE] + positives, positives)


def sensitivity(confusion: np.ndarray) -> np.ndarray:
    """The share of positives found, of (..., 4) counts; NaN without a positive."""
    positives = confusion[..., POSITIVE]
    return _share(confusion[..., TRUE_POSITIVE], positives, positives)


def precision(confusion: np.ndarray) -> np.ndarray:
    """The share of true positives among those predicted positive, of (..., 4) counts; NaN without any."""
    hits = confusion[..., TRUE_POSITIVE]
    predicted = hits + confusion[..., FALSE_POSITIVE]
    return _share(hits, predicted, predicted)


def negative_precision(confusion: np.ndarray) -> np.ndarray:
    """The share of true negatives among those predicted negative, of (..., 4) counts; NaN without any."""
    true_negatives = confusion[..., NEGATIVE] - confusion[..., FALSE_POSITIVE]
    predicted = true_negatives + confusion[..., POSITIVE] - confusion[..., TRUE_POSITIVE]
    return _share(true_negatives, predicted, predicted)


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """The share of correct decisions, of (..., 4) counts; NaN without rows."""
    negatives = confusion[..., NEGATIVE]
    correct = confusion[..., TRUE_POSITIVE] + negatives - confusion[..., FALSE_POSITIVE]
    total = confusion[..., POSITIVE] + negatives
    return _share(correct, total, total)


def specificity(confusion: np.ndarray) -> np.ndarray:
    """The share of negatives predicted negative, of (..., 4) counts; NaN without a negative."""
    negatives = confusion[..., NEGATIVE]
    return _share(negatives - confusion[..., FALSE_POSITIVE], negatives, negatives)


Measure = Callable[[np.ndarray], np.ndarray]
RATES: dict[str, Measure] = {
    "sensitivity": sensitivity,
    "specificity": specificity,
    "PPV": precision,
    "NPV": negative_precision,
}
"""The rates of decisions that tables of operating points show, by the names of their columns."""


def _share(part: np.ndarray, whole: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """The part of the whole in float64, NaN where `needed` is 0."""
    share: np.ndarray = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=needed > 0)
    return share


@numba.njit(cache=True)
def _best_thresholds(p: np.ndarray, is_positive: np.ndarray, is_used: np.ndarray) -> tuple[float, float]:
    """Thresholds of the best F1 and of the best J among the used rows; (N,) each, by descending probability."""
    positives, negatives = 0, 0
    for row in range(len(p)):
        if is_used[row]:
            positives += is_positive[row]
            negatives += not is_positive[row]
    if positives == 0 or negatives == 0:
        return np.nan, np.nan
    # Fractions are compared by their whole-number cross products, so that equal ones are equal.
    f1_hits, f1_size, best_j = 0, 1, -np.int64(positives) * negatives - 1
    f1_at, j_at = np.nan, np.nan
    hits, alarms, last_hits = 0, 0, -1
    for row in range(len(p)):
        hits += is_used[row] & is_positive[row]
        alarms += is_used[row] & (not is_positive[row])
        is_last_of_tie = row + 1 == len(p) or p[row + 1] != p[row]
        # Without a new hit no score is higher than the last, except the first of all.
        if hits == last_hits or not is_last_of_tie or hits + alarms == 0:
            continue
        last_hits = hits
        size = hits + alarms + positives
        if hits * f1_size > f1_hits * size:
            f1_hits, f1_size, f1_at = hits, size, p[row]
        j = np.int64(hits) * negatives - np.int64(alarms) * positives
        if j > best_j:
            best_j, j_at = j, p[row]
    return f1_at, j_at
