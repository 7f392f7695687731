"""Flow diagrams as inline SVG: boxes below each other, losses and branches to the right of the line that joins them."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

STEP, LOSS, END = "step", "loss", "end"
_WIDTH, _LINE, _PADDING, _GAP = 440, 17, 9, 12
_TRUNK = 26
"""Distance of the joining line from the left edge."""
_LEFT = {STEP: 0, LOSS: 64, END: 64}
_RIGHT = {STEP: 300, LOSS: _WIDTH, END: _WIDTH}
_CHARACTER = 6.9  # mean width in units at the font size below, on the generous side of common system fonts
_FONT = 13
_FRAME = {
    STEP: "fill: var(--soft); stroke: var(--muted)",
    LOSS: "fill: none; stroke: var(--muted); stroke-dasharray: 4 3",
    END: "fill: var(--soft); stroke: var(--accent)",
}


@dataclass(frozen=True)
class FlowBox:
    """One box of a flow diagram.

    Attributes:
        kind: STEP, in the line; LOSS, what leaves it; or END, where it ends.
        title: first line, in bold.
        lines: further lines; long ones are wrapped.
    """

    kind: str
    title: str
    lines: tuple[str, ...] = ()


def draw_flow(boxes: Sequence[FlowBox], alt: str) -> Markup:
    """The boxes from top to bottom, readable at the width of a phone.

    Args:
        alt: alternative text of the figure.
    """
    drawn, y, joints = [], 1.0, []
    for box in boxes:
        lines = _wrap(box)
        height = 2 * _PADDING + _LINE * len(lines)
        drawn.append(_draw_box(box.kind, lines, y, height))
        if box.kind != STEP:
            drawn.append(_draw_arrow(y + height / 2, _LEFT[box.kind]))
        joints.append((y, y + height / 2, height, box.kind))
        y += height + _GAP
    # Behind the boxes: the trunk, from the first box to the middle of the last.
    last = joints[-1][1] if joints and joints[-1][3] != STEP else y - 2 * _GAP
    trunk = f'<path d="M{_TRUNK} 1V{last:g}" style="stroke: var(--muted); fill: none"/>'
    heads = [_draw_head(top) for top, *_, kind in joints[1:] if kind == STEP]
    view = f'viewBox="0 0 {_WIDTH} {y - _GAP + 1:g}"'
    inside = "\n".join([trunk, *drawn, *heads])
    return Markup(f'<svg {view} role="img" aria-label="{escape(alt)}" font-size="{_FONT}">{inside}</svg>')


def _wrap(box: FlowBox) -> list[tuple[str, bool]]:
    """Lines of text, and whether each belongs to the title."""
    width = int((_RIGHT[box.kind] - _LEFT[box.kind] - 2 * _PADDING) / _CHARACTER)
    bold = [(line, True) for line in textwrap.wrap(box.title, width - 2) or [""]]
    return bold + [(part, False) for line in box.lines for part in textwrap.wrap(line, width, subsequent_indent="  ")]


def _draw_box(kind: str, lines: Sequence[tuple[str, bool]], top: float, height: float) -> str:
    left, right = _LEFT[kind], _RIGHT[kind]
    frame = (
        f'<rect x="{left + 0.5:g}" y="{top:g}" width="{right - left - 1}" height="{height:g}" rx="6" '
        f'style="{_FRAME[kind]}"/>'
    )
    texts = []
    for number, (line, is_bold) in enumerate(lines):
        y, indent = top + _PADDING + _LINE * (number + 0.76), len(line) - len(line.lstrip())
        weight = ' font-weight="650"' if is_bold else ""
        texts.append(f'<text x="{left + _PADDING + 5 * indent}" y="{y:g}"{weight}>{escape(line.strip())}</text>')
    return frame + "".join(texts)


def _draw_arrow(y: float, end: float) -> str:
    """From the trunk to the left edge of a box."""
    shaft = f'<path d="M{_TRUNK} {y:g}H{end - 6:g}" style="stroke: var(--muted); fill: none"/>'
    return f'{shaft}<path d="M{end - 7:g} {y - 4:g}L{end:g} {y:g}L{end - 7:g} {y + 4:g}Z" style="fill: var(--muted)"/>'


def _draw_head(top: float) -> str:
    """The arrow head of the trunk above a step."""
    corners = f"M{_TRUNK - 4} {top - 7:g}L{_TRUNK} {top:g}L{_TRUNK + 4} {top - 7:g}Z"
    return f'<path d="{corners}" style="fill: var(--muted)"/>'
