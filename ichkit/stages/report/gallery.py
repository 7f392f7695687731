"""Report section: the most confident true positives, false positives and false negatives, with heat maps."""

from dataclasses import dataclass

import numpy as np

from ichkit.core.errors import ConfigError
from ichkit.core.progress import logger
from ichkit.imaging.pictures import WINDOWS, fit_picture, paint_heat, tile_pictures, window_picture
from ichkit.show.blocks import Block, Card, Gallery, Missing, Prose, Section
from ichkit.show.page import encode_jpeg
from ichkit.show.table import format_number
from ichkit.stages.explain.held_out import Explained, explain_slices
from ichkit.stages.report.report_data import ReportData, shorten
from ichkit.validation.scores import POOLED, THRESHOLD_OF
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
    """

    row: int
    class_index: int
    verdict: str


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


def make_galleries(report: ReportData) -> Section:
    """Galleries of every class, the headline class first, with heat maps of the network of each slice's own fold."""
    anchor, title = "galleries", "True positives, false positives, false negatives"
    judged = _judge(report)
    if not judged:
        return Section(anchor, title, [Missing("No slice is positive or predicted positive.")])
    if not all((report.prepared.folder / report.rows.volume[one.row]).is_file() for one in judged):
        return Section(anchor, title, [Missing("The images are not in this work folder.", "ichkit prepare --fresh")])
    try:
        explained = _explain(report, judged)
    except ConfigError as error:  # a backbone without known feature maps: the slices are shown without heat maps
        logger.warning("report: %s", error)
        explained = {}
    probabilities = report.probabilities(report.best)
    main = report.task.headline_index
    blocks: list[Block] = [Prose(_text(report, bool(explained)))]
    order = [main, *(c for c in range(report.task.num_classes) if c != main)]
    for c in order:
        own = [one for one in judged if one.class_index == c]
        verdicts = _VERDICTS if c == main else (None,)
        for verdict in verdicts:
            shown = [one for one in own if verdict in (None, one.verdict)]
            cards = [_card(report, one, probabilities[one.row], explained, verdict is None) for one in shown]
            name = report.task.classes[c]
            of_verdict = name if verdict is None else f"{name}: most confident {verdict}s"
            blocks.append(Gallery(of_verdict, cards) if cards else Prose(f"{of_verdict}: none."))
    return Section(anchor, title, blocks)


def _judge(report: ReportData) -> list[Judged]:
    task, p = report.task, report.probabilities(report.best)
    studies = report.rows.study_id.to_numpy()
    judged = []
    for c in range(task.num_classes):
        count = _NUM_OF_MAIN if c == task.headline_index else _NUM_OF_OTHER
        picked = pick_judged(p[:, c], report.labels[:, c], _thresholds(report, c), studies, count)
        judged += [Judged(row, c, verdict) for verdict, rows in picked.items() for row in rows]
    return judged


def _thresholds(report: ReportData, c: int) -> np.ndarray:
    """(N,) the threshold each row was scored at: of its fold, or for a single fold the pooled one."""
    name, metric = report.task.classes[c], THRESHOLD_OF[F1_AIM]
    fold = report.rows.fold.to_numpy(np.int64)
    numbers = report.best.folds if len(report.best.folds) > 1 else (POOLED,)
    found = {k: report.scores.find(report.best, metric, name, fold=k).value for k in numbers}
    return np.array([found.get(int(k), found.get(POOLED, np.nan)) for k in fold])


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
    windows = ", ".join(f"{name} {level:g}/{width:g}" for name, (level, width) in WINDOWS)
    text = (
        f"Out-of-fold predictions of {report.best.name}, most confident first, at most one slice per study. A slice "
        "is predicted positive at or above the threshold with the best F1 on the other folds. Windows, row by row "
        "(level/width in HU): "
    )
    if not has_heat or report.first is None:
        return f"{text}{windows}."
    heat = (
        f"; last, the Grad-CAM heat map of {_name_drawers(report)} over the brain window, by the network of the "
        "slice's own fold, for which it was held out. Each map is scaled to its own maximum: it shows the location, "
        "not the confidence."
    )
    return text + windows + heat


def _name_drawers(report: ReportData) -> str:
    """The runs whose networks draw the heat maps."""
    drawers = [report.drawer_of(name) for name in report.task.classes]
    return " and ".join(dict.fromkeys(drawer.name for drawer in drawers if drawer is not None))


def _card(
    report: ReportData,
    one: Judged,
    p: np.ndarray,
    explained: dict[tuple[str, int], Explained],
    with_verdict: bool,
) -> Card:
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
    verdict = f"{one.verdict}, " if with_verdict else ""
    facts.insert(0, f"{verdict}{place}")
    size = (picture.shape[1], picture.shape[0])
    return Card(encode_jpeg(picture, _QUALITY), size, alt, shorten(row.slice_id), f"{name} {figure}", tuple(facts))
