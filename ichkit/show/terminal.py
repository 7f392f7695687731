"""How numbers look to people, and tables in a terminal, the same for every command."""

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

NOTHING = "-"


def format_number(value: float | None, digits: int) -> str:
    """A number of so many digits, or a dash for none."""
    return NOTHING if value is None or pd.isna(value) else f"{value:.{digits}f}"


def format_interval(low: float, high: float, digits: int) -> str:
    """Both ends of an interval, or nothing where it is undefined."""
    return "" if pd.isna(low) else f"{low:.{digits}f}-{high:.{digits}f}"


def make_table(title: str, columns: Sequence[str], *, text: int = 1, caption: str | None = None) -> Table:
    """An empty table whose first `text` columns fold where a terminal is narrow; numbers never do."""
    look = {"box": SIMPLE, "padding": 0, "title_justify": "left", "caption_justify": "left"}
    table = Table(title=escape(title) or None, caption=caption, **look)
    for number, name in enumerate(columns):
        is_text = number < text
        justify = "left" if is_text else "right"
        table.add_column(name, justify=justify, no_wrap=not is_text, overflow="fold", min_width=min(len(name), 10))
    return table
