"""Intervals from draws: percentiles, and for scores that chance can only raise the same turned round."""

from dataclasses import dataclass

import numpy as np

_MAX_SHARE_LEFT_OUT = 0.05


@dataclass(frozen=True)
class Interval:
    """Low and high end, NaN where undefined, and how many draws were left out for want of both classes."""

    low: float
    high: float
    num_left_out: int


def interval_of(draws: np.ndarray, level: float) -> Interval:
    """The percentile interval of (D,) scores; NaN when over 5 % of the draws are undefined.

    Args:
        level: the share the interval covers, e.g. 0.95.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    defined = draws[np.isfinite(draws)]
    num_left_out = len(draws) - len(defined)
    if not len(defined) or num_left_out > _MAX_SHARE_LEFT_OUT * len(draws):
        return Interval(np.nan, np.nan, num_left_out)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), num_left_out)


def turned_interval_of(value: float, draws: np.ndarray, level: float) -> Interval:
    """The basic interval of a score that is 0 or more: the percentile interval turned round the value, cut off at 0.

    For a score that chance can only raise, such as a calibration error: a draw is chancier than the rows it is drawn
    from by as much as these are chancier than the truth, so the draws lie above the value as far as the value lies
    above the truth. Where most of a value is chance, its interval would lie below it, and is stretched to hold it.

    Source: Davison & Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2; stretched by choice,
        because an interval without its value is taken for a mistake.
    """
    straight = interval_of(draws, level)
    if np.isnan(straight.low):
        return straight
    low, high = max(0.0, 2 * value - straight.high), 2 * value - straight.low
    return Interval(min(low, value), max(high, value), straight.num_left_out)


def p_value_of(draws: np.ndarray) -> float:
    """The two-sided bootstrap p-value of (D,) differences against none: at least 2 / (D + 1), NaN without a draw."""
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return float("nan")
    fewer = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (fewer + 1) / (len(defined) + 1)))
