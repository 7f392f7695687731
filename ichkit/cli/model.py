"""What finished models are for: `ichkit predict`, `ichkit export` and `ichkit explain`."""

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
    help="A run, stack or export, by name or folder [default: what submit would take].",
)
@click.option("--out", type=PATH, default=Path("predictions"), show_default=True, help="Where everything goes.")
@click.option("--accept-raw", is_flag=True, help="Take images although their values may not be Hounsfield units.")
@click.option("--skip-undecodable", is_flag=True, help="Leave out images whose decoder is not installed.")
@click.option("--series-override", type=PATH, help="Series chosen by hand: a CSV with study_id, series.")
@click.option(
    "--page/--no-page", "has_page", default=True, help="predictions.html, with pictures and heat maps [default: page]."
)
@common_options
@planned("ichkit.stages.predict.run", "PredictOptions")
def predict_command(plan: "PredictPlan") -> None:
    """Probabilities for any folder or zip of head CT, per slice and per study. Research use only."""
    from ichkit.stages.predict.outcome import render
    from ichkit.stages.predict.run import run

    show(render(run(plan), plan.task))


@click.command("export", epilog=epilog("ichkit export default-blend", "ichkit export default --out stick/model"))
@click.argument("model", shell_complete=complete_model)
@click.option("--out", type=PATH, help="Where it goes [default: export/NAME].")
@common_options
@planned("ichkit.stages.predict.export", "ExportOptions")
def export_command(plan: "ExportPlan") -> None:
    """Pack a run or a stack into one folder that `predict --model` reads on another machine."""
    from ichkit.stages.predict.export import run

    run(plan)


@click.command("explain", epilog=epilog("ichkit explain --fold 0 --worst 20", "ichkit explain --study ID_1f6d1e8aeb"))
@click.option("--run", "run_name", shell_complete=complete_run, help="Whose networks [default: the only run there is].")
@click.option("--fold", type=click.IntRange(0), help="Only slices of this fold [default: all that are trained].")
@click.option("--slice", "slices", multiple=True, metavar="ID", help="A slice_id; repeatable.")
@click.option("--study", metavar="ID", help="A study_id: all its slices, as a strip.")
@click.option("--worst", type=click.IntRange(1), help="So many slices of the greatest loss [default: 10].")
@click.option("--class", "class_names", multiple=True, metavar="NAME", help="Whose heat to draw; repeatable.")
@click.option("--out", type=PATH, default=Path("explained"), show_default=True, help="Where the pictures go.")
@common_options
@planned("ichkit.stages.explain.run", "ExplainOptions")
def explain_command(plan: "ExplainPlan") -> None:
    """Where the network looked: heat maps (Grad-CAM) of slices that were held out from it."""
    from ichkit.stages.explain.run import render, run

    show(render(run(plan), plan.prepared.task))
