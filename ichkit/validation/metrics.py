"""Scores in float64: log loss per class, the competition's weighted log loss, area under the ROC curve."""

import numba
import numpy as np
import pandas as pd

from ichkit.core.tasks import Task

CLIP = 1e-15


def log_losses(probabilities: np.ndarray, labels: np.ndarray, clip: float = CLIP) -> np.ndarray:
    """(N, C) float64 binary log losses in nats, one per probability; NaN where the label is.

    Args:
        probabilities: (N, C) in [0, 1].
        labels: (N, C) of 0 and 1, or NaN where unknown.
        clip: probabilities are kept this far from 0 and 1.
    """
    p = np.clip(np.asarray(probabilities, np.float64), clip, 1 - clip)
    y = np.asarray(labels, np.float64)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def log_loss_by_class(probabilities: np.ndarray, labels: np.ndarray, clip: float = CLIP) -> np.ndarray:
    """(C,) float64 mean log loss of each class over its labelled rows; NaN for a class without labels.

    Args:
        probabilities: (N, C) in [0, 1].
        labels: (N, C) of 0 and 1, or NaN where unknown.

    Example:
        >>> log_loss_by_class(np.array([[0.5], [0.5]]), np.array([[0], [1]])).round(4)
        array([0.6931])
    """
    known = ~np.isnan(np.asarray(labels, np.float64))
    sums = np.where(known, log_losses(probabilities, labels, clip), 0.0).sum(0)
    count = known.sum(0)
    losses: np.ndarray = np.divide(sums, count, out=np.full(len(count), np.nan), where=count > 0)
    return losses


def weighted_log_loss(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, clip: float = CLIP) -> float:
    """The competition's score: the log losses of the classes, weighted; NaN where a class has no labels.

    Args:
        weights: (C,) summing to 1.

    Source: RSNA 2019 evaluation page: weights 1/7 per subtype, 2/7 for any; all rows have the same weight.
    """
    return float(log_loss_by_class(probabilities, labels, clip) @ np.asarray(weights, np.float64))


def roc_auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The share of (positive, negative) pairs that the probabilities rank correctly, ties counting half.

    Args:
        labels: (N,) of 0 and 1, or NaN where unknown (ignored).
        probabilities: (N,) scores of any scale.

    Returns:
        NaN without positives or negatives, and if the score of a labelled row is NaN.
    """
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities)
    y, p = y[~np.isnan(y)], p[~np.isnan(y)]
    if np.isnan(p).any():
        return float("nan")
    order = np.argsort(p, kind="stable")
    return float(_auc_of_sorted(p[order], y[order] > 0))


def roc_auc_by_class(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C,) `roc_auc` of each column of (N, C) probabilities and labels."""
    return np.array([roc_auc(y, p) for y, p in zip(labels.T, probabilities.T, strict=True)])


def study_maximum(predictions: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One row per study, sorted by study_id: study_id and for each class the highest probability of its slices.

    Source: MIDL 2020, section 3.1: a study is scored by the maximum over its slices.
    """
    return predictions.groupby("study_id", sort=True)[task.probability_columns].max().reset_index()


@numba.njit(cache=True)
def _auc_of_sorted(p: np.ndarray, is_positive: np.ndarray) -> float:
    """AUC of scores in ascending order; (N,) and (N,)."""
    negatives_below, twice_won, num_positive = 0, 0, 0
    start = 0
    while start < len(p):
        end, positives = start + 1, int(is_positive[start])
        while end < len(p) and p[end] == p[start]:
            positives += is_positive[end]
            end += 1
        negatives = end - start - positives
        twice_won += positives * (2 * negatives_below + negatives)
        negatives_below += negatives
        num_positive += positives
        start = end
    if num_positive == 0 or negatives_below == 0:
        return np.nan
    return twice_won / (2.0 * num_positive * negatives_below)
