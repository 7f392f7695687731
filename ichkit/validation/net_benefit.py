"""Decision curves: the net benefit of acting on a probability, against acting on everyone and on no one."""

from dataclasses import dataclass

import numpy as np

from ichkit.validation.resampling import resample


@dataclass(frozen=True)
class NetBenefit:
    """The net benefit of one class at T threshold probabilities, in true positives per row.

    Attributes:
        thresholds: (T,) in (0, 1).
        of_model: (T,) acting at or above the threshold.
        of_all: (T,) acting on everyone. Acting on no one has a net benefit of 0.
        draws_of_model, draws_of_all: (D, T), the same of every bootstrap sample of patients.
        n, n_positive: labelled rows, and positive ones.
    """

    thresholds: np.ndarray
    of_model: np.ndarray
    of_all: np.ndarray
    draws_of_model: np.ndarray
    draws_of_all: np.ndarray
    n: int
    n_positive: int

    @property
    def gain(self) -> np.ndarray:
        """(T,) how much better the model is than the better of acting on everyone and on no one."""
        gain: np.ndarray = self.of_model - np.maximum(self.of_all, 0)
        return gain

    @property
    def draws_of_gain(self) -> np.ndarray:
        """(D, T) the same of every bootstrap sample: paired, because both are of the same patients."""
        gain: np.ndarray = self.draws_of_model - np.maximum(self.draws_of_all, 0)
        return gain


def net_benefit(
    true_positives: np.ndarray, false_positives: np.ndarray, rows: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """True positives per row minus false positives per row, weighted by the odds of the threshold.

    Args:
        true_positives, false_positives: (..., T) counts.
        rows: (..., 1).
        thresholds: (T,) in (0, 1).

    Source: Vickers & Elkin, "Decision curve analysis", Medical Decision Making 26, 2006.

    Example:
        >>> net_benefit(np.array([20]), np.array([40]), np.array([100]), np.array([0.2])).tolist()
        [0.1]
    """
    odds = thresholds / (1 - thresholds)
    benefit: np.ndarray = np.divide(
        true_positives - false_positives * odds,
        rows,
        out=np.full(np.broadcast_shapes(true_positives.shape, rows.shape), np.nan),
        where=rows > 0,
    )
    return benefit


def measure_net_benefit(
    p: np.ndarray, labels: np.ndarray, members: np.ndarray, thresholds: np.ndarray, *, num_draws: int, seed: int
) -> NetBenefit | None:
    """The decision curve of one class; None without positives or negatives.

    Args:
        p: (N,) probabilities in [0, 1].
        labels: (N,) of 0 and 1, or NaN where unknown (ignored).
        members: (N,) the patient of each row.
        thresholds: (T,) in (0, 1), ascending.
        num_draws: bootstrap samples.
    """
    known = ~np.isnan(labels)
    p, is_positive = p[known].astype(np.float64), labels[known] > 0
    if not 0 < is_positive.sum() < len(p):
        return None
    names, owner = np.unique(members[known], return_inverse=True)
    hits = _count_above(p[is_positive], owner[is_positive], thresholds, len(names))
    alarms = _count_above(p[~is_positive], owner[~is_positive], thresholds, len(names))
    positives = np.bincount(owner[is_positive], minlength=len(names))[:, None]
    negatives = np.bincount(owner[~is_positive], minlength=len(names))[:, None]
    sums = np.concatenate([hits, alarms, positives, negatives], axis=1).astype(np.float64)
    (model,), (everyone,) = _benefits(sums.sum(0)[None], thresholds)
    draws = _benefits(resample(sums, (), num_draws=num_draws, seed=seed).sums, thresholds)
    return NetBenefit(thresholds, model, everyone, *draws, len(p), int(is_positive.sum()))


def _benefits(sums: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, T) net benefit of the model and of acting on everyone, from (D, 2 T + 2) sums."""
    hits, alarms = np.split(sums[:, :-2], 2, axis=1)
    positives, negatives = sums[:, -2:-1], sums[:, -1:]
    rows = positives + negatives
    everyone = np.broadcast_to(positives, hits.shape), np.broadcast_to(negatives, hits.shape)
    return net_benefit(hits, alarms, rows, thresholds), net_benefit(*everyone, rows, thresholds)


def _count_above(p: np.ndarray, owner: np.ndarray, thresholds: np.ndarray, num_groups: int) -> np.ndarray:
    """(G, T) rows of each patient whose probability is at least each threshold."""
    num_reached = np.searchsorted(thresholds, p, side="right")
    cells = np.bincount(owner * (len(thresholds) + 1) + num_reached, minlength=num_groups * (len(thresholds) + 1))
    reached = cells.reshape(num_groups, -1)
    # Rows that reach at least threshold t: those that reach t + 1 or more of them.
    counts: np.ndarray = reached[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
    return counts
