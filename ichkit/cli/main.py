"""The command line: each command is a few lines that call one stage."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ichkit.cli.completion import complete_run, complete_runs, complete_source, complete_training_source
from ichkit.cli.config import config_commands
from ichkit.cli.model import explain_command, export_command, predict_command
from ichkit.cli.plan import (
    phantom_counts,
    plan_evaluate,
    plan_leaderboard,
    plan_phantom,
    plan_prepare,
    plan_report,
    plan_stack,
    plan_submit,
    plan_train,
    with_dry_run,
)
from ichkit.cli.run import demo, run
from ichkit.cli.terminal import PATH, CommandGroup, Settings, common_options, epilog, show, submissions_option
from ichkit.core.tasks import find_task

# Stages are imported inside the commands: torch alone takes seconds, and `--help` should not.

_TO_MEND = 2


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ichkit")
def main() -> None:
    """Intracranial hemorrhage on head CT: from DICOM to the leaderboard, honestly stacked. Research use only."""


@main.command(epilog=epilog("ichkit phantom phantom --studies 60"))
@click.argument("out", type=PATH)
@click.option("--studies", type=click.IntRange(1), help="Training studies [default: the config's, 60].")
@click.option("--test-studies", type=click.IntRange(0), help="Test studies [default: the config's, 15].")
@click.option("--cq500-studies", type=click.IntRange(0), help="CQ500 studies [default: the config's, 20].")
@click.option("--size", type=click.IntRange(64, 1024), help="Rows and columns [default: the config's, 512].")
@click.option("--seed", type=int, help="[default: the config's, 0].")
@click.option("--masks", is_flag=True, help="Keep the masks of the bleeds.")
@common_options
@with_dry_run(plan_phantom)
def phantom(settings: Settings, out: Path, masks: bool, seed: int | None, **counts: int | None) -> None:
    """Write synthetic head CT as DICOM: OUT/rsna and OUT/cq500, to try everything without data."""
    from ichkit.phantom.writer import write_phantom

    config = settings.load()
    write_phantom(
        out,
        **phantom_counts(settings, counts),
        seed=config.seed if seed is None else seed,
        keep_masks=masks,
        workers=config.prepare.workers,
    )


@main.command(
    epilog=epilog(
        "ichkit prepare --rsna data/rsna --cq500 data/cq500", "ichkit prepare --folder scans/ --labels labels.csv"
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
@click.option("--labels", type=PATH, help="Their labels: a CSV with slice_id or study_id, and a column per class.")
@click.option("--series-override", type=PATH, help="Series chosen by hand: a CSV with study_id, series.")
@click.option("--limit-studies", type=click.IntRange(1), help="Only so many studies of each split.")
@click.option("--fresh", is_flag=True, help="Start over; folds.csv is kept.")
@click.option("--new-folds", is_flag=True, help="Deal the folds anew: earlier runs no longer fit.")
@click.option("--folds", "folds_file", type=PATH, help="Import folds from a CSV (patient_id, fold).")
@click.option("--strict", is_flag=True, help="Stop at the first file that cannot be read.")
@click.option(
    "--backend",
    type=click.Choice(("processes", "ray")),
    help="Processes of this machine, or a Ray cluster (env RAY_ADDRESS; extra ray) [default: the config's, processes].",
)
@common_options
@with_dry_run(plan_prepare)
def prepare(settings: Settings, **options: Any) -> None:
    """DICOM to a compressed Hounsfield store with patient-wise folds."""
    from ichkit.stages.prepare import run as stage

    stage.run(settings.load(), settings.work, stage.PrepareOptions(**options))


def _parse_folds(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> list[int] | None:
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    if not words or "all" in words:
        return None
    if not all(word.isdigit() for word in words):
        raise click.BadParameter(f'expected a number, numbers such as 0,1, or "all"; found {",".join(words)}')
    return sorted({int(word) for word in words})


@main.command(epilog=epilog("ichkit train --fold 0", "ichkit train -c resnet50-midl --fold 0,1"))
@click.option("--fold", "folds", multiple=True, callback=_parse_folds, help='A fold, "0,1", or "all" (default).')
@click.option("--run", "run_name", shell_complete=complete_run, help="Name of the run [default: the config's].")
@click.option("--fresh", is_flag=True, help="Train the folds again from the start.")
@click.option("--embeddings", is_flag=True, help="Keep what the network sees before its last layer, for stage 2.")
@common_options
@with_dry_run(plan_train)
def train(settings: Settings, folds: list[int] | None, run_name: str | None, fresh: bool, embeddings: bool) -> None:
    """Stage 1: train the 2D network fold by fold, and write its descriptors of what it has not seen."""
    from ichkit.stages.train import run as stage

    config = settings.load("train.embeddings=true") if embeddings else settings.load()
    stage.run(config, settings.work, run_name=run_name or settings.run_name, folds=folds, fresh=fresh)


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
@with_dry_run(plan_stack)
def stack(settings: Settings, runs: list[str] | None, name: str | None) -> None:
    """Stage 2: axial fusion, LightGBM and their blend on out-of-fold descriptors."""
    from ichkit.stages.stack import run as stage
    from ichkit.stages.stack.facts import render

    for table in render(stage.run(settings.load(), settings.work, runs=runs, name=name)):
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
@with_dry_run(plan_evaluate)
def evaluate(
    settings: Settings, source: str | None, is_whole: bool, submission: Path | None, truth: Path | None
) -> None:
    """Score every run and stack: weighted log loss, AUC, CQ500, each with its interval."""
    from ichkit.stages.scores import evaluate as stage
    from ichkit.stages.scores import summary

    if (submission is None) != (truth is None):
        raise click.UsageError(
            "--submission and --truth go together: the file to score, and the labels to score it with."
        )
    config = settings.load()
    if submission is not None and truth is not None:
        show(summary.render_submission(stage.score_submission(submission, truth, find_task(config.task))))
        return
    stage.run(config, settings.work)
    for table in summary.render(settings.work, find_task(config.task), source, is_whole=is_whole):
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
@with_dry_run(plan_submit)
def submit(settings: Settings, source: str | None, uploads: bool, submissions: Path) -> None:
    """Write the submission of a source, and the leaderboard."""
    from ichkit.stages.scores import leaderboard as board
    from ichkit.stages.scores import submit as stage

    config = settings.load()
    made = stage.run(config, settings.work, submissions, source)
    if uploads:
        from ichkit.stages.scores.upload import upload, what_next

        click.echo(f"kaggle: {upload(submissions, made.source.name)}\n{what_next(made.source.name)}")
    task = find_task(config.task)
    show(board.render(settings.work, board.build(settings.work, submissions, task), task))


@main.command(epilog=epilog("ichkit leaderboard", "ichkit leaderboard --record default-blend --private 0.0473"))
@click.option("--record", metavar="NAME", help="A submission whose scores came back from the site.")
@click.option("--public", "public_score", type=float, help="Its public score.")
@click.option("--private", "private_score", type=float, help="Its private score.")
@submissions_option
@common_options
@with_dry_run(plan_leaderboard)
def leaderboard(
    settings: Settings, record: str | None, public_score: float | None, private_score: float | None, submissions: Path
) -> None:
    """Print the board, or record the site's scores of a submission."""
    from ichkit.stages.scores import leaderboard as stage

    config = settings.load()
    if record is None and (public_score is not None or private_score is not None):
        raise click.UsageError("--public and --private belong to a submission: name it with --record NAME.")
    if record is not None:
        board = stage.record(config, settings.work, submissions, record, public_score, private_score)
    else:
        board = stage.run(config, settings.work, submissions)
    show(stage.render(settings.work, board, find_task(config.task)))


main.add_command(predict_command)
main.add_command(export_command)
main.add_command(explain_command)


@main.command(epilog=epilog("ichkit report"))
@submissions_option
@common_options
@with_dry_run(plan_report)
def report(settings: Settings, submissions: Path) -> None:
    """One self-contained HTML page: the board, the curves, what it was made from."""
    from ichkit.stages.report import run as stage

    stage.run(settings.load(), settings.work, submissions)


main.add_command(run)
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
