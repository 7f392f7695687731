"""Printing of tables as a Word document; python-docx is the extra `word`."""

import io
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from ichkit.core.errors import ConfigError
from ichkit.show.table import Table, cell_text

_POINTS = 8


def check_word(option: str) -> None:
    """Checks that python-docx is installed.

    Args:
        option: for the message, e.g. "report --word".

    Raises:
        ConfigError: it is not.
    """
    if find_spec("docx") is None:
        raise ConfigError(
            f"{option}: expected the package python-docx, not installed. Run `pip install 'ichkit[word]'`."
        )


def to_word(tables: Sequence[Table]) -> bytes:
    """A document in landscape with every table below its title, numbered, and above its note."""
    from docx import Document
    from docx.enum.section import WD_ORIENT

    document = Document()
    page = document.sections[0]
    page.orientation = WD_ORIENT.LANDSCAPE
    page.page_width, page.page_height = page.page_height, page.page_width
    for number, table in enumerate(tables, 1):
        document.add_paragraph(
            f"Table {number}. {_clean(table.title)}", style="Caption"
        ).paragraph_format.keep_with_next = True
        _add_table(document, table)
        document.add_paragraph(_clean(table.note))
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def _add_table(document: Any, table: Table) -> None:
    from docx.enum.text import WD_ALIGN_PARAGRAPH
    from docx.shared import Pt

    lines = [[cell_text(cell) for cell in line] for line in table.lines]
    head = [list(table.columns)] if any(table.columns) else []
    grid = document.add_table(rows=0, cols=len(table.columns), style="Table Grid")
    for number, line in enumerate([*head, *lines], -len(head)):
        for column, (place, text) in enumerate(zip(grid.add_row().cells, line, strict=True)):
            paragraph = place.paragraphs[0]
            if column >= table.num_text:
                paragraph.alignment = WD_ALIGN_PARAGRAPH.RIGHT
            part = paragraph.add_run(_clean(text))
            part.font.size, part.bold = Pt(_POINTS), number < 0 or number in table.best


def _clean(text: str) -> str:
    """Text in one line, without characters that XML forbids, and without marks of code."""
    line = re.sub(r"\s+", " ", text.replace("`", ""))
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "", line)
