"""The optimism of a choice: the best of several sources is better on the patients it was chosen on than on others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.validation.intervals import Interval, interval_of
from ichkit.validation.resampling import draw_counts
from ichkit.validation.tallies import ScoredRows


@dataclass(frozen=True)
class LossSums:
    """The log losses of one source, added up by patient.

    Attributes:
        losses: (P, C) sums over the labelled rows of a patient.
        counts: (P, C) numbers of labelled rows; the same for all sources.
    """

    losses: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, rows: ScoredRows) -> "LossSums":
        """The sums of out-of-fold rows, patients in the order of their ids."""
        patient, names = pd.factorize(rows.members, sort=True)
        tables = (rows.losses, ~np.isnan(rows.labels))
        both = [np.stack([np.bincount(patient, of, len(names)) for of in table.T], 1) for table in tables]
        return cls(*both)

    @classmethod
    def join(cls, parts: Sequence["LossSums"]) -> "LossSums":
        """The sums of several parts that share no patient."""
        return cls(
            *(np.concatenate(tables) for tables in zip(*((one.losses, one.counts) for one in parts), strict=True))
        )

    def loss(self, weights: np.ndarray) -> float:
        """The weighted log loss of all patients, over the classes with a labelled row; NaN if no class has one.

        Args:
            weights: (C,) of the classes.
        """
        if not self.counts.any():
            return float("nan")
        once = np.ones((1, len(self.counts)))
        return float(_weigh(once, self.losses[:, None], self.counts, self.share(weights))[0, 0])

    def share(self, weights: np.ndarray) -> np.ndarray:
        """(C,) the weights of the classes with a labelled row, summing to 1, and 0 for the others."""
        known = self.counts.sum(0) > 0
        shares: np.ndarray = np.where(known, weights, 0.0) / max(weights[known].sum(), np.finfo(float).tiny)
        return shares


@dataclass(frozen=True)
class Selection:
    """The choice of the source with the lowest loss.

    Attributes:
        best: its number.
        value: its loss.
        optimism: how much higher its loss is expected to be on new patients, for having been chosen; 0 for one source.
        shares: (S,) how often each source was chosen in the bootstrap samples.
        num_left_out: samples in which a loss is undefined.
    """

    best: int
    value: float
    optimism: float
    shares: np.ndarray
    num_left_out: int


def measure_selection(sources: Sequence[LossSums], weights: np.ndarray, *, num_draws: int, seed: int) -> Selection:
    """The source with the lowest weighted log loss, and the optimism of that choice by nested resampling of patients.

    In each bootstrap sample the source with the lowest loss is chosen, and scored on the patients that were not drawn.
    The optimism is the mean of those losses minus that of the source that is best on all patients, on the same
    undrawn patients: what the choice costs where it was not made. Of equal sources this is, on average, the gain that
    the best has by chance. A sample has 63 % of the patients, so that it chooses a little worse than all of them do:
    the optimism is rather too large than too small.

    Args:
        sources: S sources on the same rows.
        weights: (C,) of the classes.

    Source: the leave-one-out bootstrap of Efron & Tibshirani, JASA 92, 1997, section 3, applied to the choice alone:
        the sources are not fitted again. Without its .632 weighting, which would take a part of the optimism away
        where sources are equal.
    """
    counts, weights = sources[0].counts, sources[0].share(weights)
    losses = np.stack([source.losses for source in sources], axis=1)  # (P, S, C)
    whole = _weigh(np.ones((1, len(counts))), losses, counts, weights)[0]
    best = int(np.argmin(whole))
    regrets, chosen = [], np.zeros(len(sources))
    num_left, num_left_out = num_draws, 0
    for drawn in draw_counts(len(counts), num_draws, seed):
        drawn = drawn.T[:num_left].astype(np.float64)
        num_left -= len(drawn)
        inside = _weigh(drawn, losses, counts, weights)
        outside = _weigh((drawn == 0).astype(np.float64), losses, counts, weights)
        is_defined = np.isfinite(inside).all(1) & np.isfinite(outside).all(1)
        num_left_out += int((~is_defined).sum())
        inside, outside = inside[is_defined], outside[is_defined]
        winners = inside.argmin(1)
        regrets.append(np.take_along_axis(outside, winners[:, None], 1)[:, 0] - outside[:, best])
        chosen += np.bincount(winners, minlength=len(sources))
    regret = np.concatenate(regrets)
    optimism = float(regret.mean()) if len(regret) else float("nan")
    return Selection(best, float(whole[best]), optimism, chosen / max(chosen.sum(), 1), num_left_out)


def resample_losses(
    sources: Sequence[LossSums], weights: np.ndarray, *, num_draws: int, level: float, seed: int
) -> list[Interval]:
    """The interval of the weighted log loss of each source, from the same bootstrap samples of patients.

    Args:
        sources: on the same rows.
        weights: (C,) of the classes.
    """
    counts, weights = sources[0].counts, sources[0].share(weights)
    losses = np.stack([source.losses for source in sources], axis=1)
    parts = [
        _weigh(drawn.T.astype(np.float64), losses, counts, weights)
        for drawn in draw_counts(len(counts), num_draws, seed)
    ]
    return [interval_of(draws, level) for draws in np.concatenate(parts)[:num_draws].T]


def _weigh(times: np.ndarray, losses: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(D, S) weighted losses of the patients, each taken so many times; NaN where a class with a weight has no row.

    Args:
        times: (D, P).
        losses: (P, S, C).
        counts: (P, C).
    """
    num_patients, num_sources, num_classes = losses.shape
    total = (times @ losses.reshape(num_patients, -1)).reshape(-1, num_sources, num_classes)
    rows = (times @ counts)[:, None]
    means = np.divide(total, rows, out=np.full(total.shape, np.nan), where=rows > 0)
    means = np.where(weights > 0, means, 0.0)
    weighted: np.ndarray = means @ weights
    return weighted
