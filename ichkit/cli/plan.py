"""Decorator of every command that plans first: options as one object, and `--dry-run`."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import click

from ichkit.cli.terminal import Settings, show


def planned(module: str, options_class: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --dry-run, and calls the command with its plan instead of its options; goes below `common_options`.

    Args:
        module: has `plan(config, work, options)`; imported when the command is called, because importing torch
            takes seconds and `--help` should not.
        options_class: the class of the options in it, whose attributes are the command's parameters.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--dry-run", is_flag=True, help="Show the steps, disk space and time; write nothing.")
        @functools.wraps(command)
        def wrapped(settings: Settings, dry_run: bool, **options: Any) -> Any:
            stage = importlib.import_module(module)
            plan = stage.plan(settings.load(), settings.work, getattr(stage, options_class)(**options))
            if not dry_run:
                return command(plan)
            from ichkit.show.plan import render

            show(render(plan, click.get_current_context().command_path))
            return plan

        return wrapped

    return decorate
