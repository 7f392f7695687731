"""The plan of `train`."""

import math
from typing import TYPE_CHECKING

import numpy as np

from ichkit.core.config import Config
from ichkit.core.roles import title_of
from ichkit.core.tasks import find_task
from ichkit.core.train_config import TrainConfig
from ichkit.imaging.store import Prepared
from ichkit.imaging.windows import make_rendering
from ichkit.show.plan import NOT_KNOWN, PREDICTION_BYTES, Plan, up_to_date
from ichkit.stages.train.fold import STACK_WINDOW
from ichkit.stages.train.fold_inputs import MADE_BY, FoldTask, Parts, identify
from ichkit.stages.train.run import choose_folds, list_tasks
from ichkit.validation.folds import check_folds
from ichkit.work.artifacts import read_manifest, read_table
from ichkit.work.folder import WorkFolder

if TYPE_CHECKING:
    from ichkit.models.descriptor import DescriptorNetwork

_BYTES_PER_NUMBER = 4


def describe_plan(
    config: Config, work: WorkFolder, *, run_name: str, folds: list[int] | None = None, fresh: bool = False
) -> Plan:
    """What `train.run` would do with the same arguments.

    The time goes by a finished fold of the same settings, images for images; without one, by a step that is tried.

    Raises:
        ArtifactError, FoldError, ConfigError: as `train.run` before it trains.
    """
    prepared = Prepared.open(work.prepared, find_task(config.task))
    check_folds(prepared.slices)
    asked = choose_folds(folds, prepared)
    if fresh:
        tasks = [FoldTask(config, work, run_name, fold, trains=True) for fold in asked]
    else:
        tasks = list_tasks(config, work, prepared, run_name, asked)
    if not tasks:
        return up_to_date(f"{run_name}, folds {', '.join(map(str, asked))}")
    network = _build_network(config, prepared)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    parts = {task.fold: Parts.of(prepared, task.fold) for task in tasks}
    steps = [f"{config.train.backbone}, {parameters / 1e6:.2f} M parameters, at {config.train.image_size} px"]
    steps += [_describe_fold(task, parts[task.fold], config, is_removed=fresh) for task in tasks]
    trained = [len(parts[task.fold].train) for task in tasks if task.trains]
    seconds, basis = _seconds_by_history(config, work, prepared, sum(trained))
    if seconds is None and trained:
        seconds = _seconds_by_rehearsal(config, prepared, network, trained)
        basis = "one fold after another, as a step took that was tried; reading and predicting come on top"
    return Plan(
        steps=tuple(steps),
        writes=tuple(task.folder for task in tasks),
        num_bytes=sum(_fold_bytes(config, parts[task.fold], parameters) for task in tasks),
        seconds=seconds,
        basis=basis,
    )


def _describe_fold(task: FoldTask, parts: Parts, config: Config, *, is_removed: bool) -> str:
    settings = config.train
    outside = ", ".join(f"{len(slices)} {title_of(name)}" for name, slices in parts.external.items())
    others = f"{len(parts.heldout)} held out, {len(parts.test)} test, {outside} slices"
    if not task.trains:
        return f"fold {task.fold}: its weights predict anew: {others}"
    epochs, steps = _count_epochs(settings), _count_steps(settings, len(parts.train))
    begun = "begins again (--fresh): " if is_removed and task.folder.exists() else ""
    return (
        f"fold {task.fold}: {begun}{epochs} epochs of {len(parts.train)} slices of "
        f"{parts.train.patient_id.nunique()} patients, about {steps} steps; then predicts {others}"
    )


def _count_epochs(settings: TrainConfig) -> int:
    return sum(phase.epochs for phase in settings.resolved_phases())


def _count_steps(settings: TrainConfig, num_images: int) -> int:
    blocks = math.ceil(num_images / settings.block_size)
    return _count_epochs(settings) * math.ceil(blocks / settings.batch_blocks)


def _build_network(config: Config, prepared: Prepared) -> "DescriptorNetwork":
    """The network with random weights.

    Raises:
        ConfigError: no such backbone.
    """
    from ichkit.engine.inference import ModelCard

    stored = prepared.manifest.settings
    return ModelCard.of(config, stored["size"], tuple(stored["hull_hu"])).build()


def _fold_bytes(config: Config, parts: Parts, parameters: int) -> float:
    """Weights, the checkpoint while it trains (weights, two moments, their average), and the tables."""
    copies = 4 + (config.train.ema_decay is not None)
    num_rows = sum(len(slices) for slices in parts.predicted.values())
    num_classes = len(find_task(config.task).classes)
    stacks = len(parts.heldout) * STACK_WINDOW * num_classes * _BYTES_PER_NUMBER
    return copies * parameters * _BYTES_PER_NUMBER + num_rows * PREDICTION_BYTES + stacks


def _seconds_by_history(
    config: Config, work: WorkFolder, prepared: Prepared, num_images: int
) -> tuple[float | None, str]:
    """Seconds for so many training images, by the first finished fold of the same settings."""
    for name, folds in work.finished_runs().items():
        for fold in folds:
            folder = work.fold(name, fold)
            manifest = read_manifest(folder, made_by=MADE_BY)
            if manifest.settings != identify(config, prepared, work, fold).settings:
                continue
            history = read_table(folder / "history.csv")
            # Its tables may have been made again since, which took less than training did.
            seconds = max(manifest.facts["seconds"], history["seconds"].sum())
            share = _count_epochs(config.train) * num_images / history["num_images"].sum()
            return seconds * share, f"one fold after another, as fold {fold} of {name} took"
    return None, NOT_KNOWN


def _seconds_by_rehearsal(
    config: Config, prepared: Prepared, network: "DescriptorNetwork", trained: list[int]
) -> float:
    """Seconds for folds with so many training images each, by a step that is tried.

    Raises:
        ConfigError: the accelerator, the loss or the network cannot be used as configured.
    """
    from ichkit.engine.devices import make_fabric, prepare_network, torch_threads
    from ichkit.engine.rehearsal import rehearse
    from ichkit.models.losses import make_loss

    settings, task = config.train, prepared.task
    weights = task.weight_array()
    # Some prevalence: what the loss is worth does not change how long it takes.
    loss = make_loss(settings.loss, weights / weights.sum(), np.full(task.num_classes, 0.1))
    with torch_threads(settings.threads):
        fabric = make_fabric(settings)
        prepare_network(network, settings.model_copy(update={"compile": False}))
        tried = rehearse(
            fabric,
            fabric.setup_module(network).module,
            loss,
            settings,
            num_blocks=settings.batch_blocks,
            num_channels=make_rendering(config.channels).num_channels,
            num_classes=task.num_classes,
        )
    return tried.seconds * sum(_count_steps(settings, num_images) for num_images in trained)
