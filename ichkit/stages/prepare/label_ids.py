"""For a dry run of `prepare`: whether the ids of a label file are those of the scans, by the headers of a few files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.progress import format_count
from ichkit.core.tasks import Task
from ichkit.engine.parallel import run_tasks
from ichkit.imaging.dicom import MAX_FILE_BYTES
from ichkit.imaging.parts import whole_id
from ichkit.sources.index import read_index
from ichkit.sources.labels import check_matches, read_folder_labels

_MOST_FILES = 64
"""Headers that a dry run reads of each set: under a second, also from a zip file."""


def compare_ids(path: Path, images: pd.DataFrame, task: Task, subgroups: Sequence[str], *, by_part: bool) -> str:
    """How many ids of up to 64 files, spread over all, a label file has; its content is checked as by `prepare`.

    Raises:
        DataError: the label file is invalid; or these are all files, and more than half of its labels have no scan.
    """
    labels, key = read_folder_labels(path, task, by_part=by_part, subgroups=subgroups)
    labels[key] = labels[key].map(whole_id) if by_part else labels[key]
    images = images[images["num_bytes"] <= MAX_FILE_BYTES]
    places = np.unique(np.linspace(0, len(images) - 1, min(len(images), _MOST_FILES)).astype(int))
    index = read_index(images.iloc[places], None, run=partial(run_tasks, workers=1))
    ids = index.loc[index["reason"] == "", "slice_uid" if key == "slice_id" else "study_uid"]
    if len(images) <= _MOST_FILES and len(ids):
        check_matches(path, labels, key, ids, ids)
    ids = ids.drop_duplicates()
    found = f"{ids.isin(labels[key]).sum()} of {format_count(len(ids), 'id')} in the headers of"
    return f"{path}: has {found} {format_count(len(places), 'file')} (column {key}); prepare compares all of them"
