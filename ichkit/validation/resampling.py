"""The patient bootstrap: counts of each patient in each sample, and sums, AUC and average precision by them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np

from ichkit.core.seeding import make_generator

# Bootstrap samples per pass over the rows: 64 one-byte counts of a patient fill one cache line.
_DRAWS_PER_PASS = 64
# Sets of samples that are kept: slices, studies and most subgroups have the same patients, and 2000 samples of the
# competition's patients take 44 MB.
_DRAWS_KEPT = 4
_MOST = 65535  # limit of the 16-bit counters that sum runs of negatives


@dataclass(frozen=True)
class Ranking:
    """The labelled rows of one class by descending score, cut into steps: some negatives, then some positives.

    A step of ties holds rows of one score with both classes, or with several positives. Any other step holds single
    rows, all negatives above all positives.

    Attributes:
        owner: (N,) int32, the group of each row; of the rows of a step the negatives first.
        first_positive: (S,) int64, the row of the first positive of each step, or its end.
        end: (S,) int64, the row after the last of each step.
        is_tied: (S,) bool, true for a step of ties.
    """

    owner: np.ndarray
    first_positive: np.ndarray
    end: np.ndarray
    is_tied: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray, owner: np.ndarray, order: np.ndarray) -> "Ranking":
        """The ranking of (N,) scores, given their (N,) descending order; rows whose label is NaN are ignored."""
        rows = order[~np.isnan(labels[order])]
        return cls(*_cut(scores[rows], labels[rows] > 0, owner[rows].astype(np.int32)))


@dataclass(frozen=True)
class Resampled:
    """The scores of every bootstrap sample.

    Attributes:
        sums: (D, K) float64, the sums of the drawn groups.
        roc_auc: (D, R) of every ranking; NaN without positives or negatives in the sample.
        average_precision: (D, R); NaN without positives in the sample, and where it was not asked for.
    """

    sums: np.ndarray
    roc_auc: np.ndarray
    average_precision: np.ndarray


def resample(
    sums: np.ndarray, rankings: Sequence[Ranking], *, num_draws: int, seed: int, has_precision: bool = True
) -> Resampled:
    """Draws G of the G groups with replacement, `num_draws` times, and scores every sample.

    Args:
        sums: (G, K) float64, quantities that are sums over the rows of a group.
        seed: the same seed and number of groups give the same samples for all sources, so that differences are paired.
        has_precision: False leaves out the average precision, which takes longer than the AUC.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13, by cluster: a patient's
        slices are drawn together.
    """
    tallies = _Tallies.of(sums)
    with ThreadPoolExecutor(max(1, min(len(rankings), os.cpu_count() or 1))) as pool:
        parts = [
            _score(counts, tallies, rankings, pool.map, has_precision)
            for counts in draw_counts(len(sums), num_draws, seed)
        ]
    drawn, auc, precision = (np.concatenate(part)[:num_draws] for part in zip(*parts, strict=True))
    return Resampled(drawn, auc, precision)


def score_once(sums: np.ndarray, rankings: Sequence[Ranking]) -> Resampled:
    """The sums and scores of all groups, each once, as a single sample."""
    once = np.ones((len(sums), 1), np.uint8)
    return Resampled(*_score(once, _Tallies.of(sums), rankings, map, has_precision=True))


def draw_counts(num_groups: int, num_draws: int, seed: int) -> Iterator[np.ndarray]:
    """(G, 64) uint8 counts of each group in each sample; the last array may have more samples than requested.

    The arrays are kept for the next call, so that nobody may write to them.
    """
    yield from _draw_counts(num_groups, num_draws, seed)


@lru_cache(maxsize=_DRAWS_KEPT)
def _draw_counts(num_groups: int, num_draws: int, seed: int) -> tuple[np.ndarray, ...]:
    rng = make_generator(seed, "bootstrap")
    passes = range(0, num_draws, _DRAWS_PER_PASS)
    return tuple(_count(rng.integers(num_groups, size=(_DRAWS_PER_PASS, num_groups))) for _ in passes)


@dataclass(frozen=True)
class _Tallies:
    """The sums of the groups that are not 0, most of which are: a patient has no row in most bins.

    Attributes:
        starts: (G + 1,) int64, where the sums of each group begin.
        columns: (V,) int64, the quantity of each sum.
        values: (V,) float64.
        num_columns: number of quantities.
    """

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    num_columns: int

    @classmethod
    def of(cls, sums: np.ndarray) -> "_Tallies":
        """The tallies of (G, K) sums."""
        groups, columns = np.nonzero(sums)
        starts = np.searchsorted(groups, np.arange(len(sums) + 1))
        return cls(starts, columns, np.asarray(sums[groups, columns], np.float64), sums.shape[1])


def _score(
    counts: np.ndarray,
    tallies: _Tallies,
    rankings: Sequence[Ranking],
    apply: Callable[..., Iterable[np.ndarray]],
    has_precision: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(D, K) sums, (D, R) AUC and (D, R) average precision, each group weighted by its (G, D) counts.

    Args:
        apply: `map`, or that of a pool; classes are independent, so the result is the same.
    """
    run = _MOST // max(int(counts.max(initial=0)), 1)
    ranks = np.empty((2, counts.shape[1], len(rankings)))
    for number, scores in enumerate(apply(lambda ranking: _rank(counts, ranking, run, has_precision), rankings)):
        ranks[..., number] = scores
    total = _weighted_sums(counts, tallies.starts, tallies.columns, tallies.values, tallies.num_columns)
    return total.T, ranks[0], ranks[1]


def _rank(counts: np.ndarray, ranking: Ranking, run: int, has_precision: bool) -> np.ndarray:
    steps = (ranking.first_positive, ranking.end, ranking.is_tied)
    return _rank_drawn(counts, ranking.owner, *steps, run, has_precision)


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
def _weighted_sums(
    counts: np.ndarray, starts: np.ndarray, columns: np.ndarray, values: np.ndarray, num_columns: int
) -> np.ndarray:
    """(K, D) sums over the groups, weighted by their (G, D) counts.

    Args:
        starts, columns, values, num_columns: as in `_Tallies`.
    """
    num_groups, num_draws = counts.shape
    total = np.zeros((num_columns, num_draws))
    for g in range(num_groups):
        for entry in range(starts[g], starts[g + 1]):
            k, value = columns[entry], values[entry]
            for d in range(num_draws):
                total[k, d] += counts[g, d] * value
    return total


@numba.njit(cache=True, nogil=True)
def _cut(
    scores: np.ndarray, is_positive: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The attributes of a `Ranking` of (N,) rows by descending score."""
    num_rows = len(scores)
    arranged = np.empty(num_rows, np.int32)
    first_positive, end = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
    is_tied = np.zeros(num_rows, np.bool_)
    step, row, has_positives = 0, 0, False  # the present step, of single rows, and whether it has positives already
    while row < num_rows:
        begin, positives = row, 0
        while row < num_rows and (row == begin or scores[row] == scores[begin]):
            positives += is_positive[row]
            row += 1
        at_negative, at_positive = begin, row - positives
        for other in range(begin, row):
            if is_positive[other]:
                arranged[at_positive] = owner[other]
                at_positive += 1
            else:
                arranged[at_negative] = owner[other]
                at_negative += 1
        ties = positives > 0 and row - begin > 1
        begins_step = ties or (has_positives and positives == 0)
        if begins_step and begin > (end[step - 1] if step > 0 else 0):
            if not has_positives:
                first_positive[step] = begin
            end[step], has_positives = begin, False
            step += 1
        if ties:
            first_positive[step], end[step], is_tied[step] = row - positives, row, True
            step += 1
        elif positives > 0 and not has_positives:
            first_positive[step], has_positives = begin, True
    if num_rows > (end[step - 1] if step > 0 else 0):
        if not has_positives:
            first_positive[step] = num_rows
        end[step] = num_rows
        step += 1
    return arranged, first_positive[:step].copy(), end[:step].copy(), is_tied[:step].copy()


@numba.njit(cache=True, nogil=True)
def _add_rows(
    total: np.ndarray, pending: np.ndarray, counts: np.ndarray, owner: np.ndarray, first: int, end: int, run: int
) -> None:
    """Adds the (G, D) counts of the groups of some rows to the (D,) total.

    Args:
        pending: (D,) uint16 of zeros, and again afterwards.
        first, end: the rows, of `owner`.
        run: number of rows after which the 16-bit counters are emptied.
    """
    num_draws = len(total)
    row = first
    while row < end:
        stop = min(row + run, end)
        while row + 8 <= stop:  # eight rows for each time that the counters are read and written
            a, b, c, e = owner[row], owner[row + 1], owner[row + 2], owner[row + 3]
            f, g, h, i = owner[row + 4], owner[row + 5], owner[row + 6], owner[row + 7]
            for d in range(num_draws):
                pending[d] += (
                    counts[a, d]
                    + counts[b, d]
                    + counts[c, d]
                    + counts[e, d]
                    + counts[f, d]
                    + counts[g, d]
                    + counts[h, d]
                    + counts[i, d]
                )
            row += 8
        while row < stop:
            own = owner[row]  # indexed as counts[own, d]: a view of the row would be counted by reference every time
            for d in range(num_draws):
                pending[d] += counts[own, d]
            row += 1
        for d in range(num_draws):
            total[d] += pending[d]
            pending[d] = 0


@numba.njit(cache=True, nogil=True)
def _rank_drawn(
    counts: np.ndarray,
    owner: np.ndarray,
    first_positive: np.ndarray,
    end: np.ndarray,
    is_tied: np.ndarray,
    run: int,
    has_precision: bool,
) -> np.ndarray:
    """(2, D) AUC and average precision of the rows, each weighted by the count of its group; NaN if undefined.

    Args:
        counts: (G, D) uint8.
        owner, first_positive, end, is_tied: as in `Ranking`.
        run: as in `_add_rows`.
        has_precision: False leaves the average precision NaN.
    """
    num_draws = counts.shape[1]
    pending = np.zeros(num_draws, np.uint16)
    above, hits = np.zeros(num_draws), np.zeros(num_draws)  # negatives and positives with a higher score
    negatives, positives = np.zeros(num_draws), np.zeros(num_draws)  # of the present step
    lost, precision = np.zeros(num_draws), np.zeros(num_draws)  # pairs in the wrong order: whole or half, exact
    begin = 0
    for step in range(len(end)):
        middle, stop = first_positive[step], end[step]
        if is_tied[step]:
            _add_rows(negatives, pending, counts, owner, begin, middle, run)
            _add_rows(positives, pending, counts, owner, middle, stop, run)
            for d in range(num_draws):
                lost[d] += positives[d] * (above[d] + 0.5 * negatives[d])
                hits[d] += positives[d]
                above[d] += negatives[d]
                negatives[d] = 0.0
            if has_precision:
                for d in range(num_draws):
                    precision[d] += positives[d] * hits[d] / max(hits[d] + above[d], 1.0)
            positives[:] = 0.0
        else:
            _add_rows(above, pending, counts, owner, begin, middle, run)
            if has_precision:
                for row in range(middle, stop):
                    own = owner[row]
                    for d in range(num_draws):
                        weight = float(counts[own, d])
                        lost[d] += weight * above[d]
                        hits[d] += weight
                        precision[d] += weight * hits[d] / max(hits[d] + above[d], 1.0)
            else:
                _add_rows(positives, pending, counts, owner, middle, stop, run)
                for d in range(num_draws):
                    lost[d] += positives[d] * above[d]
                    hits[d] += positives[d]
                    positives[d] = 0.0
        begin = stop
    scores = np.full((2, num_draws), np.nan)
    for d in range(num_draws):
        pairs = hits[d] * above[d]
        if pairs > 0:
            scores[0, d] = (pairs - lost[d]) / pairs
        if has_precision and hits[d] > 0:
            scores[1, d] = precision[d] / hits[d]
    return scores
