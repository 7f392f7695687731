"""What every command with a plan shares: its options as one object, `--dry-run`, and the plan that is handed on."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import click

from ichkit.cli.terminal import Settings, show


def planned(module: str, options_class: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --dry-run, and calls the command with its plan in place of its options; stands below `common_options`.

    Args:
        module: has `plan(config, work, options)`; imported when the command is called, because torch alone takes
            seconds, and `--help` should not.
        options_class: the class of the options in it, whose attributes are the command's parameters.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--dry-run", is_flag=True, help="Say what would be done, its disk and time; write nothing.")
        @functools.wraps(command)
        def wrapped(settings: Settings, dry_run: bool, **options: Any) -> Any:
            stage = importlib.import_module(module)
            asked = getattr(stage, options_class)(**options)
            if not dry_run:
                return command(stage.plan(settings.load(), settings.work, asked))
            from ichkit.show.plan import render

            plan = stage.plan(settings.load(), settings.work, asked)
            show(render(plan, click.get_current_context().command_path))
            return plan

        return wrapped

    return decorate
