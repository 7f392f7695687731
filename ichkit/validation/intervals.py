"""Percentile intervals by resampling patients: the slices of a patient come and go together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np

from ichkit.core.seeding import make_generator
from ichkit.validation.metrics import log_losses

# Draws that one pass over the sorted rows serves: 32 int16 counts of a patient fill one cache line of 64 bytes.
_DRAWS_PER_PASS = 32
_MAX_SHARE_LEFT_OUT = 0.05


@dataclass(frozen=True)
class Interval:
    """Low and high end, NaN where undefined, and how many draws were left out for want of both classes."""

    low: float
    high: float
    num_left_out: int


@dataclass(frozen=True)
class Draws:
    """Scores of the same patients drawn again and again.

    Attributes:
        log_loss: (D, C) mean log loss per class; NaN where a draw holds no labelled row.
        roc_auc: (D, C); NaN where a draw lacks positives or negatives.
    """

    log_loss: np.ndarray
    roc_auc: np.ndarray


def draw_scores(
    probabilities: np.ndarray, labels: np.ndarray, group: np.ndarray, *, num_draws: int, seed: int
) -> Draws:
    """Log loss and AUC of every class in `num_draws` samples of the groups, drawn with replacement.

    Args:
        probabilities: (N, C) in [0, 1].
        labels: (N, C) of 0 and 1, or NaN where unknown.
        group: (N,) what is resampled: the patient of each row (the study, for CQ500).
        seed: the same seed and number of groups give the same draws, whatever the probabilities, so that two
            sources scored on the same rows are drawn alike.

    Source: the percentile bootstrap of Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13,
        by cluster.
    """
    labels = np.asarray(labels, np.float64)
    num_classes = labels.shape[1]
    names, member = np.unique(group, return_inverse=True)
    known = ~np.isnan(labels)
    losses = np.where(known, log_losses(probabilities, labels), 0.0)
    loss_sums, row_counts = np.zeros((2, len(names), num_classes))
    np.add.at(loss_sums, member, losses)
    np.add.at(row_counts, member, known)
    columns = [_sort_column(probabilities[:, c], labels[:, c], member) for c in range(num_classes)]
    log_loss, auc = np.full((2, num_draws, num_classes), np.nan)
    first = 0
    for counts in _draw_counts(len(names), num_draws, seed):
        kept = slice(first, first + counts.shape[1])
        log_loss[kept] = _resampled_means(counts, loss_sums, row_counts)
        for c, (owner, is_positive, is_last_of_tie) in enumerate(columns):
            auc[kept, c] = _resampled_aucs(counts, owner, is_positive, is_last_of_tie)
        first = kept.stop
    return Draws(log_loss, auc)


def interval_of(draws: np.ndarray, level: float) -> Interval:
    """The percentile interval of (D,) scores; NaN when over 5 % of the draws are undefined.

    Args:
        level: the share the interval covers, e.g. 0.95.
    """
    defined = draws[np.isfinite(draws)]
    num_left_out = len(draws) - len(defined)
    if not len(defined) or num_left_out > _MAX_SHARE_LEFT_OUT * len(draws):
        return Interval(np.nan, np.nan, num_left_out)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), num_left_out)


def _draw_counts(num_groups: int, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """(G, up to 32) int16 tables: how often each group comes up in each draw."""
    rng = make_generator(seed, "bootstrap")
    for first in range(0, num_draws, _DRAWS_PER_PASS):
        counts = np.empty((num_groups, min(_DRAWS_PER_PASS, num_draws - first)), np.int16)
        for draw in range(counts.shape[1]):
            counts[:, draw] = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)
        yield counts


def _sort_column(p: np.ndarray, y: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(owner, is positive, is the last row of its tie) of the labelled rows of one class, by ascending score."""
    rows = np.flatnonzero(~np.isnan(y))
    rows = rows[np.argsort(p[rows], kind="stable")]
    ordered = p[rows]
    is_last = np.append(ordered[1:] != ordered[:-1], np.ones(min(len(rows), 1), bool))
    return member[rows].astype(np.int32), y[rows] > 0, is_last


@numba.njit(cache=True)
def _resampled_means(counts: np.ndarray, sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(D, C) means from how often each group was drawn (G, D), its sums (G, C) and its sizes (G, C)."""
    num_groups, num_draws = counts.shape
    num_classes = sums.shape[1]
    total, size = np.zeros((num_draws, num_classes)), np.zeros((num_draws, num_classes))
    for g in range(num_groups):
        for d in range(num_draws):
            for c in range(num_classes):
                total[d, c] += counts[g, d] * sums[g, c]
                size[d, c] += counts[g, d] * sizes[g, c]
    return np.where(size > 0, total / np.maximum(size, 1.0), np.nan)


@numba.njit(cache=True)
def _resampled_aucs(
    counts: np.ndarray, owner: np.ndarray, is_positive: np.ndarray, is_last_of_tie: np.ndarray
) -> np.ndarray:
    """(D,) AUC of rows in ascending order of score, each weighted by how often its group was drawn.

    Args:
        counts: (G, D).
        owner: (N,) the group of each row.
        is_positive: (N,).
        is_last_of_tie: (N,) true where the next row's score is higher.
    """
    num_draws = counts.shape[1]
    below = np.zeros(num_draws, np.int32)  # drawn negatives with a lower score
    positives = np.zeros(num_draws, np.int32)
    tied_positives, tied_negatives = np.zeros(num_draws, np.int32), np.zeros(num_draws, np.int32)
    twice_won = np.zeros(num_draws, np.float64)  # whole numbers, exact below 2^53
    in_tie = False
    for row in range(len(owner)):
        own = owner[row]
        if is_last_of_tie[row] and not in_tie:
            if is_positive[row]:
                for d in range(num_draws):
                    twice_won[d] += 2.0 * counts[own, d] * below[d]
                    positives[d] += counts[own, d]
            else:
                for d in range(num_draws):
                    below[d] += counts[own, d]
            continue
        in_tie = True
        tied = tied_positives if is_positive[row] else tied_negatives
        for d in range(num_draws):
            tied[d] += counts[own, d]
        if is_last_of_tie[row]:
            for d in range(num_draws):
                twice_won[d] += tied_positives[d] * (2.0 * below[d] + tied_negatives[d])
                positives[d] += tied_positives[d]
                below[d] += tied_negatives[d]
                tied_positives[d] = 0
                tied_negatives[d] = 0
            in_tie = False
    pairs = 2.0 * positives * below
    return np.where(pairs > 0, twice_won / np.maximum(pairs, 1.0), np.nan)
