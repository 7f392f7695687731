"""Plug-ins: user modules that add rows to the tables of stackers, tasks, sources, losses or backbones."""

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
    """Imports the comma-separated modules of `ICHKIT_PLUGINS`, once per process.

    A name is a file ending in .py, a module that Python finds, or one in the current folder. It is an environment
    variable because worker processes inherit it, so that they know the rows too.

    Raises:
        ConfigError: a module is not found, or its import fails.
    """
    _load(os.environ.get(VARIABLE, ""))


def add_plugins(files: Sequence[Path]) -> None:
    """Adds files to `ICHKIT_PLUGINS`, for this process and its workers, and imports them.

    Raises:
        ConfigError: a file is not found, is not a Python file, or its import fails.
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
        # Appended, so that no file of the folder shadows an installed module; on sys.path, because worker processes
        # inherit it and may have to import the module by name.
        if folder is not None and str(folder) not in sys.path:
            sys.path.append(str(folder))
        try:
            importlib.import_module(module)
        # A user's module may raise anything.
        except Exception as error:
            raise ConfigError(
                f"{VARIABLE}: could not import {name} ({type(error).__name__}: {error}). Fix the file; "
                "--debug shows where."
            ) from error


def _find(name: str) -> tuple[str, Path | None]:
    """A module's name, and the folder that must be on sys.path to import it.

    Raises:
        ConfigError: it is not found, or another module has its name.
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
                f"{VARIABLE}: cannot import {name}: another module has this name, or it is not a valid module name. "
                "Rename the file."
            )
        return path.stem, path.parent
    raise ConfigError(
        f"{VARIABLE}: expected a Python file, or a module in the current folder or on PYTHONPATH, "
        f"found {name}. Check the name, or use --plugin FILE."
    )


def _is_known(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _is_file(origin: str | None, path: Path) -> bool:
    return origin is not None and Path(origin).exists() and Path(origin).samefile(path)
