"""`ichkit config`: lists shipped configs and pipelines, prints a whole config, compares two."""

from pathlib import Path
from typing import Any

import yaml

from ichkit.core.config import Config, find_yaml, shipped_names
from ichkit.core.config_errors import list_settings
from ichkit.work.artifacts import list_differences

BASIS = "default"
"""The config that others are compared with, and the default of -c."""


def list_shipped(folder: str) -> dict[str, str]:
    """Name to the first comment line of every YAML file that ships in `configs` or `pipelines`, by name."""
    return {name: _first_comment(name, folder) for name in shipped_names(folder)}


def _first_comment(name: str, folder: str) -> str:
    lines = find_yaml(name, folder).read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")


def show_config(config: Config, basis: Config, name: str) -> str:
    """The whole configuration as loadable YAML; a comment marks each value that differs from `basis`.

    Args:
        basis: the config to compare with.
        name: of the configuration, for the comment at the top.
    """
    tree, others = as_tree(config), as_tree(basis)
    lines = _write_section(tree, others, "")
    num_values = sum(not line.endswith(":") for line in lines)
    num_others = len(list_differences(others, tree))
    # A file's name is the user's; a comment must stay one line.
    shown = "".join(letter if letter.isprintable() else "?" for letter in Path(name).name)
    head = f'# {shown}: of {num_values} values, {num_others} differ from "{BASIS}" (marked).'
    return "\n".join([head, *lines, ""])


def compare_configs(old: Config, new: Config) -> list[str]:
    """One line for every value that differs, in the order of the sections.

    Example:
        >>> compare_configs(load_config("demo"), load_config("demo", ("train.epochs=7",)))
        ['train.epochs: 4, now 7']
    """
    return list_differences(as_tree(old), as_tree(new))


def find_setting(option: str, command: str = "") -> str | None:
    """The setting whose key, or the initials of whose key, an option spells; None if no setting matches.

    Args:
        command: the one it was given to; of equal keys, that of the sections it reads is meant.

    Example:
        >>> find_setting("--lr"), find_setting("--batch-blocks"), find_setting("--upload")
        ('train.learning_rate', 'train.batch_blocks', None)
    """
    word = option.lstrip("-").replace("-", "_")
    sections = {"phantom": ("phantom", "prepare"), "predict": ("prepare",)}.get(command, (command, "train"))
    settings = sorted(list_settings(Config), key=lambda name: name.partition(".")[0] not in sections)
    keys = {name: name.rpartition(".")[2] for name in settings}
    initials = {name: "".join(part[0] for part in key.split("_")) for name, key in keys.items() if "_" in key}
    return next((name for texts in (keys, initials) for name in texts if texts[name] == word), None)


def as_tree(config: Config) -> dict[str, Any]:
    """Every value of a configuration, as JSON values."""
    return config.model_dump(mode="json")


def _write_section(tree: dict[str, Any], others: dict[str, Any], indent: str) -> list[str]:
    """The lines of one section; both trees are dumps of the same model. Mappings of free keys are one value."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value and value.keys() == others[key].keys():
            lines += [f"{indent}{key}:", *_write_section(value, others[key], indent + "  ")]
            continue
        mark = "" if value == others[key] else f"  # {BASIS}: {_write_value(others[key])}"
        lines.append(f"{indent}{key}: {_write_value(value)}{mark}")
    return lines


def _write_value(value: Any) -> str:
    """A value as YAML on one line."""
    # A scalar alone is dumped with an end-of-document marker; inside a list it is not.
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf"), allow_unicode=True).strip()[1:-1]
