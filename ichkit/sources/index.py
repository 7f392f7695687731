"""The index of slices: file and header values of each, cached between calls."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom import config as pydicom_config

from ichkit.core.errors import DataError
from ichkit.core.progress import Meter, StopFlag, logger
from ichkit.engine.parallel import RunTasks, WorkerDied, run_tasks
from ichkit.imaging import nifti
from ichkit.imaging.dicom import HEADER_COLUMNS, Header, Outcome, UnreadableError, read_slices
from ichkit.imaging.hounsfield import has_decoder, why_undecodable
from ichkit.sources.files import FILE_COLUMNS, FileRef, file_refs
from ichkit.sources.series_names import why_dropped_by_header

CT, MR = "CT", "MR"
"""Modalities of sources."""
REASON = "reason"
INDEX_COLUMNS = [*FILE_COLUMNS, *HEADER_COLUMNS, REASON]
KEPT_COLUMNS = ["relative", "num_bytes", *HEADER_COLUMNS, REASON]
"""The columns of an index that an artifact keeps: not where the data are on this machine."""
_FILES_PER_TASK = 256
_LOST = "the headers read so far are not saved"
_SIDE_BYTES = 1024**2
ReadHeaders = Callable[[list[FileRef]], list[Outcome]]
_values = attrgetter(*HEADER_COLUMNS)
_TEXT = ["syntax", "why_raw", "slice_uid", "study_uid", "series_uid", "patient_id", "kind", "reference_uid"]
_WHOLE = ["rows", "columns", "bits_stored", "high_bit", "pixel_representation", "pixel_offset", "pixel_bytes"]
_WHOLE += ["padding_value", "padding_limit", "turn", "frame", "instance_number", "acquisition_number"]
_PLACE = "place"
"""Column of a task's table: the position of the row's file in the task."""
_BLANKS = {**dict.fromkeys(_TEXT, ""), **dict.fromkeys(_WHOLE, 0)}
_DTYPES = {
    **{name: "str" if name in _TEXT else "int64" if name in _WHOLE else "float64" for name in HEADER_COLUMNS},
    REASON: "str",
}


def read_index(
    files: pd.DataFrame,
    known: pd.DataFrame | None,
    *,
    run: RunTasks = run_tasks,
    stop: StopFlag | None = None,
    modality: str = CT,
) -> pd.DataFrame:
    """The index of all files, with `INDEX_COLUMNS`: one row per slice, or per file that cannot be used.

    The `reason` is empty if the header is valid.

    Args:
        files: `FILE_COLUMNS`.
        known: an earlier index; a file of the same relative path and size is not read again.
        run: `run_tasks`, or a partial of it with a number of workers.
        stop: checked between tasks.
        modality: NIfTI volumes whose JSON file names another one are refused.
    """
    files = files.reset_index(drop=True)
    read = partial(read_headers, modality=modality)
    if known is None or not len(known) or not set(KEPT_COLUMNS) <= set(known):
        # The last condition: an index of an earlier version, which read fewer tags.
        return _name_volumes(_read_headers(files, read, run, stop))
    joined = files.merge(known[KEPT_COLUMNS], on=["relative", "num_bytes"], how="left", indicator=True)
    is_known = (joined.pop("_merge") == "both").to_numpy()
    old = joined[is_known].astype(_DTYPES)
    new = _read_headers(joined[~is_known][FILE_COLUMNS].reset_index(drop=True), read, run, stop)
    joined = pd.concat([old, new]).sort_values(["relative", "frame"], ignore_index=True)[INDEX_COLUMNS]
    return _name_volumes(joined)


def refuse_raw(index: pd.DataFrame) -> pd.DataFrame:
    """The index with a reason for every slice whose values are not HU according to its header."""
    is_raw = (index[REASON] == "") & (index["why_raw"] != "")
    return index.assign(reason=index[REASON].mask(is_raw, index["why_raw"] + " (accepted with --accept-raw)"))


def check_decoders(index: pd.DataFrame, *, skip: bool) -> pd.DataFrame:
    """The index, with a reason for every slice whose decoder is not installed.

    Raises:
        DataError: there are such slices and `skip` is off; the message counts them.
    """
    good = index["syntax"].where(index[REASON] == "", "")
    counts = {str(name): int(count) for name, count in good.value_counts().items() if not has_decoder(str(name))}
    if not counts:
        return index
    named = ", ".join(f"{count} of {len(index)}: {why_undecodable(name)}" for name, count in sorted(counts.items()))
    if not skip:
        raise DataError(
            f"images cannot be decoded: {named}. Install the decoders, or skip these images with "
            "--skip-undecodable (they are listed in rejected.csv)."
        )
    logger.warning("images are skipped: %s", named)
    is_lost = good.isin(list(counts))
    return index.assign(reason=index[REASON].mask(is_lost, good.map({name: why_undecodable(name) for name in counts})))


def _name_volumes(index: pd.DataFrame) -> pd.DataFrame:
    """The index with ids for NIfTI volumes, which have no UIDs: the file name, or the path if names are not unique.

    Study, series and patient have this id; a slice has its number appended.
    """
    is_volume = index["syntax"] == nifti.SYNTAX
    if not is_volume.any():
        return index
    paths = index["relative"][is_volume].str.replace(r"(?i)\.nii(\.gz)?$", "", regex=True)
    stems = paths.str.replace(r"^.*/", "", regex=True)
    owners = pd.DataFrame({"path": paths, "stem": stems}).groupby("stem")["path"].nunique()
    names = stems.where(stems.map(owners) == 1, paths)
    slices = names + "." + (index["frame"][is_volume] + 1).astype("str")
    named = index.copy()
    for column in ("study_uid", "series_uid", "patient_id"):
        named.loc[is_volume, column] = names
    named.loc[is_volume, "slice_uid"] = slices
    return named


def read_headers(refs: list[FileRef], modality: str = CT) -> list[Outcome]:
    """(header or None, reason or "") of each slice of the files; both if only the pixels are invalid. Runs in a worker.

    The `kind` of a header is replaced by the reason why its series would not be chosen: it is free text, which may
    contain a name and must not be stored.
    """
    return [outcome for ref in refs for outcome in _read_file(ref, modality)]


def _read_file(ref: FileRef, modality: str) -> list[Outcome]:
    # RSNA ids are not valid UIDs: a validating reader warns four times per file.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    try:
        if ref.relative.lower().endswith(nifti.SUFFIXES):
            is_other = _is_other_modality(ref, modality)
            found = [(None, f"not {modality}")] if is_other else nifti.read_slices(partial(ref.read, 0))
        else:
            found = read_slices(partial(ref.read, 0), ref.num_bytes)
    except UnreadableError as error:  # the file itself, not its content
        return [(None, str(error))]
    return [(_judge_kind(header), reason) for header, reason in found]


def _is_other_modality(volume: FileRef, modality: str) -> bool:
    """Whether the JSON file next to a NIfTI file (BIDS, dcm2niix) gives another modality."""
    side = Path(re.sub(r"(?i)\.nii(\.gz)?$", ".json", volume.container))
    try:
        if volume.zip_offset >= 0 or side.stat().st_size > _SIDE_BYTES:
            return False
        said = json.loads(side.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and str(said.get("Modality", modality)).strip().upper() != modality


def _judge_kind(header: Header | None) -> Header | None:
    if header is None or not header.kind:
        return header
    return replace(header, kind=why_dropped_by_header(header.kind))


class _Batches(Sequence[list[FileRef]]):
    """Batches of file references, each built on access."""

    def __init__(self, files: pd.DataFrame) -> None:
        self._files = files

    def __len__(self) -> int:
        return -(-len(self._files) // _FILES_PER_TASK)

    def __getitem__(self, position: int) -> list[FileRef]:  # type: ignore[override]
        if not 0 <= position < len(self):
            raise IndexError(position)  # ends an iteration
        start = position * _FILES_PER_TASK
        return file_refs(self._files.iloc[start : start + _FILES_PER_TASK])


def _read_table(read: ReadHeaders, refs: list[FileRef]) -> pd.DataFrame:
    """`read_headers` as a table, which takes a tenth of the memory of tuples."""
    return _make_table([read([ref]) for ref in refs])


def _make_table(found: list[list[Outcome]]) -> pd.DataFrame:
    """One row per outcome, with the position of its file in the list."""
    blank = tuple(_BLANKS.get(name, np.nan) for name in HEADER_COLUMNS)
    rows = [
        (*(blank if header is None else _values(header)), reason, place)
        for place, outcomes in enumerate(found)
        for header, reason in outcomes
    ]
    return pd.DataFrame(rows, columns=[*HEADER_COLUMNS, REASON, _PLACE]).astype({**_DTYPES, _PLACE: "int64"})


def _read_headers(files: pd.DataFrame, read: ReadHeaders, run: RunTasks, stop: StopFlag | None) -> pd.DataFrame:
    """Files in any order to `INDEX_COLUMNS` in the same order."""
    batches = _Batches(files)
    tables = [_make_table([])] * len(batches)
    stop = StopFlag() if stop is None else stop  # an unset flag is falsy
    with Meter("headers", len(files), "files") as meter:
        for position, result in run(partial(_read_table, read), batches, stop=stop):
            table = _make_table(_one_by_one(batches[position], read, run)) if isinstance(result, WorkerDied) else result
            tables[position] = table.assign(place=table[_PLACE] + position * _FILES_PER_TASK)
            meter.advance(len(batches[position]))
            stop.check(_LOST)
    stop.check(_LOST)
    facts = pd.concat(tables, ignore_index=True) if tables else _make_table([])
    places = facts.pop(_PLACE).to_numpy()
    rows = files if len(places) == len(files) else files.iloc[places].reset_index(drop=True)
    return pd.concat([rows, facts], axis=1)


def _one_by_one(refs: list[FileRef], read: ReadHeaders, run: RunTasks) -> list[list[Outcome]]:
    """The files of a task whose worker died, one task per file, to find the file that kills a worker."""
    found: list[list[Outcome]] = [[] for _ in refs]
    for position, result in run(read, [[ref] for ref in refs], isolated=True):
        found[position] = [(None, result.reason)] if isinstance(result, WorkerDied) else result
    return found
