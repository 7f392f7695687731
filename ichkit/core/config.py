"""Configuration: YAML to validated sections; unknown keys are refused with the nearest spelling."""

import importlib.resources
import importlib.util
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

import ichkit
from ichkit.core.config_errors import explain
from ichkit.core.errors import ConfigError, nearest, shorten
from ichkit.core.plugins import load_plugins
from ichkit.core.section import ConfigSection, Count, Positive, runtime
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import TASKS
from ichkit.core.train_config import TrainConfig
from ichkit.core.yaml_text import parse_yaml, read_yaml

_SET = "--set"
_SEED_LIMIT = 2**63
_LONGEST_NAME = 4096
_NAMED_SECTIONS = ("train.context", "train.pool", "train.schedule", "prepare.parts")
"""Sections that may be written as one word, which is their `kind`."""


class ChannelsConfig(ConfigSection):
    """Input channels: `kind` is a row of `imaging.windows.CHANNELS`, windows are (level, width) in HU.

    `stretch` is "window" (from one end of the window to the other) or "image" (from the lowest to the highest value of
    each image inside the window; an image of one value is 0).
    """

    kind: str = "windows"
    stretch: Literal["window", "image"] = "window"
    windows: tuple[tuple[float, Positive], ...] = ((40, 80), (75, 215), (600, 2800))

    def hull_hu(self) -> tuple[int, int]:
        """Lowest and highest HU of the store: the range that covers all windows, at least [-800, 2000]."""
        low = min(level - width / 2 for level, width in self.windows)
        high = max(level + width / 2 for level, width in self.windows)
        return min(-800, int(low)), max(2000, int(-(-high // 1)))


class PartsConfig(ConfigSection):
    """The sub-studies that a study gives.

    `kind` is a row of `imaging.parts.PARTS`; `slices` is how many "middle" takes; `regions` is a CSV of the regions of
    "aspects", see `imaging.regions`.
    """

    kind: str = "whole"
    slices: Count = 5
    regions: Path | None = None


class PrepareConfig(ConfigSection):
    """From DICOM to the Hounsfield store; `crop` is "none" or a row of `imaging.steps.STEPS`.

    `header_facts` are rows of `imaging.header_facts.HEADER_FACTS` that are kept of each study's header: manufacturer,
    kernel, kvp, thickness, age (in decades), sex. None is kept unless it is named.
    """

    size: Count | None = None
    crop: str = "none"
    parts: PartsConfig = PartsConfig()
    num_folds: Annotated[int, Field(ge=2)] = 5
    header_facts: tuple[str, ...] = ()
    rsna: Path | None = runtime(None)
    cq500: Path | None = runtime(None)
    workers: Count | None = runtime(None)
    backend: Literal["processes", "ray"] = runtime("processes")

    def steps(self) -> tuple[str, ...]:
        """The rows of `imaging.steps.STEPS` that are done to a volume, in their order."""
        return () if self.crop == "none" else (self.crop,)


class EvaluateConfig(ConfigSection):
    """Scores and their intervals.

    `num_parts` is the number of parts of a single fold. A study's top mean is over `num_top` slices. `coherent_base`
    scores a run as `submit` and `predict` publish it: the probability of a covering class is at least that of each
    class it covers. The tables of a stack are always coherent.
    """

    num_draws: Count = 2000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    num_bins: Annotated[int, Field(ge=2)] = 15
    num_parts: Annotated[int, Field(ge=2)] = 5
    num_top: Count = 3
    coherent_base: bool = False


class ReportConfig(ConfigSection):
    """The page of a work folder; predictive values are also given at each of `prevalences`."""

    prevalences: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.05, 0.1, 0.3)


class RobustnessConfig(ConfigSection):
    """Perturbed scans of held-out patients.

    `patients` is how many of each fold; `perturbations` are rows of `imaging.perturbations.PERTURBATIONS`, () is all.
    """

    patients: Count = 20
    perturbations: tuple[str, ...] = ()


class PhantomConfig(ConfigSection):
    """Size and difficulty of the phantom; `difficulty` is a row of `phantom.difficulty.DIFFICULTIES`."""

    studies: Count = 60
    test_studies: Count = 15
    cq500_studies: Count = 20
    size: Annotated[int, Field(ge=64)] = 512
    difficulty: str = "demo"


class Config(ConfigSection):
    """The whole configuration; `configs/default.yaml` documents the choices and their reasons."""

    task: str = "hemorrhage"
    seed: Annotated[int, Field(ge=-_SEED_LIMIT, lt=_SEED_LIMIT)] = 0
    channels: ChannelsConfig = ChannelsConfig()
    prepare: PrepareConfig = PrepareConfig()
    train: TrainConfig = TrainConfig()
    stack: StackConfig = StackConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    phantom: PhantomConfig = PhantomConfig()

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str) -> str:
        load_plugins()
        if task not in TASKS:
            raise ValueError(f'unknown task "{shorten(task)}". {nearest(shorten(task), TASKS)}')
        return task


def load_config(name: str = "default", overrides: tuple[str, ...] = ()) -> Config:
    """A configuration by shipped name or file path, with `section.key=value` overrides applied last.

    Raises:
        ConfigError: no such config, unreadable YAML, an unknown key, or a value out of range.

    Example:
        >>> load_config("default", ("train.epochs=3",)).train.epochs
        3
    """
    tree, origins = _read_extended(name, seen=())
    for override in overrides:
        _apply_override(tree, override, origins)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, Config, origins, name)) from error


def shipped_folder(name: str) -> Traversable:
    """`configs` or `pipelines`: inside the installed package, or beside it in a checkout that is not installed."""
    if importlib.util.find_spec(f"ichkit.{name}") is not None:
        return importlib.resources.files(f"ichkit.{name}")
    return Path(ichkit.__file__).resolve().parents[1] / name


def shipped_names(folder: str) -> list[str]:
    """Names of the YAML files that ship in `configs` or `pipelines`.

    Example:
        >>> shipped_names("pipelines")[:3]
        ['ablation-demo', 'demo', 'dlmi2021']
    """
    files = shipped_folder(folder).iterdir()
    return sorted(item.name.removesuffix(".yaml") for item in files if item.name.endswith(".yaml"))


def find_yaml(name: str, folder: str) -> Traversable:
    """The YAML file of a shipped name, or the file at that path.

    Raises:
        ConfigError: neither a shipped name nor a file.
    """
    shipped = shipped_names(folder)
    if name in shipped:
        return shipped_folder(folder) / f"{name}.yaml"
    if _is_file(name):
        return Path(name)
    what, word = folder.removesuffix("s"), shorten(name)
    raise ConfigError(f'{what}: "{word}" is neither a shipped {what} nor a file. {nearest(word, shipped)}')


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a file name, or with a NUL character
        return False


def _read_extended(name: str, seen: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The merged tree of a config and its parents, and for each dotted key the file that sets it."""
    if name in seen:
        raise ConfigError(
            f"config: circular `extends`: {' extends '.join(map(shorten, (*seen, name)))}. Remove one of them."
        )
    path = find_yaml(name, "configs")
    where = f"{path}:" if isinstance(path, Path) and path == Path(name) else f"config {name}:"
    tree = read_yaml(path) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} expected sections such as `train:`, found {type(tree).__name__}.")
    parent = tree.pop("extends", None)
    _expand_shorthands(tree)
    origins = dict.fromkeys(_written_keys(tree), where)
    if parent is not None:
        base, others = _read_extended(str(parent)[:_LONGEST_NAME], (*seen, name))
        tree, origins = _merge(base, tree), others | origins
    return tree, origins


def _expand_shorthands(tree: dict[str, Any]) -> None:
    for path in _NAMED_SECTIONS:
        section, key = path.split(".")
        inside = tree.get(section)
        if isinstance(inside, dict) and isinstance(inside.get(key), str):
            inside[key] = {"kind": inside[key]}


def _written_keys(tree: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _written_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(tree: dict[str, Any], override: str, origins: dict[str, str]) -> None:
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(f'{_SET}: expected section.key=value, found "{shorten(override)}".')
    *sections, key = path.split(".")
    for section in sections:
        if not isinstance(tree.setdefault(section, {}), dict):
            raise ConfigError(f'{_SET} {shorten(path)}: "{shorten(section)}" is not a section.')
        tree = tree[section]
    value = parse_yaml(text, f"{_SET} {shorten(path)}")
    if path in _NAMED_SECTIONS and isinstance(value, str):
        tree, key, path = tree.setdefault(key, {}), "kind", f"{path}.kind"
    tree[key] = value
    for known in [known for known in origins if known.startswith(f"{path}.")]:
        del origins[known]
    origins[path] = _SET
