"""Blending: convex weights per class of the members' logits, or the best member alone."""

from dataclasses import dataclass

import numpy as np

from ichkit.core.logits import to_probabilities
from ichkit.stacking.rows import known_rows, log_losses_of_logits

_MAX_STEPS = 200
_SMALLEST_WEIGHT = 1e-6


@dataclass(frozen=True)
class Blend:
    """The weight of each member in each class.

    Attributes:
        members: names, in the order of the weights.
        weights: (members, C) float64, not negative, each column summing to 1.
    """

    members: tuple[str, ...]
    weights: np.ndarray

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """(N, C) float64 logits of the blend of (members, N, C) logits."""
        blended: np.ndarray = np.einsum("mnc,mc->nc", np.asarray(logits, np.float64), self.weights)
        return blended


def fit_blend(logits: np.ndarray, labels: np.ndarray, members: tuple[str, ...], tolerance: float = 0.0) -> Blend:
    """The convex weights with the lowest log loss, class by class.

    Args:
        logits: (members, n, C) of inner models for the inner patients of one fold's training part, and of no others.
        labels: (n, C) of 0 and 1; rows of a class whose label is NaN are left out.
        tolerance: relative gain in loss over the best member that a mix needs; otherwise that member is used alone.

    Example:
        >>> sure = np.array([[[2.0], [-2.0]], [[-2.0], [2.0]]])
        >>> fit_blend(sure, np.array([[1], [0]]), ("good", "bad")).weights[:, 0].tolist()
        [1.0, 0.0]
    """
    assert logits.shape[1:] == labels.shape
    assert len(members) == len(logits)
    columns = []
    for c in range(labels.shape[1]):
        known = known_rows(labels[:, c])
        columns.append(_fit_class(logits[:, known, c].astype(np.float64), labels[known, c], tolerance))
    return Blend(tuple(members), np.stack(columns, axis=1))


def _fit_class(logits: np.ndarray, labels: np.ndarray, tolerance: float) -> np.ndarray:
    """(members,) weights for (members, n) logits; the loss is convex in them.

    Of equal members the first is used.
    """
    # Imported here: only fitting needs it, and `predict` starts faster without it.
    from scipy.optimize import minimize

    num_members = len(logits)
    if num_members == 1 or not len(labels):
        first: np.ndarray = np.eye(num_members)[0]
        return first
    single = log_losses_of_logits(logits, labels).mean(axis=1)
    alone = np.zeros(num_members)
    alone[np.argmin(single)] = 1.0
    found = minimize(
        lambda weights: log_losses_of_logits(weights @ logits, labels).mean(),
        np.full(num_members, 1 / num_members),
        jac=lambda weights: logits @ (to_probabilities(weights @ logits) - labels) / len(labels),
        method="SLSQP",
        bounds=[(0.0, 1.0)] * num_members,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": lambda _: np.ones(num_members)},
        options={"maxiter": _MAX_STEPS, "ftol": 1e-10},
    )
    mixed = np.where(found.x > _SMALLEST_WEIGHT, found.x, 0.0)
    mixed /= mixed.sum()
    gained = single.min() - log_losses_of_logits(mixed @ logits, labels).mean()
    return mixed if gained > tolerance * single.min() else alone
