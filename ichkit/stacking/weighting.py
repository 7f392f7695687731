"""Blends of predictors with given weights: the table `METHODS`, and weights by hill climbing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ichkit.core.logits import to_logits, to_probabilities
from ichkit.validation.metrics import log_losses
from ichkit.work.schemas import PROBABILITY_CLIP

_MOST_STEPS = 60
_DIGITS = 12
_MIN_GAIN = 1e-7


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        name: key in the table.
        combine: (M, N, C) float64 probabilities of M members, (M,) weights that sum to 1, and the (M, R, C) rows that
            define ranks, to (N, C) probabilities. No label enters.
        description: one sentence.
        source: where it comes from.
    """

    name: str
    combine: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    description: str
    source: str


def _mean(members: np.ndarray, weights: np.ndarray, _reference: np.ndarray) -> np.ndarray:
    mean: np.ndarray = np.tensordot(weights, members, axes=1)
    return mean


def _logit(members: np.ndarray, weights: np.ndarray, _reference: np.ndarray) -> np.ndarray:
    logits = to_logits(np.clip(members, *PROBABILITY_CLIP))
    return to_probabilities(np.tensordot(weights, logits, axes=1))


def _rank(members: np.ndarray, weights: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean of the shares of reference rows below each probability, on the scale of the mean probability."""
    blended = np.empty(members.shape[1:])
    for c in range(members.shape[2]):
        known = [np.sort(of_member) for of_member in reference[..., c]]
        own = _mean_share(members[..., c], known, weights)
        scale = _mean_share(reference[..., c], known, weights)
        # The row with the r-th highest mean share gets the r-th highest mean probability of the reference; equal shares
        # get the mean of theirs.
        places, number = np.unique(np.sort(scale), return_inverse=True)
        heights = np.bincount(number, np.sort(weights @ reference[..., c])) / np.bincount(number)
        blended[:, c] = np.interp(own, places, heights)
    return blended


def _mean_share(members: np.ndarray, known: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(N,) weighted mean over members of the share of known rows below each value, equal ones counting half."""
    shares = [
        (np.searchsorted(ordered, own, "left") + np.searchsorted(ordered, own, "right")) / (2 * len(ordered))
        for own, ordered in zip(members, known, strict=True)
    ]
    # Rounded, because sums of the same shares in another order differ in their last bit.
    mean: np.ndarray = np.round(weights @ np.stack(shares), _DIGITS)
    return mean


METHODS = {
    "mean": Method(
        name="mean",
        combine=_mean,
        description="Weighted mean of the probabilities.",
        source="the usual blend of submissions",
    ),
    "logit": Method(
        name="logit",
        combine=_logit,
        description="Weighted mean of the logits: the geometric mean of the odds.",
        source="logarithmic opinion pool, Genest and Zidek, Statistical Science 1, 1986",
    ),
    "rank": Method(
        name="rank",
        combine=_rank,
        description="Weighted mean of the ranks among the out-of-fold rows, on the scale of the mean probability.",
        source="the usual blend where AUC is the score; the scale is chosen here, because log loss needs probabilities",
    ),
}


def climb(
    members: np.ndarray,
    labels: np.ndarray,
    class_weights: np.ndarray,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """(M,) weights, summing to 1, of the members that lower the weighted log loss, added one by one, with repetition.

    Begins with the best member, adds the one that lowers the loss most, and ends where none does.

    Args:
        members: (M, N, C) probabilities.
        labels: (N, C) of 0 and 1, NaN where unknown.
        class_weights: (C,).
        combine: of members and weights, to (N, C).

    Source: Caruana et al., ICML 2004, section 2, without bagging of models.
    """
    counts, best = np.zeros(len(members)), np.inf
    for _ in range(_MOST_STEPS):
        tried = [counts + np.eye(len(members))[m] for m in range(len(members))]
        losses = [_loss(combine(members, one / one.sum()), labels, class_weights) for one in tried]
        chosen = int(np.argmin(losses))
        if not losses[chosen] < best - _MIN_GAIN:
            break
        best, counts = losses[chosen], tried[chosen]
    weights: np.ndarray = counts / counts.sum()
    return weights


def _loss(p: np.ndarray, labels: np.ndarray, class_weights: np.ndarray) -> float:
    """The weighted log loss over the classes with a label."""
    known = ~np.isnan(labels)
    sums = np.where(known, log_losses(p, labels), 0.0).sum(0)
    has_any = known.any(0) & (class_weights > 0)
    means = sums[has_any] / known.sum(0)[has_any]
    return float(means @ class_weights[has_any] / class_weights[has_any].sum())
