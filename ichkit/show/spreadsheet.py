"""Printing of tables as CSV that is safe to open in a spreadsheet."""

import csv
import io
import re

from ichkit.core.csv_tables import guard
from ichkit.show.table import NOTHING, Table, cell_text

# Signs and digits alone, so that a negative score stays a number: "-0.0012* (-0.0020 to -0.0003)".
_NUMBER = re.compile(r"[+-]?\d[\d.,]*( ?%)?\*?( \([+-]?\d[\d.,]*( ?%)?(( to |-)[+-]?\d[\d.,]*( ?%)?)?\))?")


def to_csv(table: Table) -> bytes:
    r"""The heading and the rows, each cell on one line; text that would be read as a formula begins with an apostrophe.

    Example:
        >>> to_csv(Table("t", ("source", "difference"), [["=cmd", "-0.1"]]))
        b"source,difference\n'=cmd,-0.1\n"
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if any(table.columns):
        writer.writerow(map(_safe, table.columns))
    writer.writerows([_safe(cell_text(cell)) for cell in line] for line in table.lines)
    return buffer.getvalue().encode()


def _safe(text: str) -> str:
    line = re.sub(r"\s+", " ", text)
    return line if line == NOTHING or _NUMBER.fullmatch(line) else guard(line)
