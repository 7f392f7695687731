"""Report section: the score of regions of every patient, of the networks and of the labels (ASPECTS of a stroke)."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ichkit.imaging.parts import whole_id
from ichkit.imaging.region_scores import score_regions
from ichkit.show.blocks import Block, Chart, Charts, Missing, Prose, Section
from ichkit.show.drawing import COLOURS, MUTED, in_style, make_figure, to_svg
from ichkit.show.table import NOTHING, Cell, Table, format_interval, format_number
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.scores.score_source import read_out_of_fold, seed_of_rows
from ichkit.validation.catalog import Source
from ichkit.validation.score_agreement import Agreement, measure_agreement
from ichkit.validation.thresholds import F1_AIM, choose_thresholds, decide

LOW_SCORE = 7
"""Scores of at most this were the poor prognosis of Barber et al., Lancet 2000."""
_TITLE = "Score of regions by study"
_TEXT = (
    "Ten regions a side less those positive for {name}; the lower side counts. Of {source}, out of fold: each fold is "
    "decided at the threshold with the best F1 on the other folds. Regions of unknown label take no point off, neither "
    "from the score of the networks nor from that of the labels."
)
_NOTE = (
    "Of the networks against the labels; difference: networks less labels. Intervals resample patients with the "
    "thresholds held fixed. Sensitivity and specificity are undefined where no study, or every one, has such a score."
)
_SIZE, _DOT, _SMALLEST_DOT = (4.6, 3.6), 420, 40
"""Inches, and areas of dots in square points: the largest, and what every dot has besides."""


def make_region_scores(report: ReportData) -> Section | None:
    """The section; None if the studies are not cut into regions that the task counts."""
    name, regions = report.task.counted_class, report.prepared.parts.regions
    if name is None or not regions:
        return None
    source = next((one for one in report.shown if name in one.scope.classes), None)
    if source is None:
        return Section("regions", _TITLE, [Missing(f"No source predicts {name}.", "ichkit train")])
    scored = read_out_of_fold(source, report.prepared, report.config)
    labels, part = scored.studies.labels, scored.part_of_study
    chosen = choose_thresholds(
        scored.studies.probabilities, labels, scored.studies.order, part, sorted({int(one) for one in part})
    )
    decided = decide(scored.studies.probabilities, {one: of[F1_AIM] for one, of in chosen.items()}, part)
    c = report.task.classes.index(name)
    if not decided.is_defined[c]:
        return Section("regions", _TITLE, [Missing(f"A fold has no region with and without {name} to choose by.")])
    ids = scored.facts["study_id"].to_numpy()[scored.first_of_study]
    found = np.where(np.isnan(labels[:, c]), np.nan, decided.is_yes[:, c])
    ours, theirs = (
        score_regions(pd.DataFrame({"study_id": ids, "has_finding": values}), regions)
        for values in (found, labels[:, c])
    )
    patients = dict(zip(map(whole_id, scored.facts["study_id"]), scored.facts["patient_id"], strict=True))
    scores = (ours["score"].to_numpy(), theirs["score"].to_numpy())
    measured = measure_agreement(
        *scores,
        ours["study_id"].map(patients).to_numpy(),
        cut=LOW_SCORE,
        num_draws=report.config.evaluate.num_draws,
        level=report.config.evaluate.level,
        seed=seed_of_rows(scored.studies, report.config),
    )
    text = _TEXT.format(name=name, source=source.name)
    blocks: list[Block] = [Prose(text), Charts([_chart(source, *scores)]), _table(measured, *scores)]
    return Section("regions", _TITLE, blocks)


def _table(measured: list[Agreement], ours: np.ndarray, theirs: np.ndarray) -> Table:
    """Every measure with its interval, and of how many studies."""
    counts = [f"{len(theirs):,}"] * len(measured)
    low = int((theirs <= LOW_SCORE).sum())
    counts[-2:] = [f"{low:,}", f"{len(theirs) - low:,}"]
    rows: list[list[Cell | str]] = [
        ["median score, networks", Cell(f"{np.median(ours):g}"), counts[0]],
        ["median score, labels", Cell(f"{np.median(theirs):g}"), counts[0]],
    ]
    for one, count in zip(measured, counts, strict=True):
        is_defined = not np.isnan(one.value)
        cell = Cell(format_number(one.value, 3), format_interval(one.low, one.high, 3)) if is_defined else Cell(NOTHING)
        rows.append([one.name, cell, count])
    return Table("Agreement of the scores", ("measure", "value", "studies"), rows, note=_NOTE)


def _chart(source: Source, ours: np.ndarray, theirs: np.ndarray) -> Chart:
    pairs, counts = np.unique(np.stack([theirs, ours]), axis=1, return_counts=True)
    said = ", ".join(f"{ours} for {theirs}: {count}" for (theirs, ours), count in zip(pairs.T, counts, strict=True))
    alt = f"Scores of {source.name} for scores of the labels, with the number of studies: {said}."
    caption = f"{source.name}: scores of networks and labels, with the number of studies. On the line they are equal."
    return Chart(to_svg(_draw(pairs, counts), "regions", alt), caption)


@in_style
def _draw(pairs: np.ndarray, counts: np.ndarray) -> Figure:
    figure, axes = make_figure(*_SIZE)
    ends = [pairs.min() - 0.5, pairs.max() + 0.5]
    axes.plot(ends, ends, color=MUTED, lw=1, ls="--")
    axes.scatter(pairs[0], pairs[1], s=_DOT * counts / counts.max() + _SMALLEST_DOT, color=COLOURS[0], alpha=0.55, lw=0)
    for (x, y), count in zip(pairs.T, counts, strict=True):
        axes.annotate(str(count), (x, y), ha="center", va="center", fontsize=7)
    axes.set(xlim=ends, ylim=ends, xlabel="score by the labels", ylabel="score by the networks")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure
