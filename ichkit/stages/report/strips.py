"""Report section: the studies that the second stage changed most, with probabilities before and after."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ichkit.core.logits import to_logits, to_probabilities
from ichkit.imaging.pictures import brain_picture, fit_picture, picture_volume
from ichkit.show.blocks import Block, Chart, Missing, Prose, Section, Strip
from ichkit.show.drawing import to_svg
from ichkit.show.page import encode_jpeg
from ichkit.show.table import format_number
from ichkit.stacking.combine import MEAN_LOGIT, Ensemble
from ichkit.stages.report.curves import draw_along
from ichkit.stages.report.report_data import ReportData, shorten
from ichkit.stages.report.sentences.counts import join_words
from ichkit.validation.catalog import Source
from ichkit.validation.metrics import log_losses
from ichkit.work.artifacts import read_manifest
from ichkit.work.schemas import PROBABILITY_CLIP

_NUM_IMPROVED, _NUM_WORSENED = 3, 1
_MOST_SLICES, _TILE, _QUALITY = 14, 88, 80


@dataclass(frozen=True)
class Change:
    """A study that the second stage changed.

    Attributes:
        rows: half-open range of its rows in the out-of-fold table.
        class_index: the class whose loss changed most.
        before, after: mean log loss of that class over the study, in nats.
    """

    rows: tuple[int, int]
    class_index: int
    before: float
    after: float


def make_strips(report: ReportData) -> Section:
    """The studies whose loss the second stage reduced most, and the one whose loss it increased most."""
    anchor, title = "changed", "Effect of the second stage"
    if report.second is None:
        return Section(anchor, title, [Missing("No second stage on these folds.", "ichkit stack")])
    second, before = report.second, find_before(report, report.second)
    if before is None:
        return Section(anchor, title, [Missing("A run of the second stage no longer exists.", "ichkit train")])
    p = {before[0]: before[1], second.name: report.probabilities(second)}
    first, after = (log_losses(values, report.labels) for values in p.values())
    starts = np.flatnonzero(report.rows.study_id.ne(report.rows.study_id.shift()))
    changes = pick_changes(first, after, starts, _NUM_IMPROVED, _NUM_WORSENED)
    changes = [change for change in changes if _volume_of(report, change).is_file()]
    if not changes:
        return Section(
            anchor, title, [Missing("The second stage changed no study whose images are in this work folder.")]
        )
    text = (
        f"Out-of-fold probabilities from the feet (left) to the head. Dashed: {before[0]}, which the second stage "
        f"corrects. Solid: {second.name}, which also uses the neighbouring slices. Shaded: positive slices. First the "
        "studies whose loss fell most, then the one whose loss rose most. These are extremes: "
        "for the overall effect see the table of losses."
    )
    blocks: list[Block] = [Prose(text)]
    blocks += [_draw(report, number, change, p) for number, change in enumerate(changes)]
    return Section(anchor, title, blocks)


def find_before(report: ReportData, second: Source) -> tuple[str, np.ndarray] | None:
    """What a second stage corrects, in words, and its (N, C) probabilities: its run, or several runs combined.

    None if one of the runs, or some of its folds, no longer exist.
    """
    peers = {source.name: source for source in report.peers if source.is_run}
    runs = [peers[name] for name in second.runs if name in peers]
    if len(runs) < len(second.runs):
        return None
    if len(runs) == 1:
        return runs[0].name, report.probabilities(runs[0])
    settings = read_manifest((report.work.root / second.path).parent).settings.get("stack", {})
    rule = str(settings.get("combine", MEAN_LOGIT))
    p = np.stack([report.probabilities(run) for run in runs], axis=1)  # (N, runs, C)
    ensemble = Ensemble.of(rule, {run.name: run.scope for run in runs})
    combined = to_probabilities(ensemble.combine(to_logits(np.clip(p, *PROBABILITY_CLIP))))
    return f"{rule} of {join_words([run.name for run in runs])}", combined


def pick_changes(
    before: np.ndarray, after: np.ndarray, starts: np.ndarray, num_improved: int, num_worsened: int
) -> list[Change]:
    """The studies whose loss fell most, then those whose loss rose most; each in the class that changed most.

    Args:
        before, after: (N, C) log losses of the slices, study by study.
        starts: first row of each study, ascending.
    """
    sizes = np.diff(np.append(starts, len(before)))
    means = [np.add.reduceat(losses, starts) / sizes[:, None] for losses in (before, after)]
    gain = means[0] - means[1]  # (studies, C)
    order = np.argsort(-gain.max(1), kind="stable")
    worst = np.argsort(gain.min(1), kind="stable")
    picked = [(study, int(gain[study].argmax())) for study in order[:num_improved] if gain[study].max() > 0]
    picked += [(study, int(gain[study].argmin())) for study in worst[:num_worsened] if gain[study].min() < 0]
    return [
        Change((int(starts[i]), int(starts[i] + sizes[i])), c, float(means[0][i, c]), float(means[1][i, c]))
        for i, c in picked
    ]


def _volume_of(report: ReportData, change: Change) -> Path:
    return report.prepared.folder / str(report.rows.volume.iloc[change.rows[0]])


def _draw(report: ReportData, number: int, change: Change, p: dict[str, np.ndarray]) -> Strip:
    rows, c = slice(*change.rows), change.class_index
    study = report.rows.iloc[rows]
    volume = picture_volume(report.prepared.read_volume(study.volume.iloc[0]))
    chosen = np.unique(np.linspace(0, len(study) - 1, min(_MOST_SLICES, len(study))).round().astype(int))
    pictures = [brain_picture(volume[study.slice_index.iloc[i]]) for i in chosen]
    film = np.concatenate([fit_picture(picture, _TILE)[..., 0] for picture in pictures], axis=1)
    places = (np.interp(np.arange(len(study)), chosen, np.arange(len(chosen))) + 0.5) / len(chosen)
    name, label = shorten(study.study_id.iloc[0]), report.task.classes[c]
    truth = report.labels[rows, c] == 1
    lines = {name: values[rows, c] for name, values in p.items()}
    ticks = {float(places[i]): str(study.slice_index.iloc[i]) for i in chosen}
    figure = draw_along(places, truth, lines, ticks)
    alt = (
        f"Probability of {label} along study {name}, before and after the second stage; positive slices: {truth.sum()}."
    )
    losses = f"{format_number(change.before, 3)} before, {format_number(change.after, 3)} after"
    caption = f"Study {name}, {label}: mean log loss {losses}; {truth.sum()} of {len(study)} slices positive."
    return Strip(
        encode_jpeg(film, _QUALITY),
        (film.shape[1], film.shape[0]),
        f"{len(chosen)} slices of study {name} in the brain window, from the feet to the head",
        Chart(to_svg(figure, f"along-{number}", alt), caption),
    )
