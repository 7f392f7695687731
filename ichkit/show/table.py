"""Tables as plain data, and how numbers look in them; `show.terminal` and `show.html` print the same tables."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pandas as pd

NOTHING = "-"


@dataclass(frozen=True)
class Cell:
    """One cell of a table: text, something smaller below it (an interval, a count), and a tone.

    Attributes:
        tone: "good", "bad", "warn" or nothing.
    """

    text: str
    small: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its title.

    Attributes:
        title: stands above.
        columns: headings, one per cell of a row; no heading is shown where all are empty.
        rows: cells, or plain text for those that are nothing else.
        note: what must be known to read it; stands below.
        best: the numbers of the rows that stand out.
        num_text: how many columns, from the left, hold words; numbers are never broken over lines.
        optional: columns that a narrow terminal leaves out, the last of them first.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell | str]]
    note: str = ""
    best: frozenset[int] = frozenset()
    num_text: int = 1
    optional: tuple[str, ...] = ()

    @property
    def lines(self) -> list[list[Cell]]:
        """The rows, plain text as cells too."""
        return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]

    def without(self, column: str) -> "Table":
        """The same table without a column of numbers."""
        at = self.columns.index(column)
        assert at >= self.num_text
        rows = [[*row[:at], *row[at + 1 :]] for row in self.rows]
        return replace(self, columns=(*self.columns[:at], *self.columns[at + 1 :]), rows=rows)


def format_number(value: float | None, digits: int) -> str:
    """A number of so many digits, or a dash for none."""
    return NOTHING if value is None or pd.isna(value) else f"{value:.{digits}f}"


def format_interval(low: float, high: float, digits: int) -> str:
    """Both ends of an interval, or nothing where it is undefined."""
    return "" if pd.isna(low) else f"{low:.{digits}f}-{high:.{digits}f}"
