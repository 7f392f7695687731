"""`ichkit run` and `ichkit demo`: several commands in order, each as if typed."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ichkit.cli.completion import complete_pipeline
from ichkit.cli.terminal import PATH, Settings, common_options, epilog, show
from ichkit.core.errors import ArtifactError, DataError
from ichkit.core.progress import logger
from ichkit.work.folder import WorkFolder

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what each command would do; write nothing.")
_DEMO, _WORK = "demo", "--work"
_SCANS = "phantom/rsna/stage_2_test"


@click.command("run", epilog=epilog("ichkit run midl2020 --dry-run", "ichkit run demo --set train.epochs=1"))
@click.argument("pipeline", shell_complete=complete_pipeline)
@_DRY_RUN
@common_options
def run_command(settings: Settings, pipeline: str, dry_run: bool) -> None:
    """Run a pipeline, a list of ichkit commands: a shipped one by name, or a YAML file."""
    _run_pipeline(settings, pipeline, dry_run=dry_run)


@click.command(epilog=epilog("ichkit demo", "ichkit demo /tmp/ichkit --set phantom.studies=20"))
@click.argument("folder", type=PATH, default=Path("ichkit-demo"))
@_DRY_RUN
@common_options
def demo(settings: Settings, folder: Path, dry_run: bool) -> None:
    """Run the whole pipeline on synthetic data in FOLDER: about five minutes on two cores, no GPU needed."""
    inside = Settings(settings.config_name, settings.is_config_named, settings.overrides, Path("work"))
    if dry_run and not folder.is_dir():
        _show_demo(settings, folder)
        return
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        _run_pipeline(inside, _DEMO, dry_run=dry_run)
        if not dry_run:
            click.echo(f"Outputs in {Path.cwd()}: work/report.html, submissions/leaderboard.csv, phantom/.")
            click.echo(f"Next, in that folder: ichkit predict -c {_DEMO} {_SCANS} --labels {_SCANS}_labels.csv")
            click.echo("It ends in predictions/predictions.html: the test scans in a viewer, with their labels.")


def _show_demo(settings: Settings, folder: Path) -> None:
    """Prints the plan of a demo whose folder does not exist yet: its commands and the size of its phantom."""
    from ichkit.cli.pipeline import read_pipeline
    from ichkit.core.config import load_config
    from ichkit.phantom.writer import PhantomOptions, plan
    from ichkit.show.plan import format_bytes

    config = load_config(settings.config_name if settings.is_config_named else _DEMO, settings.overrides)
    for words in read_pipeline(_DEMO, _commands()):
        click.echo(f"ichkit {' '.join(words)}")
    num_bytes = plan(config, None, PhantomOptions(folder / "phantom")).forecast().num_bytes or 0
    click.echo(f"All outputs go to {folder}; the phantom alone takes about {format_bytes(num_bytes)}.")
    click.echo("Nothing was written (--dry-run).")


def _commands() -> Mapping[str, click.Command]:
    """Every command there is, by name."""
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    return root.commands


def _run_pipeline(settings: Settings, name: str, *, dry_run: bool) -> None:
    """Calls each command of a pipeline as if typed, with the options that were given to all of them."""
    from ichkit.cli.pipeline import read_pipeline

    # The last of two values counts, so these override the pipeline's own.
    shared = ["--config", settings.config_name] if settings.is_config_named else []
    shared += [word for text in settings.overrides for word in ("--set", text)]
    if logger.isEnabledFor(logging.DEBUG):
        shared.append("--debug")
    elif not logger.isEnabledFor(logging.INFO):
        shared.append("--quiet")
    will_change, store = False, None
    for step in read_pipeline(name, _commands()):
        words = _with_work(step, settings.work)
        click.echo(f"$ ichkit {' '.join(step)}", err=True)
        if dry_run:
            will_change, store = _plan_step([*words, *shared], will_change, store)
            continue
        root = click.get_current_context().find_root().command
        code = root.main([*words, *shared], standalone_mode=False, prog_name="ichkit")
        if isinstance(code, int) and code:
            click.get_current_context().exit(code)


def _with_work(step: list[str], work: WorkFolder) -> list[str]:
    """A step in the work folder of the pipeline; a step with --work NAME of its own gets a folder NAME beside that.

    Example:
        >>> _with_work(["train", "--work", "first"], WorkFolder(Path("all/work")))
        ['train', '--work', 'all/first']
    """
    if _WORK not in step:
        return [*step, _WORK, str(work.root)]
    place = step.index(_WORK) + 1
    return [*step[:place], str(work.root.with_name(step[place])), *step[place + 1 :]]


def _plan_step(words: list[str], will_change: bool, store: Any) -> tuple[bool, Any]:
    """Shows what one command of a pipeline would do; returns whether it or an earlier one would change anything.

    The second value is the plan of `prepare`, once there is one: with it the time of training is estimated before
    anything is prepared. What a command finds depends on those before it: once one of them would write, later plans
    are estimates, and a command whose input does not exist yet has none.
    """
    command = _commands()[words[0]]
    if not any(option.name == "dry_run" for option in command.params):
        click.echo("not planned: the command has no --dry-run")
        return will_change, store
    with command.make_context(f"ichkit {words[0]}", [*words[1:], "--dry-run"]) as context:
        try:
            plan: Any = command.invoke(context)
        except (ArtifactError, DataError) as error:
            if not will_change:
                raise
            if words[0] == "train" and store is not None:
                _foresee(context, store)
            else:
                click.echo(f"cannot be planned until the previous commands have run ({error})")
            return True, store
    return will_change or plan is None or not plan.is_idle, plan if words[0] == "prepare" else store


def _foresee(context: click.Context, store: Any) -> None:
    """Shows what `train` with these options would need on a store that was planned but not made."""
    from ichkit.core.config import load_config
    from ichkit.show.plan import render
    from ichkit.stages.train.plan import ForeseenTraining

    given = context.params
    config = load_config(given["config"], given["overrides"])
    num_labelled, num_external = store.count_roles()
    foreseen = ForeseenTraining(
        config, WorkFolder(given["work"]), given["run_name"], num_labelled, num_external, given["time_limit"]
    )
    show(render(foreseen, context.command_path))
