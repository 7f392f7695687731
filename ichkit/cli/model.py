"""What finished models are for: `ichkit predict`, `ichkit export` and `ichkit explain`."""

from pathlib import Path

import click

from ichkit.cli.completion import complete_model, complete_run
from ichkit.cli.plan import plan_explain, plan_export, plan_predict, with_dry_run
from ichkit.cli.terminal import PATH, Settings, common_options, epilog, show
from ichkit.core.tasks import find_task


@click.command(
    "predict", epilog=epilog("ichkit predict scans/", "ichkit predict export.zip --model work/stacks/default")
)
@click.argument("dicom_path", type=PATH)
@click.option(
    "--model",
    shell_complete=complete_model,
    help="A run, stack or export, by name or folder [default: what submit would take].",
)
@click.option("--out", type=PATH, default=Path("predictions"), show_default=True, help="Where everything goes.")
@click.option("--page/--no-page", default=True, help="predictions.html, with pictures and heat maps [default: page].")
@common_options
@with_dry_run(plan_predict)
def predict_command(settings: Settings, dicom_path: Path, model: str | None, out: Path, page: bool) -> None:
    """Probabilities for any folder or zip of head CT, per slice and per study. Research use only."""
    from ichkit.stages.predict import run as stage
    from ichkit.stages.predict.outcome import render

    config = settings.load()
    made = stage.run(config, settings.work, dicom_path, model=model, out=out, has_page=page)
    show(render(made, find_task(config.task)))


@click.command("export", epilog=epilog("ichkit export default-blend", "ichkit export default --out stick/model"))
@click.argument("model", shell_complete=complete_model)
@click.option("--out", type=PATH, help="Where it goes [default: export/NAME].")
@common_options
@with_dry_run(plan_export)
def export_command(settings: Settings, model: str, out: Path | None) -> None:
    """Pack a run or a stack into one folder that `predict --model` reads on another machine."""
    from ichkit.stages.predict import export as stage

    stage.run(settings.load(), settings.work, model, out)


@click.command("explain", epilog=epilog("ichkit explain --fold 0 --worst 20", "ichkit explain --study ID_1f6d1e8aeb"))
@click.option("--run", "run_name", shell_complete=complete_run, help="Whose networks [default: the only run there is].")
@click.option("--fold", type=click.IntRange(0), help="Only slices of this fold [default: all that are trained].")
@click.option("--slice", "slices", multiple=True, metavar="ID", help="A slice_id; repeatable.")
@click.option("--study", metavar="ID", help="A study_id: all its slices, as a strip.")
@click.option("--worst", type=click.IntRange(1), help="So many slices of the greatest loss [default: 10].")
@click.option("--class", "class_names", multiple=True, metavar="NAME", help="Whose heat to draw; repeatable.")
@click.option("--out", type=PATH, default=Path("explained"), show_default=True, help="Where the pictures go.")
@common_options
@with_dry_run(plan_explain)
def explain_command(
    settings: Settings,
    run_name: str | None,
    fold: int | None,
    slices: tuple[str, ...],
    study: str | None,
    worst: int | None,
    class_names: tuple[str, ...],
    out: Path,
) -> None:
    """Where the network looked: heat maps (Grad-CAM) of slices that were held out from it."""
    from ichkit.stages.explain import run as stage

    config, choice = settings.load(), stage.make_choice(slices, study, worst)
    names = list(class_names) or None
    table = stage.run(config, settings.work, out, choice, run_name=run_name, fold=fold, class_names=names)
    show(stage.render(table, find_task(config.task)))
