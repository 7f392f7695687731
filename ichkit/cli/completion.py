"""What the shell offers after a tab: names of configs, recipes, runs and sources; it only looks, and loads no torch."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from ichkit.work.folder import WorkFolder

# Readers are imported inside: completion starts Python anew at every tab, and most tabs need none of them.


def complete_config(_ctx: click.Context, _option: click.Parameter, typed: str) -> list[CompletionItem]:
    """Shipped configs, each with its first comment line; the shell's own files where none begins like that."""
    return _complete_shipped("configs", typed)


def complete_pipeline(_ctx: click.Context, _option: click.Parameter, typed: str) -> list[CompletionItem]:
    """Shipped recipes, likewise."""
    return _complete_shipped("pipelines", typed)


def complete_training_source(_ctx: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    """Sources that bring training data, those of `ICHKIT_PLUGINS` included."""
    from ichkit.core.plugins import load_plugins
    from ichkit.sources.table import training_sources

    load_plugins()
    return _starting(training_sources(), typed)


def complete_run(ctx: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    """Runs of `--work`, finished or not."""
    from ichkit.work.inventory import take_inventory

    return _starting(list(take_inventory(_work(ctx)).runs), typed)


def complete_runs(ctx: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    """Runs of `--work` behind those that were typed already, separated by commas."""
    from ichkit.work.inventory import take_inventory

    before, comma, last = typed.rpartition(",")
    names = set(take_inventory(_work(ctx)).runs) - {*before.split(",")}
    return [f"{before}{comma}{name}" for name in _starting(sorted(names), last)]


def complete_source(ctx: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    """Whatever of `--work` can be scored and submitted: runs, and every kind of every stack."""
    from ichkit.work.inventory import take_inventory

    return _starting(take_inventory(_work(ctx)).source_names, typed)


def complete_model(ctx: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
    """The same names; the shell's own folders where none begins like that."""
    found = [CompletionItem(name) for name in complete_source(ctx, option, typed)]
    return found or [CompletionItem(typed, type="dir")]


def _complete_shipped(folder: str, typed: str) -> list[CompletionItem]:
    from ichkit.cli.settings import list_shipped

    shipped = list_shipped(folder)
    found = [CompletionItem(name, help=shipped[name]) for name in _starting(list(shipped), typed)]
    return found or [CompletionItem(typed, type="file")]


def _starting(names: list[str], typed: str) -> list[str]:
    return [name for name in names if name.startswith(typed)]


def _work(ctx: click.Context) -> WorkFolder:
    """The work folder of the line so far, else of the environment or the default."""
    named = ctx.params.get("work")
    return WorkFolder(named if isinstance(named, Path) else Path("work"))
