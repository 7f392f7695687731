"""Initial weights from a model of other data: an export, refused where its patients are among those of this store."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.imaging.store import Prepared
from ichkit.stages.train.fold_inputs import MODEL_PREFIX, RUN_PREFIX, FoldTask
from ichkit.work.artifacts import check_digests, has_artifact, read_manifest
from ichkit.work.folder import WEIGHTS_NAME, WorkFolder, check_name
from ichkit.work.patients import PATIENTS_NAME, decode_patients, digest_patients

_EXPORT = "export"


def read_other_model(weights: str, prepared: Prepared) -> dict[str, torch.Tensor]:
    """The tensors of the first network of an export.

    One network for every fold, so that the folds start alike.

    Args:
        weights: "model:FOLDER".
        prepared: the store of the training.

    Raises:
        ArtifactError: the export is damaged, does not say whom it learnt from, or learnt from patients of the store.
        ConfigError: no export, or one of several runs.
    """
    folder = find_other_model(weights)
    patients = read_other_patients(weights)
    shared = patients & set(digest_patients(prepared.slices))
    if shared:
        raise ArtifactError(
            f"train: {weights} has learnt from {len(shared)} patients or studies that are in {prepared.folder} too: it "
            "may have seen labels that are held out here. Start from a model of other patients, or from an earlier run "
            "on the same folds (run:NAME)."
        )
    manifest = read_manifest(folder)
    path = _first_network(folder)
    check_digests(folder, manifest, [path.relative_to(folder).as_posix()])
    return load_file(path)


def read_other_patients(weights: str) -> set[str]:
    """Digests of the patients and studies that a model has learnt from.

    Raises:
        ArtifactError: it does not say.
        ConfigError: no export.
    """
    folder = find_other_model(weights)
    manifest = read_manifest(folder)
    if PATIENTS_NAME not in manifest.files:
        raise ArtifactError(
            f"train: {weights} does not say whose scans it has learnt from, so it may have seen those held out here. "
            "Export it again with `ichkit export`, where its store is."
        )
    check_digests(folder, manifest, [PATIENTS_NAME])
    return decode_patients(folder / PATIENTS_NAME)


def find_other_model(weights: str) -> Path:
    """The folder of "model:FOLDER".

    Raises:
        ConfigError: it is no export.
    """
    folder = Path(weights.removeprefix(MODEL_PREFIX))
    if not has_artifact(folder) or read_manifest(folder).kind != _EXPORT:
        raise ConfigError(
            f"train: {weights}: expected a folder written by `ichkit export` at {folder}, found none. Export a model "
            "of other data and name its folder."
        )
    return folder


def _first_network(folder: Path) -> Path:
    facts = read_manifest(folder).facts
    if len(facts["runs"]) != 1 or not facts["folds"]:
        raise ConfigError(
            f"train: {folder}: expected the export of one run, found {len(facts['runs'])}: {', '.join(facts['runs'])}. "
            "Export one of its runs."
        )
    run = check_name(facts["runs"][0], f"{folder}: run")
    return WorkFolder(folder).fold(run, int(min(facts["folds"]))) / WEIGHTS_NAME


def earlier_patients(task: FoldTask) -> set[str]:
    """Digests of patients of other data that the initial weights of a fold have seen, also through an earlier run."""
    settings = task.config.train
    found: set[str] = set()
    for weights in (settings.pretrained, *(phase.weights for phase in settings.phases)):
        if weights.startswith(MODEL_PREFIX):
            found |= read_other_patients(weights)
        elif weights.startswith(RUN_PREFIX):
            folder = task.work.fold(weights.removeprefix(RUN_PREFIX), task.fold)
            if PATIENTS_NAME in read_manifest(folder).files:
                found |= decode_patients(folder / PATIENTS_NAME)
    return found
