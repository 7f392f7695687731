"""YAML within limits: alias bombs, deep nesting and huge files are refused with one message."""

import re
from collections.abc import Hashable
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from ichkit.core.errors import ConfigError

MAX_BYTES = 256 * 1024
"""The longest shipped config has 6 kB."""
_MAX_DEPTH = 16
_MAX_VALUES = 20_000


_BASE_60 = re.compile(r"^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?$")


class _Loader(yaml.SafeLoader):
    """The safe loader, with three differences.

    It refuses a duplicate key, of which PyYAML would keep the last, reads 190:20:30 as text, not to base 60 (dropped in
    YAML 1.2), and stops at the first value that is nested too deeply, where PyYAML reads on to the limit of the stack.
    """

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next value with all inside it."""
        self._depth += 1
        if self._depth > _MAX_DEPTH + 1:  # a text inside lists of the greatest depth
            raise RecursionError
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """The number; text if it is one to base 60."""
        return node.value if _BASE_60.match(node.value) else super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        """The number; text if it is one to base 60."""
        return node.value if _BASE_60.match(node.value) else super().construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping, if no key is in it twice."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem="duplicate key in one section", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def read_yaml(path: Traversable) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: larger than `MAX_BYTES`, not YAML, nested too deeply, or with too many values.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: expected YAML of at most {MAX_BYTES // 1024} kB, found more. Check the path.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not readable as YAML: it is not UTF-8 text.") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        where: file or option, for the message.

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
        raise ConfigError(f"{where}: not readable as YAML: it has control characters.") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: not readable as YAML: nested more than {_MAX_DEPTH} levels deep.") from error
    except ValueError as error:  # an impossible date, or a number of more digits than Python converts
        raise ConfigError(f"{where}: not readable as YAML: it has an invalid number or date.") from error
    return value


def _is_within(value: Any, depth: int, left: list[int]) -> bool:
    """True if a value has at most `left[0]` values inside, counting each alias.

    Raises:
        RecursionError: nested deeper than `depth`, as is a list that contains itself.
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
