"""Tables as a Word document and as CSV: the cells of the page, and nothing that a program would obey."""

import csv
import io
import sys

import pytest
from docx import Document

from ichkit.core.errors import ConfigError
from ichkit.show import word
from ichkit.show.spreadsheet import to_csv
from ichkit.show.table import Cell, Table, cell_text

HOSTILE = "=cmd|' /C calc'!A0\x00\x0b<w:p>&amp;\ud800"
TABLE = Table(
    "Losses `a`",
    ("source", "loss\nmean", "n"),
    [[Cell("…f3a", full="ID_f3a"), Cell("0.1", "0.0-0.2"), "5,102"], [HOSTILE, "-", "-0.3* (-0.4 to -0.2)"]],
    note="Run `ichkit evaluate`.",
    best=frozenset({0}),
)


def read_csv(table):
    return list(csv.reader(io.StringIO(to_csv(table).decode())))


def test_a_document_holds_every_table_with_number_title_cells_and_note():
    document = Document(io.BytesIO(word.to_word([TABLE, TABLE])))
    texts = [paragraph.text for paragraph in document.paragraphs]
    assert texts == [f"{line}" for n in (1, 2) for line in (f"Table {n}. Losses a", "Run ichkit evaluate.")]
    for grid in document.tables:
        found = [[cell.text for cell in row.cells] for row in grid.rows]
        assert found[0] == ["source", "loss mean", "n"]
        assert found[1] == ["ID_f3a", "0.1 (0.0-0.2)", "5,102"]
        assert found[2] == ["=cmd|' /C calc'!A0 <w:p>&amp;", "-", "-0.3* (-0.4 to -0.2)"]
        assert [row.cells[0].paragraphs[0].runs[0].bold for row in grid.rows] == [True, True, False]


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "docx", None)
    monkeypatch.setattr(word, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"report --word.*pip install 'ichkit\[word\]'"):
        word.check_word("report --word")


def test_a_csv_has_the_cells_of_the_page_in_one_line_each():
    table = Table("t", TABLE.columns, TABLE.rows[:1])
    assert read_csv(table) == [["source", "loss mean", "n"], [cell_text(cell) for cell in table.lines[0]]]
    assert read_csv(Table("t", ("", ""), [["a", "b"]])) == [["a", "b"]]


@pytest.mark.parametrize(
    "text",
    ["=1+1", "@x", "+cmd", "-cmd", "-2+3+cmd|' /C calc'!A0", "-1=2", "+1'A", "\t=1", "-0.1 (=1)", "-1 to =2"],
)
def test_what_a_spreadsheet_would_obey_is_guarded(text):
    ((found,),) = read_csv(Table("", ("",), [[text]]))
    assert found[0] not in "=+-@\t"
    assert found.removeprefix("'").strip() == text.removeprefix("'").strip()
    ((head,),) = read_csv(Table("", (text,), []))
    assert head[0] not in "=+-@\t"


@pytest.mark.parametrize(
    "text", ["-", "-0.3", "+0.012*", "-0.3* (-0.4 to -0.2)", "12 %", "1,024", "-0.3 (-0.4-0.2)", "a=b"]
)
def test_numbers_and_plain_text_stay_as_they_are(text):
    assert read_csv(Table("", ("",), [[text]])) == [[text]]
