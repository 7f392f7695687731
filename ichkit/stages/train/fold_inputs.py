"""One fold of a run: its paths, its inputs, and whether it is up to date with them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import ChannelsConfig, Config
from ichkit.core.errors import ArtifactError, FoldError
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import find_task
from ichkit.core.train_config import NONE, PhaseConfig, TrainConfig
from ichkit.imaging.store import Prepared
from ichkit.stacking.embeddings import embeddings_name
from ichkit.validation.folds import deal_patients
from ichkit.validation.scope import Scope
from ichkit.work.artifacts import digest_file, digest_table, has_artifact, list_differences, read_manifest
from ichkit.work.folder import WEIGHTS_NAME, WorkFolder
from ichkit.work.places import partial_of

STARTED_NAME, CHECKPOINT_NAME = "started.json", "last.ckpt"
RUN_PREFIX, MODEL_PREFIX = "run:", "model:"
KEPT_EPOCH, TRANSDUCTIVE, TRAIN_ROWS = "kept_epoch", "transductive", "train_rows"

# The inputs of a network without labels; the volume's name is a digest of its content.
_TRAINED_ON = ("train_slices", "train_positions", "pseudo_labelled")
_OF_STORE = ("size", "hull_hu", "steps", "parts", "sequences")
_SEEN = ["slice_id", "study_id", "slice_index", "volume"]


class FoldState(Enum):
    """The remaining work of a fold."""

    DONE = "done"
    PREDICT = "predict"
    TRAIN = "train"


@dataclass(frozen=True)
class FoldTask:
    """One fold to train or predict; small enough to send to a worker.

    Attributes:
        config: the whole configuration.
        work: the work folder.
        run: name of the run.
        fold: the fold held out.
        trains: False if the weights are finished and only predictions are made again.
        shows_meter: show a progress bar instead of one line per epoch.
        gpu: index of the GPU reserved for this fold; None with at most one GPU.
    """

    config: Config
    work: WorkFolder
    run: str
    fold: int
    trains: bool
    shows_meter: bool = True
    gpu: int | None = None

    @property
    def folder(self) -> Path:
        """The folder of the finished fold."""
        return self.work.fold(self.run, self.fold)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of unfinished training."""
        return partial_of(self.folder) / CHECKPOINT_NAME

    @property
    def device_name(self) -> str:
        """The device for inference."""
        return self.config.train.accelerator if self.gpu is None else f"cuda:{self.gpu}"

    def open_prepared(self) -> Prepared:
        """The store.

        Raises:
            ArtifactError: missing or unfinished.
        """
        return Prepared.open(self.work.prepared, find_task(self.config.task))


@dataclass(frozen=True)
class Identity:
    """Settings and input digests that identify a fold.

    Attributes:
        train_rows: digest of the slices of the training part without their labels, which is the same for runs of other
            classes.
    """

    settings: dict[str, Any]
    inputs: dict[str, str]
    train_rows: str = ""


@dataclass(frozen=True)
class Parts:
    """The slices of one fold by part, each sorted by study_id and slice_index; external sets by name.

    `train` is the whole training part until `hold_validation` takes the validation patients from it.
    """

    train: pd.DataFrame
    heldout: pd.DataFrame
    test: pd.DataFrame
    external: dict[str, pd.DataFrame]
    validation: pd.DataFrame | None = None

    @classmethod
    def of(cls, prepared: Prepared, fold: int, scope: Scope | None = None) -> "Parts":
        """Splits the slices of a store for one fold; labels that are not in the scope of the run are unknown."""
        labelled = prepared.split("train")
        if scope is not None:
            labelled = scope.mask(labelled)
        is_held_out = labelled.fold.to_numpy(np.int64) == fold
        return cls(
            train=labelled[~is_held_out].reset_index(drop=True),
            heldout=labelled[is_held_out].reset_index(drop=True),
            test=prepared.split("test"),
            external={name: prepared.split(name) for name in prepared.external_sets()},
        )

    def hold_validation(self, config: Config, fold: int) -> "Parts":
        """The parts with the patients of `train.validation` taken from the training part; the same for every phase.

        Raises:
            FoldError: the training part has too few patients.
        """
        share, num_patients = config.train.validation.share, self.train.patient_id.nunique()
        if not share:
            return self
        num_parts = round(1 / share)
        if num_patients < num_parts:
            raise FoldError(
                f"train.validation.share: expected at least {num_parts} patients in the training part of fold {fold} "
                f"to hold out one part in {num_parts}, found {num_patients}. Use a larger share, or 0 for none."
            )
        seed = derive_seed(config.seed, "validation", fold)
        part = deal_patients(self.train, num_parts, find_task(config.task).classes, seed)
        kept, held = (self.train[rows].reset_index(drop=True) for rows in (part > 0, part == 0))
        return replace(self, train=kept, validation=held)

    @property
    def predicted(self) -> dict[str, pd.DataFrame]:
        """The parts to predict, by the name of their table."""
        return {"oof": self.heldout, "test": self.test, **self.external}


def find_scope(config: Config) -> Scope:
    """What a run with this config predicts.

    Raises:
        ConfigError: `train.classes` or `train.given` is no class of the task.
    """
    return Scope.of(find_task(config.task), config.train.classes, config.train.given)


def find_training_scope(config: Config) -> Scope:
    """The labels that a run with this config trains on: those that it predicts, and those of its earlier phases.

    Raises:
        ConfigError: a class is not of the task.
    """
    task, own = find_task(config.task), find_scope(config)
    phases = config.train.resolve_phases(own.classes, task.classes)
    classes = {*own.classes, *(name for phase in phases for name in phase.classes)}
    return Scope.of(task, tuple(classes), config.train.given)


def count_labelled(slices: pd.DataFrame, classes: Sequence[str]) -> tuple[int, int]:
    """Slices with a known label of these classes, and studies with such a slice."""
    labelled = slices[slices[list(classes)].notna().any(axis=1)]
    return len(labelled), labelled["study_id"].nunique()


def describe_validation(parts: Parts) -> str:
    """Slices and patients of the validation part; it must have one."""
    assert parts.validation is not None
    return f"{len(parts.validation)} of {parts.validation.patient_id.nunique()} patients for validation"


def identify(config: Config, prepared: Prepared, work: WorkFolder, fold: int) -> Identity:
    """Settings and input digests of a fold.

    Labels of the held-out fold are not included: no result of training may depend on them.
    """
    parts, classes = Parts.of(prepared, fold, find_training_scope(config)), list(prepared.task.classes)
    train = config.train.settings()
    train["pretrained"] = name_weights(train["pretrained"], work, fold)
    for phase in train["phases"]:
        phase["weights"] = name_weights(phase["weights"], work, fold)
        phase["labels"] = name_weights(phase["labels"], work, fold)
    stored = prepared.manifest.settings
    positions = {}
    if config.train.context.kind != NONE:  # the only networks that see them
        unseen = [slices["position_mm"] for slices in parts.predicted.values()]
        positions["train_positions"] = digest_table(parts.train[["position_mm"]])
        positions["positions"] = digest_table(pd.concat(unseen).to_frame())
    pseudo = {}
    teachers = [(phase.labels, name) for phase in config.train.phases for name in phase.pseudo_sets]
    if teachers := [(labels, name) for labels, name in teachers if labels.startswith(RUN_PREFIX)]:
        seen = {"test": parts.test, **parts.external}
        digests = [digest_table(seen[name][_SEEN]) if name in seen else "" for _, name in teachers]
        pseudo["pseudo_labelled"] = " ".join(digests)
    return Identity(
        settings={
            "task": config.task,
            "seed": config.seed,
            "channels": config.channels.settings(),
            "train": train,
            "prepare": {name: stored[name] for name in _OF_STORE if name in stored},
        },
        inputs={
            "train_slices": digest_table(parts.train[[*_SEEN, *classes]]),
            "heldout_slices": digest_table(parts.heldout[_SEEN]),
            "test_slices": digest_table(parts.test[_SEEN]),
            **{f"{name}_slices": digest_table(slices[_SEEN]) for name, slices in parts.external.items()},
            **positions,
            **pseudo,
        },
        train_rows=digest_table(parts.train[_SEEN]),
    )


def name_weights(weights: str, work: WorkFolder, fold: int) -> str:
    """The identity of initial weights by content, so that a changed weight file counts as changed settings."""
    if weights.startswith(RUN_PREFIX):
        path = work.fold(weights.removeprefix(RUN_PREFIX), fold) / WEIGHTS_NAME
        return f"{weights} {digest_file(path)[:16]}" if path.is_file() else weights
    if weights.startswith(MODEL_PREFIX):
        folder = Path(weights.removeprefix(MODEL_PREFIX))
        if not has_artifact(folder):
            return weights
        files = read_manifest(folder).files
        networks = [files[name].sha256 for name in sorted(files) if name.endswith(WEIGHTS_NAME)]
        return f"{MODEL_PREFIX} {hashlib.sha256(' '.join(networks).encode()).hexdigest()[:16]}"
    return f"file {digest_file(Path(weights))[:16]}" if Path(weights).is_file() else weights


def read_started(folder: Path) -> Identity | None:
    """The identity of an unfinished fold; None if there is none to resume."""
    path = partial_of(folder) / STARTED_NAME
    if not path.is_file():
        return None
    try:
        return Identity(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        return None


def has_embeddings(folder: Path) -> bool:
    """Whether a finished fold has penultimate-layer embeddings."""
    return embeddings_name("oof") in read_manifest(folder).files


def slice_head_name(part: str) -> str:
    """Name of the table of the slice head, beside that of the series head."""
    return f"slice_{part}.parquet"


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings completed with keys of later versions, whose defaults keep the earlier behaviour."""
    train = settings.get("train")
    if not isinstance(train, dict):
        return settings
    train, phase = _fill(train, TrainConfig().settings()), PhaseConfig().settings()
    channels = _fill(settings.get("channels", {}), ChannelsConfig().settings())
    phases = [_fill(found, phase) for found in train["phases"]]
    return {**settings, "channels": channels, "train": {**train, "phases": phases}}


def _fill(found: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The values found, and the defaults of keys that are missing, at any depth."""
    nested = {
        key: _fill(found[key], value)
        for key, value in defaults.items()
        if isinstance(value, dict) and isinstance(found.get(key), dict)
    }
    return {**defaults, **found, **nested}


def find_state(config: Config, prepared: Prepared, work: WorkFolder, run_name: str, fold: int) -> FoldState:
    """The remaining work of a fold.

    Raises:
        ArtifactError: it was made from other settings or other training slices.
    """
    folder = work.fold(run_name, fold)
    wanted, started = identify(config, prepared, work, fold), read_started(folder)
    if started is not None:
        _refuse_others(partial_of(folder), started, wanted)
        return FoldState.TRAIN
    if not has_artifact(folder):
        return FoldState.TRAIN
    manifest = read_manifest(folder)
    _refuse_others(folder, Identity(manifest.settings, manifest.inputs), wanted)
    lacks_table = (config.train.embeddings and not has_embeddings(folder)) or (
        config.train.keep_slice_head
        and config.train.context.kind != NONE
        and slice_head_name("oof") not in manifest.files
    )
    return FoldState.DONE if manifest.inputs == wanted.inputs and not lacks_table else FoldState.PREDICT


def _refuse_others(folder: Path, found: Identity, wanted: Identity) -> None:
    differences = list_differences(with_defaults(found.settings), wanted.settings)
    if any(found.inputs.get(name) != wanted.inputs.get(name) for name in _TRAINED_ON):
        differences.append("the slices or labels of its training part")
    if differences:
        raise ArtifactError(
            f"{folder}: made from other settings than asked for now ({'; '.join(differences)}). Use the same settings, "
            "another --run, or start this run over: this command with --fresh."
        )
