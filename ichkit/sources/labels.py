"""Label files in any delimiter, encoding and spelling of 0 and 1; errors give row numbers, never cell contents."""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ichkit.core.errors import ConfigError, DataError, nearest, shorten
from ichkit.core.progress import logger
from ichkit.core.tasks import Task
from ichkit.imaging.header_facts import HEADER_FACTS
from ichkit.imaging.parts import part_id
from ichkit.validation.subgroups import SLICE_PARTITIONS, STUDY_PARTITIONS

SLICE_ID = "slice_id"
KEYS = (SLICE_ID, "study_id")
_LONG_COLUMNS = {"id", "label"}
PART_COLUMNS = ("part", "side", "region")
"""Columns that name a part, joined by a hyphen: part alone, side alone, or side and region."""
CATEGORY = "category"
_DELIMITERS = (",", ";", "\t", "|")
_VALUES = {"0": 0, "1": 1, "false": 0, "true": 1, "f": 0, "t": 1, "no": 0, "yes": 1, "n": 0, "y": 1}
_BOMS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
_SHOWN_ROWS = 5
_MOST_GROUPS, _LONGEST_GROUP = 30, 40
_DATE = r"\b(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|(?:19|20)\d{6})\b"


def read_folder_labels(
    path: Path, task: Task, *, by_part: bool = False, subgroups: Sequence[str] = ()
) -> tuple[pd.DataFrame, str]:
    """The id column and one column of labels per class, sorted by id; and the name of the id column.

    Labels are 0, 1, or missing (unknown) where the cell is empty; the id column is slice_id or study_id.

    Accepted are spaces around ids, headers and values, upper case, a byte-order mark, UTF-16, and comma, semicolon, tab
    or bar as delimiter; values are 0, 1, 0.0, 1.00, true, false, yes or no. A class that covers others (`any`) may have
    no column: it is 1 where one of them is, else unknown where one of them is, else 0. Where the task has categories
    (`Task.categories`), a column category may stand in place of all classes. The layout of RSNA 2019 is read too: ID, a
    slice_id and a class joined by an underscore, and Label.

    Args:
        by_part: take the columns `PART_COLUMNS` for the part of the study or slice; ids are then those of parts.
        subgroups: other columns that are used elsewhere, so that no warning counts them.

    Raises:
        DataError: not a table, no id, another value, an id with different labels, or a class that is 0 while a class
            that it covers is 1.
    """
    raw = _spell_out_categories(path, _spread_classes(path, _read_cells(path), task), task)
    key = next((name for name in KEYS if name in raw), None)
    derived = [name for name in task.classes if name not in raw and task.covers.get(name)]
    missing = [name for name in task.classes if name not in raw and name not in derived]
    if key is None or missing:
        # Other column names are not shown: in a file without a header they are the cells of its first row.
        known = [name for name in raw if name in (*KEYS, *task.classes)]
        raise DataError(
            f"{path}: expected a header with slice_id or study_id, and {', '.join(task.classes)}; found {raw.shape[1]} "
            f"columns, of those names {', '.join(known) or 'none'}. Name the columns in the first row."
        )
    # Ids are the file name of a NIfTI volume without its suffix, or the UID of a DICOM file; a suffix is accepted.
    ids = _clean_ids(raw[key])
    names = [name for name in PART_COLUMNS if by_part and name in raw]
    if names:
        _refuse(path, (raw[names] == "").any(axis=1), f"expected {' and '.join(names)} in every row, found none")
        parts = raw[names].agg("-".join, axis=1) if len(names) > 1 else raw[names[0]]
        ids = pd.Series([part_id(*pair) if pair[0] else "" for pair in zip(ids, parts, strict=True)], raw.index)
    table = pd.DataFrame({key: ids})
    given = [name for name in task.classes if name not in derived]
    is_wrong = pd.Series(False, index=raw.index)
    for name in given:
        words = raw[name].str.lower().str.replace(r"[.,]0+$", "", regex=True)
        table[name] = words.map(_VALUES).astype("Int8")
        is_wrong |= table[name].isna() & (raw[name] != "")
    _refuse(path, is_wrong, "expected 0 or 1 for every class (empty if unknown), found something else")
    _refuse(path, table[key].isna() | (table[key] == ""), f"expected a {key} in every row, found none")
    for name in derived:
        covered_by: pd.DataFrame = table.filter(items=[other for other in task.covers[name] if other in table])
        highest = covered_by.max(axis=1)
        table[name] = highest.where((highest == 1) | covered_by.notna().all(axis=1))
    for name, covered in task.covers.items():
        if name in given:
            contradicts = (table[name] == 0) & (table[list(covered)] == 1).any(axis=1)
            _refuse(path, contradicts.fillna(False).astype(bool), f"{name} is 0 although a class that it covers is 1")
    is_whole = table[list(task.classes)].notna().all(axis=None)
    table = table[[key, *task.classes]].astype(dict.fromkeys(task.classes, "int8" if is_whole else "Int8"))
    differs = ~table.duplicated() & table[key].duplicated()
    _refuse(path, differs, f"a {key} has different labels in an earlier row")
    unknown = table[list(task.classes)].isna().any(axis=1)
    if len(table) and table[list(task.classes)].isna().all(axis=None):
        raise DataError(f"{path}: expected labels of 0 and 1, found empty cells alone. Fill in those that are known.")
    if unknown.any():
        logger.info("%s: %d of %d rows have unknown labels (empty cells)", path, int(unknown.sum()), len(table))
    unused = raw.shape[1] - 1 - len(given) - len(names) - len({*raw.columns} & {*subgroups})
    if unused:
        logger.warning("%s: %d other columns are ignored", path, unused)
    return table.drop_duplicates().sort_values(key, ignore_index=True), key


def _spread_classes(path: Path, raw: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The cells of RSNA 2019, with a row per slice and class, as a row per slice; others as they are."""
    if {*raw.columns} != _LONG_COLUMNS:
        return raw
    parts = raw["id"].str.extract(rf"^\s*(?P<{SLICE_ID}>.+)_(?P<name>{'|'.join(map(re.escape, task.classes))})\s*$")
    expected = f"expected as ID a {SLICE_ID} and one of {', '.join(task.classes)}, joined by an underscore"
    _refuse(path, parts["name"].isna(), f"{expected}, found something else")
    rows = parts.assign(label=raw["label"]).drop_duplicates()
    of_both = [SLICE_ID, "name"]
    _refuse(path, rows.duplicated(of_both), f"a class of a {SLICE_ID} has different labels in an earlier row")
    wide = rows.pivot_table(index=SLICE_ID, columns="name", values="label", aggfunc="first").fillna("").reset_index()
    wide.columns.name = None
    # Rows of later messages are numbered by the first of each slice.
    first = rows.drop_duplicates(SLICE_ID)
    wide.index = pd.Index(wide[SLICE_ID].map(pd.Series(first.index, first[SLICE_ID])).to_numpy())
    return wide


def _spell_out_categories(path: Path, raw: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The cells with a column per class in place of `CATEGORY`, where the task has categories and no class a column."""
    if not task.categories or CATEGORY not in raw or any(name in raw for name in task.classes):
        return raw
    given = raw[CATEGORY].str.lower().str.replace(r"[\s_-]+", " ", regex=True)
    _refuse(path, ~given.isin(list(task.categories)), f"expected a {CATEGORY} among {', '.join(task.categories)}")
    texts = {None: "", 0: "0", 1: "1"}
    columns = {
        name: given.map({category: texts[labels[name]] for category, labels in task.categories.items()})
        for name in task.classes
    }
    return raw.drop(columns=CATEGORY).assign(**columns)


def read_columns(path: Path) -> list[str]:
    """The names of all columns of a label file, in lower case.

    Raises:
        DataError: not a table.
    """
    return [str(name) for name in _read_cells(path)]


def check_subgroups(given: Sequence[str], paths: Sequence[Path], task: Task) -> tuple[str, ...]:
    """The names of the columns that `--subgroup` asks for, as label files are read.

    Args:
        given: each a name, or several joined by commas.
        paths: the label files.

    Raises:
        ConfigError: a name that no label file has, or that means something else.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for text in given for name in text.split(",") if name.strip()))
    taken = {*SLICE_PARTITIONS, *STUDY_PARTITIONS, *HEADER_FACTS, *KEYS, *PART_COLUMNS, *task.classes, "dataset"}
    columns = {name for path in paths for name in read_columns(path)} if names else set()
    for name in names:
        if name in taken:
            raise ConfigError(
                f'--subgroup: "{name}" cannot be a subgroup: ichkit has an id, a class, a subgroup or a header fact '
                "(prepare.header_facts) of that name. Rename the column."
            )
        if not re.fullmatch(r"[a-z0-9_][a-z0-9_ -]{0,29}", name):
            raise ConfigError(
                f'--subgroup: "{shorten(name)}" cannot be a subgroup: expected at most 30 letters, digits, blanks, "_" '
                'and "-". Rename the column.'
            )
        if name not in columns:
            raise ConfigError(
                f'--subgroup: expected a column "{name}" in a label file (--labels), found none. '
                f"{nearest(name, sorted(columns - taken))}"
            )
    return names


def read_subgroups(path: Path, columns: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """The id column and those of these columns that a label file has, as text; and the name of the id column.

    Empty cells are missing.

    Raises:
        DataError: no id column, too many different values for groups, or values like dates or long texts, which may
            identify people.
    """
    raw = _read_cells(path)
    key = next((name for name in KEYS if name in raw), None)
    if key is None:
        raise DataError(
            f"{path}: expected a column {' or '.join(KEYS)}, found none. Name the columns in the first row."
        )
    table = pd.DataFrame({key: _clean_ids(raw[key])})
    for name in (name for name in columns if name in raw):
        values = raw[name]
        known = values[values != ""]
        is_number = pd.to_numeric(known, errors="coerce").notna().all()
        problem = ""
        if known.str.contains(_DATE).any():
            problem = "values like dates, which may identify people"
        elif not known.map(lambda text: text.isprintable() and len(text) <= _LONGEST_GROUP).all():
            problem = f"values of more than {_LONGEST_GROUP} characters"
        elif not is_number and known.nunique() > _MOST_GROUPS:
            problem = f"{known.nunique()} different values, which are no groups"
        if problem:
            raise DataError(
                f"{path}: --subgroup {name}: found {problem}. Give a column of at most {_MOST_GROUPS} words, or of "
                "numbers, which are cut at their quartiles."
            )
        table[name] = values.where(values != "").astype("str")
    return table, key


def check_matches(path: Path, labels: pd.DataFrame, key: str, scans: pd.Series, taken: pd.Series) -> None:
    """Logs the number of labels without a scan and of scans without a label.

    Args:
        scans: ids of all readable files, of chosen and other series.
        taken: ids of the files to be used.

    Raises:
        DataError: more than half of the labels have no scan.
    """
    num_lost = int((~labels[key].isin(scans)).sum())
    unlabelled = taken[~taken.isin(labels[key])].nunique()
    what = "slices" if key == "slice_id" else "studies"
    if 2 * num_lost > len(labels):
        raise DataError(
            f"{path}: {num_lost} of its {len(labels)} ids in column {key} are not among the {scans.nunique()} {what} "
            "found. They must be the UIDs in the DICOM headers."
        )
    if num_lost:
        logger.warning("%s: %d of %d ids have no scan", path, num_lost, len(labels))
    if unlabelled:
        logger.warning("%s: %d of %d %s have no label and are omitted", path, unlabelled, taken.nunique(), what)


def _clean_ids(ids: pd.Series) -> pd.Series:
    """Ids without blanks and the suffix of a file."""
    stripped: pd.Series = ids.str.strip(" \t\0")
    return stripped.str.replace(r"(?i)\.(?:nii(?:\.gz)?|dcm|dicom)$", "", regex=True)


def _read_cells(path: Path) -> pd.DataFrame:
    """Every cell as text without surrounding spaces; column names in lower case."""
    try:
        data = path.read_bytes()
        text = data.decode(_find_encoding(data))
    except OSError as error:
        raise DataError(f"{path}: expected a CSV of labels, it cannot be read ({type(error).__name__}).") from error
    except UnicodeError:
        text = data.decode("latin-1")
    if not text.strip("\ufeff \t\r\n\0"):
        raise DataError(f"{path}: expected a table of labels, found an empty file.")
    lines = re.split(r"\r\n|\r|\n", text)
    # Excel's line that names the delimiter, and leading empty lines, are not the header, but count as rows.
    said = re.fullmatch(r"\ufeff?\"?sep=(.)\"?[ \t]*", lines[0], re.IGNORECASE)
    first = next((number for number, line in enumerate(lines) if line.strip() and (number or not said)), 0)
    delimiter = said[1] if said and said[1] in _DELIMITERS else max(_DELIMITERS, key=lines[first].count)
    # Spreadsheets may append delimiters after the last cell.
    text = "\n".join(line.rstrip(f"{delimiter} ") for line in lines[first:])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            raw = pd.read_csv(
                io.StringIO(text),
                sep=delimiter,
                dtype="str",
                keep_default_na=False,
                index_col=False,
                skip_blank_lines=False,
            )
            # As it stands: in the table pandas numbers names that repeat.
            header = pd.read_csv(io.StringIO(text), sep=delimiter, dtype="str", header=None, nrows=1).iloc[0].fillna("")
    # The message of the parser contains cells of the invalid row.
    except (ValueError, pd.errors.ParserError, pd.errors.ParserWarning):
        raise DataError(
            f"{path}: expected a table with as many cells in every row as in its header, found something else. "
            "Save it as CSV again."
        ) from None
    raw = raw.fillna("")
    raw.index += first
    names, own = ([_spell_name(name) for name in row] for row in (raw.columns, header))
    raw.columns = pd.Index(own if set(KEYS) & set(own) else names)
    for name in dict.fromkeys(raw.columns[raw.columns.duplicated()]):
        same = raw[name].apply(lambda cells: cells.str.strip())
        _refuse(path, same.ne(same.iloc[:, 0], axis=0).any(axis=1), "two columns of one name differ")
    raw = raw.loc[:, ~raw.columns.duplicated()]
    # Spreadsheets may append empty rows.
    raw = raw[(raw != "").any(axis=1)]
    return pd.DataFrame({name: raw[name].str.strip() for name in raw})


def _spell_name(name: object) -> str:
    return str(name).strip().strip("\ufeff").strip().lower()


def _find_encoding(data: bytes) -> str:
    """The encoding by the byte-order mark; without one UTF-16 is recognised by the zero bytes of ASCII letters."""
    marked = next((name for mark, name in _BOMS if data.startswith(mark)), "")
    if marked or len(data) < 4 or len(data) % 2:
        return marked or "utf-8"
    zeros = [byte == 0 for byte in data[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else "utf-8"


def _refuse(path: Path, rows: pd.Series, problem: str) -> None:
    """Raises if any row is marked; rows are numbered as in a spreadsheet, the header is row 1."""
    if not rows.any():
        return
    numbers = [str(number + 2) for number in rows.index[rows]]
    more = f" and {len(numbers) - _SHOWN_ROWS} more" if len(numbers) > _SHOWN_ROWS else ""
    shown = ", ".join(numbers[:_SHOWN_ROWS]) + more
    raise DataError(f"{path}: {problem}, in row {shown}. Correct the rows and run again.")
