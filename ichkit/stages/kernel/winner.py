"""`ichkit winner`: the archive and the model summary that Kaggle asks of a winner."""

import email
import importlib.metadata
import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import ichkit
from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.progress import logger
from ichkit.show.plan import Forecast, Plan
from ichkit.stages.kernel.wheels import collect_wheels
from ichkit.stages.kernel.winner_scripts import ENTRY_POINTS, SETTINGS, write_predict, write_prepare, write_train
from ichkit.stages.kernel.winner_summary import Winner, read_features, read_weights, write_readme, write_summary
from ichkit.stages.predict import export
from ichkit.stages.predict.card import collect_card
from ichkit.stages.prepare.plan import LOCK
from ichkit.stages.scores.book import open_book
from ichkit.stages.scores.costs import measure_costs
from ichkit.validation.catalog import Source, find_sources, pick_source
from ichkit.validation.notes import is_csv_unchanged, read_note
from ichkit.work.artifacts import (
    encode_json,
    has_artifact,
    read_bytes,
    read_manifest,
    write_bytes_atomically,
)
from ichkit.work.folder import WorkFolder

_BLEND_FILE, _IMPORTANCE, _CONFIG = "blend.json", "lightgbm/importance.csv", "config.yaml"
_FILES = (
    *(
        "README.md",
        "MODEL_SUMMARY.md",
        "entry_points.md",
        "SETTINGS.json",
        "requirements.txt",
        "directory_structure.txt",
    ),
    *("prepare_data.py", "train.py", "predict.py"),
)
_NOT_PINNED = ("python", "ichkit")
_COMPETITIONS = ("rsna", "phantom")
_FOLDERS = ("code", "config", "model")


@dataclass(frozen=True)
class WinnerOptions:
    """Options of `winner`.

    Attributes:
        model: a source of the leaderboard that has models.
        out: output folder; an earlier archive there is replaced.
        submissions: the folder with the note of its submission.
        wheel: as for `kernel`.
    """

    model: str
    out: Path = Path("winner")
    submissions: Path = Path("submissions")
    wheel: Path | None = None


@dataclass(frozen=True)
class WinnerPlan(Plan):
    """What `winner` found.

    Attributes:
        source: the model on the leaderboard.
        model: the plan of its export.
        wheel: the wheel of ichkit, or the checkout or the folder of installed packages that it is made from.
    """

    config: Config
    work: WorkFolder
    options: WinnerOptions
    source: Source
    model: export.ExportPlan
    wheel: Path

    @property
    def writes(self) -> tuple[Path, ...]:
        """The files and folders of the archive."""
        return tuple(self.options.out / name for name in (*_FILES, *_FOLDERS))

    def forecast(self) -> Forecast:
        """The model, then the documents."""
        forecast = self.model.forecast()
        return replace(forecast, steps=(*forecast.steps, f"{', '.join(_FILES)}; configs and the wheel of ichkit"))


def plan(config: Config, work: WorkFolder, options: WinnerOptions) -> WinnerPlan:
    """Finds the model and checks the output folder; writes nothing.

    Raises:
        ConfigError: no such source, one without models, one of own data, a wheel that is none, or other content in
            `out`.
        ArtifactError: a part of the model is unfinished.
    """
    if options.wheel is not None and not (options.wheel.is_file() and options.wheel.suffix == ".whl"):
        raise ConfigError(f"winner --wheel: expected a file that ends in .whl, found {options.wheel}.")
    model = export.plan(config, work, export.ExportOptions(options.model, options.out / "model"))
    _refuse_other_content(options.out, model.model.name)
    source = pick_source(find_sources(work, model.task), model.model.name)
    if source.data.split("+")[0] not in _COMPETITIONS:
        raise ConfigError(
            f"winner: expected a model of the competition's data (or its phantom), found {source.name}, of "
            f"{source.data}. `ichkit export` and `ichkit report` describe models of other data."
        )
    wheel = options.wheel or Path(ichkit.__file__).resolve().parents[1]
    return WinnerPlan(config, work, options, source, model, wheel)


def run(plan: WinnerPlan) -> Path:
    """Writes the archive and returns its folder.

    ::

        OUT/README.md  MODEL_SUMMARY.md  entry_points.md     for readers
            SETTINGS.json  requirements.txt  directory_structure.txt
            prepare_data.py  train.py  predict.py            entry points
            config/RUN.yaml                                  settings of each run, with those of the second stage
            code/ichkit-*.whl                                the software
            model/                                           an export of the trained model

    Raises:
        ArtifactError: a part of the model is damaged, or the wheel cannot be built.
        DiskFullError: the disk is full.
    """
    out, model = plan.options.out, plan.model.model
    winner = _collect(plan)
    ((wheel_name, wheel),) = collect_wheels(plan.wheel, ())
    export.run(plan.model)
    write_bytes_atomically(out / "code" / wheel_name, wheel)
    configs = {run: _config_of(plan, next(iter(of_run.values()))) for run, of_run in model.runs.items()}
    names = {run: f"{run}.yaml" for run in configs}
    for run, tree in configs.items():
        text = yaml.safe_dump(tree, sort_keys=False)
        write_bytes_atomically(out / "config" / names[run], text.encode())
    first = next(iter(names.values()))
    texts = {
        "README.md": write_readme(winner, list(names.values())),
        "MODEL_SUMMARY.md": write_summary(winner),
        "entry_points.md": ENTRY_POINTS,
        "prepare_data.py": write_prepare(first, _prepare_options(plan.work)),
        "train.py": write_train(list(names.items()), None if model.stack is None else model.stack.name),
        "predict.py": write_predict(first),
        "requirements.txt": _pin(winner.versions, _requirements_of(wheel)),
    }
    for name, text in texts.items():
        write_bytes_atomically(out / name, text.encode())
    write_bytes_atomically(out / "SETTINGS.json", encode_json(SETTINGS))
    write_bytes_atomically(out / "directory_structure.txt", _list_folders(out).encode())
    logger.info(
        "winner: %s in %s; fields that only you know are marked in README.md and MODEL_SUMMARY.md", model.name, out
    )
    return out


def _refuse_other_content(out: Path, name: str) -> None:
    """Refuses an output folder with content that is not an archive of the same model."""
    model = out / "model"
    is_archive = has_artifact(model) and read_manifest(model).facts.get("name") == name
    if out.exists() and not is_archive and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"winner: expected no folder, an empty one, or an earlier archive of {name} at {out}, found something "
            "else. Name another with --out."
        )


def _collect(plan: WinnerPlan) -> Winner:
    """What the work folder knows of the model."""
    work, model, source, task = plan.work, plan.model.model, plan.source, plan.model.task
    try:
        book = open_book(work, task)
    except ArtifactError as error:
        logger.warning("winner: no scores, they are written as unknown: %s", error)
        book = None
    note = read_note(plan.options.submissions, source.name)
    is_present = (
        note is not None
        and note["tables"] == source.digests_of(work, "test")
        and is_csv_unchanged(plan.options.submissions, note)
    )
    folds = [read_manifest(folder) for of_run in model.runs.values() for folder in of_run.values()]
    blend = _read_stack(model.stack, _BLEND_FILE) if model.kind == "blend" else None
    stacked = {} if model.stack is None else read_manifest(model.stack).settings["stack"]
    is_boosted = model.stack is not None and model.kind in ("blend", "lightgbm")
    return Winner(
        card=collect_card(work, model, task, book),
        source=source,
        book=book,
        costs=measure_costs(work, book.sources if book is not None else find_sources(work, task)),
        note=note if is_present else None,
        combine=str(stacked.get("combine", "")),
        weights={} if blend is None else read_weights(blend),
        features=read_features(model.stack / _IMPORTANCE if is_boosted and model.stack else Path()),
        versions=max(folds, key=lambda manifest: manifest.created_utc).versions,
        devices=tuple(sorted({str(one.facts["device"]) for one in folds if "device" in one.facts})),
        threads=tuple(sorted({int(one.facts["threads"]) for one in folds if "threads" in one.facts})),
    )


def _read_stack(stack: Path | None, name: str) -> bytes | None:
    if stack is None:
        return None
    manifest = read_manifest(stack)
    return read_bytes(stack / name, manifest.sha256_of(name)) if name in manifest.files else None


def _config_of(plan: WinnerPlan, fold: Path) -> dict[str, Any]:
    """The config of a run as `-c` reads it, with the number of folds and the second stage it was used with."""
    manifest = read_manifest(fold)
    tree: dict[str, Any] = yaml.safe_load(read_bytes(fold / _CONFIG, manifest.sha256_of(_CONFIG)))
    if has_artifact(plan.work.prepared):
        tree["prepare"]["num_folds"] = read_manifest(plan.work.prepared).settings["num_folds"]
    stack = plan.model.model.stack
    if stack is not None:
        tree["stack"] = read_manifest(stack).settings["stack"]
    return {name: _without_folders(value) for name, value in tree.items()}


def _prepare_options(work: WorkFolder) -> list[str]:
    """The options of `prepare` that decide which patients and studies there are."""
    if not has_artifact(work.prepared):
        return []
    made = read_manifest(work.prepared)
    lock, limit = made.settings.get(LOCK), made.inputs.get("limit_studies", "all")
    locked = [] if lock is None else ["--lock", str(lock)]
    return [*locked, *([] if limit == "all" else ["--limit-studies", limit])]


def _without_folders(value: Any) -> Any:
    """The same settings; a path keeps its last name only."""
    if isinstance(value, Mapping):
        return {name: _without_folders(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inside) for inside in value]
    if isinstance(value, str) and (found := re.fullmatch(r"(model:)?[~/].*?([^/]+)/?", value)):
        return f"{found[1] or ''}{found[2]}"
    return value


def _pin(trained: Mapping[str, str], required: Sequence[str]) -> str:
    """requirements.txt: the packages that trained the model, and all that they need, in exact versions.

    Args:
        required: what the wheel of ichkit needs.
    """
    pinned = {name: version for name, version in trained.items() if version[:1].isdigit() and name not in _NOT_PINNED}
    known = set(map(_plain, pinned))
    further = {name: version for name, version in _needed([*required, *pinned]).items() if name not in known}
    lines = ["# Versions recorded when the model was trained.", *_equal(pinned)]
    lines += ["# What these and ichkit need, in the versions installed where this file was written.", *_equal(further)]
    return "\n".join([*lines, ""])


def _equal(versions: Mapping[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _needed(names: Iterable[str]) -> dict[str, str]:
    """Name to version of every installed package that these need, themselves included."""
    found: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = _plain(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # of another platform or Python
            continue
        waiting += _names_of(importlib.metadata.requires(name) or [])
    return found


def _requirements_of(wheel: bytes) -> list[str]:
    """The packages that a wheel needs, without those of extras."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []
    return _names_of(map(str, lines))


def _names_of(requirements: Iterable[str]) -> list[str]:
    lines = (line for line in requirements if "extra ==" not in line)
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]


def _plain(name: str) -> str:
    """The name of a package as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _list_folders(out: Path) -> str:
    """The folders of the archive, as `find . -type d` prints them."""
    below = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_dir())
    return "\n".join([".", *(f"./{name}" for name in below), ""])
