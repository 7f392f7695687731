"""Tables as Markdown: no name becomes markup, and every row has the cells of the heading."""

import re

from ichkit.show.markdown import to_markdown
from ichkit.show.table import Cell, Table

HOSTILE = ["a|b", "*bold*", "[x](http://y)", "<script>", "a\nb", "`code`", "#1", "\\", "~~no~~", "$x$"]


def test_a_name_is_never_markup_and_never_a_cell_more():
    table = Table("T|itle", ("name", "value"), [[name, Cell("0.1", "0.0-0.2")] for name in HOSTILE], note="a * b")
    lines = to_markdown(table).splitlines()
    rows = lines[4:-2]
    assert len(rows) == len(HOSTILE)
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row.replace("\\\\", ""))) == 3
        assert not re.search(r"(?<!\\)[*`\[\]#~$]|<", row.replace("\\\\", ""))
    assert lines[-1] == r"a \* b"
    assert lines[0] == r"**T\|itle**"
