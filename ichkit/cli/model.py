"""The commands that use trained models: `ichkit predict`, `ichkit watch`, `ichkit export` and `ichkit explain`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ichkit.cli.completion import complete_model, complete_run
from ichkit.cli.plan import planned
from ichkit.cli.terminal import PATH, common_options, epilog, show, submissions_option

if TYPE_CHECKING:
    from ichkit.stages.explain.run import ExplainPlan
    from ichkit.stages.kernel.run import KernelPlan
    from ichkit.stages.kernel.winner import WinnerPlan
    from ichkit.stages.predict.export import ExportPlan
    from ichkit.stages.predict.run import PredictPlan
    from ichkit.stages.watch.run import WatchPlan


def signature_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that use a signed export."""
    required = click.option(
        "--require-signature",
        "requires_signature",
        is_flag=True,
        envvar="ICHKIT_REQUIRE_SIGNATURE",
        help="Refuse to predict without --verify (env ICHKIT_REQUIRE_SIGNATURE).",
    )
    key = click.option(
        "--verify",
        type=PATH,
        envvar="ICHKIT_VERIFY",
        metavar="KEY",
        help="Public key that the export must be signed with (env ICHKIT_VERIFY; extra sign).",
    )
    return key(required(command))


@click.command(
    "predict",
    epilog=epilog(
        "ichkit predict scans/",
        "ichkit predict export.zip --model work/stacks/default",
        "ichkit predict scans/ --model export/default-blend --labels labels.csv",
        "ichkit predict scans/ -c aspects2020 --gate models/hemorrhage --model models/ischemia",
    ),
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
    "--source",
    help="Read the scans as prepare reads this source: rsna takes every slice of every series [default: one series of "
    "each study].",
)
@click.option("--gate", type=PATH, help="Export of a model that sees the studies first; its positives go no further.")
@click.option(
    "--gate-threshold",
    type=click.FloatRange(0, 1),
    help="Probability from which the first model calls a study positive [default: of its export, else 0.5].",
)
@click.option("--labels", type=PATH, help="Label file (slice_id or study_id): also score the predictions against it.")
@click.option(
    "--subgroup", "subgroups", multiple=True, metavar="COLUMN", help="Column of it that makes subgroups; repeatable."
)
@click.option(
    "--dicom",
    "has_dicom",
    is_flag=True,
    help="Also write heat maps (NIfTI), key slices and structured reports (DICOM) and a triage list (extra dicom-out).",
)
@click.option(
    "--page/--no-page",
    "has_page",
    default=True,
    help="Write predictions.html with images and heat maps [default: page].",
)
@signature_options
@common_options
@planned("ichkit.stages.predict.plan", "PredictOptions")
def predict_command(plan: "PredictPlan") -> None:
    """Predict probabilities for a folder or zip file of head CT, per slice and per study. Research use only."""
    from ichkit.stages.predict.outcome import render, render_steps
    from ichkit.stages.predict.run import run

    prediction = run(plan)
    for table in render_steps(prediction):
        show(table)
    show(render(prediction, plan.task))
    if prediction.judged is not None:
        from ichkit.stages.predict.judge import render as render_judged

        for table in render_judged(prediction.judged, plan.task):
            show(table)


@click.command(
    "watch",
    epilog=epilog(
        "ichkit watch incoming/ --model export/default-blend",
        "ichkit watch incoming/ --model export/default-blend --out watched --settle 60 --no-page",
    ),
)
@click.argument("path", metavar="FOLDER", type=PATH)
@click.option(
    "--model", required=True, shell_complete=complete_model, help="Run, stack or exported model, by name or folder."
)
@click.option("--out", type=PATH, default=Path("watched"), show_default=True, help="Output folder, outside FOLDER.")
@click.option(
    "--settle",
    "settle_seconds",
    type=click.FloatRange(0, max=86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="A study is complete when none of its files was added or changed for this long.",
)
@click.option(
    "--poll",
    "poll_seconds",
    type=click.FloatRange(0, max=86_400, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks at FOLDER.",
)
@click.option("--once", "is_once", is_flag=True, help="Predict the studies that are complete now, and end.")
@click.option("--accept-raw", is_flag=True, help="Accept images whose pixel values may not be Hounsfield units.")
@click.option("--skip-undecodable", is_flag=True, help="Skip images whose decoder is not installed.")
@click.option(
    "--dicom", "has_dicom", is_flag=True, help="Also write heat maps, key slices and structured reports of each study."
)
@click.option(
    "--page/--no-page", "has_page", default=True, help="Write predictions.html of each study [default: page]."
)
@signature_options
@common_options
@planned("ichkit.stages.watch.run", "WatchOptions")
def watch_command(plan: "WatchPlan") -> None:
    """Predict the studies that arrive in FOLDER, each once, until it is stopped. Research use only."""
    from ichkit.stages.watch.run import run

    click.echo(f"watch: {run(plan)}")


@click.command(
    "export",
    epilog=epilog(
        "ichkit export default-blend",
        "ichkit export default --out models/default",
        "ichkit export default --sign private.pem",
    ),
)
@click.argument("model", shell_complete=complete_model)
@click.option("--out", type=PATH, help="Output folder [default: export/NAME].")
@click.option(
    "--sign", type=PATH, metavar="KEY", help="Private key (PEM, elliptic curve) that signs the export (extra sign)."
)
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


@click.command("kernel", epilog=epilog("ichkit kernel default-blend --user me", "ichkit kernel default --with timm"))
@click.argument("model", shell_complete=complete_model)
@click.option("--out", type=PATH, default=Path("kernel"), show_default=True, help="Output folder.")
@click.option("--user", default="USER", help="Your name on Kaggle, for the metadata files.")
@click.option("--wheel", type=PATH, help="Wheel of ichkit [default: made from what runs].")
@click.option(
    "--with",
    "packages",
    multiple=True,
    metavar="PACKAGE",
    help="Also bundle the wheel of this package, in the version installed here; repeatable.",
)
@common_options
@planned("ichkit.stages.kernel.run", "KernelOptions")
def kernel_command(plan: "KernelPlan") -> None:
    """Write the offline inference notebook and the wheel bundle of a Kaggle code competition."""
    from ichkit.stages.kernel.run import run

    click.echo(f"notebook: {run(plan)}")


@click.command("winner", epilog=epilog("ichkit winner default-blend", "ichkit winner default-blend --out archive"))
@click.argument("model", shell_complete=complete_model)
@click.option("--out", type=PATH, default=Path("winner"), show_default=True, help="Output folder.")
@click.option("--wheel", type=PATH, help="Wheel of ichkit [default: made from what runs].")
@submissions_option
@common_options
@planned("ichkit.stages.kernel.winner", "WinnerOptions")
def winner_command(plan: "WinnerPlan") -> None:
    """Write what Kaggle asks of a winner: archive, entry points and model summary with the figures filled in."""
    from ichkit.stages.kernel.winner import run

    click.echo(f"archive: {run(plan)}")
