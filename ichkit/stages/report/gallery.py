"""Galleries of the most confident true positives, false positives and false negatives, with heat maps."""

from dataclasses import dataclass

import numpy as np

from ichkit.core.errors import ConfigError
from ichkit.core.progress import logger
from ichkit.engine.heat import fade_heat
from ichkit.imaging.pictures import (
    WINDOWS,
    fit_picture,
    paint_heat,
    picture_volume,
    tile_pictures,
    window_picture,
)
from ichkit.show.blocks import Block, Card, Gallery, Legend, Missing, Prose, Subsection
from ichkit.show.page import encode_webp
from ichkit.show.table import format_number
from ichkit.show.viewer import HOW_TO_SCROLL
from ichkit.show.words import start_sentence
from ichkit.stages.explain.held_out import Explained, explain_slices
from ichkit.stages.report.commands import missing_of_store
from ichkit.stages.report.report_data import ReportData, shorten
from ichkit.stages.report.viewers import Mark, StudyViewers
from ichkit.validation.scores import THRESHOLD_OF
from ichkit.validation.thresholds import F1_AIM

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "true positive", "false positive", "false negative"
_VERDICTS = (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE)
_NUM_OF_MAIN, _NUM_OF_OTHER = 4, 2
NUM_ERRORS_OF_MAIN, NUM_ERRORS_OF_OTHER = 10, 4
"""Rows of each kind in a table of errors, the first of which are in the galleries too."""
_TILE, _QUALITY = 168, 70


@dataclass(frozen=True)
class Judged:
    """One slice of a gallery or of a table of errors.

    Attributes:
        row: its row in the out-of-fold table.
        class_index: the class it was judged for.
        verdict: TRUE_POSITIVE, FALSE_POSITIVE or FALSE_NEGATIVE.
        threshold: at or above which it is predicted positive.
        has_card: it is one of those with a picture in a gallery.
    """

    row: int
    class_index: int
    verdict: str
    threshold: float
    has_card: bool = True


def pick_judged(
    p: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, studies: np.ndarray, count: int
) -> dict[str, list[int]]:
    """Rows of the most confident true and false positives and false negatives, one for each study.

    Args:
        p, labels, thresholds, studies: (N,) each; a slice whose label or threshold is NaN is in no group.
        count: at most this many of each.

    Example:
        >>> pick_judged(np.array([0.9, 0.8, 0.1]), np.array([1, 0, 1]), np.full(3, 0.5), np.arange(3), 1)
        {'true positive': [0], 'false positive': [1], 'false negative': [2]}
    """
    groups = {
        TRUE_POSITIVE: (labels == 1) & (p >= thresholds),
        FALSE_POSITIVE: (labels == 0) & (p >= thresholds),
        FALSE_NEGATIVE: (labels == 1) & (p < thresholds),
    }
    picked = {}
    for verdict, is_inside in groups.items():
        rows = np.flatnonzero(is_inside)
        rows = rows[np.argsort(p[rows] if verdict == FALSE_NEGATIVE else -p[rows], kind="stable")]
        _, first = np.unique(studies[rows], return_index=True)
        picked[verdict] = rows[np.sort(first)][:count].tolist()
    return picked


def make_galleries(report: ReportData, judged: list[Judged]) -> list[Block]:
    """A part for each verdict with a gallery for each class, the headline class first, then the slice viewers.

    Heat maps are of the network of each slice's own fold.

    Args:
        judged: from `judge`.
    """
    if not judged:
        return [Missing("No slice is positive or predicted positive.")]
    if not all((report.prepared.folder / report.rows.volume[one.row]).is_file() for one in judged):
        return [missing_of_store(report, "The images are not in this work folder.", "--fresh")]
    try:
        explained = _explain(report, judged)
    except ConfigError as error:  # a backbone without known feature maps: the slices are shown without heat maps
        logger.warning("report: %s", error)
        explained = {}
    blocks: list[Block] = [Prose(_text(report, bool(explained)))]
    viewers = find_viewers(report, judged)
    for verdict in _VERDICTS:
        inside: list[Block] = []
        for c in report.task_order:
            shown = [one for one in judged if one.has_card and (one.class_index, one.verdict) == (c, verdict)]
            cards = [_card(report, one, explained, viewers) for one in shown]
            name = report.task.classes[c]
            none = Prose(f"{name}: none.")
            inside.append(Gallery(f"{name}: {verdict}s", cards, _legend(explained)) if cards else none)
        blocks.append(Subsection(f"{start_sentence(verdict)}s", inside))
    return [*blocks, _all_slices(report, judged, explained, viewers)]


def find_viewers(report: ReportData, judged: list[Judged]) -> StudyViewers:
    """The slice viewers of the judged slices, errors first; a table links to them by row."""
    p, names, main = report.scored.slices.probabilities, report.task.classes, report.task.headline_index

    def place(one: Judged) -> tuple[bool, bool, bool]:
        return one.verdict == TRUE_POSITIVE, one.class_index != main, one.verdict == FALSE_POSITIVE

    marks = [
        Mark(one.row, one.class_index, f"{one.verdict}, {names[one.class_index]} {p[one.row, one.class_index]:.3f}")
        for one in sorted(judged, key=place)
    ]
    return StudyViewers(report, marks)


def _all_slices(
    report: ReportData, judged: list[Judged], explained: dict[tuple[str, int], Explained], viewers: StudyViewers
) -> Subsection:
    """The viewers of the studies of all judged slices."""
    heat = {}
    for one in judged:
        found = explained.get((report.rows.slice_id[one.row], one.class_index))
        if found is not None:
            heat[one.row, one.class_index] = found.heat[found.class_indices.index(one.class_index)]
    limits = np.stack([decision_thresholds(report, c) for c in range(report.task.num_classes)], axis=1)
    shown: list[Block] = [*viewers.make(report.scored.slices.probabilities, limits, heat)]
    text = (
        f"The studies of the slices above, errors first. {HOW_TO_SCROLL} Slice 0 is at the feet. Curves: "
        f"out-of-fold probabilities of {report.best.name}; dotted: thresholds of the study's fold; bars below: "
        "positive slices. Heat maps exist for the slices above and are faded by the probability."
    )
    return Subsection("Studies slice by slice", [Prose(text), *shown])


def decision_thresholds(report: ReportData, c: int) -> np.ndarray:
    """(N,) the threshold each row is judged at: of its fold, or for a single fold the pooled one."""
    name, metric = report.task.classes[c], THRESHOLD_OF[F1_AIM]
    fold = report.rows.fold.to_numpy(np.int64)
    if len(report.best.folds) == 1:
        return np.full(len(fold), report.scores.find(report.best, metric, name).value)
    limits = np.full(len(fold), np.nan)
    for k in report.best.folds:
        limits[fold == k] = report.scores.find(report.best, metric, name, fold=k).value
    return limits


def judge(report: ReportData) -> list[Judged]:
    """The slices of the galleries and of the tables of errors, class by class, most confident first."""
    task, rows = report.task, report.scored.slices
    studies = report.rows.study_id.to_numpy()
    judged = []
    for c in range(task.num_classes):
        is_main = c == task.headline_index
        num_cards = _NUM_OF_MAIN if is_main else _NUM_OF_OTHER
        limits = decision_thresholds(report, c)
        most = NUM_ERRORS_OF_MAIN if is_main else NUM_ERRORS_OF_OTHER
        picked = pick_judged(rows.probabilities[:, c], rows.labels[:, c], limits, studies, most)
        for verdict, own in picked.items():
            kept = own[:num_cards] if verdict == TRUE_POSITIVE else own
            judged += [Judged(row, c, verdict, float(limits[row]), i < num_cards) for i, row in enumerate(kept)]
    return judged


def _legend(explained: dict[tuple[str, int], Explained]) -> Legend:
    """The names of the tiles, with the colour scale of the heat map, if one is shown."""
    tiles = tuple(f"{name} {level:g}/{width:g}" for name, (level, width) in WINDOWS)
    return Legend((*tiles, "heat map") if explained else tiles, has_heat=bool(explained))


def _explain(report: ReportData, judged: list[Judged]) -> dict[tuple[str, int], Explained]:
    """Heat maps by the first-stage network of each slice's own fold, by slice_id and class."""
    drawers = {c: report.drawer_of(name) for c, name in enumerate(report.task.classes)}
    explained: dict[tuple[str, int], Explained] = {}
    for run in dict.fromkeys(drawer.name for drawer in drawers.values() if drawer is not None):
        own = {c for c, drawer in drawers.items() if drawer is not None and drawer.name == run}
        rows = report.rows.iloc[sorted({one.row for one in judged if one.class_index in own})]
        for fold in sorted(rows.fold.unique()):
            ids = rows.slice_id[rows.fold == fold].to_list()
            found = explain_slices(report.prepared, report.work, run, int(fold), ids)
            explained |= {(one.slice_id, c): one for one in found for c in own}
    return explained


def _text(report: ReportData, has_heat: bool) -> str:
    text = (
        f"Pictures: out-of-fold predictions of {report.best.name}, most confident first, at most one slice per study. "
        f"Windows: level/width in {report.pixel_unit}."
    )
    if not has_heat or report.first is None:
        return text
    return (
        f"{text} Heat map: Grad-CAM of {_name_drawers(report)} over the brain window, inside the head, by the network "
        "of the slice's own fold, for which it was held out, faded by the probability. Click a picture for all slices "
        "of its study."
    )


def _name_drawers(report: ReportData) -> str:
    """The runs whose networks draw the heat maps."""
    drawers = [report.drawer_of(name) for name in report.task.classes]
    return " and ".join(dict.fromkeys(drawer.name for drawer in drawers if drawer is not None))


def _card(report: ReportData, one: Judged, explained: dict[tuple[str, int], Explained], viewers: StudyViewers) -> Card:
    p = report.scored.slices.probabilities[one.row]
    task, row = report.task, report.rows.iloc[one.row]
    found, name = explained.get((row.slice_id, one.class_index)), task.classes[one.class_index]
    if found is None:
        hounsfield = picture_volume(report.prepared.read_slices(row.volume, row.slice_index, row.slice_index + 1))[0]
    else:
        hounsfield = found.hounsfield
    tiles = [window_picture(hounsfield, *window) for _, window in WINDOWS]
    if found is not None:
        heat = fade_heat(found.heat[found.class_indices.index(one.class_index)], p[one.class_index])
        tiles.append(paint_heat(hounsfield, heat))
    # Four tiles two by two, fewer side by side.
    picture = tile_pictures([fit_picture(tile, _TILE) for tile in tiles], 2 if len(tiles) == 4 else len(tiles))
    truth = [task.classes[c] for c in np.flatnonzero(report.labels[one.row] == 1)]
    facts = [f"truth: {', '.join(truth) or 'none'}"]
    drawer = report.drawer_of(name)
    if found is not None and drawer is not None and report.best is not drawer:
        before = format_number(float(found.probabilities[one.class_index]), 3)
        facts.append(f"{drawer.name} alone: {before}")
    place = f"slice {row.slice_index} ({row.slice_index + 1} of {row.num_slices})"
    alt = f"Slice {shorten(row.slice_id)}, {place}, {one.verdict} for {name}, in {len(tiles)} images"
    figure = format_number(float(p[one.class_index]), 3)
    facts[:0] = [place, f"{one.verdict}, threshold {format_number(one.threshold, 3)}"]
    size = (picture.shape[1], picture.shape[0])
    return Card(
        encode_webp(picture, _QUALITY),
        size,
        alt,
        shorten(row.slice_id),
        f"{name} {figure}",
        tuple(facts),
        link=viewers.find(one.row),
        slice_index=int(row.slice_index),
        full=report.full_id(one.row, "slice_id"),
    )
