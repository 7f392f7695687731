"""Models for inference: a run, a stack or an exported folder, by name or path."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.tasks import Task
from ichkit.stages.predict.foreign import refuse_failures, refuse_oversized
from ichkit.validation.catalog import HAND, Source, find_sources, pick_source
from ichkit.work.artifacts import Manifest, check_digests, find_damage, has_artifact, read_manifest
from ichkit.work.folder import WorkFolder, check_name
from ichkit.work.inventory import kinds_of, take_inventory

if TYPE_CHECKING:
    from ichkit.engine.inference import Predictor

RESEARCH_NOTE = "Research use only: not a medical device, not for diagnosis."
EXPORT = "export"
_BEST_KIND = "blend"


@dataclass(frozen=True)
class Model:
    """The networks of a model and its second stage.

    Attributes:
        name: name of the source, as on the leaderboard.
        runs: fold folders of each run.
        stack: the folder of the stack; None if the mean over the folds of a run predicts.
        kind: which predictions of the stack are used; "base" without a stack.
        data: its training data: "rsna", "phantom" or "folder".
        is_exported: it is an exported folder whose digests were checked.
    """

    name: str
    runs: dict[str, dict[int, Path]]
    stack: Path | None
    kind: str
    data: str
    is_exported: bool = False

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds of its networks, ascending."""
        return tuple(next(iter(self.runs.values())))

    def load_networks(self, device: str = "auto") -> "dict[str, dict[int, Predictor]]":
        """Loads the network of every run and fold.

        Raises:
            ArtifactError: weights are missing or damaged.
            ConfigError: no such device.
        """
        from ichkit.engine.inference import load_predictor, read_predictor

        if self.stack is not None and not self.is_exported:
            manifest = read_manifest(self.stack)
            check_digests(self.stack, manifest, [name for name in manifest.files if not name.endswith(".parquet")])
        load = read_predictor if self.is_exported else load_predictor
        return {name: {k: load(folder, device) for k, folder in of_run.items()} for name, of_run in self.runs.items()}


def find_model(work: WorkFolder, named: str, task: Task) -> Model:
    """Finds a model by name or folder.

    Args:
        named: a source as on the leaderboard, the name of a stack, or a folder of a run, a stack or `ichkit export`.

    Raises:
        ArtifactError, ConfigError: there is no such model; the message lists the choices.
    """
    if Path(named).is_dir():
        refuse_oversized(Path(named))
        with refuse_failures(Path(named)):
            return _model_of_folder(Path(named), task)
    if "/" in named:  # no source has one in its name
        raise ConfigError(
            f"model: expected the folder of a run, a stack or an export at {named}, found none. Check the path, or "
            "write one with `ichkit export NAME`; `ichkit leaderboard` lists the names."
        )
    sources = find_sources(work, task)
    names = [source.name for source in sources]
    is_stack = named not in names and f"{named}-{_BEST_KIND}" in names
    source = pick_source(sources, f"{named}-{_BEST_KIND}" if is_stack else named)
    _refuse_hand(source.name, source.kind)
    return model_of(work, source)


def model_of(work: WorkFolder, source: Source) -> Model:
    """The model of a source of the work folder; a blend by hand has its members' networks and cannot predict."""
    runs = {name: _fold_folders(work.runs / name, source.folds) for name in source.runs}
    stack = None if source.is_run else (work.root / source.path).parent
    return Model(source.name, runs, stack, source.kind, source.data)


def is_export(folder: Path) -> bool:
    """Whether `ichkit export` wrote a folder.

    Raises:
        ArtifactError: its manifest is damaged.
    """
    return has_artifact(folder) and read_manifest(folder).kind == EXPORT


def _model_of_folder(folder: Path, task: Task) -> Model:
    """The model in a folder of a run (with fold0, ...), of a stack (in its work folder) or of an export."""
    manifest = read_manifest(folder) if has_artifact(folder) else None
    if manifest is not None and manifest.kind == EXPORT:
        return _model_of_export(folder, manifest, task)
    if manifest is not None and manifest.kind == "stack":
        runs_folder = folder.resolve().parents[1] / "runs"
        runs = {name: _fold_folders(runs_folder / name, manifest.facts["folds"]) for name in manifest.facts["runs"]}
        kinds = kinds_of(manifest)
        kind = _BEST_KIND if _BEST_KIND in kinds else kinds[0]
        _refuse_hand(f"{folder.name}-{kind}", kind)
        return Model(f"{folder.name}-{kind}", runs, folder, kind, manifest.facts["data"])
    resolved = folder.resolve()
    is_run = resolved.parent.name == "runs"
    finished = take_inventory(WorkFolder(resolved.parents[1])).finished_runs if is_run else {}
    folds = finished.get(resolved.name)
    if not folds:
        raise ConfigError(
            f"model: expected a run (work/runs/NAME), a stack (work/stacks/NAME) or an export of `ichkit export` at "
            f"{folder}, found none of them. Omit --model to use the best source of --work."
        )
    data = read_manifest(resolved / f"fold{folds[0]}").facts["data"]
    return Model(folder.name, {folder.name: _fold_folders(resolved, folds)}, None, "base", data)


def _refuse_hand(name: str, kind: str) -> None:
    if kind == HAND:
        raise ConfigError(
            f"model: {name} is a blend by hand, which has tables and no models. Predict with its members, or use "
            "`ichkit stack`."
        )


def _model_of_export(folder: Path, manifest: Manifest, task: Task) -> Model:
    damage = find_damage(folder, manifest)
    if damage:
        more = f" (and {len(damage) - 1} more)" if len(damage) > 1 else ""
        raise ArtifactError(
            f"{damage[0]}{more}. The folder is not what `ichkit export` wrote; copy it again, or export it again."
        )
    facts = manifest.facts
    if facts["task"] != task.name:
        raise ConfigError(
            f"{folder}: expected a model for the task {task.name}, found {facts['task']}. Choose its config with -c."
        )
    names = [check_name(name, f"{folder}: run") for name in facts["runs"]]
    runs = {name: _fold_folders(folder / "runs" / name, facts["folds"]) for name in names}
    stack = None if facts["stack"] is None else folder / "stacks" / check_name(facts["stack"], f"{folder}: stack")
    if not names or not facts["folds"]:
        raise ArtifactError(f"{folder}: expected a model of at least one run and fold, found none in its manifest.")
    return Model(str(facts["name"]), runs, stack, facts["kind"], facts["data"], is_exported=True)


def _fold_folders(run: Path, folds: Sequence[int]) -> dict[int, Path]:
    work = WorkFolder(run.parents[1])
    return {int(k): work.fold(run.name, int(k)) for k in folds}
