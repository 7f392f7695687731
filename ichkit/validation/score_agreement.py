"""Agreement of two whole-number scores of the same patients, with intervals from resampling patients."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ichkit.validation.intervals import interval_of
from ichkit.validation.resampling import resample

_COUNT, _ABSOLUTE, _SIGNED, _SQUARED, _EQUAL, _NEAR, _OURS, _OURS_2, _THEIRS, _THEIRS_2 = range(10)
_HITS, _LOW, _QUIET, _HIGH = range(10, 14)


@dataclass(frozen=True)
class Agreement:
    """A measure of agreement with its interval; NaN where it is undefined."""

    name: str
    value: float
    low: float
    high: float


def measure_agreement(
    ours: np.ndarray, theirs: np.ndarray, members: np.ndarray, *, cut: int, num_draws: int, level: float, seed: int
) -> list[Agreement]:
    """How far two scores agree: differences, shares of close ones, weighted kappa, and decisions at a cut.

    Args:
        ours, theirs: (N,) whole numbers; `theirs` is the reference.
        members: (N,) the patient of each.
        cut: scores of at most this are positive for sensitivity and specificity.
        num_draws: bootstrap samples.
        level: confidence level, e.g. 0.95.

    Source: quadratic weights: Cohen, Psychological Bulletin 70, 1968. Chance is that of all pairs of the two scores.

    Example:
        >>> scores = np.array([10, 9, 7, 4]), np.array([10, 8, 7, 5])
        >>> found = measure_agreement(*scores, np.arange(4), cut=7, num_draws=64, level=0.95, seed=0)
        >>> [round(one.value, 3) for one in found]
        [0.5, 0.0, 0.5, 1.0, 0.941, 1.0, 1.0]
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    gap, is_low, calls_low = ours - theirs, theirs <= cut, ours <= cut
    terms = [np.ones(len(ours)), np.abs(gap), gap, gap**2, gap == 0, np.abs(gap) <= 1]
    terms += [ours, ours**2, theirs, theirs**2, is_low & calls_low, is_low, ~is_low & ~calls_low, ~is_low]
    names, member = np.unique(members, return_inverse=True)
    sums = np.stack([np.bincount(member, term, len(names)) for term in terms], axis=1)
    drawn, whole = resample(sums, (), num_draws=num_draws, seed=seed).sums, sums.sum(0)
    measured = []
    for name, measure in _measures(cut).items():
        interval = interval_of(measure(drawn), level)
        measured.append(Agreement(name, float(measure(whole[None])[0]), interval.low, interval.high))
    return measured


def _measures(cut: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Measures of (D, 14) sums of terms."""
    return {
        "mean absolute difference": lambda sums: _share(sums, _ABSOLUTE, _COUNT),
        "mean difference": lambda sums: _share(sums, _SIGNED, _COUNT),
        "share of equal scores": lambda sums: _share(sums, _EQUAL, _COUNT),
        "share within one point": lambda sums: _share(sums, _NEAR, _COUNT),
        "kappa, quadratic weights": _kappa,
        f"sensitivity, scores of {cut} or less": lambda sums: _share(sums, _HITS, _LOW),
        f"specificity, scores of {cut} or less": lambda sums: _share(sums, _QUIET, _HIGH),
    }


def _share(sums: np.ndarray, part: int, whole: int) -> np.ndarray:
    shares: np.ndarray = np.divide(
        sums[:, part], sums[:, whole], out=np.full(len(sums), np.nan), where=sums[:, whole] > 0
    )
    return shares


def _kappa(sums: np.ndarray) -> np.ndarray:
    """One less the mean squared difference, over that of all pairs; NaN where all scores are equal."""
    mean = sums / sums[:, [_COUNT]]
    by_chance = mean[:, _OURS_2] + mean[:, _THEIRS_2] - 2 * mean[:, _OURS] * mean[:, _THEIRS]
    quotients = np.divide(mean[:, _SQUARED], by_chance, out=np.full(len(sums), np.nan), where=by_chance > 0)
    kappas: np.ndarray = 1 - quotients
    return kappas
