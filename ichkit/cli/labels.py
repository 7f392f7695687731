"""The commands of `ichkit labels`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ichkit.cli.plan import planned
from ichkit.cli.terminal import PATH, CommandGroup, common_options, epilog, show

if TYPE_CHECKING:
    from ichkit.stages.labels.masks import MaskPlan
    from ichkit.stages.labels.reports import ReportLabelPlan

_OUT = click.option("--out", type=PATH, default=Path("labels.csv"), show_default=True, help="The label file.")


@click.group(
    "labels",
    cls=CommandGroup,
    epilog=epilog("ichkit labels masks masks/ --values 1=subdural,2=epidural", "ichkit labels reports reports.csv"),
)
def label_commands() -> None:
    """Make a label file (--labels) from segmentation masks or from reports."""


@label_commands.command(
    epilog=epilog(
        "ichkit labels masks masks/ --values 1=intraparenchymal,2=subdural,3=none",
        "ichkit labels masks masks/ --values 1=any --scans scans/ --level study",
    )
)
@click.argument("path", metavar="MASKS", type=PATH)
@click.option(
    "--values",
    multiple=True,
    required=True,
    metavar="VALUE=CLASS",
    help="Class of each value of the masks, or none; separated by commas, or repeated.",
)
@click.option(
    "--scans",
    type=PATH,
    help="DICOM of the masks, named by study, series or folder [default: NIfTI of the same names].",
)
@click.option(
    "--level", type=click.Choice(("slice", "study")), default="slice", show_default=True, help="One row per ..."
)
@click.option(
    "--min-area",
    "min_area_mm2",
    type=click.FloatRange(0),
    default=0.0,
    metavar="MM2",
    help="Smallest area of a positive slice, in mm2 [default: any pixel].",
)
@_OUT
@common_options
@planned("ichkit.stages.labels.masks", "MaskOptions")
def masks(plan: "MaskPlan") -> None:
    """Label every slice or study by NIfTI masks, one file per study, named after it."""
    from ichkit.stages.labels.label_file import render
    from ichkit.stages.labels.masks import run

    show(render(run(plan), plan.task, plan.options.level))


@label_commands.command(
    epilog=epilog(
        "ichkit labels reports reports.csv --text-column findings",
        "ichkit labels reports reports.csv --check by_hand.csv",
    )
)
@click.argument("path", metavar="CSV", type=PATH)
@click.option("--text-column", default="report", show_default=True, help="Column of the texts, beside study_id.")
@click.option("--check", type=PATH, help="Labels by hand (study_id and the classes) of some studies, to compare with.")
@_OUT
@common_options
@planned("ichkit.stages.labels.reports", "ReportOptions")
def reports(plan: "ReportLabelPlan") -> None:
    """Draft study labels from reports in English by rules with negations; check them by hand before use."""
    from ichkit.stages.labels.label_file import STUDY, render
    from ichkit.stages.labels.reports import check, run

    table = run(plan)
    show(render(table, plan.task, STUDY))
    if plan.by_hand is not None:
        show(check(table, plan.by_hand, plan.task))
