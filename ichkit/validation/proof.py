"""The out-of-fold gain of a second stage, compared with its gain on locked patients."""

from dataclasses import dataclass

import numpy as np

from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import Task
from ichkit.validation.intervals import interval_of, p_value_of
from ichkit.validation.metrics import log_losses
from ichkit.validation.resampling import resample


@dataclass(frozen=True)
class Gain:
    """The reduction of the weighted log loss relative to the base, on the same rows.

    Attributes:
        value: loss of the base minus loss of the second stage; above 0 the second stage is better.
        low, high: its bootstrap interval, by patients.
        num_patients: patients scored.
        draws: (D,) float64, the gain in every bootstrap sample; NaN where a class has no label.
    """

    value: float
    low: float
    high: float
    num_patients: int
    draws: np.ndarray


def measure_gain(
    base: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    task: Task,
    *,
    num_draws: int,
    level: float,
    seed: int,
) -> Gain:
    """The gain of one table of probabilities over another, with an interval by resampling patients.

    Args:
        base, second: (N, C) probabilities of the same rows.
        labels: (N, C) of 0 and 1, or NaN where unknown.
        patients: (N,) the patient of each row.
        num_draws: bootstrap samples.
        level: confidence level, e.g. 0.95.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13: a patient's slices are
        drawn together, and both losses are of the same sample, so that the interval is that of a paired difference.
    """
    owner, names = _number(patients)
    saved = log_losses(base, labels) - log_losses(second, labels)
    known = ~np.isnan(saved)
    sums = np.zeros((len(names), 2 * task.num_classes))
    np.add.at(sums, owner, np.concatenate([np.where(known, saved, 0.0), known], axis=1))
    weights = task.weight_array()
    drawn = resample(sums, (), num_draws=num_draws, seed=seed).sums
    draws = _weigh(drawn, weights)
    interval = interval_of(draws, level)
    return Gain(float(_weigh(sums.sum(0)[None], weights)[0]), interval.low, interval.high, len(names), draws)


@dataclass(frozen=True)
class Kept:
    """The out-of-fold gain minus the gain on locked patients, of one second stage.

    Attributes:
        difference: above 0, the out-of-fold gain promises more than new patients give.
        low, high, p_value: of the difference, by resampling the patients of both groups.
        share: the gain on locked patients as a share of the out-of-fold gain; NaN where there is none out of fold.
    """

    difference: float
    low: float
    high: float
    p_value: float
    share: float


def compare_gains(own: Gain, locked: Gain, level: float) -> Kept:
    """The out-of-fold gain against the gain on locked patients.

    Raises:
        AssertionError: other numbers of bootstrap samples.

    Source: chosen here: the two groups of patients are independent, so their bootstrap samples are subtracted one by
        one.
    """
    assert len(own.draws) == len(locked.draws)
    differences = own.draws - locked.draws
    interval = interval_of(differences, level)
    share = locked.value / own.value if own.value > 0 else float("nan")
    return Kept(own.value - locked.value, interval.low, interval.high, p_value_of(differences), share)


def seed_of_gain(seed: int, group: str) -> int:
    """The seed of the bootstrap of one group of patients: the same for every source, and unlike that of the other."""
    return derive_seed(seed, "gain", group)


def _number(patients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index of each row's patient, and the patients in that order."""
    names, owner = np.unique(np.asarray(patients, object).astype(str), return_inverse=True)
    return owner, names


def _weigh(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(D,) weighted means over classes of (D, 2 C) sums and counts; NaN where a class has no row."""
    total, count = np.split(sums, 2, axis=1)
    means = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    weighted: np.ndarray = means @ weights
    return weighted
