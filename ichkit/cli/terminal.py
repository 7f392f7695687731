"""What all commands share: common options, error messages and exit codes, printing of tables."""

import errno
import functools
import importlib.util
import itertools
import logging
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from ichkit.cli.completion import complete_config, complete_setting
from ichkit.core.errors import IchkitError, Stopped, nearest, shorten
from ichkit.core.plugins import add_plugins
from ichkit.core.progress import logger
from ichkit.work.folder import WorkFolder

if TYPE_CHECKING:
    from ichkit.core.config import Config
    from ichkit.show.table import Table

# Configurations and tables are imported where they are used: `--help` and completion need neither.

PATH = click.Path(path_type=Path)
_PACKAGE = Path(__file__).resolve().parents[1]
_PIPE_WIDTH = 140
_INTERNAL_ERROR = 1
_SUMMARY_CHARACTERS = 1000
"""More than any summary in `--help` has, so that none is shortened."""
_PACKAGES = {
    "cv2": "opencv-python-headless",
    "docx": "python-docx",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""Module to the package that has it, where the names differ."""
_TYPED = "ichkit.typed"
_LONGEST_WORD = 300


class CommandGroup(click.Group):
    """Lists commands in pipeline order, ends an error as one message with an exit code, suggests the nearest spelling.

    Args:
        sections: title to the commands that `--help` lists below it; by default all are listed below "Commands".
    """

    def __init__(self, *args: Any, sections: dict[str, tuple[str, ...]] | None = None, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their definition."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes every command with its whole summary, by section."""
        for title, names in (self.sections or {"Commands": tuple(self.commands)}).items():
            with formatter.section(title):
                summaries = [
                    (name, self.commands[name].get_short_help_str(limit=_SUMMARY_CHARACTERS)) for name in names
                ]
                formatter.write_dl(summaries)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the words `help` and `version` as `--help` and `--version`."""
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        elif args == ["version"]:
            args = ["--version"]
        ctx.meta[_TYPED] = args
        try:
            return super().parse_args(ctx, args)
        except click.ClickException as error:
            raise _shorten_error(error) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name; for an unknown one the message suggests the nearest spelling."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message.rstrip('.')}. {nearest(args[0], self.commands)}", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; an error ends as one message: exit code 2 or as the error says, 1 for an internal error."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as error:
            raise _shorten_error(_suggest_setting(error, ctx.meta[_TYPED])) from error
        except IchkitError as error:
            _fail(ctx, str(error), error.exit_code)
        except click.ClickException as error:
            raise _shorten_error(error) from error
        except (click.Abort, click.exceptions.Exit):
            raise
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of the output has closed it; click handles that
                raise
            message = _describe_os_error(error)
            if message is None:
                _fail(ctx, _describe_internal_error(error), _INTERNAL_ERROR)
            _fail(ctx, message, IchkitError.exit_code)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted. Run the same command again to continue.", Stopped.exit_code)
        except ModuleNotFoundError as error:
            message = _describe_missing_package(error)
            if message is None:
                _fail(ctx, _describe_internal_error(error), _INTERNAL_ERROR)
            _fail(ctx, message, IchkitError.exit_code)
        except Exception as error:
            _fail(ctx, _describe_internal_error(error), _INTERNAL_ERROR)


def _suggest_setting(error: click.NoSuchOption, typed: list[str]) -> click.UsageError:
    """An error that says how to set the setting the option is named like; the same error if there is none."""
    from ichkit.cli.settings import find_setting

    command = None if error.ctx is None else error.ctx.command
    takes_settings = command is not None and any(option.name == "overrides" for option in command.params)
    setting = find_setting(error.option_name, command.name or "") if command and takes_settings else None
    if setting is None:
        return error
    following = [*typed, ""]
    values = [after for word, after in itertools.pairwise(following) if word == error.option_name]
    values += [word.partition("=")[2] for word in typed if word.startswith(f"{error.option_name}=")]
    value = values[0] if values and values[0] and not values[0].startswith("--") else "VALUE"
    return click.UsageError(
        f"no such option: {error.option_name}. It is a setting: use --set {setting}={value}", error.ctx
    )


def _describe_os_error(error: OSError) -> str | None:
    """The message for a file or disk problem that the user can fix; None for any other."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error.filename}: no space left on the disk. Finished outputs stay valid. Free some space, then run the "
            "same command again."
        )
    if error.filename is not None and error.strerror is not None:
        return (
            f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}. Check the path and "
            "its permissions, then run the same command again."
        )
    return None


def _describe_missing_package(error: ModuleNotFoundError) -> str | None:
    """The message for a package that is not installed; None if a module of an installed one is missing."""
    module = (error.name or "").partition(".")[0]
    if not module or importlib.util.find_spec(module) is not None:
        return None
    package = _PACKAGES.get(module, module)
    return (
        f"{package} is not installed. Run `pip install {package}`. In a notebook without internet its wheel must be in "
        f"the bundle: `ichkit kernel MODEL --with {package}`."
    )


def _describe_internal_error(error: Exception) -> str:
    """One message for a bug: error class and line, without the values that a traceback would show."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents] or frames
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
    return (
        f"internal error (a bug in ichkit): {type(error).__name__} in {where}. Finished outputs stay valid. Please "
        "report it to the maintainers with the output of the same command with --debug, and of `ichkit doctor`; "
        "remove patient names and IDs first."
    )


def _fail(ctx: click.Context, message: str, code: int) -> NoReturn:
    if logger.isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    click.echo(f"ichkit: {_cut_words(message)}", err=True)
    ctx.exit(code)


def _shorten_error(error: click.ClickException) -> click.ClickException:
    """The same error; its message has no longer word than `_cut_words` leaves."""
    vars(error)["message"] = _cut_words(error.message)  # final by its type since click 8.2
    return error


def _cut_words(message: str) -> str:
    """The message; words that are longer than any name or path are cut in their middle."""
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda found: shorten(found[0]), message)


class Settings:
    """The values of the options that every command has."""

    def __init__(self, config: str, is_config_named: bool, overrides: tuple[str, ...], work: Path) -> None:
        self.config_name, self.is_config_named = config, is_config_named
        self.overrides, self.work = overrides, WorkFolder(work)

    def load(self) -> "Config":
        """Reads the configuration."""
        from ichkit.core.config import load_config

        return load_config(self.config_name, self.overrides)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds -c, --set, --work, --plugin, --quiet and --debug, and passes them as one `Settings`."""

    @click.option(
        "-c",
        "--config",
        default="default",
        show_default=True,
        is_eager=True,
        shell_complete=complete_config,
        help="Name of a shipped config, or a YAML file.",
    )
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        shell_complete=complete_setting,
        help="Override one config value; repeatable.",
    )
    @click.option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("work"),
        envvar="ICHKIT_WORK",
        show_default=True,
        help="Work folder: prepared data, runs, stacks, scores (env ICHKIT_WORK).",
    )
    @click.option(
        "--plugin",
        "plugins",
        multiple=True,
        metavar="FILE",
        type=PATH,
        help="Python file that adds losses, models, ... (docs/extend.md; env ICHKIT_PLUGINS); repeatable.",
    )
    @click.option("--quiet", is_flag=True, help="Show only warnings and results.")
    @click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
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
        help="Folder of submissions and leaderboard.csv.",
    )(command)


def parse_folds(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> list[int] | None:
    """The folds of `--fold` options, ascending; None for all. A callback of click."""
    words = [word.strip() for text in given for word in text.split(",") if word.strip()]
    if not words or "all" in words:
        return None
    if not all(word.isdigit() for word in words):
        raise click.BadParameter(f'expected a number, numbers such as 0,1, or "all"; found {",".join(words)}')
    return sorted({int(word) for word in words})


def show(table: "Table") -> None:
    """Prints a table; if the output is a file or a pipe, wide enough for every column."""
    from rich.console import Console

    from ichkit.show.terminal import Printable

    console = Console()
    Console(width=None if console.is_terminal else _PIPE_WIDTH).print(Printable(table))


def epilog(*examples: str) -> str:
    """The examples at the end of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in examples)
