"""Shell completion of configs, pipelines, runs, sources and settings; it only reads, and loads no torch for names."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from ichkit.work.folder import WorkFolder

if TYPE_CHECKING:
    from ichkit.work.inventory import Inventory

_NAMED_VALUES = {
    "task": "ichkit.core.tasks:TASKS",
    "train.backbone": "ichkit.models.descriptor:BACKBONES",
    "train.loss": "ichkit.models.losses:LOSSES",
    "train.centres": "ichkit.engine.sampling:CENTRES",
    "phantom.difficulty": "ichkit.phantom.difficulty:DIFFICULTIES",
    "phantom.kind": "ichkit.phantom.kinds:KINDS",
}
"""Settings whose values are the rows of a table; the table is loaded only for a value of that setting."""
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
    """Runs in `--work`, finished or not."""
    return _starting(list(_inventory(ctx).runs), typed)


def complete_runs(ctx: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    """Runs in `--work`, after those that are typed already, separated by commas."""
    before, comma, last = typed.rpartition(",")
    names = set(_inventory(ctx).runs) - {*before.split(",")}
    return [f"{before}{comma}{name}" for name in _starting(sorted(names), last)]


def complete_source(ctx: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    """Everything in `--work` that can be scored and submitted: runs, and every kind of every stack."""
    return _starting(_inventory(ctx).source_names, typed)


def complete_model(ctx: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
    """The same names, or folders from the shell if none matches."""
    found = [CompletionItem(name) for name in complete_source(ctx, option, typed)]
    return found or [CompletionItem(typed, type="dir")]


def complete_checklist(_ctx: click.Context, _option: click.Parameter, typed: str) -> list[CompletionItem]:
    """Reporting guidelines, each with its description."""
    from ichkit.stages.report.checklists import CHECKLISTS

    return [CompletionItem(name, help=CHECKLISTS[name].description) for name in _starting(list(CHECKLISTS), typed)]


def complete_setting(_ctx: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    """`section.key=` of every setting; behind the sign, the values of a setting that has a fixed choice of them."""
    from ichkit.core.config import Config
    from ichkit.core.config_errors import list_settings

    settings = list(list_settings(Config))
    key, sign, value = typed.partition("=")
    if not sign:
        return _starting([f"{name}=" for name in settings], typed)
    return [f"{key}={choice}" for choice in _starting(_choices(key), value)] if key in settings else []


@add_completion_class
class _Bash(BashComplete):
    """Joins what bash splits at "=", and offers only the part behind the sign, which is what bash replaces."""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, typed = super().get_completion_args()
        if typed == "=" and args:
            return args[:-1], f"{args[-1]}="
        if len(args) > 1 and args[-1] == "=":
            return args[:-2], f"{args[-2]}={typed}"
        return args, typed

    def format_completion(self, item: CompletionItem) -> str:
        key, sign, value = str(item.value).partition("=")
        return f"{item.type},{value if value else key + sign}"


def _choices(key: str) -> list[str]:
    """Values of a setting, by its table, or by its type in the schema of the configuration."""
    from ichkit.core.config import Config

    if key in _NAMED_VALUES:
        module, _, table = _NAMED_VALUES[key].partition(":")
        return sorted(getattr(importlib.import_module(module), table))
    schema = Config.model_json_schema()
    found: dict[str, Any] = schema
    for part in key.split("."):
        found = found["properties"][part]
        found = schema["$defs"][found["$ref"].rpartition("/")[2]] if "$ref" in found else found
    return ["true", "false"] if found.get("type") == "boolean" else list(map(str, found.get("enum", ())))


def _complete_shipped(folder: str, typed: str) -> list[CompletionItem]:
    from ichkit.cli.settings import list_shipped

    shipped = list_shipped(folder)
    found = [CompletionItem(name, help=shipped[name]) for name in _starting(list(shipped), typed)]
    return found or [CompletionItem(typed, type="file")]


def _starting(names: list[str], typed: str) -> list[str]:
    return [name for name in names if name.startswith(typed)]


def _inventory(ctx: click.Context) -> "Inventory":
    """The inventory of the work folder named in the line so far, in the environment, or by default."""
    from ichkit.work.inventory import take_inventory

    named = ctx.params.get("work")
    return take_inventory(WorkFolder(named if isinstance(named, Path) else Path("work")))
