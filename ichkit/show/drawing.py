"""Figures as inline SVG: colours of the page in light and dark mode, its fonts, unique ids."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ichkit.show.blocks import Chart

# Placeholders that `to_svg` replaces by the colours of the style sheet, which differ in light and dark mode.
INK, MUTED, GRID, PAGE = "#010203", "#020304", "#030405", "#040506"
COLOURS = tuple(f"#0a0b{number:02x}" for number in range(6))
MARKERS = ("o", "s", "D", "^", "v", "P")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAGE: "var(--page)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # keep text as text: small, searchable, in the font of the page
    "svg.hashsalt": "ichkit",
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # a name may contain a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}
# Decorator of every function that draws: matplotlib applies the style when the parts of a figure are created.
in_style = matplotlib.rc_context(_STYLE)
NARROW, WIDE = 4.6, 9.2
"""Widths of figures in inches: for half a page or a phone, and for the whole width of a page."""
# Width of a legend below a narrow figure, and of a marker with the gap after its label.
_LEGEND_CHARACTERS, _MARK_CHARACTERS = 58, 6
_LONG = re.compile(r"-?\d+\.\d{3,}")  # a coordinate in points: two decimals are a hundredth of a pixel
_FONTS = "system-ui, sans-serif"
# Without this metadata the same figure gives the same bytes.
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Series:
    """One value per row, optionally with intervals.

    Attributes:
        values: (R,), NaN if missing.
        lows, highs: (R,) ends of the intervals; None draws no intervals.
    """

    name: str
    values: np.ndarray
    lows: np.ndarray | None = None
    highs: np.ndarray | None = None


def make_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _round(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


@in_style
def to_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an SVG element for the page.

    Args:
        name: unique in the page; prefix of the ids in the figure.
        alt: alternative text of the figure.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    # Its style sheet would apply to the whole page.
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)[\")]", body))
    body = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", _FONTS, body)
    body = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: _LONG.sub(_round, found[0]), body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    return Markup(
        f'<svg {box[0]} role="img" aria-label="{escape(alt)}">{re.sub(chr(10) + " *", chr(10), body).strip()}'
    )


@in_style
def draw_intervals(
    rows: Sequence[str], series: Sequence[Series], label: str, *, is_log: bool = False, width: float = NARROW
) -> Figure:
    """Values with their intervals, one line for each row and one marker for each series.

    Args:
        rows: names, from the top.
        series: at most as many as `COLOURS`.
        label: of the horizontal axis, with its unit.
        width: of the figure in inches.
    """
    characters = int(_LEGEND_CHARACTERS * width / NARROW)
    labels = [_clip(one.name, characters - _MARK_CHARACTERS) for one in series]
    legend_columns = min(int(3 * width / NARROW), characters // (max(map(len, labels)) + _MARK_CHARACTERS))
    legend_rows = -(-len(series) // legend_columns)
    figure, axes = make_figure(width, 0.75 + 0.16 * len(rows) * max(len(series), 1.6) + 0.16 * legend_rows)
    step = min(0.8 / len(series), 0.3)
    for number, one in enumerate(series):
        at = np.arange(len(rows)) + (number - (len(series) - 1) / 2) * step
        colour, marker = COLOURS[number], MARKERS[number]
        if one.lows is not None and one.highs is not None:
            axes.hlines(at, one.lows, one.highs, color=colour, lw=1.4, alpha=0.55)
        axes.plot(one.values, at, marker, color=colour, ms=4.2, label=labels[number])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(False, axis="y")
    axes.set_xlabel(label)
    if is_log:
        axes.set_xscale("log")
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=legend_columns, handletextpad=0.2, columnspacing=1.2)
    return figure


def chart_intervals(
    name: str, alt: str, caption: str, rows: Sequence[str], series: Sequence[Series], label: str
) -> Chart:
    """The figure of `draw_intervals` in both widths.

    Args:
        name: unique in the page.
        alt: alternative text.
        caption: text below.
    """
    narrow, wide = (draw_intervals(rows, series, label, width=width) for width in (NARROW, WIDE))
    return Chart(to_svg(narrow, name, alt), caption, to_svg(wide, f"{name}-wide", alt))


def _clip(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
