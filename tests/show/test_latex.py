"""LaTeX of tables: whatever a name holds is printed, never obeyed; read back it is the same text."""

import re
import shutil
import subprocess

import pytest

from ichkit.show.latex import PACKAGES, escape, to_document, to_latex
from ichkit.show.table import Cell, Table

HOSTILE = r"""[x] \input{/etc/passwd} $x$ a_b & 50% #1 ^2 ~ {open <b>"q" `c` 'd' [3] * -- --- '' ,, | … é – ≥"""
_COMMANDS = {
    "textbackslash": "\\",
    "textasciicircum": "^",
    "textasciitilde": "~",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textquotedbl": '"',
    "textasciigrave": "`",
    "ldots": "…",
    "textendash": "–",
    "textdegree": "°",
}
_TOKEN = re.compile(
    r"\\(?P<name>[a-zA-Z]+)\{\}|\\(?P<sign>[{}$&#%_])|\{(?P<one>[\[*])\}|\{\}(?P<same>[-',])"
    r"|\$\\?(?P<math>[a-z-]+)\$|(?P<ligature>--|''|,,)|(?P<plain>[^\\{}$&#%_^~<>|\"`])"
)
_MATH = {"geq": "≥", "leq": "≤", "times": "×", "pm": "±", "-": "−", "rightarrow": "→", "cdot": "·", "mu": "µ"}
TABLE = Table(
    HOSTILE,
    ("source", "AUC\nany", HOSTILE),
    [["a_b", Cell("0.98", "0.97-0.99"), HOSTILE], ["[3]", "*", "50 %"], ["", "-0.1", Cell("", "small")]],
    note="Run `ichkit report --tables` & wait.",
    best=frozenset({1}),
)


def read_back(text):
    """Escaped text as LaTeX would print it; any character that it would obey is an error."""
    found, at = [], 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token, f"obeyed: {text[at : at + 20]!r}"
        assert not token["ligature"], f"joined: {text[at : at + 20]!r}"
        assert at or token["plain"] not in ("[", "*"), "an argument of the line break before it"
        kind, value = token.lastgroup, token[token.lastgroup]
        found.append({"name": _COMMANDS, "math": _MATH}.get(kind, {}).get(value, value))
        at = token.end()
    return "".join(found)


def body(text):
    return text.split(r"\toprule")[1].split(r"\bottomrule")[0]


@pytest.mark.parametrize("text", [HOSTILE, *map(chr, range(33, 127)), "a  b\nc", "0.98 (0.97-0.99)"])
def test_escaped_text_read_back_is_the_same(text):
    assert read_back(escape(text)) == re.sub(r"\s+", " ", text)


def test_letters_that_pdflatex_lacks_become_code_points():
    assert escape("中é\x07") == "{[}U+4E2D]é[U+0007]"


def test_a_table_has_its_cells_in_rows_and_the_best_row_in_bold():
    lines = [line for line in body(to_latex(TABLE)).splitlines() if line.endswith(r"\\")]
    cells = [[read_back(cell.strip()) for cell in re.split(r"(?<!\\)&", line[:-2])] for line in (lines[0], lines[1])]
    assert cells[0] == ["source", "AUC any", HOSTILE]
    assert cells[1] == ["a_b", "0.98 (0.97-0.99)", HOSTILE]
    bold = [re.fullmatch(r"\\textbf\{(.*)\}", cell.strip())[1] for cell in lines[2][:-2].split("&")]
    assert [read_back(cell) for cell in bold] == ["[3]", "*", "50 %"]
    assert lines[3].startswith(" & -0.1 & small")


def test_columns_are_text_or_numbers_and_long_text_is_a_paragraph():
    long = Table("t", ("a", "b", "c"), [["x" * 41, "y", "1"]], num_text=2)
    assert r"\begin{tabular}{@{}>{\raggedright\arraybackslash}p{7cm}lr@{}}" in to_latex(long)
    assert r"\midrule" not in to_latex(Table("t", ("", ""), [["a", "b"]]))


def test_code_in_a_note_is_in_a_typewriter_font_and_a_label_can_be_referred_to():
    text = to_latex(TABLE, "tab:01-board")
    assert r"\texttt{ichkit report -{}-tables} \& wait." in text
    assert r"\label{tab:01-board}" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_a_document_of_hostile_tables_compiles(tmp_path):
    bare = Table("no heading", ("", ""), [["[a]", "*"], ["中", "--"]])
    for name, table in {"a.tex": TABLE, "b.tex": bare, "c.tex": Table("none", ("a", "b"), [])}.items():
        (tmp_path / name).write_text(to_latex(table, "tab:x"), encoding="utf-8")
    document = to_document(["a.tex", "b.tex", "c.tex"])
    assert all(rf"\usepackage{{{name}}}" in document for name in PACKAGES)
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, errors="replace")
    assert done.returncode == 0, done.stdout[-1500:]
    assert "root:" not in done.stdout
    assert "Missing character" not in (tmp_path / "all.log").read_text(errors="replace")
