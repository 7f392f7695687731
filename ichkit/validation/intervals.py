"""Bootstrap intervals: percentile intervals, and basic intervals for scores that are biased upwards."""

from dataclasses import dataclass

import numpy as np

_MAX_SHARE_LEFT_OUT = 0.05


@dataclass(frozen=True)
class Interval:
    """Low and high end, NaN if undefined, and the number of bootstrap samples without both classes."""

    low: float
    high: float
    num_left_out: int


def interval_of(draws: np.ndarray, level: float) -> Interval:
    """The percentile interval of (D,) bootstrap scores; NaN if more than 5 % of them are undefined.

    Args:
        level: confidence level, e.g. 0.95.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    defined = draws[np.isfinite(draws)]
    num_left_out = len(draws) - len(defined)
    if not len(defined) or num_left_out > _MAX_SHARE_LEFT_OUT * len(draws):
        return Interval(np.nan, np.nan, num_left_out)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), num_left_out)


def basic_interval_of(value: float, draws: np.ndarray, level: float) -> Interval:
    """The basic interval of a score of 0 or more: the percentile interval reflected at the value, clipped at 0.

    For a score that is biased upwards by chance, such as a calibration error: the bootstrap scores exceed the value by
    about as much as the value exceeds the true score. If the value is mostly bias, the interval would lie below it, and
    is extended to contain it.

    Source: Davison & Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2; the extension is chosen
        here, because an interval that does not contain its value looks like an error.
    """
    straight = interval_of(draws, level)
    if np.isnan(straight.low):
        return straight
    low, high = max(0.0, 2 * value - straight.high), 2 * value - straight.low
    return Interval(min(low, value), max(high, value), straight.num_left_out)


def p_value_of(draws: np.ndarray) -> float:
    """The two-sided bootstrap p-value of (D,) differences: at least 2 / (D + 1), NaN without any."""
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return float("nan")
    fewer = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (fewer + 1) / (len(defined) + 1)))
