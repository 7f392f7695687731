"""Printing of tables as LaTeX: booktabs rules; every special character of LaTeX is escaped."""

import re
from collections.abc import Sequence

from ichkit.show.table import Cell, Table, cell_text

PACKAGES = ("booktabs", "array", "graphicx")
"""What a document must load for these tables, besides `[T1]{fontenc}` where names have accents."""
_LONG_CHARACTERS = 40
"""A text column with a longer cell is a paragraph of a fixed width."""
_PARAGRAPH = r">{\raggedright\arraybackslash}p{7cm}"
_ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "…": r"\ldots{}",
    "–": r"\textendash{}",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": r"$-$",
    "→": r"$\rightarrow$",
    "·": r"$\cdot$",
    "µ": r"$\mu$",
    "°": r"\textdegree{}",
}
_LIGATURES = re.compile(r"(?<=-)-|(?<=')'|(?<=,),")
"""Signs that TeX joins with the same sign before them, to a dash or a quotation mark."""
_LETTERS = re.compile(r"[ -~\u00c0-\u017f]")
_START = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage[a4paper,landscape,margin=1.5cm]{geometry}
"""


def escape(text: str) -> str:
    r"""Text as LaTeX prints it; a character that pdfLaTeX has no letter for becomes its code point, e.g. [U+4E2D].

    Example:
        >>> print(escape("50 % of a_b & #1"))
        50 \% of a\_b \& \#1
    """
    escaped = "".join(_escape_one(one) for one in re.sub(r"\s+", " ", text))
    # At the start of a row, `[` and `*` would be arguments of the line break before it.
    return re.sub(r"^[\[*]", r"{\g<0>}", _LIGATURES.sub(r"{}\g<0>", escaped))


def to_latex(table: Table, label: str = "") -> str:
    r"""A float with caption, label, `tabular` and the note, at most as wide as the line.

    Args:
        label: for `\ref`; letters, digits, "-" and ":".
    """
    head = [_row(_cells(table.columns), is_bold=False), r"\midrule"] if any(table.columns) else []
    rows = [_row(line, is_bold=number in table.best) for number, line in enumerate(table.lines)]
    lines = [
        f"% needs \\usepackage{{{','.join(PACKAGES)}}}",
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{_inline(table.title)}}}",
        *([rf"\label{{{label}}}"] if label else []),
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{@{{}}{_columns(table)}@{{}}}}",
        r"\toprule",
        *head,
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        *([rf"\par\smallskip{{\footnotesize {_inline(table.note)}\par}}"] if table.note else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_document(names: Sequence[str]) -> str:
    """A document that shows the tables of these files, one after the other."""
    packages = "".join(f"\\usepackage{{{name}}}\n" for name in PACKAGES)
    inputs = "".join(f"\\input{{{name}}}\n\\clearpage\n" for name in names)
    return f"{_START}{packages}\\begin{{document}}\n{inputs}\\end{{document}}\n"


def _columns(table: Table) -> str:
    kinds = []
    for number in range(len(table.columns)):
        longest = max((len(cell_text(line[number])) for line in table.lines), default=0)
        text = _PARAGRAPH if longest > _LONG_CHARACTERS else "l"
        kinds.append(text if number < table.num_text else "r")
    return "".join(kinds)


def _cells(texts: Sequence[str]) -> list[Cell]:
    return [Cell(text) for text in texts]


def _row(cells: Sequence[Cell], *, is_bold: bool) -> str:
    texts = [escape(cell_text(cell)) for cell in cells]
    return " & ".join(rf"\textbf{{{text}}}" if is_bold and text else text for text in texts) + r" \\"


def _inline(text: str) -> str:
    """Escaped text; text between backticks is in a typewriter font."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(rf"\texttt{{{escape(part)}}}" if number % 2 else escape(part) for number, part in enumerate(parts))


def _escape_one(one: str) -> str:
    if one in _ESCAPED:
        return _ESCAPED[one]
    return one if _LETTERS.fullmatch(one) else f"[U+{ord(one):04X}]"
