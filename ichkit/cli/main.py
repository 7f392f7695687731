"""The command line: each command is a few lines that call one stage."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ichkit import __version__
from ichkit.cli.completion import complete_run, complete_runs, complete_source, complete_training_source
from ichkit.cli.config import config_commands
from ichkit.cli.external import external_options
from ichkit.cli.model import explain_command, export_command, predict_command
from ichkit.cli.plan import planned
from ichkit.cli.run import demo, run_command
from ichkit.cli.terminal import PATH, CommandGroup, Settings, common_options, epilog, show, submissions_option

if TYPE_CHECKING:
    from ichkit.phantom.writer import PhantomPlan
    from ichkit.stages.prepare.run import PreparePlan
    from ichkit.stages.report.run import ReportPlan
    from ichkit.stages.scores.evaluate import EvaluatePlan, FilePlan
    from ichkit.stages.scores.leaderboard import LeaderboardPlan
    from ichkit.stages.scores.submit import SubmitPlan
    from ichkit.stages.stack.run import StackPlan
    from ichkit.stages.train.run import TrainPlan

# Stages are imported inside the commands: torch alone takes seconds, and `--help` should not.

_TO_MEND = 2


_SECTIONS = {
    "Pipeline, in order": ("prepare", "train", "stack", "evaluate", "submit", "leaderboard", "report"),
    "Use a model": ("predict", "explain", "export"),
    "Synthetic data and recipes": ("demo", "phantom", "run"),
    "Inspect": ("doctor", "verify", "config"),
}


@click.group(
    cls=CommandGroup,
    sections=_SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`ichkit help COMMAND` shows the options of a command and an example.",
)
@click.version_option(__version__, prog_name="ichkit")
def main() -> None:
    """Intracranial hemorrhage on head CT: from DICOM to the leaderboard. Research use only."""


@main.command(epilog=epilog("ichkit phantom phantom --studies 60"))
@click.argument("out", type=PATH)
@click.option("--studies", type=click.IntRange(1), help="Training studies [default: the config's, 60].")
@click.option("--test-studies", type=click.IntRange(0), help="Test studies [default: the config's, 15].")
@click.option("--cq500-studies", type=click.IntRange(0), help="CQ500 studies [default: the config's, 20].")
@click.option("--size", type=click.IntRange(64, 1024), help="Rows and columns [default: the config's, 512].")
@click.option("--seed", type=int, help="[default: the config's, 0].")
@click.option("--masks", "keep_masks", is_flag=True, help="Keep the masks of the bleeds.")
@common_options
@planned("ichkit.phantom.writer", "PhantomOptions")
def phantom(plan: "PhantomPlan") -> None:
    """Write synthetic head CT as DICOM: OUT/rsna and OUT/cq500, to try everything without data."""
    from ichkit.phantom.writer import run

    run(plan)


@main.command(
    epilog=epilog(
        "ichkit prepare --rsna data/rsna --cq500 data/cq500",
        "ichkit prepare --folder scans/ --labels labels.csv",
        "ichkit prepare --external site=scans/ --labels site=labels.csv",
    )
)
@click.option(
    "--source",
    shell_complete=complete_training_source,
    help="Where training data come from: rsna, folder, or a row of your own [default: rsna].",
)
@click.option("--rsna", type=PATH, help="RSNA 2019, a folder or a zip (env ICHKIT_RSNA; default data/rsna).")
@click.option("--cq500", type=PATH, help="CQ500, a folder (env ICHKIT_CQ500; default data/cq500); optional.")
@click.option("--folder", type=PATH, help="Your own scans, a folder or a zip of DICOM, with --labels.")
@click.option("--series-override", type=PATH, help="Series chosen by hand: a CSV with study_id, series.")
@click.option("--limit-studies", type=click.IntRange(1), help="Only so many studies of each split.")
@click.option("--fresh", is_flag=True, help="Start over; folds.csv is kept.")
@click.option("--new-folds", is_flag=True, help="Deal the folds anew: earlier runs no longer fit.")
@click.option("--folds", "folds_file", type=PATH, help="Import folds from a CSV (patient_id, fold).")
@click.option("--strict", is_flag=True, help="Stop at the first file that cannot be read.")
@click.option("--accept-raw", is_flag=True, help="Take images although their values may not be Hounsfield units.")
@click.option("--skip-undecodable", is_flag=True, help="Leave out images whose decoder is not installed.")
@click.option(
    "--backend",
    type=click.Choice(("processes", "ray")),
    help="Processes of this machine, or a Ray cluster (env RAY_ADDRESS; extra ray) [default: the config's, processes].",
)
@common_options
@external_options
@planned("ichkit.stages.prepare.run", "PrepareOptions")
def prepare(plan: "PreparePlan") -> None:
    """DICOM to a compressed Hounsfield store with patient-wise folds."""
    from ichkit.stages.prepare.run import run

    run(plan)


def _parse_folds(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> list[int] | None:
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    if not words or "all" in words:
        return None
    if not all(word.isdigit() for word in words):
        raise click.BadParameter(f'expected a number, numbers such as 0,1, or "all"; found {",".join(words)}')
    return sorted({int(word) for word in words})


def _name_after_config(ctx: click.Context, _option: click.Parameter, given: str | None) -> str:
    """A run without a name is called after its config, which is read first."""
    return given or Path(ctx.params["config"]).stem


@main.command(epilog=epilog("ichkit train --fold 0", "ichkit train -c resnet50-midl --fold 0,1"))
@click.option("--fold", "folds", multiple=True, callback=_parse_folds, help='A fold, "0,1", or "all" (default).')
@click.option(
    "--run",
    "run_name",
    callback=_name_after_config,
    shell_complete=complete_run,
    help="Name of the run [default: the config's].",
)
@click.option("--fresh", is_flag=True, help="Train the folds again from the start.")
@click.option("--embeddings", is_flag=True, help="Keep what the network sees before its last layer, for stage 2.")
@common_options
@planned("ichkit.stages.train.run", "TrainOptions")
def train(plan: "TrainPlan") -> None:
    """Stage 1: train the 2D network fold by fold, and write its descriptors of what it has not seen."""
    from ichkit.stages.train.run import run

    run(plan)


def _parse_runs(_ctx: click.Context, _option: click.Parameter, given: str | None) -> list[str] | None:
    return [run.strip() for run in (given or "").split(",") if run.strip()] or None


@main.command(epilog=epilog("ichkit stack", "ichkit stack --runs default,resnet50-midl"))
@click.option(
    "--runs",
    callback=_parse_runs,
    shell_complete=complete_runs,
    help="Runs, separated by commas [default: all that are complete].",
)
@click.option("--name", help="Name of the stack [default: the runs joined by +].")
@common_options
@planned("ichkit.stages.stack.run", "StackOptions")
def stack(plan: "StackPlan") -> None:
    """Stage 2: axial fusion, LightGBM and their blend on out-of-fold descriptors."""
    from ichkit.stages.stack.facts import render
    from ichkit.stages.stack.run import run

    for table in render(run(plan)):
        show(table)


@main.command(
    epilog=epilog(
        "ichkit evaluate",
        "ichkit evaluate --source default-blend",
        "ichkit evaluate --submission mine.csv --truth labels.csv",
    )
)
@click.option(
    "--source", shell_complete=complete_source, help="Show this run or stack in full [default: the best, less of it]."
)
@click.option("--all", "is_whole", is_flag=True, help="Print every row of scores.parquet.")
@click.option("--submission", type=PATH, help="Score this submission file instead (ID,Label).")
@click.option("--truth", type=PATH, help="Its labels (ID,Label).")
@common_options
@planned("ichkit.stages.scores.evaluate", "EvaluateOptions")
def evaluate(plan: "EvaluatePlan | FilePlan") -> None:
    """Score every run and stack: weighted log loss, AUC, CQ500, each with its interval."""
    from ichkit.stages.scores import summary
    from ichkit.stages.scores.evaluate import FilePlan, run, score_submission

    if isinstance(plan, FilePlan):
        show(summary.render_submission(score_submission(plan.submission, plan.truth, plan.task)))
        return
    run(plan)
    options, task = plan.options, plan.prepared.task
    for table in summary.render(plan.work, task, options.source, is_whole=options.is_whole):
        show(table)


@main.command(epilog=epilog("ichkit submit", "ichkit submit --source default-blend --upload"))
@click.option(
    "--source", shell_complete=complete_source, help="A run or stack of the board [default: the best complete one]."
)
@click.option(
    "--upload", "uploads", is_flag=True, help="Send it to the site, once, by the command kaggle (extra kaggle)."
)
@submissions_option
@common_options
@planned("ichkit.stages.scores.submit", "SubmitOptions")
def submit(plan: "SubmitPlan") -> None:
    """Write the submission of a source, and the leaderboard."""
    from ichkit.stages.scores import leaderboard as board
    from ichkit.stages.scores.submit import run

    name, submissions = run(plan).source.name, plan.options.submissions
    if plan.options.uploads:
        from ichkit.stages.scores.upload import upload, what_next

        click.echo(f"kaggle: {upload(submissions, name)}\n{what_next(name)}")
    work, task = plan.scoring.work, plan.scoring.prepared.task
    show(board.render(work, board.build(work, submissions, task), task))


@main.command(epilog=epilog("ichkit leaderboard", "ichkit leaderboard --record default-blend --private 0.0473"))
@click.option("--record", metavar="NAME", help="A submission whose scores came back from the site.")
@click.option("--public", "public_score", type=float, help="Its public score.")
@click.option("--private", "private_score", type=float, help="Its private score.")
@submissions_option
@common_options
@planned("ichkit.stages.scores.leaderboard", "LeaderboardOptions")
def leaderboard(plan: "LeaderboardPlan") -> None:
    """Print the board, or record the site's scores of a submission."""
    from ichkit.stages.scores.leaderboard import render, run

    show(render(plan.scoring.work, run(plan), plan.scoring.prepared.task))


main.add_command(predict_command)
main.add_command(export_command)
main.add_command(explain_command)


@main.command(epilog=epilog("ichkit report"))
@submissions_option
@common_options
@planned("ichkit.stages.report.run", "ReportOptions")
def report(plan: "ReportPlan") -> None:
    """One self-contained HTML page: the board, the curves, what it was made from."""
    from ichkit.stages.report.run import run

    run(plan)


main.add_command(run_command)
main.add_command(demo)


@main.command(epilog=epilog("ichkit verify"))
@submissions_option
@common_options
def verify(settings: Settings, submissions: Path) -> None:
    """Check the digests of every artifact and submission."""
    from ichkit.stages.doctor import verify as stage

    damage = stage.run(settings.work, submissions)
    for line in damage:
        click.echo(line)
    if damage:
        click.get_current_context().exit(_TO_MEND)
    click.echo("every artifact is as it was written")


@main.command(epilog=epilog("ichkit doctor", "ichkit doctor --json"))
@click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")
@submissions_option
@common_options
def doctor(settings: Settings, submissions: Path, as_json: bool) -> None:
    """This machine, the data and the work folder at a glance, and what to do next."""
    from ichkit.stages.doctor.packages import check_packages

    check_packages()
    from ichkit.stages.doctor import run as stage
    from ichkit.stages.doctor import table

    name = settings.config_name if settings.is_config_named else None
    diagnosis = stage.run(settings.load(), settings.work, submissions, name)
    if as_json:
        click.echo(json.dumps(asdict(diagnosis), indent=2))
    else:
        show(table.render(diagnosis))
        click.echo(f"What to do next: {diagnosis.next.command}\n{diagnosis.next.reason}")
    if diagnosis.problems:
        click.get_current_context().exit(_TO_MEND)


main.add_command(config_commands)
