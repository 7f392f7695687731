"""Rows of your own: modules that add to the tables of stackers, tasks, sources, losses or backbones."""

import functools
import importlib
import os

from ichkit.core.errors import ConfigError

VARIABLE = "ICHKIT_PLUGINS"


def load_plugins() -> None:
    """Imports the modules that `ICHKIT_PLUGINS` names, separated by commas, once in every process.

    A variable rather than a setting, because worker processes inherit it: a row is there wherever it is looked up.

    Raises:
        ConfigError: a module that cannot be imported.
    """
    _load(os.environ.get(VARIABLE, ""))


@functools.cache
def _load(names: str) -> None:
    for name in filter(None, (word.strip() for word in names.split(","))):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"{VARIABLE}: expected the name of a module that Python finds (PYTHONPATH), found {name} ({error})."
            ) from error
