"""Tables as plain data, printed by `show.terminal` and `show.page`, and number formats."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

NOTHING = "-"
BLANK = "to be filled in by the authors"
"""The mark of a field that no file of the work folder can answer."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        small: small text below, e.g. an interval or a count.
        tone: "good", "bad", "warn" or empty.
        share: a bar behind the text, as a share of the cell's width in [0, 1]; pages only.
        link: id of the element that the text links to; pages only.
        slice_index: the slice that a linked viewer shows.
        full: the whole ID that `text` is the end of, shown on a click; pages only.
        links: text and address of links instead of `text`; pages only.
    """

    text: str
    small: str = ""
    tone: str = ""
    share: float | None = None
    link: str = ""
    slice_index: int | None = None
    full: str = ""
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """A table with its title.

    Attributes:
        title: shown above.
        columns: headings, one per cell of a row; if all are empty, no header is shown.
        rows: cells, or plain text.
        note: explanation, shown below.
        best: numbers of the highlighted rows.
        num_text: number of text columns, from the left; other columns are never wrapped.
        optional: columns, or groups of columns, that a narrow terminal drops, the last one first.
        is_wrapped: text columns hold sentences, which are wrapped; pages only.
        descending: the column by which the rows are sorted, highest first; empty for none; pages only.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    best: frozenset[int] = frozenset()
    num_text: int = 1
    optional: tuple[str | tuple[str, ...], ...] = ()
    is_wrapped: bool = False
    descending: str = ""

    @property
    def lines(self) -> list[list[Cell]]:
        """The rows, with plain text converted to cells."""
        return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]

    def without(self, columns: str | tuple[str, ...]) -> "Table":
        """The table without a column or a group of columns, none of which may be a text column."""
        if isinstance(columns, tuple):
            return functools.reduce(Table.without, columns, self)
        at = self.columns.index(columns)
        assert at >= self.num_text
        rows = [[*row[:at], *row[at + 1 :]] for row in self.rows]
        return replace(self, columns=(*self.columns[:at], *self.columns[at + 1 :]), rows=rows)


def cell_text(cell: Cell) -> str:
    """The cell as one line: the whole ID where it is shortened, its small text in brackets.

    Example:
        >>> cell_text(Cell("0.983", "0.971-0.992"))
        '0.983 (0.971-0.992)'
    """
    text = cell.full or cell.text
    if not cell.small:
        return text
    return f"{text} ({cell.small})" if text else cell.small


def format_number(value: float | None, digits: int) -> str:
    """A number with this many decimals, or a dash if missing."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def format_interval(low: float, high: float, digits: int) -> str:
    """Both ends of an interval, or empty if undefined."""
    return "" if math.isnan(low) else f"{low:.{digits}f}-{high:.{digits}f}"
