"""The commands of `ichkit config`."""

import click

from ichkit.cli.completion import complete_config
from ichkit.cli.terminal import CommandGroup, Settings, common_options, epilog


@click.group("config", cls=CommandGroup, epilog=epilog("ichkit config list", "ichkit config show demo"))
def config_commands() -> None:
    """List shipped configs, show all values of one, compare two."""


@config_commands.command("list", epilog=epilog("ichkit config list"))
@common_options
def list_(_settings: Settings) -> None:
    """List the configs and pipelines that ship with ichkit."""
    from ichkit.cli.settings import list_shipped

    for title, folder in (("configs (-c NAME):", "configs"), ("pipelines (ichkit run NAME):", "pipelines")):
        shipped = list_shipped(folder)
        width = max(map(len, shipped))
        click.echo(title)
        for name, line in shipped.items():
            click.echo(f"  {name:{width}}  {line}")


@config_commands.command(
    epilog=epilog("ichkit config show", "ichkit config show demo --set train.epochs=8 > mine.yaml")
)
@click.argument("name", required=False, shell_complete=complete_config)
@common_options
def show(settings: Settings, name: str | None) -> None:
    """Print a whole config (NAME or -c) as loadable YAML; values that differ from the default are marked."""
    from ichkit.cli.settings import BASIS, show_config
    from ichkit.core.config import load_config

    if name is not None and settings.is_config_named:
        raise click.UsageError(f'config show: found "{name}" and -c {settings.config_name}; give only one of them.')
    name = name or settings.config_name
    click.echo(show_config(load_config(name, settings.overrides), load_config(BASIS), name), nl=False)


@config_commands.command(epilog=epilog("ichkit config diff resnet50-midl default"))
@click.argument("old", shell_complete=complete_config)
@click.argument("new", shell_complete=complete_config)
@common_options
def diff(settings: Settings, old: str, new: str) -> None:
    """Print one line for every value that differs between OLD and NEW; --set applies to NEW."""
    from ichkit.cli.settings import compare_configs
    from ichkit.core.config import load_config

    lines = compare_configs(load_config(old), load_config(new, settings.overrides))
    click.echo("\n".join(lines) or f"{old} and {new} do not differ")
