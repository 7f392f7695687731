"""Configuration: YAML to validated sections; unknown keys are refused with the nearest spelling."""

import importlib.resources
import importlib.util
import itertools
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator

import ichkit
from ichkit.core.config_errors import explain
from ichkit.core.errors import ConfigError, nearest, shorten
from ichkit.core.plugins import load_plugins
from ichkit.core.section import ConfigSection, Count, Positive, runtime
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import TASKS
from ichkit.core.train_config import TrainConfig
from ichkit.core.yaml_text import parse_yaml, read_yaml

DEFAULT = "default"
"""Name of the config that is used where none is named."""
_SET = "--set"
_SEED_LIMIT = 2**63
_LONGEST_NAME = 4096
_LONGEST_NUMBER = 9
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


class SequencesConfig(ConfigSection):
    """The sequences of a study, such as of MR, and the grid they are brought to; without names a study has one.

    `names` are the last parts of the file names (BIDS suffixes), in the order of the channels; the others are moved to
    `reference`, by default the first. `steps` are rows of `imaging.sequence_steps.SEQUENCE_STEPS`. `field_mm` is the
    extent of the grid from feet to head, front to back and right to left. `template` is the NIfTI file of the step
    "template"; `histogram` is the folder of the study whose histograms the step "histogram" matches; `strip_command` is
    a command with {input} and {mask}, which writes the mask of the brain in the first sequence.
    """

    names: tuple[str, ...] = ()
    reference: str = ""
    steps: tuple[str, ...] = ("bias-field", "register", "strip", "midline", "histogram")
    slices: Count = 26
    rows: Count = 224
    columns: Count = 224
    field_mm: tuple[Positive, Positive, Positive] = (156, 218, 182)
    template: Path | None = None
    histogram: Path | None = None
    strip_command: str | None = None


class PrepareConfig(ConfigSection):
    """From DICOM to the Hounsfield store; `crop` is "none" or a row of `imaging.steps.STEPS`.

    `header_facts` are rows of `imaging.header_facts.HEADER_FACTS` that are kept of each study's header: manufacturer,
    kernel, kvp, thickness, age (in decades), sex. None is kept unless it is named. `store` is how volumes are
    compressed: fast ones take a quarter more of the disk, and half of the time to compress and to read.
    """

    size: Count | None = None
    crop: str = "none"
    parts: PartsConfig = PartsConfig()
    sequences: SequencesConfig = SequencesConfig()
    num_folds: Annotated[int, Field(ge=2)] = 5
    header_facts: tuple[str, ...] = ()
    rsna: Path | None = runtime(None)
    cq500: Path | None = runtime(None)
    workers: Count | None = runtime(None)
    backend: Literal["processes", "ray"] = runtime("processes")
    store: Literal["compact", "fast"] = runtime("compact")

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


def _expand_word(value: Any) -> Any:
    """A list that is written as one word: `loggers: mlflow` is `loggers: [mlflow]`."""
    return [value] if isinstance(value, str) else value


class TrackingConfig(ConfigSection):
    """Loggers that training and scores are sent to besides the files of the work folder; no result depends on them.

    `loggers` are rows of `tracking.loggers.LOGGERS`. `project` is the MLflow experiment or the W&B project.
    """

    loggers: Annotated[tuple[str, ...], BeforeValidator(_expand_word)] = runtime(())
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = runtime("ichkit")


class AdversarialConfig(ConfigSection):
    """Adversarial validation: how well the data sets are told apart.

    `patients` is how many of each set at most, `slices` of how many slices of a study the Hounsfield values are
    measured, `folds` into how many parts the patients are dealt. `permutations` is how often they are dealt to the sets
    at random for the p-value; of `embeddings`, so many principal components are compared.
    """

    patients: Count = 400
    slices: Count = 8
    folds: Annotated[int, Field(ge=2)] = 5
    permutations: Annotated[int, Field(ge=19)] = 59
    embeddings: Count = 50


class PhantomConfig(ConfigSection):
    """Kind, size and difficulty of the phantom.

    `kind` is a row of `phantom.kinds.KINDS`, `difficulty` of `phantom.difficulty.DIFFICULTIES`. `readers` is how many
    readers judge every study of the kind "onset".
    """

    kind: str = "hemorrhage"
    studies: Count = 60
    test_studies: Count = 15
    cq500_studies: Count = 20
    size: Annotated[int, Field(ge=64)] = 512
    difficulty: str = "demo"
    readers: Annotated[int, Field(ge=0)] = 0


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
    adversarial: AdversarialConfig = AdversarialConfig()
    phantom: PhantomConfig = PhantomConfig()
    tracking: TrackingConfig = runtime(TrackingConfig())

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
    return _validate(tree, origins, overrides, name)


def change_config(config: Config, overrides: tuple[str, ...]) -> Config:
    """The configuration with these `section.key=value` overrides; `train.phases.0.epochs=3` is the first phase's.

    Raises:
        ConfigError: an unknown key, or a value out of range.

    Example:
        >>> change_config(load_config("default"), ("train.phases.0.frozen_stages=2",)).train.phases[0].frozen_stages
        2
    """
    return _validate(config.model_dump(mode="json"), {}, overrides, "default")


def _validate(tree: dict[str, Any], origins: dict[str, str], overrides: tuple[str, ...], name: str) -> Config:
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
        >>> "midl2020" in shipped_names("pipelines")
        True
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
    value = parse_yaml(text, f"{_SET} {shorten(path)}")
    if path in _NAMED_SECTIONS and isinstance(value, str):
        sections, key, path = [*sections, key], "kind", f"{path}.kind"
    place: Any = tree
    for section, following in itertools.pairwise([*sections, key]):
        place = _enter(place, section, path, [] if following.isdecimal() else {})
    place[_find_item(place, key, path, value) if isinstance(place, list) else key] = value
    for known in [known for known in origins if known.startswith(f"{path}.")]:
        del origins[known]
    origins[path] = _SET


def _enter(place: Any, section: str, path: str, missing: Any) -> Any:
    """A section, or an item of a list by its number; one that is not there begins as `missing`."""
    if isinstance(place, list):
        inside = place[_find_item(place, section, path, missing)]
    else:
        inside = place.setdefault(section, missing)
    if not isinstance(inside, dict | list):
        raise ConfigError(f'{_SET} {shorten(path)}: "{shorten(section)}" is not a section.')
    return inside


def _find_item(items: list[Any], number: str, path: str, missing: Any) -> int:
    """The number of an item of a list; the first one behind the end is added as `missing`."""
    if not number.isdecimal() or len(number) > _LONGEST_NUMBER or int(number) > len(items):
        raise ConfigError(
            f"{_SET} {shorten(path)}: expected the number of one of {len(items)} items, counted from 0, or "
            f'{len(items)} for a new one, found "{shorten(number)}".'
        )
    if int(number) == len(items):
        items.append(missing)
    return int(number)
