"""Slice viewers of the studies that a page names: a click on an error goes to its slice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ichkit.engine.heat import fade_heat
from ichkit.imaging.pictures import brain_picture, fit_picture, picture_volume
from ichkit.imaging.steps import restore
from ichkit.imaging.windows import TABLE_LOW_HU
from ichkit.show.blocks import Card, Viewer
from ichkit.show.page import encode_webp
from ichkit.show.viewer import Viewed, make_viewer, name_windows
from ichkit.stages.report.report_data import ReportData, shorten

MOST_STUDIES = 60
"""More make the pictures of each too small; as many as the tables of errors on six classes can name."""
_SLICES_BYTES = 2_600_000  # of all studies before base64: the page has many charts too
_NUM_STILLS, _SIDE, _QUALITY = 3, 112, 40


@dataclass(frozen=True)
class Mark:
    """One slice that a page names.

    Attributes:
        row: its row in the out-of-fold table.
        class_index: the class that it is named for.
        text: why, e.g. "false negative, epidural 0.012".
    """

    row: int
    class_index: int
    text: str


@dataclass(frozen=True)
class StudyViewers:
    """The viewers of the studies of some slices, in the order of the slices.

    Attributes:
        marks: the most important ones first; of more than `MOST_STUDIES` studies the others have no viewer.
        prefix: of the ids in the page.
    """

    report: ReportData
    marks: Sequence[Mark]
    prefix: str = "study"

    @cached_property
    def studies(self) -> list[str]:
        """The studies that have a viewer: those whose volume is in the work folder."""
        rows, folder = self.report.rows, self.report.prepared.folder
        named = dict.fromkeys(str(rows.study_id.iloc[mark.row]) for mark in self.marks)
        volumes = rows.drop_duplicates("study_id").set_index("study_id").volume
        return [name for name in named if (folder / str(volumes[name])).is_file()][:MOST_STUDIES]

    def find(self, row: int) -> str:
        """The id of the viewer of a row's study; empty if it has none."""
        name = str(self.report.rows.study_id.iloc[row])
        return f"{self.prefix}-{self.studies.index(name) + 1}" if name in self.studies else ""

    def make(
        self,
        probabilities: np.ndarray,
        thresholds: np.ndarray,
        heat: Mapping[tuple[int, int], np.ndarray],
    ) -> list[Viewer]:
        """The viewers.

        Args:
            probabilities, thresholds: (N, C) of the rows of the report; NaN if unknown.
            heat: (row, class) to (H, W) heat in [0, 1] of the source picture.
        """
        return [self._draw(name, probabilities, thresholds, heat) for name in self.studies]

    def _draw(
        self,
        name: str,
        probabilities: np.ndarray,
        thresholds: np.ndarray,
        heat: Mapping[tuple[int, int], np.ndarray],
    ) -> Viewer:
        report, task = self.report, self.report.task
        rows = report.rows.index[report.rows.study_id == name].to_numpy()
        facts, first = report.rows.iloc[rows], int(rows[0])
        path = str(facts.volume.iloc[0])
        stored = picture_volume(report.prepared.read_volume(path))
        volume = restore(stored, report.prepared.origins.get(path), TABLE_LOW_HU)
        own = [mark for mark in self.marks if first <= mark.row <= rows[-1]]
        hot: dict[int, tuple[str, np.ndarray]] = {}
        for mark in own:
            if (mark.row, mark.class_index) in heat:
                faded = fade_heat(heat[mark.row, mark.class_index], probabilities[mark.row, mark.class_index])
                hot.setdefault(mark.row - first, (task.classes[mark.class_index], faded))
        known = [c for c in range(task.num_classes) if not np.isnan(probabilities[rows, c]).all()]
        keys = list(dict.fromkeys(mark.row - first for mark in own))
        texts = [f"slice {mark.row - first}: {mark.text}" for mark in own]
        remarks = {at: "; ".join(mark.text for mark in own if mark.row - first == at) for at in keys}
        title = f"Study {shorten(name)}"
        study = Viewed(
            self.find(first),
            title,
            volume,
            probabilities[rows][:, known],
            facts.position_mm.to_numpy(np.float64),
            report.labels[rows][:, known],
            hot,
            keys,
            [_still(volume, keys[:_NUM_STILLS], name)],
            remarks,
        )
        limits = {task.classes[c]: float(thresholds[first, c]) for c in known if np.isfinite(thresholds[first, c])}
        return make_viewer(
            study,
            [task.classes[c] for c in known],
            limits,
            len(self.studies),
            f"{'; '.join(texts)}.",
            windows=name_windows(report.config.channels.windows),
            is_open=False,
            num_bytes=_SLICES_BYTES,
        )


def _still(volume_hu: np.ndarray, indices: Sequence[int], name: str) -> Card:
    """The key slices of a study side by side in the brain window."""
    tiles = [fit_picture(brain_picture(volume_hu[index]), _SIDE)[..., 0] for index in indices]
    picture = np.concatenate(tiles, axis=1)
    places = ", ".join(map(str, indices))
    alt = f"Key slices {places} of study {shorten(name)} in the brain window"
    return Card(encode_webp(picture, _QUALITY), (picture.shape[1], _SIDE), alt, shorten(name), f"slices {places}", ())
