"""Report section: decision curves, the net benefit of acting on the probability of a study."""

from dataclasses import replace

import numpy as np

from ichkit.show.blocks import Block, Chart, Charts, Missing, Prose, Section, Subsection
from ichkit.show.drawing import WIDE, to_svg
from ichkit.show.table import Cell, Table
from ichkit.stages.report.curves import draw_net_benefit
from ichkit.stages.report.report_data import ReportData, Scorable
from ichkit.stages.scores.score_source import seed_of_rows
from ichkit.validation.intervals import interval_of
from ichkit.validation.net_benefit import NetBenefit, measure_net_benefit

_THRESHOLDS = np.arange(1, 50) / 50
_SHOWN = (0.02, 0.1, 0.2, 0.3, 0.5, 0.7)
_TEXT = (
    "Net benefit (Vickers & Elkin, Medical Decision Making 26, 2006): true positives per study, minus false positives "
    "per study times the odds of the threshold. Acting from a threshold probability of t says that one missed finding "
    "is as bad as (1 - t) / t false positives: 9 at 10 %, 1 at 50 %. The model is worth using at thresholds where its "
    "curve is above both acting on all studies and acting on none. A threshold is compared with the study's maximum "
    "over its slices, so read the curve together with the calibration of studies. Intervals resample patients."
)


def make_decisions(report: ReportData) -> Section:
    """Decision curves of the best source at study level: out of fold and on the external sets."""
    blocks: list[Block] = [Prose(f"{report.best.name}. {_TEXT}")]
    for group in (group for group in report.groups if group.unit == "studies"):
        blocks += _of_group(report, group)
    return Section("decisions", "Decision curves", blocks)


def _of_group(report: ReportData, group: Scorable) -> list[Block]:
    task = report.task
    found = {name: _measure(report, group, c) for c, name in enumerate(task.classes)}
    curves = {name: curve for name, curve in found.items() if curve is not None}
    if not curves:
        return [Missing(f"{group.title}: no class has both positive and negative studies.")]
    main = task.headline_class if task.headline_class in curves else next(iter(curves))
    chart = _draw(report, group, main, curves[main], (4.8, 3.2))
    chart = replace(chart, wide=_draw(report, group, main, curves[main], (WIDE, 3.4), "-wide").svg)
    others = [_draw(report, group, name, curve, (3.2, 2.8)) for name, curve in curves.items() if name != main]
    blocks: list[Block] = [Charts([chart]), _table(report, group, curves)]
    if others:
        blocks.append(Subsection(f"Decision curves of the other classes: {group.name}", [Charts(others, "thirds")]))
    return blocks


def _measure(report: ReportData, group: Scorable, c: int) -> NetBenefit | None:
    rows = group.rows
    return measure_net_benefit(
        rows.probabilities[:, c],
        rows.labels[:, c],
        rows.members,
        _THRESHOLDS,
        num_draws=report.config.evaluate.num_draws,
        seed=seed_of_rows(rows, report.config),
    )


def _draw(
    report: ReportData, group: Scorable, name: str, found: NetBenefit, size: tuple[float, float], end: str = ""
) -> Chart:
    figure = draw_net_benefit(found, report.config.evaluate.level, size)
    at = int(np.abs(_THRESHOLDS - 0.5).argmin())
    alt = (
        f"Decision curve of {name}, {group.name}: net benefit {found.of_model[at]:.4f} at a threshold of 0.5, "
        f"{found.of_all[at]:+.4f} for acting on all; prevalence {found.n_positive / found.n:.4f}."
    )
    place = group.key
    return Chart(to_svg(figure, f"benefit-{place}-{name}{end}", alt), f"{name}, {group.name}, with its interval.")


def _table(report: ReportData, group: Scorable, curves: dict[str, NetBenefit]) -> Table:
    """Net benefit at some thresholds, above the gain over the better default."""
    at = [int(np.abs(_THRESHOLDS - threshold).argmin()) for threshold in _SHOWN]
    rows: list[list[Cell | str]] = []
    for name, found in curves.items():
        cells = [_gain(found, i, report.config.evaluate.level) for i in at]
        rows.append([name, *cells, group.positives(report.task.classes.index(name))])
    columns = ("class", *(f"at {100 * _THRESHOLDS[i]:.0f} %" for i in at), "positive")
    note = (
        "Net benefit of the model minus that of the better of acting on all and on none, per 100 studies: true "
        "positives gained at equal false positives; below, its interval. * if it excludes 0."
    )
    return Table(f"Gain in net benefit: {group.name}", columns, rows, note=note)


def _gain(found: NetBenefit, at: int, level: float) -> Cell:
    value, interval = 100 * found.gain[at], interval_of(100 * found.draws_of_gain[:, at], level)
    is_better, is_worse = interval.low > 0, interval.high < 0
    small = "" if np.isnan(interval.low) else f"{interval.low:+z.2f} to {interval.high:+z.2f}"
    tone = "good" if is_better else "bad" if is_worse else ""
    return Cell(f"{value:+z.2f}{'*' if is_better or is_worse else ''}", small, tone)
