"""One row per file: where it is and what its header says, read once and kept."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter

import numpy as np
import pandas as pd
from pydicom import config as pydicom_config

from ichkit.core.progress import Meter, StopFlag
from ichkit.engine.parallel import RunTasks, WorkerDied, run_tasks
from ichkit.imaging.dicom import HEADER_COLUMNS, Header, UnreadableError, read_header
from ichkit.sources.files import FILE_COLUMNS, FileRef, file_refs
from ichkit.sources.series_names import why_dropped_by_header

REASON = "reason"
INDEX_COLUMNS = [*FILE_COLUMNS, *HEADER_COLUMNS, REASON]
KEPT_COLUMNS = ["relative", "num_bytes", *HEADER_COLUMNS, REASON]
"""What an artifact keeps of an index: where the data lie on this machine is nobody's business."""
_FILES_PER_TASK = 256
_values = attrgetter(*HEADER_COLUMNS)
_TEXT = ["slice_uid", "study_uid", "series_uid", "patient_id", "kind"]
_WHOLE = ["rows", "columns", "bits_stored", "high_bit", "pixel_representation", "pixel_offset", "pixel_bytes"]
_WHOLE += ["instance_number", "acquisition_number"]
_BLANKS = {**dict.fromkeys(_TEXT, ""), **dict.fromkeys(_WHOLE, 0)}
_DTYPES = {
    **{name: "str" if name in _TEXT else "int64" if name in _WHOLE else "float64" for name in HEADER_COLUMNS},
    REASON: "str",
}


def read_index(
    files: pd.DataFrame, known: pd.DataFrame | None, *, run: RunTasks = run_tasks, stop: StopFlag | None = None
) -> pd.DataFrame:
    """The index of all files: `INDEX_COLUMNS`, `reason` empty where the header is good.

    Args:
        files: `FILE_COLUMNS`.
        known: an earlier index; a file of the same relative path and size is not read again.
        run: `run_tasks`, or a partial of it with its workers chosen.
        stop: looked at between tasks.
    """
    files = files.reset_index(drop=True)
    if known is None or not len(known) or not set(KEPT_COLUMNS) <= set(known):
        # The last: an index that an earlier version kept, when fewer tags were read.
        return _read_headers(files, run, stop)
    joined = files.merge(known[KEPT_COLUMNS], on=["relative", "num_bytes"], how="left", indicator=True)
    is_known = (joined.pop("_merge") == "both").to_numpy()
    old = joined[is_known].astype(_DTYPES)
    new = _read_headers(joined[~is_known][FILE_COLUMNS].reset_index(drop=True), run, stop)
    return pd.concat([old, new]).sort_values("relative", ignore_index=True)[INDEX_COLUMNS]


def read_headers(refs: list[FileRef]) -> list[tuple[Header | None, str]]:
    """(header or None, reason or "") of each file; one whose pixels alone are at fault has both. Runs in a worker.

    A header's `kind` becomes the reason why its series would not be chosen: free text may hold a name, so it is judged
    where it is read, and goes no further.
    """
    # Ids of RSNA are not legal UIDs: a reader that validates warns four times per file.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    found: list[tuple[Header | None, str]] = []
    for ref in refs:
        reason = ""
        try:
            header: Header | None = read_header(partial(ref.read, 0), ref.num_bytes)
        except UnreadableError as error:
            header, reason = error.header, str(error)
        if header is not None and header.kind:
            header = replace(header, kind=why_dropped_by_header(header.kind))
        found.append((header, reason))
    return found


class _Batches(Sequence[list[FileRef]]):
    """The references of some hundred files at a time, each batch built when it is asked for."""

    def __init__(self, files: pd.DataFrame) -> None:
        self._files = files

    def __len__(self) -> int:
        return -(-len(self._files) // _FILES_PER_TASK)

    def __getitem__(self, position: int) -> list[FileRef]:  # type: ignore[override]
        if not 0 <= position < len(self):
            raise IndexError(position)  # the end of an iteration
        start = position * _FILES_PER_TASK
        return file_refs(self._files.iloc[start : start + _FILES_PER_TASK])


def _read_table(refs: list[FileRef]) -> pd.DataFrame:
    """`read_headers` as columns, which travel and are kept in a tenth of the room of a tuple each."""
    return _make_table(read_headers(refs))


def _make_table(found: list[tuple[Header | None, str]]) -> pd.DataFrame:
    blank = tuple(_BLANKS.get(name, np.nan) for name in HEADER_COLUMNS)
    rows = [(*(blank if header is None else _values(header)), reason) for header, reason in found]
    return pd.DataFrame(rows, columns=[*HEADER_COLUMNS, REASON]).astype(_DTYPES)


def _read_headers(files: pd.DataFrame, run: RunTasks, stop: StopFlag | None) -> pd.DataFrame:
    """Files in any order to `INDEX_COLUMNS` in the same order."""
    batches = _Batches(files)
    tables = [_make_table([])] * len(batches)
    with Meter("headers", len(files), "files") as meter:
        for position, result in run(_read_table, batches):
            if isinstance(result, WorkerDied):
                result = _make_table(_one_by_one(batches[position], run))
            tables[position] = result
            meter.advance(len(result))
            if stop is not None:
                stop.check("nothing of the headers is kept yet")
    facts = pd.concat(tables, ignore_index=True) if tables else _make_table([])
    return pd.concat([files, facts], axis=1)


def _one_by_one(refs: list[FileRef], run: RunTasks) -> list[tuple[Header | None, str]]:
    """The files of a task whose worker died, each in a task of its own, so that the one at fault is named."""
    found: list[tuple[Header | None, str]] = [(None, "")] * len(refs)
    for position, result in run(read_headers, [[ref] for ref in refs], isolated=True):
        found[position] = (None, result.reason) if isinstance(result, WorkerDied) else result[0]
    return found
