"""One table, two printers: the same cells in a terminal and in a page, and what comes from outside is text."""

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from ichkit.show.page import to_html
from ichkit.show.table import Cell, Table, format_interval, format_number
from ichkit.show.terminal import Printable

TABLE = Table(
    "Losses",
    ("source", "loss", "AUC\nany", "n"),
    [
        [Cell("a-fusion", "folds 0+1"), Cell("0.09701", "0.0780-0.1181"), Cell("0.983", tone="good"), "5,102"],
        ["a", Cell("0.13119*", "0.1110-0.1529", "bad"), Cell("0.925", tone="warn"), "5,102"],
    ],
    note="Run `ichkit evaluate`.",
    best=frozenset({0}),
    optional=("AUC\nany", "n"),
)


class Cells(HTMLParser):
    """The text of every cell of every row, the small line behind a bar."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "small":
            self.rows[-1][-1] += "|"

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.replace("\n", " ").strip() if data.strip() else ""


def printed(table, width=80, **options):
    console = Console(width=width, file=io.StringIO(), record=True, **options)
    console.print(Printable(table))
    return console.export_text(styles=bool(options))


def test_a_terminal_and_a_page_show_the_same_cells():
    text, page = printed(TABLE), Cells(str(to_html(TABLE)))
    assert page.rows[0] == ["source", "loss", "AUC any", "n"]
    for line, row in zip(TABLE.lines, page.rows[1:], strict=True):
        assert [cell.partition("|")[0] for cell in row[:-1]] == [cell.text for cell in line[:-1]]
        for cell in line:
            assert cell.text in text
            assert cell.small in text
    assert "Losses" in text
    assert "Run `ichkit evaluate`." in text
    assert "Run <code>ichkit evaluate</code>." in to_html(TABLE)


def test_tones_and_the_best_row_are_marked_in_both():
    styled = printed(TABLE, force_terminal=True, color_system="standard")
    assert "\x1b[31m0.13119*" in styled
    assert "\x1b[33m0.925" in styled
    assert re.search(r"\x1b\[1;32m0\.983", styled)
    assert "\x1b[1ma-fusion" in styled
    page = to_html(TABLE)
    assert re.search(r'class="[^"]*bad[^"]*">0\.13119\*', page)
    assert page.count('class="best"') == 1


@pytest.mark.parametrize(("width", "kept"), [(80, "source loss AUC n"), (30, "source loss AUC"), (25, "source loss")])
def test_a_narrow_terminal_leaves_out_optional_columns_the_last_first_and_breaks_no_number(width, kept):
    text = printed(TABLE, width)
    assert max(map(len, text.splitlines())) <= width
    headings = set(text.split("───")[0].split()) - {"Losses", "any"}
    assert headings == set(kept.split())
    assert "0.0780-0.1181" in text
    assert "a-fusion" in text


def test_a_table_without_headings_has_no_line_of_them():
    table = Table("", ("", ""), [["one", "two"]], num_text=2)
    assert "─" not in printed(table)
    assert "<thead>" not in to_html(table)
    assert "<th" not in to_html(table).replace('<th scope="row"', "")


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> & [red]x[/] [/]"


@pytest.mark.parametrize("place", ["title", "column", "text", "small", "note"])
def test_script_and_markup_in_any_part_of_a_table_are_text_in_both(place):
    said = dict.fromkeys(("title", "column", "text", "small", "note"), "plain") | {place: HOSTILE}
    row = [Cell(said["text"], said["small"])]
    table = Table(said["title"], (said["column"],), [row], note=said["note"])
    page = Cells(str(to_html(table)))
    of_tables = "div table caption span thead tbody tr th small p"
    assert {tag for tag, _ in page.tags} <= set(of_tables.split())
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "alert(1)</script>" not in to_html(table)
    assert "[red]x[/][/]" in "".join(printed(table, 200).split())


def test_numbers_that_are_not_known_are_a_dash_and_unknown_intervals_nothing():
    assert [format_number(value, 2) for value in (0.125, None, float("nan"))] == ["0.12", "-", "-"]
    assert [format_interval(low, 1.0, 2) for low in (0.5, float("nan"))] == ["0.50-1.00", ""]
