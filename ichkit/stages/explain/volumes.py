"""Decodes the studies of a source one after another and caches the first ones for their pictures."""

from collections.abc import Iterator

import numpy as np

from ichkit.imaging.steps import Origin
from ichkit.sources.collect import PlannedSource
from ichkit.sources.study import StudyRecord, decode_study

# 15 studies of 32 slices of 512 x 512.
_KEPT_BYTES = 256 << 20


class Volumes:
    """Decodes the studies of a planned source.

    Args:
        planned: the source.
    """

    def __init__(self, planned: PlannedSource) -> None:
        self._tasks = planned.tasks
        self._kept: dict[str, tuple[np.ndarray, Origin | None]] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[tuple[StudyRecord, np.ndarray]]:
        """Yields the record of each study, by study_id, and its (S, H, W) int16 HU; row i is slice_index i."""
        for position, study_id in enumerate(self._tasks.study_ids):
            task = self._tasks[position]
            study = decode_study(task)
            if self._kept_bytes + study.volume.nbytes <= _KEPT_BYTES:
                self._kept[study_id] = study.volume, study.origin
                self._kept_bytes += study.volume.nbytes
            yield study.record(task.key, "memory" if study.kept else "", "", 0), study.volume

    def of_study(self, study_id: str) -> tuple[np.ndarray, Origin | None]:
        """(S, H, W) int16 HU of one study, and what part of the source picture it shows, None for all of it.

        Decoded again if it is not in the cache.
        """
        if study_id in self._kept:
            return self._kept[study_id]
        study = decode_study(self._tasks[self._tasks.study_ids.index(study_id)])
        return study.volume, study.origin
