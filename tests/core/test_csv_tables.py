"""CSV files: no text becomes a formula in a spreadsheet, and reading gives back what was written."""

import io

import pandas as pd
import pytest

from ichkit.core.csv_tables import encode_csv, read_csv

TEXTS = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\ttab",
    "'=already",
    "''-twice",
    "'plain",
    "head",
    "",
    'a,"b"',
    "two\rlines",
]


def test_no_cell_begins_as_a_formula_and_every_text_comes_back():
    table = pd.DataFrame({"name": TEXTS, "n": range(len(TEXTS))})
    written = encode_csv(table)
    raw = pd.read_csv(io.BytesIO(written), dtype="str", keep_default_na=False)
    assert not raw.name.str.match(r"[=+\-@\t\r\n]").any()
    assert (raw.name[raw.name.str.startswith("'")].index == [0, 1, 2, 3, 4, 5, 6, 7]).all()
    back = read_csv(io.BytesIO(written), dtype={"name": "str"}, keep_default_na=False)
    assert back.name.tolist() == TEXTS


def test_numbers_keep_their_sign_and_missing_values_stay_missing():
    table = pd.DataFrame({"position_mm": [-1.5, None], "fold": pd.array([-1, None], "Int64"), "id": ["-7", None]})
    assert encode_csv(table) == b"position_mm,fold,id\n-1.5,-1,'-7\n,,\n"
    back = read_csv(io.BytesIO(encode_csv(table)), dtype={"id": "str"})
    assert back.position_mm.tolist()[0] == -1.5
    assert back.id.tolist()[0] == "-7"
    assert back.id.isna().tolist() == [False, True]


def test_only_an_empty_cell_is_missing():
    table = pd.DataFrame({"id": ["NA", "null", "nan", "", None], "number": [1.5, None, None, None, None]})
    back = read_csv(io.BytesIO(encode_csv(table)), dtype={"id": "str"})
    assert back.id.tolist()[:3] == ["NA", "null", "nan"]
    assert back.id.isna().tolist() == [False, False, False, True, True]
    assert back.number.isna().tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("dtype", ["object", "str", "category"])
def test_every_kind_of_text_column_is_guarded(dtype):
    assert encode_csv(pd.DataFrame({"a": pd.Series(["=x", "y"], dtype=dtype)})) == b"a\n'=x\ny\n"


def test_a_table_without_such_text_has_the_bytes_it_always_had():
    table = pd.DataFrame({"a": ["x", "it's"], "b": [1.25, -3e-9]})
    assert encode_csv(table) == b"a,b\nx,1.25\nit's,-3e-09\n"


def test_rows_with_more_cells_than_the_header_are_not_read_one_column_further():
    with pytest.raises(pd.errors.ParserError, match="more cells than the header"):
        read_csv(io.BytesIO(b"patient_id,fold\nID_a,0,\nID_b,1,\n"))
