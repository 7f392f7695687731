"""Class by class: the losses of every stage, ROC curves, and whether probabilities are what they say."""

import numpy as np

from ichkit.show.blocks import Chart, Charts, Prose, Section, Table
from ichkit.show.drawing import COLOURS, Series, draw_intervals, to_svg
from ichkit.show.terminal import format_interval, format_number
from ichkit.stages.report.curves import draw_reliability, draw_roc, roc_points
from ichkit.stages.report.material import CQ500, SLICES, STUDIES, Material
from ichkit.stages.scores.score_source import load_cq500, study_scores
from ichkit.validation.scores import (
    ALL_CLASSES,
    AVERAGE_PRECISION,
    CALIBRATION_ERROR,
    F1_BEST,
    LOG_LOSS,
    ROC_AUC,
    SENSITIVITY,
    SPECIFICITY,
    WEIGHTED_LOG_LOSS,
)
from ichkit.validation.studies import MAXIMUM

_METRICS = {
    "log loss": LOG_LOSS,
    "AUC": ROC_AUC,
    "AP": AVERAGE_PRECISION,
    "F1": F1_BEST,
    "sensitivity": SENSITIVITY,
    "specificity": SPECIFICITY,
    "ECE": CALIBRATION_ERROR,
}
_CHOSEN = (
    "F1, sensitivity and specificity at thresholds that were best on the other folds, for F1 and for Youden's J. ECE: "
    "the expected calibration error; chance alone raises it, and its interval allows for that."
)


def make_losses(material: Material) -> Section:
    """The loss of each class by every stage of the best source, and all metrics of that one."""
    task, stages = material.task, material.stages
    series = []
    for source in stages[: len(COLOURS)]:
        scores = [material.class_loss(source, name) for name in task.classes]
        series.append(Series(source.name, *([getattr(s, end) for s in scores] for end in ("value", "low", "high"))))
    figure = draw_intervals(task.classes, series, "log loss (nats), lower is better")
    alt = f"Log loss of {len(task.classes)} classes for {', '.join(one.name for one in series)}; numbers in the table."
    first = f" The best {len(series)} of {len(stages)}." if len(series) < len(stages) else ""
    text = f"Log loss per class and stage, out of fold, with intervals.{first}"
    chart = Chart(to_svg(figure, "class-loss", alt), text)
    rows = [[name, *(material.class_loss(source, name).cell(4) for source in stages)] for name in task.classes]
    whole = [material.book.find(source.name, WEIGHTED_LOG_LOSS, ALL_CLASSES).cell(5, 4) for source in stages]
    rows.append(["weighted mean", *whole])
    losses = Table("Log loss per class and stage, out of fold", ("class", *(source.name for source in stages)), rows)
    return Section("classes", "Loss per class", [Charts([chart]), losses, *_by_class(material)])


def make_roc(material: Material) -> Section:
    """ROC curves of the best source: slices and studies out of fold, and the studies of CQ500."""
    best, p = material.best, material.probabilities(material.best)
    first = np.flatnonzero(material.rows.study_id.ne(material.rows.study_id.shift()))
    places = {
        SLICES: ("slices, out of fold", material.labels, p),
        STUDIES: (
            "studies, out of fold, by their highest slice",
            np.maximum.reduceat(material.labels, first),
            np.maximum.reduceat(p, first),
        ),
    }
    table = load_cq500(best, material.prepared, material.config.evaluate)
    if table is not None:
        studies = study_scores(table, material.prepared, MAXIMUM, material.config.evaluate.num_top)
        places[CQ500] = (
            "CQ500 studies, by their highest slice",
            studies.labels.to_numpy(),
            studies.probabilities.to_numpy(),
        )
    charts = [_draw_roc(material, place, *what) for place, what in places.items()]
    return Section("roc", "ROC curves", [Charts([chart for chart in charts if chart is not None], "thirds")])


def make_reliability(material: Material) -> Section:
    """A reliability curve for each class of the best source, the first stage behind it."""
    assert material.tables is not None
    curves = material.tables.reliability
    curves = curves[(curves.level == "slice") & (curves.dataset != "cq500")]
    best, first = material.best, material.first
    charts = []
    for name in material.task.classes:
        of_class = curves[curves["class"] == name]
        own = of_class[of_class.source == best.name]
        before = None if first in (None, best) else of_class[of_class.source == first.name]
        error = material.book.find(best.name, CALIBRATION_ERROR, name)
        found = f"{format_number(error.value, 4)} ({format_interval(error.low, error.high, 4) or 'no interval'})"
        figure = draw_reliability(own, before)
        alt = f"Reliability curve of {name}: {len(own)} bins that hold a slice; calibration error {found}."
        charts.append(Chart(to_svg(figure, f"reliability-{name}", alt), f"{name}: ECE {found}"))
    behind = "" if first in (None, best) else f"; hollow marks: {first.name}, before the second stage"
    after = f"{best.name}, out of fold, in {material.config.evaluate.num_bins} bins, with intervals{behind}. On the "
    text = Prose(after + "dotted line, of the slices that got 0.3, 3 in 10 are positive.")
    return Section("reliability", "Calibration", [text, Charts(charts, "small")])


def _by_class(material: Material) -> list[Table]:
    best, tables = material.best, []
    shown = {SLICES: ("by slice", _METRICS), STUDIES: ("by study, its highest slice", dict(list(_METRICS.items())[1:]))}
    for place, (how, metrics) in shown.items():
        rows = []
        for name in material.task.classes:
            scores = {column: material.book.find(best.name, metric, name, place) for column, metric in metrics.items()}
            digits = {"log loss": 4, "ECE": 4}
            cells = [score.cell(digits.get(column, 3)) for column, score in scores.items()]
            rows.append([name, *cells, scores["AUC"].counts])
        columns = ("class", *metrics, "positive")
        after = _CHOSEN if place == STUDIES else ""
        tables.append(Table(f"{best.name}, out of fold, {how}", columns, rows, after=after))
    return tables


def _draw_roc(material: Material, place: str, title: str, labels: np.ndarray, p: np.ndarray) -> Chart | None:
    """None where no class has both positives and negatives."""
    curves = {}
    for c, name in enumerate(material.task.classes):
        known = ~np.isnan(labels[:, c])
        truth = labels[known, c]
        if 0 < truth.sum() < len(truth):
            score = material.book.find(material.best.name, ROC_AUC, name, place)
            curves[f"{name} {format_number(score.value, 3)} ({score.n_positive:,})"] = roc_points(truth, p[known, c])
    if not curves:
        return None
    caption = f"{material.best.name}: {title}. In the key: AUC, and in brackets how many are positive."
    alt = f"ROC curves, {title}: AUC (positives) {'; '.join(curves)}."
    return Chart(to_svg(draw_roc(curves), f"roc-{place}", alt), caption)
