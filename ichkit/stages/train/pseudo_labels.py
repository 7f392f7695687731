"""Pseudo-labels: slices of the test split or of unlabelled external sets with soft labels by an earlier run.

The teacher of fold k is fold k's own network of the earlier run, which never saw a label of fold k. Its predictions of
these slices therefore carry no label of fold k into the training of the new fold k.

Source: the competition's winners trained on pseudo-labels of the test split; one teacher per fold is chosen here,
because a teacher averaged over folds has seen the labels of every fold.
"""

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError, ConfigError, nearest
from ichkit.core.progress import logger
from ichkit.core.roles import is_transductive
from ichkit.core.seeding import make_generator
from ichkit.core.train_config import OWN_LABELS, ResolvedPhase
from ichkit.imaging.store import Prepared
from ichkit.stages.train.fold_inputs import RUN_PREFIX, TRAIN_ROWS, FoldTask, Identity, Parts
from ichkit.work.artifacts import Manifest, check_digests, read_manifest, read_table


def add_pseudo_labels(
    task: FoldTask, identity: Identity, prepared: Prepared, parts: Parts, phase: ResolvedPhase, number: int
) -> pd.DataFrame:
    """The slices that a phase trains on: the training part, and with `labels: run:NAME` whole studies of other sets.

    Args:
        parts: after the validation patients were taken out.
        number: of the phase, for the draw of studies.

    Returns:
        Columns of `parts.train`; the labels of added slices are probabilities in [0, 1].

    Raises:
        ArtifactError: the teacher is unfinished, was trained on other folds or predicted other slices.
        ConfigError: no such set, a set with labels, or only empty sets.
    """
    if phase.labels == OWN_LABELS:
        return parts.train
    run = phase.labels.removeprefix(RUN_PREFIX)
    folder = task.work.fold(run, task.fold)
    manifest = read_manifest(folder)
    refuse_other_folds(manifest, identity, run, task.fold, "label")
    classes, probabilities = list(prepared.task.classes), prepared.task.probability_columns
    added = []
    for name in phase.pseudo_sets:
        slices = _find_set(name, prepared, parts)
        if manifest.inputs.get(f"{name}_slices") != identity.inputs[f"{name}_slices"]:
            raise ArtifactError(
                f"train.phases: run:{run} predicted other slices of {name} than are prepared now. "
                f"Run `ichkit train --run {run}` again: it only predicts, nothing is trained."
            )
        check_digests(folder, manifest, [f"{name}.parquet"])
        table = read_table(folder / f"{name}.parquet").set_index("slice_id")
        if not (table.fold == task.fold).all():
            raise ArtifactError(
                f"{folder / f'{name}.parquet'}: expected predictions by the network of fold {task.fold} alone, found "
                f"folds {', '.join(map(str, sorted(table.fold.unique())))}. Train the run again with --fresh."
            )
        soft = table.loc[slices.slice_id, probabilities].to_numpy(np.float64)
        added.append(slices.assign(**dict(zip(classes, soft.T, strict=True))))
    pool = pd.concat(added, ignore_index=True)
    if pool.empty:
        raise ConfigError(
            f"train.phases: expected slices of {', '.join(phase.pseudo_sets)} for pseudo-labels, found none. "
            "Prepare some, or leave out `labels`."
        )
    chosen = _draw_studies(pool, count_pseudo_slices(len(parts.train), len(pool), phase), task, number)
    logger.info(
        "fold %d: phase %d adds %d of %d slices of %s with soft labels by fold %d of %s; the results are transductive",
        task.fold,
        number + 1,
        len(chosen),
        len(pool),
        ", ".join(phase.pseudo_sets),
        task.fold,
        run,
    )
    own = parts.train.assign(**{name: parts.train[name].astype("float64") for name in classes})
    return pd.concat([own, chosen], ignore_index=True)


def count_pseudo_slices(num_own: int, num_available: int, phase: ResolvedPhase) -> int:
    """About how many slices a phase adds: the configured share of all its slices, or all that exist."""
    if phase.labels == OWN_LABELS:
        return 0
    return min(num_available, round(num_own * phase.pseudo_share / (1 - phase.pseudo_share)))


def refuse_other_folds(manifest: Manifest, identity: Identity, run: str, fold: int, purpose: str) -> None:
    """Refuses an earlier run whose fold of this number is not this fold.

    Args:
        purpose: what the run is for, a verb, e.g. "initialise".

    Raises:
        ArtifactError: it may have been trained on slices that are held out here.
    """
    # The digest of the training part includes the labels of the classes of the run; another run may learn others.
    has_same_rows = bool(identity.train_rows) and manifest.facts.get(TRAIN_ROWS) == identity.train_rows
    for name, what in (("heldout_slices", "holds out other slices"), ("train_slices", "was trained on other slices")):
        if manifest.inputs.get(name) != identity.inputs[name] and not (name == "train_slices" and has_same_rows):
            raise ArtifactError(
                f"train.phases: run:{run} cannot {purpose} fold {fold}: its fold {fold} {what}, so "
                "it may have seen labels that are held out here. Expected an earlier run on the same folds.csv; train "
                f"`ichkit train --run {run}` again on these folds, or start from weights of other data."
            )


def learns_from_predictions(task: FoldTask, phases: list[ResolvedPhase]) -> bool:
    """Whether a fold trains on pseudo-labels, or starts from a run that did.

    Raises:
        ArtifactError: that run is missing or unfinished.
    """
    if any(phase.labels != OWN_LABELS for phase in phases):
        return True
    runs = {phase.weights.removeprefix(RUN_PREFIX) for phase in phases if phase.weights.startswith(RUN_PREFIX)}
    return any(is_transductive(read_manifest(task.work.fold(run, task.fold)).facts["data"]) for run in runs)


def _find_set(name: str, prepared: Prepared, parts: Parts) -> pd.DataFrame:
    """The slices of the test split or of an external set without labels."""
    sets = {"test": parts.test, **parts.external}
    if name not in sets:
        raise ConfigError(f'train.phases: unknown set "{name}" in pseudo_sets. {nearest(name, sets)}')
    studies, classes = prepared.studies, list(prepared.task.classes)
    own = studies[(studies.split == "test") if name == "test" else (studies.dataset == name)]
    if name != "test" and own[classes].notna().any(axis=None):
        raise ConfigError(
            f"train.phases: {name} has labels and is scored; pseudo-labels would train on it. "
            "Use the test split or an external set without labels."
        )
    return sets[name]


def _draw_studies(pool: pd.DataFrame, num_slices: int, task: FoldTask, number: int) -> pd.DataFrame:
    """Whole studies with at least this number of slices together, in the order of the pool."""
    codes, _ = pd.factorize(pool.volume)
    order = make_generator(task.config.seed, "pseudo", task.fold, number).permutation(codes.max() + 1)
    before = np.concatenate([[0], np.bincount(codes)[order].cumsum()[:-1]])
    return pool[np.isin(codes, order[before < num_slices])]
