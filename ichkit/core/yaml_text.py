"""YAML as people write it, within bounds: alias bombs, deep nesting and huge values end in one message at once."""

from collections.abc import Hashable
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from ichkit.core.errors import ConfigError

MAX_BYTES = 256 * 1024
"""The longest shipped config has 6 kB."""
_MAX_DEPTH = 16
_MAX_VALUES = 20_000


class _Loader(yaml.SafeLoader):
    """The safe loader within `_MAX_DEPTH`; it refuses a key that stands twice, of which YAML would keep the last."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As the safe loader does, and no deeper than `_MAX_DEPTH`."""
        self._depth += 1
        if self._depth > _MAX_DEPTH + 1:
            raise RecursionError
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As the safe loader does, after a look at the keys."""
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.MarkedYAMLError(problem="a key stands twice in one section", problem_mark=key.start_mark)
                seen.add(str(key.value) if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Traversable) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: larger than `MAX_BYTES`, not YAML, or nested or repeated beyond what any config needs.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: expected YAML of at most {MAX_BYTES // 1024} kB, found more. Is it another file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not readable as YAML: it is not UTF-8 text.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for.

    Args:
        where: begins the message.

    Raises:
        ConfigError: as `read_yaml`.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
        if not _is_within(value, _MAX_DEPTH, [_MAX_VALUES]):
            raise ConfigError(f"{where}: more than {_MAX_VALUES} values when its aliases are written out.")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise ConfigError(f"{where}: not readable as YAML: {error.problem or error.context}{at}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not readable as YAML: it holds characters that are no text.") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: not readable as YAML: nested more than {_MAX_DEPTH} deep.") from error
    except ValueError as error:  # a date that is none, a number of more digits than Python converts
        raise ConfigError(f"{where}: not readable as YAML: a number or date that cannot be read.") from error
    return value


def _is_within(value: Any, depth: int, left: list[int]) -> bool:
    """False where more than `left[0]` values are met, each as often as it is referred to.

    Raises:
        RecursionError: nested deeper than `depth`, as a list that holds itself is.
    """
    left[0] -= 1
    if left[0] < 0:
        return False
    if not isinstance(value, list | dict):
        return True
    if depth == 0:
        raise RecursionError
    inside = value if isinstance(value, list) else value.values()
    return all(_is_within(item, depth - 1, left) for item in inside)
