"""The plan of `train`: which folds to train or to predict again, and the disk and time needed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError, FoldError
from ichkit.core.progress import format_seconds, logger
from ichkit.core.roles import title_of
from ichkit.core.tasks import find_task
from ichkit.core.train_config import TrainConfig
from ichkit.engine.parallel import free_memory_bytes
from ichkit.engine.phases import list_phases
from ichkit.engine.ranks import Ranks
from ichkit.imaging.store import Prepared
from ichkit.show.plan import Forecast, Plan
from ichkit.stages.train.estimate import seconds_by_history, seconds_by_trial
from ichkit.stages.train.fold import STACK_WINDOW
from ichkit.stages.train.fold_inputs import (
    FoldState,
    FoldTask,
    Parts,
    count_labelled,
    describe_validation,
    find_scope,
    find_state,
    find_training_scope,
)
from ichkit.stages.train.lanes import count_at_once, spread
from ichkit.stages.train.pseudo_labels import count_pseudo_slices
from ichkit.stages.train.time_limit import Fit, adopt_epochs, fit_to_limit
from ichkit.tracking.loggers import check_loggers
from ichkit.validation.folds import check_folds
from ichkit.work.folder import WorkFolder

_BYTES_PER_NUMBER = 4
_ANY_HULL = (-800, 2000)  # the range of the store changes neither time nor memory
_LONGEST_STUDY = 60  # of RSNA 2019


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`.

    Attributes:
        run_name: folder below `work/runs`.
        folds: None for every fold of `folds.csv`.
        fresh: discard the folds and train them again.
        embeddings: save penultimate-layer embeddings, like `train.embeddings`.
        time_limit: hours; as many epochs and folds are trained as are expected to fit. None for all.
    """

    run_name: str
    folds: Sequence[int] | None = None
    fresh: bool = False
    embeddings: bool = False
    time_limit: float | None = None


@dataclass(frozen=True)
class TrainPlan(Plan):
    """What `train` found.

    Attributes:
        config: the configuration with the options applied.
        folds: the requested folds, ascending.
        tasks: those with something to do.
        ranks: the rank of this process under `torchrun`.
        fit: the choice for a time limit; None without one, or if nothing is left to do.
    """

    config: Config
    work: WorkFolder
    options: TrainOptions
    prepared: Prepared
    folds: tuple[int, ...]
    tasks: tuple[FoldTask, ...]
    ranks: Ranks
    fit: Fit | None = None

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folders of the folds with something to do."""
        return tuple(task.folder for task in self.tasks)

    def forecast(self) -> Forecast:
        """The network, then what is done for each fold.

        Disk space of the weights, the checkpoint (weights, two moments, EMA weights) and the tables. Time by a finished
        fold of the same settings, scaled by the number of images; without one, by a trial step, as is memory.

        Raises:
            ConfigError: no such backbone.
        """
        if not self.tasks:
            folds = ", ".join(map(str, self.folds))
            return Forecast((f"{self.options.run_name}, folds {folds}: up to date, nothing to do",))
        from ichkit.engine.inference import ModelCard

        config, settings, stored = self.config, self.config.train, self.prepared.manifest.settings
        network = ModelCard.of(
            config,
            stored["size"],
            tuple(stored["hull_hu"]),
            self.prepared.steps,
            self.prepared.parts,
            self.prepared.sequences,
        ).build()
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        steps = [] if self.fit is None else [self.fit.text]
        steps += [f"{settings.backbone}, {num_parameters / 1e6:.2f} M parameters, at {settings.image_size} px"]
        copies = 4 + (settings.ema_decay is not None)  # weights, gradients, two moments, EMA weights
        num_numbers, trained, predicted, memory = 0, [], [], None
        for task in self.tasks:
            parts = Parts.of(self.prepared, task.fold, find_training_scope(config)).hold_validation(config, task.fold)
            steps.append(_describe_fold(task, parts, is_removed=self.options.fresh))
            num_rows = len(parts.heldout) * STACK_WINDOW + sum(map(len, parts.predicted.values()))
            num_numbers += copies * num_parameters + num_rows * self.prepared.task.num_classes
            predicted.append(sum(map(len, parts.predicted.values())))
            trained.append(len(parts.train) if task.trains else 0)
        each, basis = seconds_by_history(config, self.work, self.prepared, trained)
        if not each and any(trained):
            longest = int(self.prepared.split("train").groupby("study_id").size().max())
            each, activations, basis = seconds_by_trial(config, network, longest, trained, predicted)
            memory = activations + _BYTES_PER_NUMBER * copies * num_parameters
        seconds = None
        if each:
            seconds, basis = _join_folds(each, basis, list(self.tasks), settings)
        if self.fit is not None:
            seconds, basis = self.fit.seconds, self.fit.basis
        free = _free_memory(list(self.tasks), settings)
        return Forecast(tuple(steps), num_numbers * _BYTES_PER_NUMBER, seconds, basis, memory, free)


@dataclass(frozen=True)
class ForeseenTraining(Plan):
    """What `train` would need on a store that is yet to be prepared: an estimate, for the dry run of a pipeline.

    Attributes:
        run_name: the run, every fold.
        num_labelled: image files of the training data; all are counted as labelled slices.
        num_external: image files of the external sets.
        time_limit: hours, as in `TrainOptions`; what fits is chosen once the store is there.
    """

    config: Config
    work: WorkFolder
    run_name: str
    num_labelled: int
    num_external: int
    time_limit: float | None = None

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folders of the folds."""
        return tuple(self.work.fold(self.run_name, fold) for fold in range(self.config.prepare.num_folds))

    def forecast(self) -> Forecast:
        """The network, and what all folds take by a trial step.

        Raises:
            ConfigError: no such backbone, or the accelerator, the loss or the network cannot be used as configured.
        """
        from ichkit.engine.inference import ModelCard

        config, folds = self.config, self.config.prepare.num_folds
        network = ModelCard.of(config, config.prepare.size, _ANY_HULL).build()
        num_parameters = sum(parameter.numel() for parameter in network.parameters())
        copies = 4 + (config.train.ema_decay is not None)
        trained = [self.num_labelled * (folds - 1) // folds] * folds
        predicted = [self.num_labelled / folds + self.num_external] * folds
        each, activations, basis = seconds_by_trial(config, network, _LONGEST_STUDY, trained, predicted)
        tasks = [FoldTask(config, self.work, self.run_name, fold, trains=True) for fold in range(folds)]
        seconds, basis = _join_folds(each, basis, tasks, config.train)
        steps: tuple[str, ...] = (
            f"{config.train.backbone}, {num_parameters / 1e6:.2f} M parameters, at {config.train.image_size} px",
            f"{folds} folds, {config.train.total_epochs} epochs of at most {trained[0]} slices",
        )
        if self.time_limit is not None:
            limit = format_seconds(self.time_limit * 3600)
            steps += (f"of these, the epochs and folds that fit into {limit}, chosen once the store is there",)
        memory = activations + _BYTES_PER_NUMBER * copies * num_parameters
        basis = f"{basis}; at most, as if every image file were a slice"
        return Forecast(steps, None, seconds, basis, memory, _free_memory(tasks, config.train))


def _join_folds(each: list[float], basis: str, tasks: list[FoldTask], settings: TrainConfig) -> tuple[float, str]:
    """The time of all folds by that of each, and its basis."""
    num_parallel = count_at_once(tasks, settings)
    order = "one fold after another" if num_parallel == 1 else f"{num_parallel} folds side by side"
    return spread(each, num_parallel), f"{order}, {basis}" if len(tasks) > 1 else basis


def _free_memory(tasks: list[FoldTask], settings: TrainConfig) -> float | None:
    """Free memory of this machine for each fold that is trained at the same time; None with a GPU or a cluster."""
    from ichkit.engine.devices import uses_cpu

    if settings.backend == "ray" or not uses_cpu(settings.accelerator):
        return None
    return free_memory_bytes() / count_at_once(tasks, settings)


def plan(config: Config, work: WorkFolder, options: TrainOptions) -> TrainPlan:
    """Decides for each fold whether to train it, to predict again or to skip it; writes nothing.

    Raises:
        ArtifactError: nothing is prepared, or a fold was made from other settings or other training slices.
        FoldError: a fold does not exist, or a patient is in several folds.
        ConfigError: several folds or a time limit under `torchrun`, a time limit that no fold fits into, a phase has a
            class or schedule that does not exist, or a logger is unknown or not installed.
    """
    ranks = Ranks.of_environment()
    if not ranks.is_main:
        logger.setLevel(logging.WARNING)  # only the main process logs
    if options.embeddings:
        config = config.model_copy(update={"train": config.train.model_copy(update={"embeddings": True})})
    prepared = Prepared.open(work.prepared, find_task(config.task))
    check_loggers(config.tracking.loggers)
    # A wrong class or schedule is refused before anything else.
    list_phases(config.train, find_scope(config).classes, prepared.task.classes)
    check_folds(prepared.slices)
    folds = _choose_folds(options.folds, prepared)
    if ranks.world > 1 and len(folds) > 1:
        raise ConfigError(
            f"train: torchrun joins {ranks.world} processes on one fold, found folds {', '.join(map(str, folds))}. "
            "Name one: torchrun --nproc-per-node 2 -m ichkit train --fold 0. Without torchrun, each GPU trains a fold."
        )
    may_shorten = options.time_limit is not None
    if options.time_limit is not None:
        if ranks.world > 1:
            raise ConfigError(
                "train --time-limit: each process of torchrun would choose its own epochs. Without torchrun, --dry-run "
                "shows how many fit; pass them with --set train.epochs."
            )
        begun = None if options.fresh else adopt_epochs(config, prepared, work, options.run_name, folds)
        config, may_shorten = begun or config, begun is None
    if options.fresh:
        tasks = [FoldTask(config, work, options.run_name, fold, trains=True) for fold in folds]
    else:
        tasks = _list_tasks(config, work, prepared, options.run_name, folds)
    fit = None
    if options.time_limit is not None and tasks:
        fit = fit_to_limit(tasks, prepared, options.time_limit * 3600, may_shorten=may_shorten)
        left_out = {task.fold for task in tasks[len(fit.tasks) :]}
        config, tasks, folds = fit.config, list(fit.tasks), [fold for fold in folds if fold not in left_out]
    return TrainPlan(config, work, options, prepared, tuple(folds), tuple(tasks), ranks, fit)


def _list_tasks(
    config: Config, work: WorkFolder, prepared: Prepared, run_name: str, asked: list[int]
) -> list[FoldTask]:
    """The unfinished ones of these folds, ascending; logs the others.

    Raises:
        ArtifactError: a fold was made from other settings or other training slices.
    """
    states = {fold: find_state(config, prepared, work, run_name, fold) for fold in asked}
    tasks = []
    for fold, state in states.items():
        if state is FoldState.DONE:
            logger.info("fold %d: up to date", fold)
            continue
        if state is FoldState.PREDICT:
            logger.info("fold %d: slices have changed or embeddings are missing; predicting again", fold)
        tasks.append(FoldTask(config, work, run_name, fold, trains=state is FoldState.TRAIN))
    return tasks


def _choose_folds(folds: Sequence[int] | None, prepared: Prepared) -> list[int]:
    """The requested folds, ascending; None for all of `folds.csv`.

    Raises:
        FoldError: a fold does not exist.
    """
    known = prepared.fold_numbers
    if folds is None:
        return known
    unknown = sorted(set(folds) - set(known))
    if unknown:
        raise FoldError(
            f"train: expected folds of {prepared.folder / 'folds.csv'} ({', '.join(map(str, known))}), "
            f"found {', '.join(map(str, unknown))}. Choose with `--fold`, or re-create the folds with "
            "`ichkit prepare --new-folds`."
        )
    return sorted(set(folds))


def _describe_fold(task: FoldTask, parts: Parts, *, is_removed: bool) -> str:
    settings = task.config.train
    outside = ", ".join(f"{len(slices)} {title_of(name)}" for name, slices in parts.external.items())
    others = f"{len(parts.heldout)} held out, {len(parts.test)} test, {outside} slices"
    if not task.trains:
        return f"fold {task.fold}: predicts again with its weights: {others}"
    from ichkit.engine.length import adapt_to_length  # imports torch, which the plan of finished folds does not need

    adapted = adapt_to_length(settings, *count_labelled(parts.train, find_scope(task.config).classes))
    sets, taught = {"test": parts.test, **parts.external}, ""
    for phase in settings.resolve_phases(find_scope(task.config).classes, find_task(task.config.task).classes):
        available = sum(len(sets[name]) for name in phase.pseudo_sets if name in sets)
        if added := count_pseudo_slices(len(parts.train), available, phase):
            taught += f"about {added} of {', '.join(phase.pseudo_sets)} with labels by {phase.labels} (transductive), "
    validation = "" if parts.validation is None else f"{describe_validation(parts)}, "
    begun = "starts over (--fresh): " if is_removed and task.folder.exists() else ""
    return (
        f"fold {task.fold}: {begun}{settings.total_epochs} epochs of {len(parts.train)} slices of "
        f"{parts.train.patient_id.nunique()} patients, {taught}{validation}about {adapted.num_steps} "
        f"steps{adapted.describe()}; then predicts {others}"
    )
