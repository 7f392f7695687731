"""What all commands share: their options, how failures end, how tables are shown."""

import errno
import functools
import itertools
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource
from rich.console import Console

from ichkit.cli.completion import complete_config
from ichkit.core.config import Config, load_config
from ichkit.core.errors import IchkitError, Stopped, nearest
from ichkit.core.plugins import add_plugins
from ichkit.core.progress import logger
from ichkit.show.table import Table
from ichkit.show.terminal import Printable
from ichkit.work.folder import WorkFolder

PATH = click.Path(path_type=Path)
_PACKAGE = Path(__file__).resolve().parents[1]
_PIPE_WIDTH = 140
_UNFORESEEN = 1
_WHOLE = 1000
"""Characters of a summary in `--help`: all of it, which wraps."""
_TYPED = "ichkit.typed"


class CommandGroup(click.Group):
    """Commands in the order of the work; a failure is one message and an exit code; other words get the nearest.

    Args:
        sections: title to the commands that `--help` lists below it; without any it lists all below "Commands".
    """

    def __init__(self, *args: Any, sections: dict[str, tuple[str, ...]] | None = None, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order they are defined."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command with its whole summary, by section."""
        for title, names in (self.sections or {"Commands": tuple(self.commands)}).items():
            with formatter.section(title):
                summaries = [(name, self.commands[name].get_short_help_str(limit=_WHOLE)) for name in names]
                formatter.write_dl(summaries)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads `help` and `version` as the options they stand for."""
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        elif args == ["version"]:
            args = ["--version"]
        ctx.meta[_TYPED] = args
        return super().parse_args(ctx, args)

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
        except click.NoSuchOption as error:
            raise _suggest_setting(error, ctx.meta[_TYPED]) from error
        except IchkitError as error:
            _fail(ctx, str(error), error.exit_code)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read the output has gone; click knows what to do
                raise
            message = _explain(error)
            if message is None:
                _fail(ctx, _say_unforeseen(error), _UNFORESEEN)
            _fail(ctx, message, IchkitError.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted. Run the same command again to go on.", Stopped.exit_code)
        except Exception as error:
            _fail(ctx, _say_unforeseen(error), _UNFORESEEN)


def _suggest_setting(error: click.NoSuchOption, typed: list[str]) -> click.UsageError:
    """The same error, or where a setting is called like the option, one that says how to set it."""
    from ichkit.cli.settings import find_setting

    takes_settings = error.ctx is not None and any(option.name == "overrides" for option in error.ctx.command.params)
    setting = find_setting(error.option_name) if takes_settings else None
    if setting is None:
        return error
    following = [*typed, ""]
    values = [after for word, after in itertools.pairwise(following) if word == error.option_name]
    values += [word.partition("=")[2] for word in typed if word.startswith(f"{error.option_name}=")]
    value = values[0] if values and values[0] and not values[0].startswith("--") else "VALUE"
    return click.UsageError(
        f"no such option: {error.option_name}. It is a setting: use --set {setting}={value}", error.ctx
    )


def _explain(error: OSError) -> str | None:
    """What the user can mend about a file or a disk; None where nothing is known."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk: no room left at {error.filename}. What was finished stays valid."
    if error.filename is not None and error.strerror is not None:
        return (
            f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}. Check the path and what this user "
            "may do there, then run the same command again."
        )
    return None


def _say_unforeseen(error: Exception) -> str:
    """One message for a fault of ours: what and where, without the values that a traceback would show."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents] or frames
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
    return (
        f"an error that nobody foresaw: {type(error).__name__} in {where}. What was finished stays valid. Please "
        "report it where you have ichkit from, with what the same command prints with --debug and with "
        "`ichkit doctor`; strike out names and ids of patients first."
    )


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    if logger.isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    click.echo(f"ichkit: {message}", err=True)
    ctx.exit(code)


class Settings:
    """The options every command has."""

    def __init__(self, config: str, is_config_named: bool, overrides: tuple[str, ...], work: Path) -> None:
        self.config_name, self.is_config_named = config, is_config_named
        self.overrides, self.work = overrides, WorkFolder(work)

    def load(self) -> Config:
        """The configuration; read when a command asks for it."""
        return load_config(self.config_name, self.overrides)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds -c, --set, --work, --plugin, --quiet and --debug, and hands them over as one `Settings`."""

    @click.option(
        "-c",
        "--config",
        default="default",
        show_default=True,
        is_eager=True,
        shell_complete=complete_config,
        help="A shipped config's name, or a YAML file.",
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
    @click.option(
        "--plugin",
        "plugins",
        multiple=True,
        metavar="FILE",
        type=PATH,
        help="A Python file that adds rows to tables, see docs/extend.md (env ICHKIT_PLUGINS); repeatable.",
    )
    @click.option("--quiet", is_flag=True, help="Warnings and results only.")
    @click.option("--debug", is_flag=True, help="Tracebacks of every error, and everything that is logged.")
    @functools.wraps(command)
    def wrapped(
        config: str,
        overrides: tuple[str, ...],
        work: Path,
        plugins: tuple[Path, ...],
        quiet: bool,
        debug: bool,
        **options: Any,
    ) -> Any:
        _set_up_logging(quiet, debug)
        if plugins:
            add_plugins(plugins)
        is_named = click.get_current_context().get_parameter_source("config") is ParameterSource.COMMANDLINE
        return command(Settings(config, is_named, overrides, work), **options)

    return wrapped


def _set_up_logging(quiet: bool, debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)


def submissions_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --submissions."""
    return click.option(
        "--submissions",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("submissions"),
        show_default=True,
        help="Where submissions and the board are kept.",
    )(command)


def show(table: Table) -> None:
    """Prints a table; wide enough for every column where the output is a file or a pipe."""
    console = Console()
    Console(width=None if console.is_terminal else _PIPE_WIDTH).print(Printable(table))


def epilog(*examples: str) -> str:
    """Examples for the end of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in examples)
