"""Laws of tables that users give: the same labels however they are saved, an error of ichkit's for any other."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ichkit.core.errors import IchkitError
from ichkit.core.tasks import find_task
from ichkit.imaging.regions import read_regions
from ichkit.sources.bids import read_readers
from ichkit.sources.cq500 import read_baseline, read_majority, read_votes
from ichkit.sources.files import FileRef
from ichkit.sources.labels import read_folder_labels, read_subgroups
from ichkit.sources.rsna import read_labels, read_sample
from ichkit.sources.series import read_override
from ichkit.stages.prepare.plan import read_folds
from ichkit.validation.submissions import read_submission, read_truth

TASK = find_task("hemorrhage")
SUBTYPES = tuple(name for name in TASK.classes if name != TASK.any_class)
SPELLINGS = {
    0: ("0", "0.0", "0.00", "false", "FALSE", "no", "N", "f"),
    1: ("1", "1.0", "1,0", "true", "True", "YES", "y", "T"),
    None: ("", " ", "  "),
}
IDS = st.text(st.sampled_from("aB0.-_ ,;|\"'äßé中="), min_size=1, max_size=8).filter(
    lambda text: text == text.strip() and not text.startswith("sep=")
)
LABELS = st.tuples(*[st.sampled_from([0, 1, None]) for _ in SUBTYPES])
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1")
LINE_ENDS = ("\n", "\r\n", "\r")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("labels")


def any_of(labels):
    return 1 if 1 in labels else None if None in labels else 0


def save(data, header, rows, encoding):
    """The bytes of these cells, saved in a drawn way."""
    delimiter = data.draw(st.sampled_from([",", ";", "\t", "|"]))
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    end = data.draw(st.sampled_from(LINE_ENDS))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([header, *rows])
    before = data.draw(st.sampled_from(["", end, f"sep={delimiter}{end}"]))
    after = data.draw(st.sampled_from(["", end, delimiter * len(header) + end]))
    return (before + text.getvalue() + after).encode(encoding)


@given(st.dictionaries(IDS, LABELS, min_size=1, max_size=5), st.sampled_from(ENCODINGS), st.booleans(), st.data())
def test_the_same_labels_are_read_from_every_way_of_saving_them(folder, labels, encoding, has_any, data):
    assume(any(label is not None for row in labels.values() for label in row))
    key = data.draw(st.sampled_from(["study_id", "slice_id"]))
    names = data.draw(st.permutations([key, *(TASK.classes if has_any else SUBTYPES)]))
    rows = []
    for own, of_row in data.draw(st.permutations(list(labels.items()))):
        values = dict(zip(SUBTYPES, of_row, strict=True)) | {TASK.any_class: any_of(of_row)}
        cells = {name: data.draw(st.sampled_from(SPELLINGS[value])) for name, value in values.items()} | {key: own}
        rows.append([cells[name] for name in names])
    spelling = data.draw(st.sampled_from([str, str.upper, str.title, " {} ".format]))
    if encoding == "latin-1":
        assume("中" not in "".join(labels))
    saved = save(data, [spelling(name) for name in names], rows, encoding)
    if encoding == "latin-1":  # which nothing tells from UTF-8 where it is valid UTF-8 too
        assume(saved.isascii() or b"\xe4" in saved or b"\xdf" in saved or b"\xe9" in saved)
    (folder / "labels.csv").write_bytes(saved)
    table, found_key = read_folder_labels(folder / "labels.csv", TASK)
    assert found_key == key
    expected = [[own, *[dict(zip(SUBTYPES, row, strict=True)).get(n, any_of(row)) for n in TASK.classes]]
                for own, row in sorted(labels.items())]  # fmt: skip
    assert table.astype(object).where(table.notna(), None).to_numpy().tolist() == expected


def reference(path):
    return FileRef(path.name, str(path), path.stat().st_size, -1, 0, 0)


LONG = "ID,Label\n" + "".join(f"ID_a_{name},{int(name in ('subdural', 'any'))}\n" for name in TASK.classes)
READS = ["ICH", "EDH", "IPH", "IVH", "SAH", "SDH"]
VOTES = "name,Category," + ",".join(f"R{r}:{n}" for r in (1, 2, 3) for n in READS) + "\nCQ500-CT-1,B1" + ",1" * 18
WIDE = "study_id," + ",".join(TASK.classes) + "\n"
READERS = {
    "labels": (lambda path: read_folder_labels(path, TASK), WIDE + "1.2,0,0,0,0,1,1\n1.3,0,0,0,0,0,0\n"),
    "subgroups": (lambda path: read_subgroups(path, ["sex", "age"]), "study_id,sex,age\n1.2,F,71\n1.3,M,\n"),
    "series override": (read_override, "study_id,series\n1.2,PLAIN THIN\n"),
    "folds": (read_folds, "patient_id,fold\nID_a,0\nNA,1\n"),
    "reads of several readers": (lambda path: read_readers(path, TASK), "study_id,reader,any\n1.2,A,1\n1.2,B,\n"),
    "regions": (read_regions, "name,x,y,rx,ry,low,high,group\nM1,0,0,10,10,-5,5,aspects\n"),
    "RSNA labels": (lambda path: read_labels(reference(path), TASK), LONG),
    "RSNA sample": (lambda path: read_sample(reference(path)), LONG),
    "CQ500 majority": (lambda path: read_majority(reference(path), TASK), VOTES + "\n"),
    "CQ500 votes": (lambda path: read_votes(reference(path), TASK), VOTES + "\n"),
    "CQ500 baseline": (
        lambda path: read_baseline(reference(path), TASK),
        "name," + ",".join(READS) + "\nCQ500-CT-1,0.5,0.1,.2,1e-3,0,1\n",
    ),
    "submission": (lambda path: read_submission(path, TASK), LONG),
    "truth": (lambda path: read_truth(path, TASK), LONG),
}
PIECES = (b"", b",", b",,", b";", b'"', b'""', b"\n", b"\r", b"\r\n", b"\t", b"\0", b"\xff", b"\xe4")
PIECES += (b"\xef\xbb\xbf", b"\xff\xfe", b"NaN", b"NA", b"inf", b"-1", b"1e999", b"9" * 30, b"0x1", b"1_0", b" ")
PIECES += (b"ID", b"name", b"any", b"sep=;\n")


@st.composite
def damaged(draw, good):
    """A good file with some of its bytes replaced by pieces that parsers stumble over; or anything at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=60))
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(good)))
        end = min(begin + draw(st.sampled_from([0, 0, 1, 2, 8, 40])), len(good))
        good = good[:begin] + draw(st.sampled_from(PIECES)) + good[end:]
    return good


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_a_damaged_table_is_read_or_refused_with_an_error_of_ichkit(folder, name, data):
    read, good = READERS[name]
    path = Path(folder / "table.csv")
    path.write_bytes(data.draw(damaged(good.encode())))
    message = None
    try:
        read(path)
    except IchkitError as error:
        message = str(error)
    if message is not None:
        assert "table.csv" in message
        assert len(message) < 1000


@pytest.mark.parametrize("name", READERS)
def test_the_undamaged_tables_are_read(folder, name):
    read, good = READERS[name]
    (folder / "table.csv").write_text(good)
    assert len(read(folder / "table.csv"))


def test_a_patient_called_na_keeps_the_fold(tmp_path):
    (tmp_path / "folds.csv").write_text("patient_id,fold\nNA,1\nnull,0\n")
    expected = pd.DataFrame({"patient_id": ["NA", "null"], "fold": [1, 0]})
    pd.testing.assert_frame_equal(read_folds(tmp_path / "folds.csv"), expected, check_dtype=False)


BASELINE = "name,ICH,EDH,IPH,IVH,SAH,SDH\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a CSV in UTF-8"),
        (b"name,\xe4\n1,2\n", "expected a CSV in UTF-8"),
        (f"{BASELINE}CQ500-CT-1,high,0,0,0,0,0\n".encode(), "expected numbers in column ICH"),
        (f"{BASELINE}CQ500-CT-1,0,0,0,0,0,0\n,0,0,0,0,0,0\n".encode(), "expected a name in every row.* row 3"),
    ],
)
def test_a_table_of_cq500_that_is_none_is_refused_with_what_was_expected(tmp_path, content, expected):
    (tmp_path / "reads.csv").write_bytes(content)
    with pytest.raises(IchkitError, match=f"reads.csv: {expected}"):
        read_baseline(reference(tmp_path / "reads.csv"), TASK)
