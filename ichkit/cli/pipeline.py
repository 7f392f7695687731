"""Pipelines: YAML files that list commands in order."""

import shlex
from collections.abc import Collection

from ichkit.core.config import find_yaml
from ichkit.core.errors import ConfigError, nearest
from ichkit.core.yaml_text import read_yaml


def read_pipeline(name: str, commands: Collection[str]) -> list[list[str]]:
    """The commands of a pipeline, each as words without the leading `ichkit`.

    Args:
        name: of a shipped pipeline, or a file.
        commands: the existing commands.

    Raises:
        ConfigError: no such pipeline, or not a list of known commands.

    Example:
        >>> read_pipeline("midl2020", ["prepare", "train", "stack", "evaluate", "submit", "report"])[0]
        ['prepare', '--config', 'resnet50-midl']
    """
    tree = read_yaml(find_yaml(name, "pipelines"))
    steps = tree.get("commands") if isinstance(tree, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps):
        raise ConfigError(f'pipeline {name}: expected `commands:` with a list such as ["prepare", "train --fold 0"].')
    listed = [shlex.split(step) for step in steps]
    for words in listed:
        if words[0] not in commands:
            raise ConfigError(f'pipeline {name}: unknown command "{words[0]}". {nearest(words[0], commands)}')
    return listed
