"""Galleries of the most confident true positives, false positives and false negatives, with heat maps."""

from dataclasses import dataclass

import numpy as np

from ichkit.core.errors import ConfigError
from ichkit.core.progress import logger
from ichkit.imaging.pictures import WINDOWS, fit_picture, paint_heat, tile_pictures, window_picture
from ichkit.show.blocks import Block, Card, Gallery, Legend, Missing, Prose, Subsection
from ichkit.show.page import encode_jpeg
from ichkit.show.table import format_number
from ichkit.stages.explain.held_out import Explained, explain_slices
from ichkit.stages.report.report_data import ReportData, shorten
from ichkit.validation.scores import THRESHOLD_OF
from ichkit.validation.thresholds import F1_AIM

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "true positive", "false positive", "false negative"
_VERDICTS = (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE)
_NUM_OF_MAIN, _NUM_OF_OTHER = 4, 2
_TILE, _QUALITY = 168, 80


@dataclass(frozen=True)
class Judged:
    """One slice of a gallery.

    Attributes:
        row: its row in the out-of-fold table.
        class_index: the class it was judged for.
        verdict: TRUE_POSITIVE, FALSE_POSITIVE or FALSE_NEGATIVE.
        threshold: at or above which it is predicted positive.
    """

    row: int
    class_index: int
    verdict: str
    threshold: float


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


def make_galleries(report: ReportData) -> list[Block]:
    """A part for each verdict with a gallery for each class, the headline class first.

    Heat maps are of the network of each slice's own fold.
    """
    judged = _judge(report)
    if not judged:
        return [Missing("No slice is positive or predicted positive.")]
    if not all((report.prepared.folder / report.rows.volume[one.row]).is_file() for one in judged):
        return [Missing("The images are not in this work folder.", "ichkit prepare --fresh")]
    try:
        explained = _explain(report, judged)
    except ConfigError as error:  # a backbone without known feature maps: the slices are shown without heat maps
        logger.warning("report: %s", error)
        explained = {}
    blocks: list[Block] = [Prose(_text(report, bool(explained)))]
    for verdict in _VERDICTS:
        inside: list[Block] = []
        for c in report.task_order:
            shown = [one for one in judged if (one.class_index, one.verdict) == (c, verdict)]
            cards = [_card(report, one, explained) for one in shown]
            name = report.task.classes[c]
            none = Prose(f"{name}: none.")
            inside.append(Gallery(f"{name}: {verdict}s", cards, _legend(explained)) if cards else none)
        blocks.append(Subsection(f"{verdict[0].upper()}{verdict[1:]}s", inside))
    return blocks


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


def _judge(report: ReportData) -> list[Judged]:
    task, rows = report.task, report.scored.slices
    studies = report.rows.study_id.to_numpy()
    judged = []
    for c in range(task.num_classes):
        count = _NUM_OF_MAIN if c == task.headline_index else _NUM_OF_OTHER
        limits = decision_thresholds(report, c)
        picked = pick_judged(rows.probabilities[:, c], rows.labels[:, c], limits, studies, count)
        judged += [Judged(row, c, verdict, float(limits[row])) for verdict, own in picked.items() for row in own]
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
        "Windows: level/width in HU."
    )
    if not has_heat or report.first is None:
        return text
    return (
        f"{text} Heat map: Grad-CAM of {_name_drawers(report)} over the brain window, inside the head, by the network "
        "of the slice's own fold, for which it was held out. Each map is scaled to its own maximum: it shows the "
        "location, not the confidence."
    )


def _name_drawers(report: ReportData) -> str:
    """The runs whose networks draw the heat maps."""
    drawers = [report.drawer_of(name) for name in report.task.classes]
    return " and ".join(dict.fromkeys(drawer.name for drawer in drawers if drawer is not None))


def _card(report: ReportData, one: Judged, explained: dict[tuple[str, int], Explained]) -> Card:
    p = report.scored.slices.probabilities[one.row]
    task, row = report.task, report.rows.iloc[one.row]
    found, name = explained.get((row.slice_id, one.class_index)), task.classes[one.class_index]
    if found is None:
        hounsfield = report.prepared.read_slices(row.volume, row.slice_index, row.slice_index + 1)[0]
    else:
        hounsfield = found.hounsfield
    tiles = [window_picture(hounsfield, *window) for _, window in WINDOWS]
    tiles += [] if found is None else [paint_heat(hounsfield, found.heat[found.class_indices.index(one.class_index)])]
    # Four tiles two by two, fewer side by side.
    picture = tile_pictures([fit_picture(tile, _TILE) for tile in tiles], 2 if len(tiles) == 4 else len(tiles))
    truth = [task.classes[c] for c in np.flatnonzero(report.labels[one.row] == 1)]
    facts = [f"truth: {', '.join(truth) or 'none'}"]
    drawer = report.drawer_of(name)
    if found is not None and drawer is not None and report.best is not drawer:
        before = format_number(float(found.probabilities[one.class_index]), 3)
        facts.append(f"{drawer.name} alone: {before}")
    place = f"slice {row.slice_index + 1} of {row.num_slices}"
    alt = f"Slice {shorten(row.slice_id)}, {place}, {one.verdict} for {name}, in {len(tiles)} images"
    figure = format_number(float(p[one.class_index]), 3)
    facts[:0] = [place, f"{one.verdict}, threshold {format_number(one.threshold, 3)}"]
    size = (picture.shape[1], picture.shape[0])
    return Card(encode_jpeg(picture, _QUALITY), size, alt, shorten(row.slice_id), f"{name} {figure}", tuple(facts))
