"""Platt scaling of logits, one slope and one intercept per class, with a prior towards the identity."""

from dataclasses import dataclass

import numpy as np

from ichkit.core.logits import to_probabilities
from ichkit.stacking.rows import known_rows

MIN_SLOPE = 0.05
_SLOPE_STD = 0.5
_INTERCEPT_STD = 1.0
_MAX_STEPS = 100
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Calibration:
    """`slope * logit + intercept` per class.

    Attributes:
        slope: (C,) float64, at least `MIN_SLOPE`, so that a calibration never reverses an order.
        intercept: (C,) float64.
    """

    slope: np.ndarray
    intercept: np.ndarray

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """(N, C) float64 calibrated logits."""
        calibrated: np.ndarray = self.slope * np.asarray(logits, np.float64) + self.intercept
        return calibrated

    def shrink(self, shares: np.ndarray) -> "Calibration":
        """This calibration shrunk to the identity by (C,) shares; at share 0 the logits are unchanged."""
        return Calibration(1 + shares * (self.slope - 1), shares * self.intercept)


def no_calibration(num_classes: int) -> Calibration:
    """The identity."""
    return Calibration(np.ones(num_classes), np.zeros(num_classes))


def fit_calibration(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """The calibration with the lowest penalised log loss on these rows.

    Args:
        logits: (N, C) float.
        labels: (N, C) of 0 and 1; rows of a class whose label is NaN are left out.

    A normal prior around slope 1 and intercept 0 (standard deviations 0.5 and 1) dominates for a class with few
    positives, and keeps the fit finite without any.

    Source: Platt 1999; the prior is chosen here, because a data set may have only two positive patients of a class.

    Example:
        >>> fit_calibration(np.full((100, 1), 0.0), np.zeros((100, 1))).intercept.round(1)
        array([-3.4])
    """
    assert logits.shape == labels.shape
    fits = [_fit_class(np.asarray(logits[:, c], np.float64), labels[:, c]) for c in range(logits.shape[1])]
    return Calibration(np.array([fit[0] for fit in fits]), np.array([fit[1] for fit in fits]))


def _fit_class(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(slope, intercept) by damped Newton steps, which converge, because the penalised loss is strictly convex."""
    logits, labels = logits[known_rows(labels)], labels[known_rows(labels)]
    design = np.stack([logits, np.ones_like(logits)], axis=1)
    precision = np.array([_SLOPE_STD, _INTERCEPT_STD]) ** -2.0
    centre = np.array([1.0, 0.0])

    def objective(theta: np.ndarray) -> float:
        z = design @ theta
        return float((np.logaddexp(0.0, z) - labels * z).sum() + 0.5 * precision @ (theta - centre) ** 2)

    theta, value = centre, objective(centre)
    for _ in range(_MAX_STEPS):
        p = to_probabilities(design @ theta)
        gradient = design.T @ (p - labels) + precision * (theta - centre)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + np.diag(precision)
        step, scale = np.linalg.solve(hessian, gradient), 1.0
        proposal = _bounded(theta - step)
        while objective(proposal) > value and scale > _TOLERANCE:
            scale /= 2
            proposal = _bounded(theta - scale * step)
        gained = value - objective(proposal)
        if gained <= _TOLERANCE * max(value, 1.0):
            break
        theta, value = proposal, value - gained
    return theta


def _bounded(theta: np.ndarray) -> np.ndarray:
    return np.array([max(theta[0], MIN_SLOPE), theta[1]])
