"""Label files as spreadsheets and programs write them; their faults are named by row, without the cells."""

import dataclasses

import pandas as pd
import pytest

from ichkit.core.errors import DataError
from ichkit.core.tasks import find_task
from ichkit.sources.labels import check_matches, read_folder_labels

TASK = find_task("hemorrhage")
HEADER = "study_id," + ",".join(TASK.classes)
ROWS = ["1.2.1,0,0,0,0,1,1", "1.2.2,0,0,0,0,0,0", "1.2.3,1,0,0,1,0,1"]


def write(path, header=HEADER, rows=ROWS, encoding="utf-8"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


WAYS = {
    "as it should be": {},
    "byte-order mark": {"encoding": "utf-8-sig"},
    "UTF-16": {"encoding": "utf-16"},
    "semicolons": {"header": HEADER.replace(",", ";"), "rows": [row.replace(",", ";") for row in ROWS]},
    "tabs": {"header": HEADER.replace(",", "\t"), "rows": [row.replace(",", "\t") for row in ROWS]},
    "upper case": {"header": HEADER.upper()},
    "blanks in the header": {"header": HEADER.replace(",", " , ")},
    "blanks around cells": {"rows": [" " + row.replace(",", " , ") + " " for row in ROWS]},
    "floats": {"rows": [row[:5] + row[5:].replace(",0", ",0.0").replace(",1", ",1.0") for row in ROWS]},
    "booleans": {"rows": [row[:5] + row[5:].replace(",0", ",False").replace(",1", ",TRUE") for row in ROWS]},
    "two decimals": {"rows": [row[:5] + row[5:].replace(",0", ",0.00").replace(",1", ",1.00") for row in ROWS]},
    "Y and N": {"rows": [row[:5] + row[5:].replace(",0", ",N").replace(",1", ",y") for row in ROWS]},
    "a column twice": {"header": HEADER + ",Any", "rows": [row + "," + row[-1] for row in ROWS]},
    "commas inside numbers": {
        "header": HEADER.replace(",", ";"),
        "rows": [row.replace(",0", ";0,0").replace(",1", ";1,0") for row in ROWS],
    },
    "an index in front": {"header": "," + HEADER, "rows": [f"{i},{row}" for i, row in enumerate(ROWS)]},
    "empty rows": {"rows": [ROWS[0], ",,,,,,", *ROWS[1:], ",,,,,,", ""]},
    "quotes": {"rows": ['"' + row.replace(",", '","') + '"' for row in ROWS]},
    "a row twice": {"rows": [*ROWS, ROWS[0]]},
    "Excel's line with the delimiter": {
        "header": "sep=;\n" + HEADER.replace(",", ";"),
        "rows": [row.replace(",", ";") for row in ROWS],
    },
    "the same, quoted, behind a mark": {"header": '"sep=,"\n' + HEADER, "encoding": "utf-8-sig"},
    "delimiters behind the rows": {"rows": [row + ",," for row in ROWS]},
    "empty lines in front": {"header": "\n\n" + HEADER},
    "endings of files": {"rows": [row.replace(",", ".dcm,", 1) for row in ROWS]},
    "UTF-16 without a mark": {"encoding": "utf-16-le"},
    "UTF-16 of the other order": {"encoding": "utf-16-be"},
    "returns of a Mac or Windows": {"rows": [row + "\r" for row in ROWS], "header": HEADER + "\r"},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_label_file_is_read_however_it_was_saved(tmp_path, way):
    expected = pd.DataFrame([row.split(",") for row in ROWS], columns=HEADER.split(","))
    expected = expected.astype(dict.fromkeys(TASK.classes, "int8"))
    table, key = read_folder_labels(write(tmp_path / "labels.csv", **WAYS[way]), TASK)
    assert key == "study_id"
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


def test_a_missing_any_is_the_maximum_of_the_classes_it_covers(tmp_path):
    path = write(tmp_path / "l.csv", HEADER.removesuffix(",any"), [row.rpartition(",")[0] for row in ROWS])
    assert read_folder_labels(path, TASK)[0]["any"].to_list() == [1, 0, 1]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_label_file_is_called_so(tmp_path, content):
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(DataError, match="found an empty file"):
        read_folder_labels(tmp_path / "l.csv", TASK)


def test_rows_are_numbered_as_a_spreadsheet_does_whatever_stands_before_the_header(tmp_path):
    path = write(tmp_path / "l.csv", "sep=,\n\n" + HEADER, [ROWS[0], ROWS[1].replace(",0,", ",2,", 1)])
    with pytest.raises(DataError, match="in row 5"):
        read_folder_labels(path, TASK)


SECRET = "NAME^PLANTED"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([ROWS[0], "1.2.2,0,0,0,0,1,0"], "any is 0 although a class that it covers is 1, in row 3"),
        ([ROWS[0], f"1.2.2,0,0,{SECRET},0,0,0"], "expected 0 or 1 for every class .*, found something else, in row 3"),
        ([ROWS[0], "1.2.2,0,0,-,0,0,0", ROWS[2]], "expected 0 or 1 for every class .*, found something else, in row 3"),
        ([ROWS[0], ",0,0,0,0,0,0"], "expected a study_id in every row, found none, in row 3"),
        ([*ROWS, "1.2.1,0,0,0,0,0,0"], "has different labels in an earlier row, in row 5"),
        ([f"1.2.{i},0,0,0,0,0,7" for i in range(9)], "in row 2, 3, 4, 5, 6 and 4 more"),
        ([ROWS[0], f"{SECRET},0,0,0,0,0,0,0,0,{SECRET}"], "expected a table with as many cells in every row"),
    ],
)
def test_a_fault_is_named_by_its_row_and_no_cell_is_shown(tmp_path, rows, expected):
    with pytest.raises(DataError, match=expected) as caught:
        read_folder_labels(write(tmp_path / "l.csv", rows=rows), TASK)
    assert SECRET not in str(caught.value)
    assert "1.2." not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize("name", ["any", " ANY ", "subdural", "study_id"])
def test_two_columns_of_one_name_that_differ_are_refused(tmp_path, name):
    path = write(tmp_path / "labels.csv", f"{HEADER},{name}", [row + ",0" for row in ROWS])
    with pytest.raises(DataError, match="two columns of one name differ, in row 2"):
        read_folder_labels(path, TASK)


def test_the_first_row_of_a_file_without_a_header_is_not_shown(tmp_path):
    with pytest.raises(DataError, match="expected a header with slice_id or study_id, and .*found 7 columns") as caught:
        read_folder_labels(write(tmp_path / "l.csv", header=f"1.2.9,{SECRET},0,0,0,1,1950-01-01"), TASK)
    assert SECRET not in str(caught.value)
    assert "1950" not in str(caught.value)


def test_which_class_covers_which_is_the_tasks_to_say(tmp_path):
    covers = {"intraparenchymal": ("intraventricular",)}
    task = dataclasses.replace(TASK, name="other", any_class=None, covers=covers)
    read_folder_labels(write(tmp_path / "a.csv", rows=["1,0,1,1,0,1,0"]), task)
    with pytest.raises(DataError, match="intraparenchymal is 0 although a class that it covers is 1, in row 2"):
        read_folder_labels(write(tmp_path / "b.csv", rows=["1,0,0,1,0,1,0"]), task)


def test_further_columns_are_counted_in_one_line(tmp_path, caplog):
    path = write(tmp_path / "l.csv", HEADER + ",sex,age", [row + ",F,71" for row in ROWS])
    with caplog.at_level("WARNING", logger="ichkit"):
        read_folder_labels(path, TASK)
    assert [record.getMessage() for record in caplog.records] == [f"{path}: 2 other columns are ignored"]


def test_ids_without_scans_and_scans_without_labels_are_counted(tmp_path, caplog):
    labels = pd.DataFrame({"study_id": ["a", "b", "c", "x"]})
    with caplog.at_level("WARNING", logger="ichkit"):
        check_matches(tmp_path, labels, "study_id", pd.Series(["a", "b", "c", "d"]), pd.Series(["a", "b", "d", "d"]))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"{tmp_path}: 1 of 4 ids have no scan",
        f"{tmp_path}: 1 of 3 studies have no label and are omitted",
    ]
    more = pd.DataFrame({"study_id": ["a", "x", "y"]})
    with pytest.raises(DataError, match="2 of its 3 ids in column study_id are not among the 4 studies found"):
        check_matches(tmp_path, more, "study_id", pd.Series(["a", "b", "c", "d"]), pd.Series(["a"]))
    half = pd.DataFrame({"study_id": ["a", "x"]})
    check_matches(tmp_path, half, "study_id", pd.Series(["a"]), pd.Series(["a"]))


def test_an_empty_cell_is_an_unknown_label_and_a_missing_any_is_unknown_only_where_it_could_be_either(tmp_path):
    rows = ["1.2.1,1,,,0,0", "1.2.2,0,,0,0,0", "1.2.3,0,0,0,0,0", "1.2.4,,,,,"]
    path = write(tmp_path / "l.csv", HEADER.removesuffix(",any"), rows)
    table = read_folder_labels(path, TASK)[0]
    assert table["intraparenchymal"].isna().to_list() == [True, True, False, True]
    assert table["any"].astype("float").to_list()[::2] == [1.0, 0.0]
    assert table["any"].isna().to_list() == [False, True, False, True]


def test_a_known_contradiction_is_refused_beside_unknown_labels_and_so_is_a_file_without_any_label(tmp_path):
    with pytest.raises(DataError, match="any is 0 although a class that it covers is 1, in row 3"):
        read_folder_labels(write(tmp_path / "l.csv", rows=["1.2.1,,,,,,1", "1.2.2,,,,,1,0"]), TASK)
    with pytest.raises(DataError, match="expected labels of 0 and 1, found empty cells alone"):
        read_folder_labels(write(tmp_path / "l.csv", rows=["1.2.1,,,,,,", "1.2.2,,,,,,"]), TASK)


def test_the_layout_of_the_competition_is_read_too(tmp_path):
    wide = write(
        tmp_path / "wide.csv", HEADER.replace("study_id", "slice_id"), ["ID_a_b,0,0,1,0,0,1", "ID_c,,0,0,0,0,0"]
    )
    rows = [f"ID_a_b_{name},{int(name in ('any', 'intraventricular'))}" for name in TASK.classes]
    rows += [f"ID_c_{name},{'' if name == 'epidural' else 0}" for name in TASK.classes]
    long = write(tmp_path / "long.csv", "ID,Label", [*reversed(rows), rows[0]])
    expected, key = read_folder_labels(wide, TASK)
    found, found_key = read_folder_labels(long, TASK)
    assert found_key == key == "slice_id"
    pd.testing.assert_frame_equal(found, expected)
    for row, problem in {
        "ID_c_fracture,1": "expected as ID a slice_id and one of epidural",
        "ID_c_any,1": "a class of a slice_id has different labels in an earlier row, in row 14",
    }.items():
        with pytest.raises(DataError, match=problem):
            read_folder_labels(write(tmp_path / "wrong.csv", "ID,Label", [*rows, row]), TASK)
    with pytest.raises(DataError, match="any is 0 although a class that it covers is 1, in row 2"):
        read_folder_labels(
            write(tmp_path / "odd.csv", "ID,Label", [row.replace("any,1", "any,0") for row in rows]), TASK
        )
