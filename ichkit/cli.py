"""The command line: each command is a few lines that call one stage."""

import errno
import functools
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from ichkit.core.artifacts import read_table
from ichkit.core.config import Config, load_config
from ichkit.core.errors import DiskFullError, IchkitError, Stopped, nearest
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import logger
from ichkit.core.tasks import find_task

# Stages are imported inside the commands: torch alone takes seconds, and `--help` should not.

_DAMAGED = 2
_PIPE_WIDTH = 140


class _Group(click.Group):
    """Commands in the order of the work; a failure is one message and an exit code; other words get the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order they are defined."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name, or the nearest spelling in the message."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message.rstrip('.')}. {nearest(args[0], self.commands)}", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command and turns what a user can mend into one message."""
        try:
            return super().invoke(ctx)
        except IchkitError as error:
            _fail(ctx, str(error), error.exit_code)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _fail(
                ctx, f"disk: no room left at {error.filename}. What was finished stays valid.", DiskFullError.exit_code
            )
        except KeyboardInterrupt:
            _fail(ctx, "interrupted. Run the same command again to go on.", Stopped.exit_code)


def _fail(ctx: click.Context, message: str, code: int) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    click.echo(f"ichkit: {message}", err=True)
    ctx.exit(code)


class _Settings:
    """The options every command has."""

    def __init__(self, config: str, is_config_named: bool, overrides: tuple[str, ...], work: Path) -> None:
        self.config_name, self.is_config_named = config, is_config_named
        self.overrides, self.work = overrides, WorkFolder(work)

    def load(self) -> Config:
        """The configuration; read when a command asks for it."""
        return load_config(self.config_name, self.overrides)


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds -c, --set, --work, --quiet and --debug, and hands them over as one `_Settings`."""

    @click.option(
        "-c", "--config", default="default", show_default=True, help="A shipped config's name, or a YAML file."
    )
    @click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Overrides one value; repeatable."
    )
    @click.option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("work"),
        envvar="ICHKIT_WORK",
        show_default=True,
        help="Where everything is kept (env ICHKIT_WORK).",
    )
    @click.option("--quiet", is_flag=True, help="Warnings and results only.")
    @click.option("--debug", is_flag=True, help="Tracebacks, and everything that is logged.")
    @functools.wraps(command)
    def wrapped(config: str, overrides: tuple[str, ...], work: Path, quiet: bool, debug: bool, **options: Any) -> Any:
        _set_up_logging(quiet, debug)
        is_named = click.get_current_context().get_parameter_source("config") is ParameterSource.COMMANDLINE
        return command(_Settings(config, is_named, overrides, work), **options)

    return wrapped


def _set_up_logging(quiet: bool, debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)


def _submissions_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--submissions",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("submissions"),
        show_default=True,
        help="Where submissions and the board are kept.",
    )(command)


def _show(table: Table) -> None:
    """Prints a table; wide enough for every column where the output is a file or a pipe."""
    console = Console()
    Console(width=None if console.is_terminal else _PIPE_WIDTH).print(table)


_PATH = click.Path(path_type=Path)


def _epilog(*examples: str) -> str:
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in examples)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ichkit")
def main() -> None:
    """Intracranial hemorrhage on head CT: from DICOM to the leaderboard, honestly stacked. Research use only."""


@main.command(epilog=_epilog("ichkit phantom phantom --studies 60"))
@click.argument("out", type=_PATH)
@click.option("--studies", type=click.IntRange(1), help="Training studies [default: the config's, 60].")
@click.option("--test-studies", type=click.IntRange(0), help="Test studies [default: the config's, 15].")
@click.option("--cq500-studies", type=click.IntRange(0), help="CQ500 studies [default: the config's, 20].")
@click.option("--size", type=click.IntRange(64, 1024), help="Rows and columns [default: the config's, 512].")
@click.option("--seed", type=int, help="[default: the config's, 0].")
@click.option("--masks", is_flag=True, help="Keep the masks of the bleeds.")
@_common
def phantom(settings: _Settings, out: Path, masks: bool, seed: int | None, **counts: int | None) -> None:
    """Write synthetic head CT as DICOM: OUT/rsna and OUT/cq500, to try everything without data."""
    from ichkit.phantom.writer import write_phantom

    config = settings.load()
    asked = {name: getattr(config.phantom, name) if count is None else count for name, count in counts.items()}
    write_phantom(
        out,
        **asked,
        seed=config.seed if seed is None else seed,
        keep_masks=masks,
        workers=config.prepare.workers,
    )


@main.command(epilog=_epilog("ichkit prepare --rsna data/rsna --cq500 data/cq500"))
@click.option("--rsna", type=_PATH, help="RSNA 2019, a folder or a zip (env ICHKIT_RSNA; default data/rsna).")
@click.option("--cq500", type=_PATH, help="CQ500, a folder (env ICHKIT_CQ500; default data/cq500); optional.")
@click.option("--limit-studies", type=click.IntRange(1), help="Only so many studies of each split.")
@click.option("--fresh", is_flag=True, help="Start over; folds.csv is kept.")
@click.option("--new-folds", is_flag=True, help="Deal the folds anew: earlier runs no longer fit.")
@click.option("--folds", "folds_file", type=_PATH, help="Import folds from a CSV (patient_id, fold).")
@click.option("--strict", is_flag=True, help="Stop at the first file that cannot be read.")
@_common
def prepare(settings: _Settings, **options: Any) -> None:
    """DICOM to a compressed Hounsfield store with patient-wise folds."""
    from ichkit.stages import prepare as stage

    stage.run(settings.load(), settings.work, stage.PrepareOptions(**options))


def _parse_folds(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> list[int] | None:
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    if not words or "all" in words:
        return None
    if not all(word.isdigit() for word in words):
        raise click.BadParameter(f'expected a number, numbers such as 0,1, or "all"; found {",".join(words)}')
    return sorted({int(word) for word in words})


@main.command(epilog=_epilog("ichkit train --fold 0", "ichkit train -c resnet50-midl --fold 0,1"))
@click.option("--fold", "folds", multiple=True, callback=_parse_folds, help='A fold, "0,1", or "all" (default).')
@click.option("--run", "run_name", help="Name of the run [default: the config's].")
@click.option("--fresh", is_flag=True, help="Train the folds again from the start.")
@_common
def train(settings: _Settings, folds: list[int] | None, run_name: str | None, fresh: bool) -> None:
    """Stage 1: train the 2D network fold by fold, and write its descriptors of what it has not seen."""
    from ichkit.stages import train as stage

    name = run_name or Path(settings.config_name).stem
    stage.run(settings.load(), settings.work, run_name=name, folds=folds, fresh=fresh)


@main.command(epilog=_epilog("ichkit stack", "ichkit stack --runs default,resnet50-midl"))
@click.option("--runs", help="Runs, separated by commas [default: all that are complete].")
@click.option("--name", help="Name of the stack [default: the runs joined by +].")
@_common
def stack(settings: _Settings, runs: str | None, name: str | None) -> None:
    """Stage 2: axial fusion, LightGBM and their blend on out-of-fold descriptors."""
    from ichkit.stages import stack as stage

    chosen = [run.strip() for run in runs.split(",") if run.strip()] if runs else None
    stage.run(settings.load(), settings.work, runs=chosen, name=name)


@main.command(epilog=_epilog("ichkit evaluate", "ichkit evaluate --submission mine.csv --truth labels.csv"))
@click.option("--submission", type=_PATH, help="Score this submission file instead (ID,Label).")
@click.option("--truth", type=_PATH, help="Its labels (ID,Label).")
@_common
def evaluate(settings: _Settings, submission: Path | None, truth: Path | None) -> None:
    """Score every run and stack: weighted log loss, AUC, CQ500, each with its interval."""
    from ichkit.stages import evaluate as stage

    if (submission is None) != (truth is None):
        raise click.UsageError(
            "--submission and --truth go together: the file to score, and the labels to score it with."
        )
    config = settings.load()
    if submission is not None and truth is not None:
        scores = stage.score_submission(submission, truth, find_task(config.task))
    else:
        stage.run(config, settings.work)
        scores = read_table(settings.work.scores / stage.SCORES_NAME)
    _show(stage.render(scores))


@main.command(epilog=_epilog("ichkit submit", "ichkit submit --source default-blend"))
@click.option("--source", help="A run or stack of the board [default: the best complete one].")
@_submissions_option
@_common
def submit(settings: _Settings, source: str | None, submissions: Path) -> None:
    """Write the submission of a source, and the leaderboard."""
    from ichkit.stages import leaderboard as board
    from ichkit.stages import submit as stage

    config = settings.load()
    stage.run(config, settings.work, submissions, source)
    task = find_task(config.task)
    _show(board.render(board.build(settings.work, submissions, task), task))


@main.command(epilog=_epilog("ichkit leaderboard", "ichkit leaderboard --record default-blend --private 0.0473"))
@click.option("--record", metavar="NAME", help="A submission whose scores came back from the site.")
@click.option("--public", "public_score", type=float, help="Its public score.")
@click.option("--private", "private_score", type=float, help="Its private score.")
@_submissions_option
@_common
def leaderboard(
    settings: _Settings, record: str | None, public_score: float | None, private_score: float | None, submissions: Path
) -> None:
    """Print the board, or record the site's scores of a submission."""
    from ichkit.stages import leaderboard as stage

    config = settings.load()
    if record is None and (public_score is not None or private_score is not None):
        raise click.UsageError("--public and --private belong to a submission: name it with --record NAME.")
    if record is not None:
        board = stage.record(config, settings.work, submissions, record, public_score, private_score)
    else:
        board = stage.run(config, settings.work, submissions)
    _show(stage.render(board, find_task(config.task)))


@main.command(epilog=_epilog("ichkit predict scans/", "ichkit predict export.zip --model work/stacks/default"))
@click.argument("dicom_path", type=_PATH)
@click.option("--model", help="A run or stack, by name or folder [default: what submit would take].")
@click.option("--out", type=_PATH, default=Path("predictions"), show_default=True, help="Where the tables go.")
@_common
def predict(settings: _Settings, dicom_path: Path, model: str | None, out: Path) -> None:
    """Probabilities for any folder or zip of head CT, per slice and per study. Research use only."""
    from ichkit.stages import predict as stage

    config = settings.load()
    made = stage.run(config, settings.work, dicom_path, model=model, out=out)
    _show(stage.make_table(made, find_task(config.task)))


@main.command(epilog=_epilog("ichkit report"))
@_submissions_option
@_common
def report(settings: _Settings, submissions: Path) -> None:
    """One self-contained HTML page: the board, the curves, what it was made from."""
    from ichkit.stages import report as stage

    stage.run(settings.load(), settings.work, submissions)


@main.command(epilog=_epilog("ichkit run midl2020", "ichkit run demo --set train.epochs=1"))
@click.argument("pipeline")
@_common
def run(settings: _Settings, pipeline: str) -> None:
    """Run a recipe of pipelines/, by name or file: the commands above, in order."""
    _run_pipeline(settings, pipeline)


@main.command(epilog=_epilog("ichkit demo", "ichkit demo /tmp/ichkit --set phantom.studies=20"))
@click.argument("folder", type=_PATH, default=Path("ichkit-demo"))
@_common
def demo(settings: _Settings, folder: Path) -> None:
    """Everything on synthetic data inside FOLDER, in about five minutes on two cores: no data, no GPU needed."""
    import contextlib

    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        inside = _Settings(settings.config_name, settings.is_config_named, settings.overrides, Path("work"))
        _run_pipeline(inside, "demo")
        click.echo(f"Everything is in {Path.cwd()}: work/report.html, submissions/leaderboard.csv, phantom/.")


def _run_pipeline(settings: _Settings, name: str) -> None:
    """Calls each command of a recipe as if it were typed; what was set for all is handed to each."""
    from ichkit.stages.pipeline import read_pipeline

    shared = ["--work", str(settings.work.root)]
    # The last of two values counts, so these go behind the recipe's own.
    shared += ["--config", settings.config_name] if settings.is_config_named else []
    shared += [word for text in settings.overrides for word in ("--set", text)]
    if logger.isEnabledFor(logging.DEBUG):
        shared.append("--debug")
    elif not logger.isEnabledFor(logging.INFO):
        shared.append("--quiet")
    for words in read_pipeline(name, main.commands):
        click.echo(f"$ ichkit {' '.join(words)}", err=True)
        code = main.main([*words, *shared], standalone_mode=False, prog_name="ichkit")
        if isinstance(code, int) and code:
            click.get_current_context().exit(code)


@main.command(epilog=_epilog("ichkit verify"))
@_submissions_option
@_common
def verify(settings: _Settings, submissions: Path) -> None:
    """Check the digests of every artifact and submission."""
    from ichkit.stages import verify as stage

    damage = stage.run(settings.work, submissions)
    for line in damage:
        click.echo(line)
    if damage:
        click.get_current_context().exit(_DAMAGED)
    click.echo("every artifact is as it was written")
