"""Decodes the studies of a source one after another and caches the first ones for their pictures."""

from collections.abc import Iterator

import numpy as np

from ichkit.imaging.parts import part_id, whole_id
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

    def __iter__(self) -> Iterator[tuple[StudyRecord, list[np.ndarray]]]:
        """Yields the record of each study, by study_id, and of each of its pieces (S, H, W) int16 HU.

        Row i is slice_index i; pieces are those of the record.
        """
        for position, study_id in enumerate(self._tasks.study_ids):
            task = self._tasks[position]
            study = decode_study(task)
            pieces = study.pieces()
            num_bytes = sum(piece.volume.nbytes for piece in pieces)
            if self._kept_bytes + num_bytes <= _KEPT_BYTES:
                self._kept |= {part_id(study_id, piece.name): (piece.volume, piece.origin) for piece in pieces}
                self._kept_bytes += num_bytes
            yield study.record(task.key, lambda _key, _volume: ("memory", "", 0)), [piece.volume for piece in pieces]

    def of_study(self, study_id: str) -> tuple[np.ndarray, Origin | None]:
        """(S, H, W) int16 HU of one study, or of a part of one by its id, and the part of the source picture it shows.

        None in place of that for the whole picture. Decoded again if it is not in the cache.
        """
        if study_id in self._kept:
            return self._kept[study_id]
        known = self._tasks.study_ids
        whole = study_id if study_id in known else whole_id(study_id)
        pieces = decode_study(self._tasks[known.index(whole)]).pieces()
        return next((one.volume, one.origin) for one in pieces if part_id(whole, one.name) == study_id)
