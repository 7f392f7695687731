"""The patient bootstrap: counts of each patient in each sample, and sums, AUC and average precision by them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np

from ichkit.core.seeding import make_generator

# Bootstrap samples per pass over the rows: 64 one-byte counts of a patient fill one cache line.
_DRAWS_PER_PASS = 64
_MOST = 65535  # limit of the 16-bit counters that sum runs of negatives


@dataclass(frozen=True)
class Ranking:
    """The labelled rows of one class by descending score.

    Attributes:
        owner: (N,) int32, the group of each row.
        is_positive: (N,) bool.
        is_last_of_tie: (N,) bool, true where the next row's score is lower.
    """

    owner: np.ndarray
    is_positive: np.ndarray
    is_last_of_tie: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray, owner: np.ndarray, order: np.ndarray) -> "Ranking":
        """The ranking of (N,) scores, given their (N,) descending order; rows whose label is NaN are ignored."""
        rows = order[~np.isnan(labels[order])]
        ordered = scores[rows]
        is_last = np.append(ordered[1:] != ordered[:-1], np.ones(min(len(rows), 1), bool))
        return cls(owner[rows].astype(np.int32), labels[rows] > 0, is_last)


@dataclass(frozen=True)
class Resampled:
    """The scores of every bootstrap sample.

    Attributes:
        sums: (D, K) float64, the sums of the drawn groups.
        roc_auc: (D, R) of every ranking; NaN without positives or negatives in the sample.
        average_precision: (D, R); NaN without positives in the sample.
    """

    sums: np.ndarray
    roc_auc: np.ndarray
    average_precision: np.ndarray


def resample(sums: np.ndarray, rankings: Sequence[Ranking], *, num_draws: int, seed: int) -> Resampled:
    """Draws G of the G groups with replacement, `num_draws` times, and scores every sample.

    Args:
        sums: (G, K) float64, quantities that are sums over the rows of a group.
        seed: the same seed and number of groups give the same samples for all sources, so that differences are paired.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13, by cluster: a patient's
        slices are drawn together.
    """
    with ThreadPoolExecutor(max(1, min(len(rankings), os.cpu_count() or 1))) as pool:
        parts = [_score(counts, sums, rankings, pool.map) for counts in draw_counts(len(sums), num_draws, seed)]
    drawn, auc, precision = (np.concatenate(part)[:num_draws] for part in zip(*parts, strict=True))
    return Resampled(drawn, auc, precision)


def score_once(sums: np.ndarray, rankings: Sequence[Ranking]) -> Resampled:
    """The sums and scores of all groups, each once, as a single sample."""
    return Resampled(*_score(np.ones((len(sums), 1), np.uint8), sums, rankings, map))


def draw_counts(num_groups: int, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """(G, 64) uint8 counts of each group in each sample; the last array may have more samples than requested."""
    rng = make_generator(seed, "bootstrap")
    for _ in range(0, num_draws, _DRAWS_PER_PASS):
        yield _count(rng.integers(num_groups, size=(_DRAWS_PER_PASS, num_groups)))


def _score(
    counts: np.ndarray, sums: np.ndarray, rankings: Sequence[Ranking], apply: Callable[..., Iterable[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(D, K) sums, (D, R) AUC and (D, R) average precision, each group weighted by its (G, D) counts.

    Args:
        apply: `map`, or that of a pool; classes are independent, so the result is the same.
    """
    run = _MOST // max(int(counts.max(initial=0)), 1)
    ranks = np.empty((2, counts.shape[1], len(rankings)))
    for number, scores in enumerate(apply(lambda ranking: _rank(counts, ranking, run), rankings)):
        ranks[..., number] = scores
    return _weighted_sums(counts, sums).T, ranks[0], ranks[1]


def _rank(counts: np.ndarray, ranking: Ranking, run: int) -> np.ndarray:
    return _rank_drawn(counts, ranking.owner, ranking.is_positive, ranking.is_last_of_tie, run)


@numba.njit(cache=True, nogil=True)
def _count(picks: np.ndarray) -> np.ndarray:
    """(G, D) uint8: how often each of G groups occurs in each row of (D, G) picks."""
    num_draws, num_groups = picks.shape
    counts = np.zeros((num_groups, num_draws), np.uint8)
    for d in range(num_draws):
        for pick in picks[d]:
            # More than 255 picks of one group are practically impossible; an overflow would go unnoticed.
            assert counts[pick, d] < 255
            counts[pick, d] += 1
    return counts


@numba.njit(cache=True, nogil=True)
def _weighted_sums(counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """(K, D) sums over the groups of (G, K) sums, weighted by (G, D) counts."""
    num_groups, num_draws = counts.shape
    total = np.zeros((sums.shape[1], num_draws))
    for g in range(num_groups):
        for k in range(sums.shape[1]):
            value = sums[g, k]
            if value != 0.0:
                for d in range(num_draws):
                    total[k, d] += counts[g, d] * value
    return total


@numba.njit(cache=True, nogil=True)
def _rank_drawn(
    counts: np.ndarray, owner: np.ndarray, is_positive: np.ndarray, is_last_of_tie: np.ndarray, run: int
) -> np.ndarray:
    """(2, D) AUC and average precision of the rows, each weighted by the count of its group; NaN if undefined.

    Args:
        counts: (G, D) uint8.
        owner, is_positive, is_last_of_tie: (N,) as in `Ranking`.
        run: number of negatives after which the 16-bit counters are emptied.
    """
    num_draws = counts.shape[1]
    pending = np.zeros(num_draws, np.uint16)  # negatives of the present run
    above, hits = np.zeros(num_draws), np.zeros(num_draws)  # negatives and positives with a higher score
    tied_negatives, tied_positives = np.zeros(num_draws), np.zeros(num_draws)
    lost, precision = np.zeros(num_draws), np.zeros(num_draws)  # pairs in the wrong order: whole or half, exact
    length, in_tie = 0, False
    for row in range(len(owner)):
        own = owner[row]  # indexed as counts[own, d]: a view of the row would be counted by reference every time
        is_alone = is_last_of_tie[row] and not in_tie
        if is_alone and not is_positive[row]:
            for d in range(num_draws):
                pending[d] += counts[own, d]
            length += 1
        if length and (length == run or not is_alone or is_positive[row]):
            for d in range(num_draws):
                above[d] += pending[d]
                pending[d] = 0
            length = 0
        if is_alone and is_positive[row]:
            for d in range(num_draws):
                weight = float(counts[own, d])
                lost[d] += weight * above[d]
                hits[d] += weight
                precision[d] += weight * hits[d] / max(hits[d] + above[d], 1.0)
        if is_alone:
            continue
        tied = tied_positives if is_positive[row] else tied_negatives
        for d in range(num_draws):
            tied[d] += counts[own, d]
        in_tie = not is_last_of_tie[row]
        if not in_tie:
            for d in range(num_draws):
                lost[d] += tied_positives[d] * (above[d] + 0.5 * tied_negatives[d])
                hits[d] += tied_positives[d]
                above[d] += tied_negatives[d]
                precision[d] += tied_positives[d] * hits[d] / max(hits[d] + above[d], 1.0)
                tied_positives[d] = 0.0
                tied_negatives[d] = 0.0
    scores = np.full((2, num_draws), np.nan)
    for d in range(num_draws):
        pairs = hits[d] * (above[d] + pending[d])
        if pairs > 0:
            scores[0, d] = (pairs - lost[d]) / pairs
        if hits[d] > 0:
            scores[1, d] = precision[d] / hits[d]
    return scores
