"""Rows of your own: modules that add to the tables of stackers, tasks, sources, losses or backbones."""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ichkit.core.errors import ConfigError

VARIABLE = "ICHKIT_PLUGINS"


def load_plugins() -> None:
    """Imports what `ICHKIT_PLUGINS` names, separated by commas, once in every process.

    A name is a file ending in .py, or a module that Python finds or that lies in the current folder. A variable rather
    than a setting, because worker processes inherit it: a row is there wherever it is looked up.

    Raises:
        ConfigError: a module that is not there, or that fails while it is imported.
    """
    _load(os.environ.get(VARIABLE, ""))


def add_plugins(files: Sequence[Path]) -> None:
    """Adds files to what `ICHKIT_PLUGINS` names, for this process and its workers, and imports them.

    Raises:
        ConfigError: a file that is not there, is no module, or fails while it is imported.
    """
    named = [word for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
    for file in files:
        if file.suffix != ".py" or not file.is_file() or "," in str(file.absolute()):
            raise ConfigError(
                f"--plugin: expected a Python file whose path has no comma, e.g. my_loss.py, found {file}. "
                "Check the path."
            )
        named.append(str(file.absolute()))
    os.environ[VARIABLE] = ",".join(dict.fromkeys(named))
    load_plugins()


@functools.cache
def _load(names: str) -> None:
    for name in filter(None, (word.strip() for word in names.split(","))):
        module, folder = _find(name)
        # Behind everything else, so that no file of the folder takes the place of an installed module; on the path,
        # because that is what worker processes are given, which may have to import the module by its name.
        if folder is not None and str(folder) not in sys.path:
            sys.path.append(str(folder))
        try:
            importlib.import_module(module)
        # A module of the user's own may fail with anything.
        except Exception as error:
            raise ConfigError(
                f"{VARIABLE}: {name} failed while it was imported ({type(error).__name__}: {error}). Correct the file; "
                "--debug shows where."
            ) from error


def _find(name: str) -> tuple[str, Path | None]:
    """A module's name, and the folder that must be on the path for it.

    Raises:
        ConfigError: it is nowhere, or its name is that of another module.
    """
    if not name.endswith(".py"):
        if _is_known(name):
            return name, None
        if (Path.cwd() / f"{name}.py").is_file():
            return name, Path.cwd()
    elif Path(name).is_file():
        path = Path(name).absolute()
        known = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
        if not path.stem.isidentifier() or (known is not None and not _is_file(known.origin, path)):
            raise ConfigError(
                f"{VARIABLE}: {name} cannot be imported: its name is that of another module, or no name of one. "
                "Rename the file."
            )
        return path.stem, path.parent
    raise ConfigError(
        f"{VARIABLE}: expected a Python file, or a module in the current folder or where Python looks (PYTHONPATH), "
        f"found {name}. Check the name, or use --plugin FILE."
    )


def _is_known(name: str) -> bool:
    """True for a module that Python finds."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _is_file(origin: str | None, path: Path) -> bool:
    return origin is not None and Path(origin).exists() and Path(origin).samefile(path)
