"""`ichkit run` and `ichkit demo`: several commands in order, each as if it were typed."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ichkit.cli.completion import complete_pipeline
from ichkit.cli.terminal import PATH, Settings, common_options, epilog
from ichkit.core.errors import ArtifactError, DataError
from ichkit.core.progress import logger

_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what each command would do; write nothing.")
_DEMO = "demo"


@click.command("run", epilog=epilog("ichkit run midl2020 --dry-run", "ichkit run demo --set train.epochs=1"))
@click.argument("pipeline", shell_complete=complete_pipeline)
@_DRY_RUN
@common_options
def run_command(settings: Settings, pipeline: str, dry_run: bool) -> None:
    """Run a recipe of pipelines/, by name or file: the commands above, in order."""
    _run_pipeline(settings, pipeline, dry_run=dry_run)


@click.command(epilog=epilog("ichkit demo", "ichkit demo /tmp/ichkit --set phantom.studies=20"))
@click.argument("folder", type=PATH, default=Path("ichkit-demo"))
@_DRY_RUN
@common_options
def demo(settings: Settings, folder: Path, dry_run: bool) -> None:
    """Everything on synthetic data inside FOLDER, in about five minutes on two cores: no data, no GPU needed."""
    inside = Settings(settings.config_name, settings.is_config_named, settings.overrides, Path("work"))
    if dry_run and not folder.is_dir():
        _show_demo(settings, folder)
        return
    if not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        _run_pipeline(inside, _DEMO, dry_run=dry_run)
        if not dry_run:
            click.echo(f"Everything is in {Path.cwd()}: work/report.html, submissions/leaderboard.csv, phantom/.")


def _show_demo(settings: Settings, folder: Path) -> None:
    """The plan of a demo whose folder is not there yet: its commands, and the disk of its phantom."""
    from ichkit.cli.pipeline import read_pipeline
    from ichkit.core.config import load_config
    from ichkit.phantom.writer import PhantomOptions, plan
    from ichkit.show.plan import format_bytes

    config = load_config(settings.config_name if settings.is_config_named else _DEMO, settings.overrides)
    for words in read_pipeline(_DEMO, _commands()):
        click.echo(f"ichkit {' '.join(words)}")
    num_bytes = plan(config, None, PhantomOptions(folder / "phantom")).num_bytes
    click.echo(f"All of it in {folder}; the phantom alone takes about {format_bytes(num_bytes)}.")
    click.echo("Nothing was written (--dry-run).")


def _commands() -> Mapping[str, click.Command]:
    """Every command there is, by name."""
    root = click.get_current_context().find_root().command
    assert isinstance(root, click.Group)
    return root.commands


def _run_pipeline(settings: Settings, name: str, *, dry_run: bool) -> None:
    """Calls each command of a recipe as if it were typed; what was set for all is handed to each."""
    from ichkit.cli.pipeline import read_pipeline

    shared = ["--work", str(settings.work.root)]
    # The last of two values counts, so these go behind the recipe's own.
    shared += ["--config", settings.config_name] if settings.is_config_named else []
    shared += [word for text in settings.overrides for word in ("--set", text)]
    if logger.isEnabledFor(logging.DEBUG):
        shared.append("--debug")
    elif not logger.isEnabledFor(logging.INFO):
        shared.append("--quiet")
    will_change = False
    for words in read_pipeline(name, _commands()):
        click.echo(f"$ ichkit {' '.join(words)}", err=True)
        if dry_run:
            will_change = _plan_step([*words, *shared], will_change)
            continue
        root = click.get_current_context().find_root().command
        code = root.main([*words, *shared], standalone_mode=False, prog_name="ichkit")
        if isinstance(code, int) and code:
            click.get_current_context().exit(code)


def _plan_step(words: list[str], will_change: bool) -> bool:
    """Shows what one command of a recipe would do; returns whether it or one before it would change anything.

    What a command finds depends on those before it: as soon as one of them has work to do, a plan is a first guess, and
    there is none where the command's input is not there yet.
    """
    command = _commands()[words[0]]
    if not any(option.name == "dry_run" for option in command.params):
        click.echo("not planned: the command has no --dry-run")
        return will_change
    with command.make_context(f"ichkit {words[0]}", [*words[1:], "--dry-run"]) as context:
        try:
            plan: Any = command.invoke(context)
        except (ArtifactError, DataError) as error:
            if not will_change:
                raise
            click.echo(f"known once the commands before it have run (now: {error})")
            return True
    return will_change or plan is None or not plan.is_idle
