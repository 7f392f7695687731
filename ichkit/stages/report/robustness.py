"""Report section: the networks of a run on noisy, shifted, moved and coarser scans of held-out patients."""

import pandas as pd

from ichkit.imaging.perturbations import PERTURBATIONS
from ichkit.show.blocks import Block, Chart, Charts, Missing, Prose, Section, Subsection
from ichkit.show.drawing import Series, chart_intervals
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.scores import tables
from ichkit.stages.scores.robustness import MADE_BY, read_robustness
from ichkit.validation.scores import LOG_LOSS, WEIGHTED_LOG_LOSS

_TITLE = "Robustness"


def make_robustness(report: ReportData) -> Section:
    """Scores on perturbed scans, if they were measured with the present networks."""
    table = read_robustness(report.work, report.prepared, report.sources)
    if table is None:
        missing = "Behaviour on noisy, shifted, moved and coarser scans was not measured with the present networks."
        return Section("robustness", _TITLE, [Missing(missing, MADE_BY)])
    others = [report.task.classes[c] for c in report.task_order[1:]]
    known = set(table["class"])
    by_class = [tables.robustness(table, report.task, name) for name in others if name in known]
    blocks: list[Block] = [Charts([_draw(table)]), tables.robustness(table, report.task), _models(table)]
    if by_class:
        blocks.append(Subsection("Robustness of the other classes", [*by_class], is_open=False))
    return Section("robustness", _TITLE, blocks)


def _draw(table: pd.DataFrame) -> Chart:
    """The difference in log loss that each perturbation makes."""
    is_whole = (table.metric == WEIGHTED_LOG_LOSS).any()
    own = table[table.metric == (WEIGHTED_LOG_LOSS if is_whole else LOG_LOSS)]
    own = own[own["class"] == own["class"].iloc[-1]]
    names = [_title_of(name) for name in own.perturbation]
    ends = (own[column].to_numpy(float) for column in ("difference", "low", "high"))
    what = f"difference in {'weighted ' if is_whole else ''}log loss (nats)"
    series = [Series(own.run.iloc[0], *ends)]
    alt = "Difference in log loss by perturbation: " + ", ".join(
        f"{name} {value:+.4f}" for name, value in zip(names, own.difference, strict=True)
    )
    text = (
        "loss on perturbed scans minus loss on the same scans as they are, with intervals by patients; above 0 is worse"
    )
    return chart_intervals("robustness-loss", alt, f"{own.run.iloc[0]}: {text}.", names, series, what)


def _models(table: pd.DataFrame) -> Subsection:
    """What each perturbation does, and where it comes from."""
    known = [PERTURBATIONS[name] for name in dict.fromkeys(table.perturbation) if name in PERTURBATIONS]
    lines: list[Block] = [Prose(f"{row.title}: {row.description} Source: {row.source}.") for row in known]
    return Subsection("What each perturbation does", lines)


def _title_of(name: str) -> str:
    return PERTURBATIONS[name].title if name in PERTURBATIONS else name
