"""Figures of the audit: histograms with bins at their true places, and positive slices along the study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ichkit.show.blocks import Chart
from ichkit.show.drawing import COLOURS, INK, NARROW, WIDE, in_style, make_figure, to_svg

_HEIGHT = 2.3
_DASHES = ("-", "--", "-.", ":")


def chart_histogram(
    name: str, histogram: Sequence[Mapping[str, Any]], quantity: str, unit: str, caption: str = ""
) -> Chart:
    """A histogram of audit.json.

    Args:
        name: unique in the page.
        histogram: bins with from, to (None for the last, which is open) and count.
        quantity: title of the horizontal axis, with its unit.
        unit: what is counted.
        caption: text below; empty for "Number of <unit> by <quantity>."
    """
    counts = "; ".join(f"{_say_bin(item)}: {item['count']:,}" for item in histogram if item["count"])
    text = caption or f"Number of {unit} by {quantity}."
    svg = to_svg(draw_histogram(histogram, quantity, unit), name, f"{text} {counts}")
    return Chart(svg, text)


@in_style
def draw_histogram(histogram: Sequence[Mapping[str, Any]], quantity: str, unit: str) -> Figure:
    """Bars from the lower to the upper end of each bin, with their counts; the open bin is as wide as the one before.

    Args:
        histogram, quantity, unit: see `chart_histogram`.
    """
    figure, axes = make_figure(NARROW, _HEIGHT)
    starts = np.array([item["from"] for item in histogram], float)
    last = starts[-1] + (starts[-1] - starts[-2] if len(starts) > 1 else 1.0)
    ends = np.array([last if item["to"] is None else item["to"] for item in histogram], float)
    counts = np.array([item["count"] for item in histogram])
    axes.bar(starts, counts, width=ends - starts, align="edge", color=COLOURS[0], edgecolor="none", alpha=0.85)
    for start, end, count in zip(starts, ends, counts, strict=True):
        if count:
            axes.text((start + end) / 2, count, f"{count:,}", ha="center", va="bottom", fontsize=7.5, color=INK)
    axes.set(xlabel=quantity, ylabel=unit, xlim=(starts[0], last), ylim=(0, 1.12 * max(counts.max(), 1)))
    axes.set_xticks(
        starts,
        [
            f"{start:g}" if item["to"] is not None else f"{start:g}+"
            for start, item in zip(starts, histogram, strict=True)
        ],
    )
    axes.tick_params(axis="x", labelsize=7.5)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.grid(False, axis="x")
    return figure


def chart_positions(places: Sequence[float], prevalence: Mapping[str, Sequence[float | None]]) -> Chart:
    """The share of positive slices of each class along the study, in both widths.

    Args:
        places: relative positions, 0 at the first slice and 1 at the last.
        prevalence: class to the share at each place; None without slices.
    """
    peaks = []
    for name, values in prevalence.items():
        known = [(value, place) for value, place in zip(values, places, strict=True) if value is not None]
        if known:
            value, place = max(known)
            peaks.append(f"{name} {100 * value:.1f} % at {place:.2f}")
    alt = f"Share of positive slices by relative position; maxima: {'; '.join(peaks)}."
    caption = "Share of positive slices of the training data, by position in the study."
    narrow, wide = (draw_positions(places, prevalence, width) for width in (NARROW, WIDE))
    return Chart(to_svg(narrow, "positions", alt), caption, to_svg(wide, "positions-wide", alt))


@in_style
def draw_positions(
    places: Sequence[float], prevalence: Mapping[str, Sequence[float | None]], width: float = NARROW
) -> Figure:
    """One line for each class.

    Args:
        places, prevalence: see `chart_positions`.
        width: of the figure in inches.
    """
    figure, axes = make_figure(width, 3.0)
    for number, (name, values) in enumerate(prevalence.items()):
        shares = np.array([np.nan if value is None else value for value in values], float)
        dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
        axes.plot(places, shares, lw=1.6, label=name, color=COLOURS[number % len(COLOURS)], ls=dash)
    axes.set(xlabel="position in the study: 0 first slice (feet), 1 last (head)", ylabel="positive slices", xlim=(0, 1))
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, handlelength=2)
    return figure


def _say_bin(item: Mapping[str, Any]) -> str:
    return f"from {item['from']:g}" if item["to"] is None else f"{item['from']:g} to {item['to']:g}"
