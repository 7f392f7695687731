"""Laws of the CSV files that ichkit writes: any text comes back, and none is a formula."""

import csv
import io

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from ichkit.core.csv_tables import encode_csv, read_csv

# DICOM pads with NUL, which is stripped on reading; lone surrogates are no text.
ANY = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(st.one_of(st.sampled_from("'=+-@\t\r\n,;\" a0"), ANY), max_size=8)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.integers(-9, 9)), min_size=1, max_size=6))
def test_every_text_comes_back_and_no_reader_sees_a_formula(rows):
    table = pd.DataFrame(rows, columns=["name", "reason", "n"])
    written = encode_csv(table)
    back = read_csv(io.BytesIO(written), dtype={"name": "str", "reason": "str"}, keep_default_na=False)
    assert back.to_numpy().tolist() == table.to_numpy().tolist()
    cells = list(csv.reader(io.StringIO(written.decode(), newline="")))
    assert cells[0] == ["name", "reason", "n"]
    assert len(cells) == len(rows) + 1
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for *texts, _ in cells[1:] for cell in texts)
    assert [int(row[-1]) for row in cells[1:]] == table["n"].tolist()


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_what_was_read_is_written_to_the_same_bytes(texts):
    written = encode_csv(pd.DataFrame({"name": texts, "n": 1}))
    assert encode_csv(read_csv(io.BytesIO(written), dtype={"name": "str"}, keep_default_na=False)) == written
