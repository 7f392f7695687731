"""CSV files that are safe to open in a spreadsheet: formulas in text are escaped on writing, unescaped on reading."""

import csv
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pandas as pd

_GUARD = "'"
# A spreadsheet takes text that begins with one of these for a formula. Text that already begins with guards and one of
# these gets one guard more, so that reading removes exactly what writing added.
_FORMULA_STARTS = frozenset("=+-@\t\r\n")


def encode_csv(frame: pd.DataFrame) -> bytes:
    r"""A table as CSV; text cells that a spreadsheet would take for a formula begin with an apostrophe.

    Source: OWASP, CSV injection: `=`, `+`, `-`, `@`, tab and carriage return at the start of a cell.

    Example:
        >>> encode_csv(pd.DataFrame({"name": ["=cmd", "head"], "position_mm": [-1.5, 2.0]}))
        b"name,position_mm\n'=cmd,-1.5\nhead,2.0\n"
    """
    guarded, has_returns = frame.copy(deep=False), False
    for place, name in enumerate(frame.columns):
        if _is_text(frame.iloc[:, place]):
            guarded.isetitem(place, frame.iloc[:, place].map(_guard_value, na_action="ignore").array)
            has_returns |= bool(frame.iloc[:, place].astype("str").str.contains("\r", regex=False).any())
        assert not _is_formula(str(name)), name
    # Python quotes a carriage return only since 3.13: bare, it would end the row for readers.
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if has_returns else csv.QUOTE_MINIMAL
    return guarded.to_csv(index=False, quoting=quoting, lineterminator="\n").encode()


def guard(text: str) -> str:
    """The text with an apostrophe in front if a spreadsheet would take it for a formula.

    Example:
        >>> [guard("=cmd"), guard("head")]
        ["'=cmd", 'head']
    """
    return _GUARD + text if _is_formula(text) else text


def read_csv(source: Path | BytesIO, **options: Any) -> pd.DataFrame:
    """A table that `encode_csv` wrote, with the original text. Only an empty cell is missing: NA may be someone's id.

    Args:
        options: of `pandas.read_csv`, which documents the exceptions; `keep_default_na` changes what is missing.

    Raises:
        pandas.errors.ParserError: the first row has more cells than the header; pandas would take its first cells for
            row names, and read every other cell in the wrong column.
    """
    if "keep_default_na" not in options:
        options |= {"keep_default_na": False, "na_values": [""]}
    table: pd.DataFrame = pd.read_csv(source, **options)
    if not isinstance(table.index, pd.RangeIndex):
        raise pd.errors.ParserError("rows have more cells than the header")
    for place in range(table.shape[1]):
        column = table.iloc[:, place]
        if _is_text(column) and column.astype("str").str.startswith(_GUARD).any():
            table.isetitem(place, column.map(_unguard, na_action="ignore").array)
    return table


def _is_text(column: pd.Series) -> bool:
    return pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column)


def _is_formula(text: str) -> bool:
    return text.lstrip(_GUARD)[:1] in _FORMULA_STARTS


def _guard_value(value: Any) -> Any:
    return guard(value) if isinstance(value, str) else value


def _unguard(value: Any) -> Any:
    is_guarded = isinstance(value, str) and value.startswith(_GUARD) and _is_formula(value)
    return value[1:] if is_guarded else value
