"""What the second stage changed: a few studies from the feet to the head, with probabilities before and after."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ichkit.imaging.pictures import brain_picture, fit_picture
from ichkit.show.blocks import Block, Chart, Missing, Prose, Section, Strip
from ichkit.show.drawing import to_svg
from ichkit.show.page import encode_jpeg
from ichkit.show.table import format_number
from ichkit.stages.report.curves import draw_along
from ichkit.stages.report.report_data import ReportData, shorten
from ichkit.validation.catalog import Source
from ichkit.validation.metrics import log_losses

_NUM_MENDED, _NUM_SPOILT = 3, 1
_MOST_SLICES, _TILE, _QUALITY = 14, 88, 80


@dataclass(frozen=True)
class Change:
    """One study that the second stage changed.

    Attributes:
        rows: its rows in the out-of-fold table, first and last + 1.
        class_index: the class whose loss changed most.
        before, after: mean log loss of that class over the study, in nats.
    """

    rows: tuple[int, int]
    class_index: int
    before: float
    after: float


def make_strips(report: ReportData) -> Section:
    """The studies that gained most by the second stage, and the one that lost most."""
    anchor, title = "changed", "What stacking changed"
    if report.second is None:
        return Section(anchor, title, [Missing("Nothing is stacked on these folds.", "ichkit stack")])
    first, second = report.first, report.second
    if first is None:
        return Section(
            anchor, title, [Missing("The run behind the second stage is not here any more.", "ichkit train")]
        )
    p = {one.name: report.probabilities(one) for one in (first, second)}
    losses = {name: log_losses(values, report.labels) for name, values in p.items()}
    starts = np.flatnonzero(report.rows.study_id.ne(report.rows.study_id.shift()))
    changes = pick_changes(losses[first.name], losses[second.name], starts, _NUM_MENDED, _NUM_SPOILT)
    changes = [change for change in changes if _volume_of(report, change).is_file()]
    if not changes:
        return Section(anchor, title, [Missing("No study changed whose pixels are in this work folder.")])
    text = (
        f"From the feet (left) to the head, out of fold. Dashed: {first.name}, which sees one slice at a time. Solid: "
        f"{second.name}, which sees the neighbours too. Shaded: slices that are positive. The studies that gained "
        "most, then the one that lost most; they are extremes, the table of losses says what happens on the whole."
    )
    blocks: list[Block] = [Prose(text)]
    blocks += [_draw(report, number, change, p, first, second) for number, change in enumerate(changes)]
    return Section(anchor, title, blocks)


def pick_changes(
    before: np.ndarray, after: np.ndarray, starts: np.ndarray, num_mended: int, num_spoilt: int
) -> list[Change]:
    """The studies whose loss fell most, most first, then those where it rose most; each in the class that moved most.

    Args:
        before, after: (N, C) log losses of the slices, study by study.
        starts: first row of each study, ascending.
    """
    sizes = np.diff(np.append(starts, len(before)))
    means = [np.add.reduceat(losses, starts) / sizes[:, None] for losses in (before, after)]
    gain = means[0] - means[1]  # (studies, C)
    order = np.argsort(-gain.max(1), kind="stable")
    worst = np.argsort(gain.min(1), kind="stable")
    picked = [(study, int(gain[study].argmax())) for study in order[:num_mended] if gain[study].max() > 0]
    picked += [(study, int(gain[study].argmin())) for study in worst[:num_spoilt] if gain[study].min() < 0]
    return [
        Change((int(starts[i]), int(starts[i] + sizes[i])), c, float(means[0][i, c]), float(means[1][i, c]))
        for i, c in picked
    ]


def _volume_of(report: ReportData, change: Change) -> Path:
    return report.prepared.folder / str(report.rows.volume.iloc[change.rows[0]])


def _draw(
    report: ReportData, number: int, change: Change, p: dict[str, np.ndarray], first: Source, second: Source
) -> Strip:
    rows, c = slice(*change.rows), change.class_index
    study = report.rows.iloc[rows]
    volume = report.prepared.read_volume(study.volume.iloc[0])
    chosen = np.unique(np.linspace(0, len(study) - 1, min(_MOST_SLICES, len(study))).round().astype(int))
    pictures = [brain_picture(volume[study.slice_index.iloc[i]]) for i in chosen]
    film = np.concatenate([fit_picture(picture, _TILE)[..., 0] for picture in pictures], axis=1)
    places = (np.interp(np.arange(len(study)), chosen, np.arange(len(chosen))) + 0.5) / len(chosen)
    name, label = shorten(study.study_id.iloc[0]), report.task.classes[c]
    truth = report.labels[rows, c] == 1
    lines = {one.name: p[one.name][rows, c] for one in (first, second)}
    ticks = {float(places[i]): str(study.slice_index.iloc[i]) for i in chosen}
    figure = draw_along(places, truth, lines, ticks)
    alt = (
        f"Probability of {label} along study {name}, before and after the second stage; {truth.sum()} positive slices."
    )
    losses = f"{format_number(change.before, 3)} before, {format_number(change.after, 3)} after"
    caption = f"Study {name}, {label}: mean log loss {losses}; {truth.sum()} of {len(study)} slices positive."
    return Strip(
        encode_jpeg(film, _QUALITY),
        (film.shape[1], film.shape[0]),
        f"{len(chosen)} slices of study {name} in the brain window, from the feet to the head",
        Chart(to_svg(figure, f"along-{number}", alt), caption),
    )
