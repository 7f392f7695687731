"""The studies below a path as volumes, read one after the other; the first ones are kept for a second look."""

from collections.abc import Iterator

import numpy as np

from ichkit.sources.collect import PlannedSource
from ichkit.sources.study import StudyRecord, decode_study

# Fifteen studies of 32 slices of 512 x 512: nothing that a machine with a network in memory lacks.
_KEPT_BYTES = 256 << 20


class Volumes:
    """Decodes the studies of a planned source.

    Args:
        planned: the source.
    """

    def __init__(self, planned: PlannedSource) -> None:
        self._tasks = planned.tasks
        self._kept: dict[str, np.ndarray] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[tuple[StudyRecord, np.ndarray]]:
        """For every study by study_id what came of it, and its (S, H, W) int16 HU, row i being slice_index i."""
        for position, study_id in enumerate(self._tasks.study_ids):
            task = self._tasks[position]
            study = decode_study(task)
            if self._kept_bytes + study.volume.nbytes <= _KEPT_BYTES:
                self._kept[study_id] = study.volume
                self._kept_bytes += study.volume.nbytes
            facts = (study.kept, study.padded, study.brain_share, study.failures)
            yield StudyRecord(task.key, "memory" if study.kept else "", "", 0, *facts), study.volume

    def of_study(self, study_id: str) -> np.ndarray:
        """(S, H, W) int16 HU of one study; decoded again where it was not kept."""
        if study_id in self._kept:
            return self._kept[study_id]
        return decode_study(self._tasks[self._tasks.study_ids.index(study_id)]).volume
