"""Printing of tables as Markdown, as GitHub and most forums render it."""

import html
import re
from collections.abc import Iterable

from ichkit.show.table import Table, cell_text

_OBEYED = re.compile(r"([\\`*_{}\[\]()#|~$])")


def to_markdown(table: Table) -> str:
    r"""Title, heading, rows and note; each cell is one line, and no text of a name is taken for markup.

    Example:
        >>> print(to_markdown(Table("Board", ("source", "loss"), [["a_b|c", "0.1"]])))
        **Board**
        <BLANKLINE>
        | source | loss |
        |---|---:|
        | a\_b\|c | 0.1 |
        <BLANKLINE>
    """
    aligned = ["---" if column < table.num_text else "---:" for column in range(len(table.columns))]
    lines = [f"**{_escape(table.title)}**", "", _row(map(str, table.columns)), f"|{'|'.join(aligned)}|"]
    lines += [_row(map(cell_text, line)) for line in table.lines]
    lines += ["", _escape(table.note)] if table.note else []
    return "\n".join([*lines, ""])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escape, cells))} |"


def _escape(text: str) -> str:
    line = html.escape(re.sub(r"\s+", " ", text), quote=False)
    return _OBEYED.sub(r"\\\1", line)
