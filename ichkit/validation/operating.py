"""Operating points: named thresholds, the decisions they give, and predictive values at a stated prevalence."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ichkit.validation.tallies import ScoredRows, draw_blocks
from ichkit.validation.thresholds import HALF, YOUDEN_AIM, Decisions, choose_thresholds, decide

_ROUNDING = 1e-9  # 0.9 * 70 rows is 63 rows, not a little more
_ANYWHERE = 0  # the part of rows that all have the same thresholds
Thresholds = dict[int, dict[str, np.ndarray]]


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold with a name.

    Attributes:
        name: key in `OPERATING_POINTS`.
        title: as tables write it.
        choose: (N,) probabilities in descending order and (N,) bool, true for positives, to the threshold; NaN where
            it is undefined. None for Youden's J, which `thresholds` chooses for all parts at once.
    """

    name: str
    title: str
    choose: Callable[[np.ndarray, np.ndarray], float] | None
    description: str
    source: str


@dataclass(frozen=True)
class PointCounts:
    """The decisions at one operating point.

    Attributes:
        counts: (C, 4) true positives, false positives, positives and negatives; NaN without a threshold.
        draws: (D, C, 4), the same of every bootstrap sample.
    """

    counts: np.ndarray
    draws: np.ndarray


def threshold_at_sensitivity(p: np.ndarray, is_positive: np.ndarray, target: float) -> float:
    """The highest threshold at which at least this share of the positives is found; NaN without positives.

    Args:
        p: (N,) probabilities in descending order.
        is_positive: (N,) bool.
        target: in (0, 1].

    Example:
        >>> threshold_at_sensitivity(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]), 0.9)
        0.3
    """
    found = p[is_positive]
    if not len(found):
        return float("nan")
    needed = max(math.ceil(target * len(found) - _ROUNDING), 1)
    return float(found[needed - 1])


def threshold_at_specificity(p: np.ndarray, is_positive: np.ndarray, target: float) -> float:
    """The lowest threshold at which at least this share of the negatives is below it; NaN without negatives.

    Candidates are the probabilities of the rows; if even the highest lets too many negatives in, it is the next
    number above them, at which no row is positive.

    Args:
        p: (N,) probabilities in descending order.
        is_positive: (N,) bool.
        target: in (0, 1].

    Example:
        >>> threshold_at_specificity(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]), 0.9)
        0.9
    """
    others = p[~is_positive]
    if not len(others):
        return float("nan")
    allowed = math.floor((1 - target) * len(others) + _ROUNDING)
    highest_left_out = others[allowed]
    above = p[p > highest_left_out]
    return float(above[-1]) if len(above) else float(np.nextafter(highest_left_out, np.inf))


def choose_operating_points(rows: ScoredRows, part: np.ndarray, parts: Sequence[int]) -> Thresholds:
    """For each part the thresholds on the rows of all others: part to operating point to (C,).

    Args:
        part: (N,) the part of each row, e.g. its fold.
        parts: the parts that need thresholds; for a part without rows they are chosen on all rows.
    """
    youden = choose_thresholds(rows.probabilities, rows.labels, rows.order, part, parts)
    found: Thresholds = {number: {} for number in parts}
    for name, point in OPERATING_POINTS.items():
        for number in parts:
            found[number][name] = (
                youden[number][YOUDEN_AIM] if point.choose is None else _choose(rows, part != number, point.choose)
            )
    return found


def _choose(rows: ScoredRows, is_used: np.ndarray, choose: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """(C,) thresholds on the used rows of known label."""
    chosen = []
    for c, order in enumerate(rows.order):
        own = order[is_used[order] & ~np.isnan(rows.labels[order, c])]
        chosen.append(choose(rows.probabilities[own, c].astype(np.float64), rows.labels[own, c] > 0))
    return np.array(chosen)


def count_at_points(
    rows: ScoredRows, thresholds: Thresholds, part: np.ndarray, *, num_draws: int, seed: int
) -> dict[str, PointCounts]:
    """The decisions at every operating point, of all rows and of every bootstrap sample of their members.

    Thresholds are the same in all samples: the intervals are those of rates at given thresholds.

    Args:
        thresholds: part to operating point to (C,), as from `choose_operating_points`.
        part: (N,) keys of `thresholds`.
    """
    decisions = {
        name: decide(rows.probabilities, {number: of[name] for number, of in thresholds.items()}, part)
        for name in OPERATING_POINTS
    }
    return count_decisions(rows, decisions, num_draws=num_draws, seed=seed)


def count_decisions(
    rows: ScoredRows, decisions: Mapping[str, Decisions], *, num_draws: int, seed: int
) -> dict[str, PointCounts]:
    """The counts of decisions by name, of all rows and of every bootstrap sample of their members."""
    asked = set(decisions)
    whole, drawn = draw_blocks(rows.with_decisions(decisions), asked, num_bins=1, num_draws=num_draws, seed=seed)
    return {name: PointCounts(whole[name], drawn[name]) for name in decisions}


def count_at_given(
    rows: ScoredRows, thresholds: dict[str, np.ndarray], *, num_draws: int, seed: int
) -> dict[str, PointCounts]:
    """The decisions at thresholds that other rows gave, e.g. of an external set at those of the training rows.

    Args:
        thresholds: operating point to (C,).
    """
    anywhere = np.full(len(rows.labels), _ANYWHERE)
    return count_at_points(rows, {_ANYWHERE: thresholds}, anywhere, num_draws=num_draws, seed=seed)


def positive_predictive_value(sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float) -> np.ndarray:
    """The share of true positives among the positive decisions at a prevalence; NaN where none is positive.

    Args:
        sensitivity, specificity: of any shape, in [0, 1].
        prevalence: share of positives in (0, 1).

    Source: Bayes' theorem; Altman & Bland, "Diagnostic tests 2: predictive values", BMJ 309, 1994.

    Example:
        >>> round(float(positive_predictive_value(np.array(0.9), np.array(0.9), 0.1)), 6)
        0.5
    """
    return _share(sensitivity * prevalence, (1 - specificity) * (1 - prevalence))


def negative_predictive_value(sensitivity: np.ndarray, specificity: np.ndarray, prevalence: float) -> np.ndarray:
    """The share of true negatives among the negative decisions at a prevalence; NaN where none is negative.

    Args and source: as `positive_predictive_value`.

    Example:
        >>> float(negative_predictive_value(np.array(0.9), np.array(0.9), 0.5))
        0.9
    """
    return _share(specificity * (1 - prevalence), (1 - sensitivity) * prevalence)


def _share(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    total = np.asarray(right + wrong, np.float64)
    share: np.ndarray = np.divide(right, total, out=np.full(total.shape, np.nan), where=total > 0)
    return share


def _at_sensitivity(target: float) -> OperatingPoint:
    return OperatingPoint(
        name=f"sensitivity_{round(100 * target)}",
        title=f"sensitivity {round(100 * target)} %",
        choose=lambda p, is_positive: threshold_at_sensitivity(p, is_positive, target),
        description=f"The highest threshold that finds at least {round(100 * target)} % of the positives.",
        source="STARD 2015, items 12 and 23: thresholds with their results",
    )


def _at_specificity(target: float) -> OperatingPoint:
    return OperatingPoint(
        name=f"specificity_{round(100 * target)}",
        title=f"specificity {round(100 * target)} %",
        choose=lambda p, is_positive: threshold_at_specificity(p, is_positive, target),
        description=f"The lowest threshold with at least {round(100 * target)} % of the negatives below it.",
        source="STARD 2015, items 12 and 23: thresholds with their results",
    )


_TARGETS = (0.90, 0.95, 0.98)
_POINTS = (
    OperatingPoint(
        name="half",
        title="0.5",
        choose=lambda _p, _is_positive: HALF,
        description="A probability of 0.5, chosen on no data.",
        source="chosen here, because it is the decision of a calibrated model if both errors cost the same",
    ),
    OperatingPoint(
        name=YOUDEN_AIM,
        title="Youden's J",
        choose=None,
        description="The highest sensitivity + specificity - 1.",
        source="Youden, Cancer 3, 1950",
    ),
    *(_at_sensitivity(target) for target in _TARGETS),
    *(_at_specificity(target) for target in _TARGETS),
)
OPERATING_POINTS = {point.name: point for point in _POINTS}
