"""`ichkit train`: stage 1 for each fold, every fold skipped, resumed, refused or trained on its own merits."""

import logging
import shutil
from enum import Enum
from pathlib import Path

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError, FoldError
from ichkit.core.progress import logger, stop_on_signal
from ichkit.core.tasks import find_task
from ichkit.engine.ranks import Ranks
from ichkit.imaging.store import Prepared
from ichkit.stages.train.fold import do_fold, has_embeddings
from ichkit.stages.train.fold_inputs import MADE_BY, FoldTask, Identity, identify, read_started
from ichkit.stages.train.lanes import do_folds
from ichkit.validation.folds import check_folds
from ichkit.work.artifacts import Manifest, has_artifact, list_differences, partial_of, read_manifest
from ichkit.work.folder import WorkFolder


class _State(Enum):
    """What a fold needs."""

    DONE = "done"
    PREDICT = "predict"
    TRAIN = "train"


def run(
    config: Config, work: WorkFolder, *, run_name: str, folds: list[int] | None = None, fresh: bool = False
) -> list[Manifest]:
    """Trains the folds that are not finished yet and writes their descriptors; returns the manifests of all asked for.

    Args:
        run_name: folder below `work/runs`.
        folds: None for every fold of `folds.csv`.
        fresh: start the folds over, whatever was there.

    Raises:
        ArtifactError: nothing prepared, or a fold was made from other settings or other training slices.
        FoldError: a fold that does not exist, or folds that split a patient.
        ConfigError: a backbone, loss, optimizer or device that is not to be had.
        Stopped: a stop signal; the next call goes on from the same step.
    """
    ranks = Ranks.of_environment()
    if not ranks.leads:
        logger.setLevel(logging.WARNING)  # one of them says what all do
    prepared = Prepared.open(work.prepared, find_task(config.task))
    check_folds(prepared.slices)
    asked = choose_folds(folds, prepared)
    if fresh and ranks.leads:
        for fold in asked:
            for folder in (work.fold(run_name, fold), partial_of(work.fold(run_name, fold))):
                shutil.rmtree(folder, ignore_errors=True)
    if ranks.world > 1:
        _do_together(config, work, prepared, run_name, asked, ranks, fresh=fresh)
    elif tasks := list_tasks(config, work, prepared, run_name, asked):
        do_folds(tasks, config.train)
    return [read_manifest(work.fold(run_name, fold), made_by=MADE_BY) for fold in asked] if ranks.leads else []


def list_tasks(config: Config, work: WorkFolder, prepared: Prepared, run_name: str, asked: list[int]) -> list[FoldTask]:
    """What is left to do for these folds, ascending; says what is not, and writes nothing.

    Raises:
        ArtifactError: a fold was made from other settings or other training slices.
    """
    states = {fold: _judge(config, prepared, work, run_name, fold) for fold in asked}
    tasks = []
    for fold, state in states.items():
        if state is _State.DONE:
            logger.info("fold %d: finished already", fold)
            continue
        if state is _State.PREDICT:
            logger.info(
                "fold %d: slices to predict have changed, or embeddings are new; its weights predict anew", fold
            )
        tasks.append(FoldTask(config, work, run_name, fold, trains=state is _State.TRAIN))
    return tasks


def _do_together(
    config: Config,
    work: WorkFolder,
    prepared: Prepared,
    run_name: str,
    asked: list[int],
    ranks: Ranks,
    *,
    fresh: bool,
) -> None:
    """One fold by the processes that `torchrun` started.

    Raises:
        ConfigError: more than one fold.
    """
    if len(asked) > 1:
        raise ConfigError(
            f"train: torchrun joins {ranks.world} processes on one fold, found folds {', '.join(map(str, asked))}. "
            "Name one: torchrun --nproc-per-node 2 -m ichkit train --fold 0. Without torchrun, folds go one to a GPU."
        )
    # The first process may be starting over while the others look.
    starts_over = fresh and not ranks.leads
    tasks = (
        [FoldTask(config, work, run_name, asked[0], trains=True)]
        if starts_over
        else list_tasks(config, work, prepared, run_name, asked)
    )
    with stop_on_signal() as stop:
        for task in tasks:
            if task.trains or ranks.leads:
                do_fold(task, stop)


def choose_folds(folds: list[int] | None, prepared: Prepared) -> list[int]:
    """The folds that were asked for, ascending; None asks for all of `folds.csv`.

    Raises:
        FoldError: one that does not exist.
    """
    known = prepared.fold_numbers
    if folds is None:
        return known
    unknown = sorted(set(folds) - set(known))
    if unknown:
        raise FoldError(
            f"train: expected folds of {prepared.folder / 'folds.csv'}, which are {', '.join(map(str, known))}; "
            f"found {', '.join(map(str, unknown))}. Choose with `--fold`, or make other folds with "
            "`ichkit prepare --new-folds`."
        )
    return sorted(set(folds))


def _judge(config: Config, prepared: Prepared, work: WorkFolder, run_name: str, fold: int) -> _State:
    """What a fold needs.

    Raises:
        ArtifactError: it was made from other settings or other training slices.
    """
    folder = work.fold(run_name, fold)
    wanted, started = identify(config, prepared, work, fold), read_started(folder)
    if started is not None:
        _refuse_others(partial_of(folder), started, wanted)
        return _State.TRAIN
    if not has_artifact(folder):
        return _State.TRAIN
    manifest = read_manifest(folder, made_by=MADE_BY)
    _refuse_others(folder, Identity(manifest.settings, manifest.inputs), wanted)
    lacks_embeddings = config.train.embeddings and not has_embeddings(folder)
    return _State.DONE if manifest.inputs == wanted.inputs and not lacks_embeddings else _State.PREDICT


def _refuse_others(folder: Path, found: Identity, wanted: Identity) -> None:
    differences = list_differences(found.settings, wanted.settings)
    if found.inputs.get("train_slices") != wanted.inputs["train_slices"]:
        differences.append("the slices or labels of its training part")
    if differences:
        raise ArtifactError(
            f"{folder}: made from other settings than asked for now ({'; '.join(differences)}). Use the same settings, "
            "another --run, or start this run over with `ichkit train --fresh`."
        )
