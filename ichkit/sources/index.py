"""One row per file: where it is and what its header says, read once and kept."""

from dataclasses import astuple
from pathlib import Path

import pandas as pd
from pydicom import config as pydicom_config

from ichkit.core.progress import Meter, StopFlag
from ichkit.engine.parallel import WorkerDied, run_tasks
from ichkit.imaging.dicom import HEADER_COLUMNS, Header, UnreadableError, read_header
from ichkit.sources.files import FILE_COLUMNS, FileRef, file_refs

REASON = "reason"
INDEX_COLUMNS = [*FILE_COLUMNS, *HEADER_COLUMNS, REASON]
_FILES_PER_TASK = 256
_TEXT = ["slice_uid", "study_uid", "series_uid", "patient_id", "kind"]
_WHOLE = ["rows", "columns", "bits_stored", "high_bit", "pixel_representation", "pixel_offset", "pixel_bytes"]


def read_index(
    files: pd.DataFrame, known: pd.DataFrame | None, *, workers: int | None, stop: StopFlag | None = None
) -> pd.DataFrame:
    """The index of all files: `INDEX_COLUMNS`, `reason` empty where the header is good.

    Args:
        files: `FILE_COLUMNS`.
        known: an earlier index; a file of the same relative path and size is not read again.
        workers: processes; None for one a core.
        stop: looked at between tasks.
    """
    if known is not None and len(known):
        facts = known[["relative", "num_bytes", *HEADER_COLUMNS, REASON]]
        joined = files.merge(facts, on=["relative", "num_bytes"], how="left", indicator=True)
        old, new = joined[joined._merge == "both"][INDEX_COLUMNS], joined[joined._merge == "left_only"][FILE_COLUMNS]
    else:
        old, new = None, files
    read = _read_headers(new, workers, stop)
    whole = read if old is None else pd.concat([old.astype(read.dtypes.to_dict()), read])
    return whole.sort_values("relative", ignore_index=True)


def read_headers(refs: list[FileRef]) -> list[tuple[Header | None, str]]:
    """(header or None, reason or "") of each file; one whose pixels alone are at fault has both. Runs in a worker."""
    # Ids of RSNA are not legal UIDs: a reader that validates warns four times per file.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    found: list[tuple[Header | None, str]] = []
    for ref in refs:
        try:
            found.append((read_header(lambda length, ref=ref: ref.read(0, length), ref.num_bytes), ""))
        except UnreadableError as error:
            found.append((error.header, str(error)))
    return found


def _read_headers(files: pd.DataFrame, workers: int | None, stop: StopFlag | None) -> pd.DataFrame:
    refs = file_refs(files)
    tasks = [refs[start : start + _FILES_PER_TASK] for start in range(0, len(refs), _FILES_PER_TASK)]
    rows: list[tuple] = [()] * len(refs)
    empty = _row_of(None, "")
    with Meter("headers", len(refs), "files") as meter:
        for position, result in run_tasks(read_headers, tasks, workers=workers):
            start = position * _FILES_PER_TASK
            if isinstance(result, WorkerDied):
                result = _one_by_one(tasks[position], workers)
            for i, (header, reason) in enumerate(result):
                rows[start + i] = _row_of(header, reason)
            meter.advance(len(result))
            if stop is not None:
                stop.check("nothing of the headers is kept yet")
    facts = pd.DataFrame(rows or [empty], columns=[*HEADER_COLUMNS, REASON]).iloc[: len(rows)]
    facts = facts.astype({**dict.fromkeys(_TEXT, "str"), **dict.fromkeys(_WHOLE, "int64"), REASON: "str"})
    return pd.concat([files.reset_index(drop=True), facts.reset_index(drop=True)], axis=1)


def _one_by_one(refs: list[FileRef], workers: int | None) -> list[tuple[Header | None, str]]:
    """The files of a task whose worker died, each in a task of its own, so that the one at fault is named."""
    found: list[tuple[Header | None, str]] = [(None, "")] * len(refs)
    for position, result in run_tasks(read_headers, [[ref] for ref in refs], workers=workers, isolated=True):
        found[position] = (None, result.reason) if isinstance(result, WorkerDied) else result[0]
    return found


def _row_of(header: Header | None, reason: str) -> tuple:
    if header is not None:
        return (*astuple(header), reason)
    blanks = {**dict.fromkeys(_TEXT, ""), **dict.fromkeys(_WHOLE, 0)}
    return (*(blanks.get(name, float("nan")) for name in HEADER_COLUMNS), reason)


def stem(relative: str) -> str:
    """File name without folders and suffix."""
    return Path(relative).stem
