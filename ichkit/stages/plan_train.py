"""The plan of `train`."""

import math

from ichkit.core.artifacts import read_manifest, read_table
from ichkit.core.config import Config
from ichkit.core.layout import WorkFolder
from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.stages.fold import STACK_WINDOW
from ichkit.stages.fold_task import MADE_BY, FoldTask, Parts, identify
from ichkit.stages.plan import PREDICTION_BYTES, Plan, up_to_date
from ichkit.stages.train import choose_folds, list_tasks
from ichkit.validation.folds import check_folds

_BYTES_PER_NUMBER = 4


def describe_plan(
    config: Config, work: WorkFolder, *, run_name: str, folds: list[int] | None = None, fresh: bool = False
) -> Plan:
    """What `train.run` would do with the same arguments.

    The time goes by a finished fold of the same settings, images for images; without one it is not known, and `train`
    says it after its first steps.

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
    parameters = _count_parameters(config, prepared)
    parts = {task.fold: Parts.of(prepared, task.fold) for task in tasks}
    steps = [f"{config.train.backbone}, {parameters / 1e6:.2f} M parameters, at {config.train.image_size} px"]
    steps += [_describe_fold(task, parts[task.fold], config, is_removed=fresh) for task in tasks]
    images = {task.fold: len(parts[task.fold].train) if task.trains else 0 for task in tasks}
    seconds, basis = _estimate_seconds(config, work, prepared, images)
    return Plan(
        steps=tuple(steps),
        writes=tuple(task.folder for task in tasks),
        num_bytes=sum(_fold_bytes(config, parts[task.fold], parameters) for task in tasks),
        seconds=seconds,
        basis=basis,
    )


def _describe_fold(task: FoldTask, parts: Parts, config: Config, *, is_removed: bool) -> str:
    settings = config.train
    others = f"{len(parts.heldout)} held out, {len(parts.test)} test, {len(parts.cq500)} CQ500 slices"
    if not task.trains:
        return f"fold {task.fold}: its weights predict anew: {others}"
    blocks = math.ceil(len(parts.train) / settings.block_size)
    epochs = sum(phase.epochs for phase in settings.resolved_phases())
    steps = epochs * math.ceil(blocks / settings.batch_blocks)
    begun = "begins again (--fresh): " if is_removed and task.folder.exists() else ""
    return (
        f"fold {task.fold}: {begun}{epochs} epochs of {len(parts.train)} slices of "
        f"{parts.train.patient_id.nunique()} patients, about {steps} steps; then predicts {others}"
    )


def _count_parameters(config: Config, prepared: Prepared) -> int:
    """Parameters of the network, which is built with random weights for it.

    Raises:
        ConfigError: no such backbone.
    """
    from ichkit.engine.inference import ModelCard

    stored = prepared.manifest.settings
    network = ModelCard.of(config, stored["size"], tuple(stored["hull_hu"])).build()
    return sum(parameter.numel() for parameter in network.parameters())


def _fold_bytes(config: Config, parts: Parts, parameters: int) -> float:
    """Weights, the checkpoint while it trains (weights, two moments, their average), and the tables."""
    copies = 4 + (config.train.ema_decay is not None)
    num_rows = len(parts.heldout) + len(parts.test) + len(parts.cq500)
    num_classes = len(find_task(config.task).classes)
    stacks = len(parts.heldout) * STACK_WINDOW * num_classes * _BYTES_PER_NUMBER
    return copies * parameters * _BYTES_PER_NUMBER + num_rows * PREDICTION_BYTES + stacks


def _estimate_seconds(
    config: Config, work: WorkFolder, prepared: Prepared, images: dict[int, int]
) -> tuple[float | None, str]:
    """Seconds for so many training images a fold, by the first finished fold of the same settings."""
    for name, folds in work.finished_runs().items():
        for fold in folds:
            folder = work.fold(name, fold)
            manifest = read_manifest(folder, made_by=MADE_BY)
            if manifest.settings != identify(config, prepared, work, fold).settings:
                continue
            history = read_table(folder / "history.csv")
            # Its tables may have been made again since, which took less than training did.
            seconds = max(manifest.facts["seconds"], history["seconds"].sum())
            share = (
                sum(phase.epochs for phase in config.train.resolved_phases())
                * sum(images.values())
                / history["num_images"].sum()
            )
            return seconds * share, f"one fold after another, as fold {fold} of {name} took"
    return None, "not known before some steps are timed; `ichkit train` says it then"
