"""Configuration: YAML to checked sections; unknown keys are refused with the nearest spelling."""

import importlib.resources
import importlib.util
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError, model_validator

import ichkit
from ichkit.core.errors import ConfigError, nearest
from ichkit.core.plugins import load_plugins
from ichkit.core.section import ConfigSection, Count, Positive, runtime
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import TASKS
from ichkit.core.train_config import TrainConfig


class ChannelsConfig(ConfigSection):
    """How a slice becomes an image; `kind` is a row of `imaging.windows.CHANNELS`, windows are (level, width) in HU."""

    kind: str = "windows"
    windows: tuple[tuple[float, Positive], ...] = ((40, 80), (75, 215), (600, 2800))

    def hull_hu(self) -> tuple[int, int]:
        """Lowest and highest HU the store keeps: the hull of the windows, at least [-800, 2000]."""
        low = min(level - width / 2 for level, width in self.windows)
        high = max(level + width / 2 for level, width in self.windows)
        return min(-800, int(low)), max(2000, int(-(-high // 1)))


class PrepareConfig(ConfigSection):
    """DICOM to the Hounsfield store."""

    size: Count | None = None
    num_folds: Annotated[int, Field(ge=2)] = 5
    rsna: Path | None = runtime(None)
    cq500: Path | None = runtime(None)
    workers: Count | None = runtime(None)
    backend: Literal["processes", "ray"] = runtime("processes")


class EvaluateConfig(ConfigSection):
    """Scores and their intervals; `num_parts` is for a single fold, `num_top` slices make the top mean of a study.

    `coherent_base` scores a run as `submit` and `predict` give it, with the covering class at least as probable as each
    class it covers; a stack's tables are coherent always.
    """

    num_draws: Count = 2000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    num_bins: Annotated[int, Field(ge=2)] = 15
    num_parts: Annotated[int, Field(ge=2)] = 5
    num_top: Count = 3
    coherent_base: bool = False


class PhantomConfig(ConfigSection):
    """What `demo` asks of the phantom."""

    studies: Count = 60
    test_studies: Count = 15
    cq500_studies: Count = 20
    size: Annotated[int, Field(ge=64)] = 512


class Config(ConfigSection):
    """The whole configuration; `configs/default.yaml` names the choices and their reasons."""

    task: str = "hemorrhage"
    seed: int = 0
    channels: ChannelsConfig = ChannelsConfig()
    prepare: PrepareConfig = PrepareConfig()
    train: TrainConfig = TrainConfig()
    stack: StackConfig = StackConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    phantom: PhantomConfig = PhantomConfig()

    @model_validator(mode="after")
    def _check_task(self) -> "Config":
        load_plugins()
        if self.task not in TASKS:
            raise ValueError(f'unknown task "{self.task}". {nearest(self.task, TASKS)}')
        return self


def load_config(name: str = "default", overrides: tuple[str, ...] = ()) -> Config:
    """A configuration by shipped name or file path, with `section.key=value` overrides applied last.

    Raises:
        ConfigError: no such config, unreadable YAML, an unknown key, or a value out of range.

    Example:
        >>> load_config("default", ("train.epochs=3",)).train.epochs
        3
    """
    tree, where = _read_extended(name, seen=())
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from error


def config_names() -> list[str]:
    """Names of the shipped configs."""
    return _yaml_names(shipped_folder("configs"))


def pipeline_names() -> list[str]:
    """Names of the shipped pipelines."""
    return _yaml_names(shipped_folder("pipelines"))


def shipped_folder(name: str) -> Traversable:
    """`configs` or `pipelines`: inside the installed package, or beside it in a checkout that is not installed."""
    if importlib.util.find_spec(f"ichkit.{name}") is not None:
        return importlib.resources.files(f"ichkit.{name}")
    return Path(ichkit.__file__).resolve().parents[1] / name


def find_yaml(name: str, folder: str) -> Traversable:
    """The YAML file of a shipped name, or the file at that path.

    Raises:
        ConfigError: neither a shipped name nor a file.
    """
    shipped = shipped_folder(folder)
    if name in _yaml_names(shipped):
        return shipped / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    what = folder.removesuffix("s")
    raise ConfigError(f'{what}: "{name}" is neither a shipped {what} nor a file. {nearest(name, _yaml_names(shipped))}')


def read_yaml(path: Traversable) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error


def _yaml_names(folder: Traversable) -> list[str]:
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _read_extended(name: str, seen: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The merged tree of a config and of what it extends, and where it was read."""
    if name in seen:
        raise ConfigError(f"config: {' extends '.join((*seen, name))}, which goes round in a circle.")
    path = find_yaml(name, "configs")
    tree = read_yaml(path) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as `train:`, found {type(tree).__name__}.")
    parent = tree.pop("extends", None)
    if parent is not None:
        base, _ = _read_extended(str(parent), (*seen, name))
        tree = _merge(base, tree)
    return tree, str(path)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f'--set: expected section.key=value, found "{override}".')
    *sections, key = path.strip().split(".")
    for section in sections:
        if not isinstance(tree.setdefault(section, {}), dict):
            raise ConfigError(f'--set {override}: "{section}" is not a section.')
        tree = tree[section]
    try:
        tree[key] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML: {error}") from error


def _explain(error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            section = _section_at(problem["loc"][:-1])
            lines.append(f'unknown key "{place}". {nearest(str(problem["loc"][-1]), section.model_fields)}')
        else:
            found = f", found {problem['input']!r}" if not isinstance(problem["input"], dict) else ""
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{place or 'config'}: {message}{found}")
    return f"config {where}: " + "; ".join(lines)


def _section_at(place: tuple[int | str, ...]) -> type[ConfigSection]:
    section: type[ConfigSection] = Config
    for name in place:
        annotation = section.model_fields[str(name)].annotation
        choices = [annotation, *get_args(annotation)]
        section = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, ConfigSection))
    return section
