"""The settings that a search varies: lists and ranges of values, from `--try` options or a YAML file."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ichkit.core.errors import ConfigError, shorten
from ichkit.core.yaml_text import parse_yaml, read_yaml

Params = Mapping[str, str | int | float]
"""Dimension to the chosen label (`Choice`) or number (`Range`)."""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\.\.({_NUMBER})(?::(log|{_NUMBER}))?\s*")
_SECTIONS = ("train.", "channels.")
_SEED = "seed"
_FIXED = ("train.classes", "train.given")
_EXAMPLE = "--try train.learning_rate=1e-4,3e-4"


@dataclass(frozen=True)
class Choice:
    """A dimension with listed values.

    Attributes:
        name: the setting, or a name for several settings that change together.
        options: label to the `section.key=value` overrides of that value.
    """

    name: str
    options: Mapping[str, tuple[str, ...]]

    @property
    def values(self) -> tuple[str | int, ...]:
        """The labels, in the order they were written."""
        return tuple(self.options)

    def overrides(self, value: str | float) -> tuple[str, ...]:
        """What a value changes."""
        return self.options[str(value)]

    def describe(self) -> str:
        """The values on one line."""
        return ", ".join(self.options)

    def settings(self) -> Any:
        """The dimension as JSON."""
        return {label: list(overrides) for label, overrides in self.options.items()}


@dataclass(frozen=True)
class Range:
    """A dimension with all numbers from `low` to `high`, both included.

    Attributes:
        step: distance of the values; None for any number between, 1 for integers.
        is_log: drawn evenly on a logarithmic scale.
        is_integer: both ends are integers.
    """

    name: str
    low: float
    high: float
    step: float | None
    is_log: bool
    is_integer: bool

    @property
    def values(self) -> tuple[str | int, ...]:
        """The integers of the range; none for a range of real numbers, or one on a logarithmic scale."""
        if not self.is_integer or self.is_log:
            return ()
        return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))

    def overrides(self, value: str | float) -> tuple[str, ...]:
        """What a value changes."""
        return (f"{self.name}={value!r}",)

    def describe(self) -> str:
        """The range on one line."""
        scale = " (logarithmic)" if self.is_log else "" if self.step in (None, 1) else f" (step {self.step:g})"
        return f"{self.low:g} to {self.high:g}{scale}"

    def settings(self) -> Any:
        """The dimension as JSON."""
        return {"low": self.low, "high": self.high, "step": self.step, "log": self.is_log}


Dimension = Choice | Range


@dataclass(frozen=True)
class Space:
    """The dimensions of a search, in the order they were written."""

    dimensions: tuple[Dimension, ...]

    @property
    def num_points(self) -> int | None:
        """Number of combinations; None if a dimension has no list of values."""
        count = 1
        for dimension in self.dimensions:
            count *= len(dimension.values)
        return count or None

    def grid(self) -> Iterator[Params]:
        """Every combination; the last dimension changes first."""
        names = [dimension.name for dimension in self.dimensions]
        for values in itertools.product(*(dimension.values for dimension in self.dimensions)):
            yield dict(zip(names, values, strict=True))

    def overrides(self, params: Params) -> tuple[str, ...]:
        """The overrides of one combination."""
        return tuple(text for one in self.dimensions for text in one.overrides(params[one.name]))

    def settings(self) -> dict[str, Any]:
        """The space as JSON."""
        return {dimension.name: dimension.settings() for dimension in self.dimensions}


def read_space(tries: Sequence[str], file: Path | None) -> Space:
    """The space of `--try` options and of a YAML file.

    Raises:
        ConfigError: no dimension, one twice, an unreadable file, or a setting that is not one of training.

    Example:
        >>> read_space(["train.learning_rate=1e-4,3e-4", "train.phases.0.frozen_stages=0..5"], None).num_points
        12
    """
    dimensions = [_parse_try(text) for text in tries]
    if file is not None:
        if not file.is_file():
            raise ConfigError(f"tune --space: {file} is not a file. Check the path.")
        tree = read_yaml(file)
        if not isinstance(tree, dict):
            raise ConfigError(f"{file}: expected settings with their values, such as `train.epochs: [4, 8]`.")
        dimensions += [_make_dimension(str(name), value, str(file)) for name, value in tree.items()]
    if not dimensions:
        raise ConfigError(f"tune: expected settings to vary, found none. Give them, e.g. {_EXAMPLE}, or --space FILE.")
    touched = [key for one in dimensions for key in sorted(_keys_of(one))]
    for key in touched:
        if touched.count(key) > 1:
            raise ConfigError(f"tune: {shorten(key)} is varied twice. Name it once, with all its values.")
        if not key.startswith(_SECTIONS) and key != _SEED:
            raise ConfigError(
                f"tune: expected settings of training ({', '.join(one + '...' for one in _SECTIONS)} or {_SEED}), "
                f"found {shorten(key)}. Second stages choose their settings themselves; other sections change no run."
            )
        if key in _FIXED:
            raise ConfigError(
                f"tune: {key} decides what a run predicts: trials must predict the same. Use --set {key}."
            )
    return Space(tuple(dimensions))


def _keys_of(dimension: Dimension) -> set[str]:
    if isinstance(dimension, Range):
        return {dimension.name}
    return {text.partition("=")[0] for overrides in dimension.options.values() for text in overrides}


def _parse_try(text: str) -> Dimension:
    name, equals, values = text.partition("=")
    name = name.strip()
    if not equals or not name or not values.strip():
        raise ConfigError(f'--try: expected section.key=value,value or section.key=low..high, found "{shorten(text)}".')
    where = f"--try {shorten(name)}"
    if found := _RANGE.fullmatch(values):
        low, high, scale = found.groups()
        is_log = scale == "log"
        return _make_range(name, low, high, None if is_log or scale is None else scale, is_log=is_log, where=where)
    return _make_choice(name, parse_yaml(f"[{values}]", where), where)


def _make_dimension(name: str, value: Any, file: str) -> Dimension:
    """A dimension of a space file: a list of values, a list of groups of settings, or low, high, step and log."""
    where = f"{file}: {shorten(name)}"
    if isinstance(value, dict) and {"low", "high"} <= set(value) <= {"low", "high", "step", "log"}:
        low, high, step = (None if value.get(key) is None else str(value[key]) for key in ("low", "high", "step"))
        if low is not None and high is not None:
            return _make_range(name, low, high, step, is_log=value.get("log") is True, where=where)
    if isinstance(value, list):
        return _make_choice(name, value, where)
    raise ConfigError(f"{where}: expected a list of values, or {{low: 1, high: 8}} with step or log: true.")


def _make_range(name: str, low: str, high: str, step: str | None, *, is_log: bool, where: str) -> Range:
    is_integer = all(re.fullmatch(r"[-+]?\d+", text) for text in (low, high, step or "1"))
    try:
        first, last, distance = float(low), float(high), None if step is None else float(step)
    except ValueError as error:
        raise ConfigError(f"{where}: expected numbers from low to high, found {shorten(f'{low}..{high}')}.") from error
    if not first < last or (distance is not None and not 0 < distance <= last - first) or (is_log and first <= 0):
        raise ConfigError(
            f"{where}: expected low below high, a step between 0 and their distance, and with log a low above 0; "
            f"found {shorten(f'{low}..{high}')}."
        )
    return Range(name, first, last, (distance or 1.0) if is_integer and not is_log else distance, is_log, is_integer)


def _make_choice(name: str, values: Any, where: str) -> Choice:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: expected a list of values, found none.")
    groups = [isinstance(value, dict) and all("." in str(key) for key in value) and bool(value) for value in values]
    if any(groups) and not all(groups):
        raise ConfigError(f"{where}: expected values of one setting, or groups of settings; found both.")
    options = {}
    for value in values:
        changes = value if all(groups) else {name: value}
        overrides = tuple(f"{key}={_write(inside)}" for key, inside in changes.items())
        label = " ".join(overrides) if all(groups) else _write(value)
        if label in options:
            raise ConfigError(f"{where}: {shorten(label)} is listed twice. Remove one.")
        options[label] = overrides
    return Choice(name, options)


def _write(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf"), allow_unicode=True).strip()[1:-1]
