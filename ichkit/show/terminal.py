"""Printing of tables in a terminal."""

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table as RichTable

from ichkit.show.table import Cell, Table

_COLOURS = {"good": "green", "bad": "red", "warn": "yellow"}


class Printable:
    """A table for rich (`Console().print(Printable(table))`); drops optional columns that do not fit."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._table
        for name in reversed(table.optional):
            if _needed_width(table) <= options.max_width:
                break
            table = table.without(name)
        yield _draw(table)


def _needed_width(table: Table) -> int:
    """Smallest terminal width at which no number and no word is broken over lines."""
    width = len(table.columns) + 1
    for number, name in enumerate(table.columns):
        cells = [row[number] for row in table.lines]
        lines = [
            line for text in (name, *(f"{cell.text}\n{cell.small}" for cell in cells)) for line in text.split("\n")
        ]
        parts = [word for line in lines for word in line.split()] if number < table.num_text else lines
        width += max(map(cell_len, parts), default=0)
    return width


def _draw(table: Table) -> RichTable:
    drawn = RichTable(
        title=escape(table.title) or None,
        caption=escape(table.note) or None,
        box=SIMPLE,
        padding=0,
        title_justify="left",
        caption_justify="left",
        show_header=any(table.columns),
    )
    for number, name in enumerate(table.columns):
        is_text = number < table.num_text
        drawn.add_column(
            escape(name),
            justify="left" if is_text else "right",
            no_wrap=not is_text,
            overflow="fold",
            min_width=min(max(map(len, name.split("\n"))), 10),
        )
    for number, row in enumerate(table.lines):
        drawn.add_row(*(_mark_up(cell, number in table.best) for cell in row))
    return drawn


def _mark_up(cell: Cell, is_best: bool) -> str:
    text = escape(cell.text)
    style = " ".join([*(["bold"] if is_best else []), *([_COLOURS[cell.tone]] if cell.tone else [])])
    text = f"[{style}]{text}[/]" if style and text else text
    return f"{text}\n[dim]{escape(cell.small)}[/]" if cell.small else text
