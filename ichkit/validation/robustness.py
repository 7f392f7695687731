"""Scores of the same rows before and after a perturbation, with paired differences."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ichkit.core.tasks import Task
from ichkit.validation.intervals import interval_of, p_value_of
from ichkit.validation.scores import score_rows
from ichkit.validation.tallies import ScoredRows

_ROUNDING = 1e-6
"""Differences below it are of float32: a slice in another batch has other last bits."""


@dataclass(frozen=True)
class PairedScore:
    """A score before and after, and after minus before with its interval and p-value by patients."""

    metric: str
    class_name: str
    before: float
    after: float
    difference: float
    low: float
    high: float
    p_value: float
    n: int
    n_positive: int


def compare_perturbed(
    before: ScoredRows,
    after: np.ndarray,
    task: Task,
    metrics: tuple[str, ...],
    *,
    num_draws: int,
    level: float,
    seed: int,
) -> list[PairedScore]:
    """The scores of rows and of other probabilities of the same rows, on the same bootstrap samples of patients.

    Args:
        before: with the unperturbed probabilities.
        after: (N, C) perturbed probabilities.
        metrics: keys of `validation.scores.METRICS`.
        num_draws: bootstrap samples.
        level: confidence level, e.g. 0.95.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13, paired and by patient.
    """
    settings: dict[str, Any] = {"num_draws": num_draws, "level": level, "num_bins": 2, "seed": seed}
    own = score_rows(before, task, metrics, **settings)
    changed = ScoredRows(before.place, after, before.labels, before.members)
    other = score_rows(changed, task, metrics, **settings)
    is_single = len(np.unique(before.members)) < 2
    paired = []
    for row, changed_row, draws, changed_draws in zip(own.rows, other.rows, own.draws, other.draws, strict=True):
        difference = _without_rounding(np.array(changed_row["value"] - row["value"]))
        differences = _without_rounding(changed_draws - draws)
        interval, p_value = interval_of(differences, level), p_value_of(differences)
        low, high = (np.nan, np.nan) if is_single or np.isnan(difference) else (interval.low, interval.high)
        paired.append(
            PairedScore(
                metric=row["metric"],
                class_name=row["class"],
                before=row["value"],
                after=changed_row["value"],
                difference=float(difference),
                low=low,
                high=high,
                p_value=p_value if np.isfinite(low) else float("nan"),
                n=row["n"],
                n_positive=row["n_positive"],
            )
        )
    return paired


def _without_rounding(differences: np.ndarray) -> np.ndarray:
    return np.where(np.abs(differences) < _ROUNDING, 0.0, differences)
