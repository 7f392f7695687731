"""Agreement of readers: Fleiss' kappa, and each reader against the others, with intervals over studies."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from ichkit.validation.intervals import interval_of
from ichkit.validation.resampling import resample


@dataclass(frozen=True)
class Measured:
    """A value with its interval, number of studies, and number of positive ones."""

    value: float
    low: float
    high: float
    n: int
    n_positive: int


@dataclass(frozen=True)
class ReaderPoint:
    """One reader against the others where these agree; `n` studies, `n_positive` of them positive by the others.

    Attributes:
        reader: from 1.
    """

    reader: int
    sensitivity: Measured
    specificity: Measured


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement beyond chance of several raters on the same subjects; NaN if all ratings are of one category.

    Args:
        counts: (N, K) how many raters put each subject into each category; every row has the same sum, 2 or more.

    Source: Fleiss, Psychological Bulletin 76, 1971, equations 3 to 6.

    Example:
        >>> round(fleiss_kappa(np.array([[3, 0], [3, 0], [1, 2], [0, 3]])), 4)
        0.6571
    """
    return float(_kappa_of(_terms_of(counts).sum(0)[None])[0])


def measure_kappa(votes: np.ndarray, *, num_draws: int, level: float, seed: int) -> Measured:
    """Fleiss' kappa of the readers of one class, with its interval by resampling studies.

    Args:
        votes: (N, R) of 0 and 1; a study with a NaN is left out.
        num_draws: bootstrap samples.
        level: confidence level, e.g. 0.95.
    """
    votes = votes[~np.isnan(votes).any(1)]
    num_yes = votes.sum(1)
    terms = _terms_of(np.stack([votes.shape[1] - num_yes, num_yes], axis=1))
    draws = _kappa_of(resample(terms, (), num_draws=num_draws, seed=seed).sums)
    interval = interval_of(draws, level)
    is_majority = num_yes * 2 > votes.shape[1]
    return Measured(
        float(_kappa_of(terms.sum(0)[None])[0]), interval.low, interval.high, len(votes), int(is_majority.sum())
    )


def judge_readers(votes: np.ndarray, level: float) -> Iterator[ReaderPoint]:
    """Each reader of one class against the others; studies on which the others differ are left out.

    Against the majority of all, a reader would be compared with a truth that its own vote is part of.

    Args:
        votes: (N, R) of 0 and 1, 3 readers or more; a study with a NaN is left out.
        level: confidence level, e.g. 0.95.

    Source: chosen here.
    """
    votes = votes[~np.isnan(votes).any(1)]
    for column in range(votes.shape[1]):
        others = np.delete(votes, column, axis=1)
        is_agreed = others.min(1) == others.max(1)
        own, truth = votes[is_agreed, column] == 1, others[is_agreed, 0] == 1
        counts = (len(own), int(truth.sum()))
        found = []
        for hits, total in ((own & truth, truth), (~own & ~truth, ~truth)):
            num_hits, num = int(hits.sum()), int(total.sum())
            value = num_hits / num if num else float("nan")
            found.append(Measured(value, *wilson_interval(num_hits, num, level), *counts))
        yield ReaderPoint(column + 1, *found)


def wilson_interval(num_hits: int, num: int, level: float) -> tuple[float, float]:
    """The score interval of a share of independent rows, which has a width also where it is 0 or 1; NaN without rows.

    Source: Wilson, Journal of the American Statistical Association 22, 1927.

    Example:
        >>> tuple(round(end, 3) for end in wilson_interval(10, 10, 0.95))
        (0.722, 1.0)
    """
    if not num:
        return float("nan"), float("nan")
    z, share = float(-ndtri((1 - level) / 2)), num_hits / num
    centre = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * float(np.sqrt(share * (1 - share) / num + z**2 / (4 * num**2)))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _terms_of(counts: np.ndarray) -> np.ndarray:
    """(N, K + 2): the agreement of each subject, its ratings by category, and 1."""
    counts = np.asarray(counts, np.float64)
    num_raters = counts.sum(1)
    agreement = (counts * (counts - 1)).sum(1) / (num_raters * (num_raters - 1))
    return np.column_stack([agreement, counts, np.ones(len(counts))])


def _kappa_of(sums: np.ndarray) -> np.ndarray:
    """(D,) kappas of (D, K + 2) sums of terms."""
    agreement = sums[:, 0] / sums[:, -1]
    shares = sums[:, 1:-1] / sums[:, 1:-1].sum(1, keepdims=True)
    by_chance = (shares**2).sum(1)
    return _divide(agreement - by_chance, 1 - by_chance)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the divisor is 0."""
    quotients: np.ndarray = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
    return quotients
