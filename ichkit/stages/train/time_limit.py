"""`train --time-limit`: as many epochs and folds as fit into a number of hours, chosen before training starts."""

import bisect
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError
from ichkit.core.progress import format_seconds
from ichkit.core.rows import find_row
from ichkit.core.tasks import find_task
from ichkit.core.train_config import PhaseConfig, TrainConfig
from ichkit.imaging.store import Prepared
from ichkit.imaging.views import TTA_SETS
from ichkit.imaging.windows import make_rendering
from ichkit.stages.train.estimate import FORWARD_SHARE, try_step
from ichkit.stages.train.fold_inputs import FoldTask, Identity, Parts, find_scope, identify, read_started, with_defaults
from ichkit.stages.train.lanes import count_at_once, spread
from ichkit.stages.train.pseudo_labels import count_pseudo_slices
from ichkit.work.artifacts import has_artifact, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory

LEAST_SHARE = 0.5
"""Folds are left out before training gets shorter than this share of its epochs: chosen here, because a network of half
the epochs loses little, and the networks of several folds are comparable only if each has learned enough."""

_READING_SECONDS = 0.5
_MOST_BLOCKS = 16


@dataclass(frozen=True)
class Pace:
    """Seconds of one image of a fold.

    Attributes:
        training: with reading and augmentation.
        predicting: in all views of `train.tta`.
        basis: what it was measured on.
    """

    training: float
    predicting: float
    basis: str


@dataclass(frozen=True)
class Fit:
    """What is trained within a time limit.

    Attributes:
        config: with the epochs that fit.
        tasks: the folds that fit, ascending.
        seconds: estimated time of all.
        basis: of the estimate.
        text: the choice in one sentence, for plan and log.
    """

    config: Config
    tasks: tuple[FoldTask, ...]
    seconds: float
    basis: str
    text: str


def shorten(train: TrainConfig, epochs: int) -> TrainConfig:
    """The settings with the longest phase cut to that many epochs, and the others in proportion, to at least one.

    Example:
        >>> shorten(TrainConfig(epochs=20), 5).epochs
        5
    """
    share = epochs / longest_phase(train)

    def cut(number: int | None) -> int | None:
        return None if number is None else max(1, math.floor(number * share + 1e-9))

    phases = tuple(phase.model_copy(update={"epochs": cut(phase.epochs)}) for phase in train.phases)
    return train.model_copy(update={"epochs": cut(train.epochs), "phases": phases})


def longest_phase(train: TrainConfig) -> int:
    """Epochs of the longest phase."""
    return max(phase.epochs or train.epochs for phase in train.phases or (PhaseConfig(),))


def adopt_epochs(
    config: Config, prepared: Prepared, work: WorkFolder, run_name: str, folds: Sequence[int]
) -> Config | None:
    """The config with the epochs of the folds that the run has already, because all its folds have the same; else None.

    Folds that differ in more than fewer epochs are left to `find_state`, which refuses them.
    """
    for fold in folds:
        folder = work.fold(run_name, fold)
        begun = read_started(folder)
        if begun is None and has_artifact(folder):
            manifest = read_manifest(folder)
            begun = Identity(manifest.settings, manifest.inputs)
        if begun is None:
            continue
        found = with_defaults(begun.settings)["train"]
        for epochs in range(longest_phase(config.train), 0, -1):
            shorter = config.model_copy(update={"train": shorten(config.train, epochs)})
            if _epochs_of(identify(shorter, prepared, work, fold).settings["train"]) == _epochs_of(found):
                return shorter
        return config
    return None


def fit_to_limit(tasks: Sequence[FoldTask], prepared: Prepared, limit_seconds: float, *, may_shorten: bool) -> Fit:
    """The most folds, and for them the most epochs, that fit; see `LEAST_SHARE`.

    Args:
        tasks: the unfinished folds, at least one.
        may_shorten: False if a fold of the run has its number of epochs already.

    Raises:
        ConfigError: not even one fold fits, or a trial step cannot run as configured.
    """
    config = tasks[0].config
    pace = find_pace(tasks[0], prepared)
    work = [_Work.of(task, prepared) for task in tasks]
    longest = longest_phase(config.train)

    def take(number: int, epochs: int) -> float:
        """Seconds of the first folds with these epochs."""
        shorter = config.model_copy(update={"train": shorten(config.train, epochs)})
        each = [fold.seconds(shorter, pace) for fold in work[:number]]
        return spread(each, count_at_once(list(tasks[:number]), config.train))

    def find_most(number: int) -> int:
        """The most epochs of the first folds that fit; 0 if none."""
        if not may_shorten:
            return longest if take(number, longest) <= limit_seconds else 0
        return bisect.bisect_right(range(1, longest + 1), limit_seconds, key=lambda epochs: take(number, epochs))

    number = len(tasks)
    while number > 1 and find_most(number) < LEAST_SHARE * longest:
        number -= 1
    epochs = find_most(number)
    if not epochs:
        least = take(1, 1 if may_shorten else longest)
        what = "one epoch of one fold" if may_shorten else f"fold {tasks[0].fold}, whose epochs are fixed by others,"
        raise ConfigError(
            f"train --time-limit: {what} and its predictions need about {format_seconds(least)} ({pace.basis}), but "
            f"the limit is {format_seconds(limit_seconds)}. Use a longer limit, a smaller train.image_size or "
            "train.backbone, or fewer studies (prepare --limit-studies)."
        )
    asked = config.train.total_epochs
    config = config.model_copy(update={"train": shorten(config.train, epochs)})
    chosen = tuple(replace(task, config=config) for task in tasks[:number])
    seconds = take(number, epochs)
    left_out = ", ".join(str(task.fold) for task in tasks[number:])
    text = (
        f"time limit {format_seconds(limit_seconds)}: {config.train.total_epochs} of {asked} "
        f"epochs of fold{'s' * (number > 1)} {', '.join(str(task.fold) for task in chosen)}, about "
        f"{format_seconds(seconds)}" + (f"; left out: {left_out}" if left_out else "")
    )
    return Fit(config, chosen, seconds, pace.basis, text)


@dataclass(frozen=True)
class _Work:
    """The slices of a fold.

    Attributes:
        num_train: images of an epoch without pseudo-labels.
        num_own: training slices.
        num_pseudo_by_set: slices that pseudo-labels may be made for.
        num_scored: images that are predicted after each epoch.
        num_predicted: images that are predicted at the end.
        num_done: finished epochs.
    """

    task: FoldTask
    num_train: int
    num_own: int
    num_pseudo_by_set: dict[str, int]
    num_scored: int
    num_predicted: int
    num_done: int

    @classmethod
    def of(cls, task: FoldTask, prepared: Prepared) -> "_Work":
        train = task.config.train
        parts = Parts.of(prepared, task.fold, find_scope(task.config)).hold_validation(task.config, task.fold)
        lengths = parts.train.groupby("study_id").size()
        most = train.max_slices if train.sampling == "studies" else len(parts.train)
        return cls(
            task,
            num_train=int(lengths.clip(upper=most).sum()),
            num_own=len(parts.train),
            num_pseudo_by_set={name: len(slices) for name, slices in {"test": parts.test, **parts.external}.items()},
            num_scored=(0 if parts.validation is None else len(parts.validation))
            + (len(parts.heldout) if train.curve == "heldout" else 0),
            num_predicted=sum(map(len, parts.predicted.values())),
            num_done=_count_done(task) if task.trains else 0,
        )

    def seconds(self, config: Config, pace: Pace) -> float:
        """Time of what is left of the fold with this config."""
        predicting = self.num_predicted * pace.predicting
        if not self.task.trains:
            return predicting
        images, train = 0.0, config.train
        for phase in train.resolve_phases(find_scope(config).classes, find_task(config.task).classes):
            available = sum(self.num_pseudo_by_set.get(name, 0) for name in phase.pseudo_sets)
            images += phase.epochs * (self.num_train + count_pseudo_slices(self.num_own, available, phase))
        share = max(1 - self.num_done / train.total_epochs, 0)
        scoring = train.total_epochs * self.num_scored * pace.predicting
        return share * (images * pace.training + scoring) + predicting


def find_pace(task: FoldTask, prepared: Prepared) -> Pace:
    """Seconds of an image, by a finished fold that differs in its epochs at most, else by a trial step with reading.

    Raises:
        ConfigError: see `try_step`.
    """
    config = task.config
    inventory = take_inventory(task.work)
    wanted: dict[int, dict[str, Any]] = {}
    for name, folds in inventory.finished_runs.items():
        for fold in folds:
            entry = inventory.runs[name][fold]
            if fold not in wanted:
                wanted[fold] = _without_epochs(identify(config, prepared, task.work, fold).settings)
            if _without_epochs(with_defaults(entry.manifest.settings)) != wanted[fold]:
                continue
            history = read_table(entry.folder / "history.csv")
            training = float(history["seconds"].sum() / history["num_images"].sum())
            views = len(find_row(TTA_SETS, config.train.tta, "train.tta").views)
            return Pace(training, training * FORWARD_SHARE * views, f"measured on fold {fold} of {name}")
    return _try_pace(task, prepared)


def _try_pace(task: FoldTask, prepared: Prepared) -> Pace:
    from ichkit.engine.devices import count_loader_workers, make_fabric
    from ichkit.engine.inference import ModelCard

    config, stored = task.config, prepared.manifest.settings
    network = ModelCard.of(config, stored["size"], tuple(stored["hull_hu"]), prepared.steps, prepared.parts).build()
    longest = int(prepared.split("train").groupby("study_id").size().max())
    tried, shape = try_step(config, longest, network)
    step, reading = tried.seconds / math.prod(shape), _try_reading(task, prepared)
    workers = count_loader_workers(config.train, make_fabric(config.train).device)
    training = step + reading if workers == 0 else max(step, reading / workers)
    views = len(find_row(TTA_SETS, config.train.tta, "train.tta").views)
    predicting = step * FORWARD_SHARE * views + reading
    return Pace(training, predicting, "measured on a trial step and on reading some blocks")


def _try_reading(task: FoldTask, prepared: Prepared) -> float:
    """Seconds to read, augment and render a training image in one process."""
    from ichkit.engine.blocks import BlockDataset, VolumeReader
    from ichkit.engine.sampling import SliceIndex

    config, scope = task.config, find_scope(task.config)
    parts = Parts.of(prepared, task.fold, scope)
    index = SliceIndex.of(parts.train, scope.classes)
    rendering = make_rendering(config.channels)
    dataset = BlockDataset(index, VolumeReader(prepared.folder), rendering, config.train, config.seed, task.fold)
    num_blocks, num_images = len(dataset.plan(0).rows), 0
    dataset[0, 0]  # compiles kernels
    began = time.perf_counter()
    for number in range(min(_MOST_BLOCKS, num_blocks)):
        num_images += len(dataset[0, num_blocks - 1 - number].images)
        if time.perf_counter() - began > _READING_SECONDS:
            break
    return (time.perf_counter() - began) / num_images


def _count_done(task: FoldTask) -> int:
    """Finished epochs of an unfinished fold."""
    if not task.checkpoint.exists():
        return 0
    from ichkit.engine.checkpoint import load_checkpoint

    return len(load_checkpoint(task.checkpoint)["progress"]["history"])


def _epochs_of(train: dict[str, Any]) -> tuple[Any, ...]:
    return train["epochs"], *(phase["epochs"] for phase in train["phases"])


def _without_epochs(settings: dict[str, Any]) -> dict[str, Any]:
    train = {name: value for name, value in settings["train"].items() if name != "epochs"}
    phases = [{name: value for name, value in phase.items() if name != "epochs"} for phase in train["phases"]]
    return {**settings, "train": {**train, "phases": phases}}
