"""Calibration of one class: Brier score, and intercept and slope of a logistic recalibration, by patients."""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from ichkit.core.logits import to_logits
from ichkit.validation.intervals import interval_of
from ichkit.validation.metrics import CLIP
from ichkit.validation.resampling import resample

_MOST_STEPS, _TOLERANCE = 60, 1e-10
_LARGEST_SLOPE = 1e3  # beyond it the classes are separated, and the slope would be infinite


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its interval; NaN where undefined."""

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class Calibration:
    """The calibration of one class.

    Attributes:
        brier: mean squared difference between probability and label; 0 is best.
        scaled_brier: 1 minus Brier score over that of the prevalence: 1 is best, 0 as good as the prevalence for all.
        intercept: of the logit with the slope fixed at 1 (calibration in the large): below 0, they are too high.
        slope: of the label on the logit: below 1 probabilities are too extreme, above 1 too moderate.
        mean_probability, prevalence: which calibration in the large compares.
        n, n_positive: labelled rows, and positive ones.
    """

    brier: Estimate
    scaled_brier: Estimate
    intercept: Estimate
    slope: Estimate
    mean_probability: float
    prevalence: float
    n: int
    n_positive: int


def measure_calibration(
    p: np.ndarray, labels: np.ndarray, members: np.ndarray, *, num_draws: int, level: float, seed: int
) -> Calibration:
    """The calibration of one class on labelled rows of patients.

    Intervals of the Brier scores are bootstrap intervals over patients; those of intercept and slope come from the
    cluster-robust variance, because fitting every bootstrap sample again would take hours for RSNA.

    Args:
        p: (N,) probabilities in [0, 1].
        labels: (N,) of 0 and 1, or NaN where unknown (ignored).
        members: (N,) the patient of each row.
        num_draws: bootstrap samples.
        level: confidence level, e.g. 0.95.

    Source: Brier, Monthly Weather Review 78, 1950; Steyerberg et al., Epidemiology 21, 2010 (scaled Brier score); Cox,
        Biometrika 45, 1958 (recalibration); Steyerberg, "Clinical Prediction Models", 2nd edition 2019, chapter 15.
    """
    known = ~np.isnan(labels)
    p, y = p[known].astype(np.float64), labels[known]
    names, owner = np.unique(members[known], return_inverse=True)
    nan = Estimate(float("nan"))
    if not len(y):
        return Calibration(nan, nan, nan, nan, float("nan"), float("nan"), 0, 0)
    brier, scaled = _brier(p, y, owner, len(names), num_draws, level, seed)
    x = to_logits(np.clip(p, CLIP, 1 - CLIP))
    intercept = _estimate(fit_logistic(np.ones((len(y), 1)), y, x), owner, level)
    slope = _estimate(fit_logistic(np.stack([np.ones(len(y)), x], 1), y, np.zeros(len(y))), owner, level)
    means = (float(p.mean()), float(y.mean()))
    return Calibration(brier, scaled, intercept, slope, *means, len(y), int(y.sum()))


def brier_scores(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Brier score and the scaled one; the latter NaN without positives or negatives.

    Args:
        sums: (..., 3) squared errors, positives and rows.

    Example:
        >>> tuple(map(float, brier_scores(np.array([0.5, 1, 4]))))
        (0.125, 0.33333333333333337)
    """
    rows = sums[..., 2]
    brier = np.divide(sums[..., 0], rows, out=np.full(rows.shape, np.nan), where=rows > 0)
    share = np.divide(sums[..., 1], rows, out=np.full(rows.shape, np.nan), where=rows > 0)
    of_prevalence = share * (1 - share)
    scaled = 1 - np.divide(brier, of_prevalence, out=np.full(rows.shape, np.nan), where=of_prevalence > 0)
    return brier, scaled


@dataclass(frozen=True)
class LogisticFit:
    """A logistic regression.

    Attributes:
        coefficients: (F,); NaN if the classes are separated or one is missing.
        scores: (N, F) gradient of the log likelihood of each row at the coefficients.
        information: (F, F) negative second derivative of the log likelihood.
    """

    coefficients: np.ndarray
    scores: np.ndarray
    information: np.ndarray

    @property
    def is_defined(self) -> bool:
        """False if there is no finite maximum of the likelihood."""
        return bool(np.isfinite(self.coefficients).all())


def fit_logistic(design: np.ndarray, y: np.ndarray, offset: np.ndarray) -> LogisticFit:
    """The maximum of the likelihood of a logistic regression, without a penalty.

    Args:
        design: (N, F) float64.
        y: (N,) of 0 and 1.
        offset: (N,) added to the logit, with a coefficient of 1.

    Source: Newton's method with halved steps; McCullagh & Nelder, "Generalized Linear Models", 1989, chapter 4.
    """
    num_features = design.shape[1]
    undefined = LogisticFit(np.full(num_features, np.nan), np.empty((0, num_features)), np.empty((0, 0)))
    if not 0 < y.sum() < len(y):
        return undefined
    coefficients = np.zeros(num_features)
    likelihood = _log_likelihood(design @ coefficients + offset, y)
    for _ in range(_MOST_STEPS):
        p = _sigmoid(design @ coefficients + offset)
        scores = design * (y - p)[:, None]
        information = design.T @ (design * (p * (1 - p))[:, None])
        if np.linalg.cond(information) > 1 / np.finfo(float).eps or np.abs(coefficients).max() > _LARGEST_SLOPE:
            return undefined
        step = np.linalg.solve(information, scores.sum(0))
        if np.abs(step).max() < _TOLERANCE:
            return LogisticFit(coefficients, scores, information)
        for _ in range(_MOST_STEPS):
            after = _log_likelihood(design @ (coefficients + step) + offset, y)
            if after >= likelihood:
                break
            step = step / 2
        coefficients, likelihood = coefficients + step, after
    return LogisticFit(coefficients, scores, information) if np.abs(step).max() < 1e-6 else undefined


def clustered_covariance(fit: LogisticFit, owner: np.ndarray) -> np.ndarray:
    """(F, F) covariance of the coefficients where rows of one patient are not independent; NaN for one patient.

    Args:
        owner: (N,) number of the patient of each row, from 0.

    Source: Liang & Zeger, Biometrika 73, 1986, with the factor G / (G - 1) for G patients of Cameron & Miller, Journal
        of Human Resources 50, 2015, section II.
    """
    num_groups = int(owner.max()) + 1
    if num_groups < 2:
        return np.full(fit.information.shape, np.nan)
    sums = np.stack([np.bincount(owner, weights=column, minlength=num_groups) for column in fit.scores.T], axis=1)
    inverse = np.linalg.inv(fit.information)
    covariance: np.ndarray = inverse @ (sums.T @ sums) @ inverse * num_groups / (num_groups - 1)
    return covariance


def _brier(
    p: np.ndarray, y: np.ndarray, owner: np.ndarray, num_groups: int, num_draws: int, level: float, seed: int
) -> tuple[Estimate, Estimate]:
    parts = ((p - y) ** 2, y, np.ones(len(y)))
    sums = np.stack([np.bincount(owner, weights=part, minlength=num_groups) for part in parts], axis=1)
    values = brier_scores(sums.sum(0))
    if num_groups < 2:
        return Estimate(float(values[0])), Estimate(float(values[1]))
    draws = brier_scores(resample(sums, (), num_draws=num_draws, seed=seed).sums)
    ends = [interval_of(of_score, level) for of_score in draws]
    brier, scaled = (Estimate(float(value), end.low, end.high) for value, end in zip(values, ends, strict=True))
    return brier, scaled


def _estimate(fit: LogisticFit, owner: np.ndarray, level: float) -> Estimate:
    """The last coefficient with its interval."""
    if not fit.is_defined:
        return Estimate(float("nan"))
    value, variance = float(fit.coefficients[-1]), float(clustered_covariance(fit, owner)[-1, -1])
    if not variance > 0:
        return Estimate(value)
    half = float(-stdtrit(int(owner.max()), (1 - level) / 2) * np.sqrt(variance))
    return Estimate(value, value - half, value + half)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    sigmoid: np.ndarray = 0.5 * (1 + np.tanh(0.5 * x))
    return sigmoid


def _log_likelihood(x: np.ndarray, y: np.ndarray) -> float:
    return float((y * x - np.logaddexp(0, x)).sum())
