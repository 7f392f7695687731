"""The commands that use trained models: `ichkit predict`, `ichkit export` and `ichkit explain`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ichkit.cli.completion import complete_model, complete_run
from ichkit.cli.plan import planned
from ichkit.cli.terminal import PATH, common_options, epilog, show

if TYPE_CHECKING:
    from ichkit.stages.explain.run import ExplainPlan
    from ichkit.stages.predict.export import ExportPlan
    from ichkit.stages.predict.run import PredictPlan


@click.command(
    "predict", epilog=epilog("ichkit predict scans/", "ichkit predict export.zip --model work/stacks/default")
)
@click.argument("path", metavar="DICOM_PATH", type=PATH)
@click.option(
    "--model",
    shell_complete=complete_model,
    help="Run, stack or exported model, by name or folder [default: the one that submit selects].",
)
@click.option("--out", type=PATH, default=Path("predictions"), show_default=True, help="Output folder.")
@click.option("--accept-raw", is_flag=True, help="Accept images whose pixel values may not be Hounsfield units.")
@click.option("--skip-undecodable", is_flag=True, help="Skip images whose decoder is not installed.")
@click.option("--series-override", type=PATH, help="Series selected by hand: CSV with columns study_id, series.")
@click.option(
    "--page/--no-page",
    "has_page",
    default=True,
    help="Write predictions.html with images and heat maps [default: page].",
)
@common_options
@planned("ichkit.stages.predict.run", "PredictOptions")
def predict_command(plan: "PredictPlan") -> None:
    """Predict probabilities for a folder or zip file of head CT, per slice and per study. Research use only."""
    from ichkit.stages.predict.outcome import render
    from ichkit.stages.predict.run import run

    show(render(run(plan), plan.task))


@click.command("export", epilog=epilog("ichkit export default-blend", "ichkit export default --out models/default"))
@click.argument("model", shell_complete=complete_model)
@click.option("--out", type=PATH, help="Output folder [default: export/NAME].")
@common_options
@planned("ichkit.stages.predict.export", "ExportOptions")
def export_command(plan: "ExportPlan") -> None:
    """Copy a run or stack into one folder that `predict --model` reads on another machine."""
    from ichkit.stages.predict.export import run

    run(plan)


@click.command("explain", epilog=epilog("ichkit explain --fold 0 --worst 20", "ichkit explain --study ID_1f6d1e8aeb"))
@click.option(
    "--run", "run_name", shell_complete=complete_run, help="Run whose networks are used [default: the only run]."
)
@click.option("--fold", type=click.IntRange(0), help="Only held-out slices of this fold [default: all trained folds].")
@click.option("--slice", "slices", multiple=True, metavar="ID", help="Explain this slice (slice_id); repeatable.")
@click.option("--study", metavar="ID", help="Explain all slices of this study (study_id), in one strip.")
@click.option("--worst", type=click.IntRange(1), help="Explain this many slices with the highest loss [default: 10].")
@click.option(
    "--class",
    "class_names",
    multiple=True,
    metavar="NAME",
    help="Class to draw heat maps for; repeatable [default: all; with --study, the main and the most probable other].",
)
@click.option("--out", type=PATH, default=Path("explained"), show_default=True, help="Output folder.")
@common_options
@planned("ichkit.stages.explain.run", "ExplainOptions")
def explain_command(plan: "ExplainPlan") -> None:
    """Draw Grad-CAM heat maps of held-out slices."""
    from ichkit.stages.explain.run import render, run

    show(render(run(plan), plan.prepared.task))
