"""Trains the network of one fold: phases, initial weights, and checks against leakage through them."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn

from ichkit.core.errors import ConfigError, FoldError
from ichkit.core.progress import StopFlag, logger
from ichkit.core.seeding import derive_seed
from ichkit.core.train_config import NONE, HeadsConfig, TrainConfig
from ichkit.engine.blocks import BlockDataset, VolumeReader
from ichkit.engine.checkpoint import load_checkpoint
from ichkit.engine.devices import count_loader_workers, make_fabric, memory_advice
from ichkit.engine.evaluation import Evaluator
from ichkit.engine.inference import ModelCard, encode_weights
from ichkit.engine.length import adapt_to_length
from ichkit.engine.loop import Listener, Progress, TrainingLoop
from ichkit.engine.parallel import SHARED_MEMORY
from ichkit.engine.phases import Phase, list_phases
from ichkit.engine.ranks import Ranks
from ichkit.engine.restoring import (
    RestoringDataset,
    RestoringNetwork,
    RestoringStepper,
    index_without_labels,
    restoration_loss,
)
from ichkit.engine.sampling import SliceIndex
from ichkit.engine.step import NonFiniteLossError
from ichkit.imaging.store import Prepared
from ichkit.imaging.windows import Rendering, make_rendering
from ichkit.models.descriptor import BEYOND_SLICES, DescriptorNetwork, set_prior_bias
from ichkit.models.losses import make_loss
from ichkit.stacking.embeddings import INITIAL_WEIGHTS
from ichkit.stages.train.fold_inputs import (
    KEPT_EPOCH,
    MODEL_PREFIX,
    RUN_PREFIX,
    TRANSDUCTIVE,
    FoldTask,
    Identity,
    Parts,
    count_labelled,
    describe_validation,
    find_scope,
)
from ichkit.stages.train.other_data import read_other_model
from ichkit.stages.train.pseudo_labels import add_pseudo_labels, learns_from_predictions, refuse_other_folds
from ichkit.work.artifacts import check_digests, read_manifest
from ichkit.work.folder import WEIGHTS_NAME

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KEEP, RESTORE = "keep", "restore"
_BATCHES_AHEAD = 2  # prefetched by each worker, the default of torch
_SHOWN_IDS = 5


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        network: for inference.
        card: the settings to rebuild it.
        history: one row per epoch.
        display: scores of the held-out fold after each epoch, for display only.
        facts: about the network, for the manifest.
    """

    network: nn.Module
    card: ModelCard
    history: list[dict[str, float]]
    display: list[dict[str, float]]
    facts: dict[str, Any]


def train_network(
    task: FoldTask,
    prepared: Prepared,
    identity: Identity,
    parts: Parts,
    ranks: Ranks,
    stop: StopFlag,
    listener: Listener | None = None,
) -> Trained:
    """Trains the network of a fold through all phases, resuming at the phase and step of its checkpoint.

    Args:
        listener: gets every logged row, in the main process.

    Raises:
        Stopped: a stop was requested; the checkpoint holds the step reached.
        ConfigError: the loss is not finite, memory ran out, or a part of the config cannot be used.
        ArtifactError: the run of the initial weights is unfinished or has seen the held-out fold.
        FoldError: there are no slices to train on, or too few patients for validation.
    """
    if parts.train.empty:
        raise FoldError(
            f"train: fold {task.fold} leaves no slices to train on. Prepare more patients, or re-create the folds."
        )
    parts = parts.hold_validation(task.config, task.fold)
    config, stored = task.config, prepared.manifest.settings
    run_classes = find_scope(config).classes
    num_labelled, num_studies = count_labelled(parts.train, run_classes)
    if not num_labelled:
        raise _nothing_labelled(task, run_classes)
    adapted = adapt_to_length(config.train, num_labelled, num_studies, ranks.world)
    settings = adapted.config
    made = (prepared.steps, prepared.parts, prepared.sequences)
    card = ModelCard.of(config, stored["size"], tuple(stored["hull_hu"]), *made)
    fabric = make_fabric(settings, ranks, task.gpu)
    num_workers = count_loader_workers(settings, fabric.device)
    reader = VolumeReader(prepared.folder, num_sharing=max(num_workers, 1))
    fold = _Fold(task, prepared, parts, settings, card, fabric, reader, make_rendering(config.channels), listener)
    first = load_checkpoint(task.checkpoint)["progress"]["phase"] if task.checkpoint.exists() else 0
    network: nn.Module | None = None  # as the last phase left it
    progress = Progress()
    initial = ""
    phases = list_phases(settings, run_classes, prepared.task.classes)
    # Read before the first phase, so that a teacher that does not fit is refused at once.
    taught = [add_pseudo_labels(task, identity, prepared, parts, phase.config, phase.number) for phase in phases]
    for phase, slices in zip(phases, taught, strict=True):
        if 0 < phase.number < first:
            continue
        started = _begin_network(task, prepared, identity, card, phase, len(phase.config.classes), network)
        network, initial = started, initial or _name_start(task, phase, started)
        if phase.number < first:
            continue
        with memory_advice(_save_memory(settings)):
            restores = phase.config.kind == RESTORE
            loop = fold.restore(started, phase, progress) if restores else fold.learn(started, slices, phase, progress)
            if phase.number == first:
                _announce(task, parts, started, phase.config.weights)
                _warn_of_shared_memory(settings, num_workers, fold.rendering.num_channels)
            name = _name_phase(phase, run_classes)
            logger.info("fold %d: %s%s%s", task.fold, name, loop.describe(), adapted.describe())
            try:
                network = loop.run(stop)
            except NonFiniteLossError as error:
                raise _explain(error, task, slices) from error
        if restores:  # the decoder is left behind
            started.backbone.load_state_dict(network.get_submodule("backbone").state_dict())
            network = started
        progress = loop.progress
    assert network is not None  # there is at least one phase
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    facts = {
        "num_steps": adapted.num_steps,
        "adapted": adapted.changes,
        "backbone": settings.backbone,
        "num_parameters": num_parameters,
        "num_train_slices": len(parts.train),
        "num_validation_slices": 0 if parts.validation is None else len(parts.validation),
        TRANSDUCTIVE: learns_from_predictions(task, [phase.config for phase in phases]),
        KEPT_EPOCH: loop.kept_epoch,
        INITIAL_WEIGHTS: initial,
    }
    return Trained(network, card, progress.history, progress.display, facts)


@dataclass(frozen=True)
class _Fold:
    """What the phases of a fold share.

    Attributes:
        parts: after the validation patients were taken out.
        settings: adapted to the length of the run.
    """

    task: FoldTask
    prepared: Prepared
    parts: Parts
    settings: TrainConfig
    card: ModelCard
    fabric: "Fabric"
    reader: VolumeReader
    rendering: Rendering
    listener: Listener | None

    def restore(self, started: DescriptorNetwork, phase: Phase, earlier: Progress) -> TrainingLoop:
        """The loop of a phase that learns to restore distorted studies of the training part.

        Raises:
            ConfigError: the backbone does not see volumes.
        """
        dataset = self._make_dataset(RestoringDataset, index_without_labels(self.parts.train), phase)
        return TrainingLoop(
            self.fabric,
            RestoringNetwork(started),
            dataset,
            restoration_loss,
            phase,
            self.task.checkpoint,
            earlier=earlier,
            shows_meter=self.task.shows_meter,
            listener=self.listener,
            stepper_type=RestoringStepper,
        )

    def learn(self, started: DescriptorNetwork, slices: pd.DataFrame, phase: Phase, earlier: Progress) -> TrainingLoop:
        """The loop of a phase that learns the labels of some slices.

        Raises:
            FoldError: no label is known.
            ConfigError: the loss or a part of the network cannot be used as configured.
        """
        settings, task, classes = self.settings, self.prepared.task, phase.config.classes
        index = SliceIndex.of(slices, classes)
        if np.isnan(index.labels).all():
            raise _nothing_labelled(self.task, classes)
        prevalence = find_prevalence(index.labels)
        weights = task.weight_array()[[task.classes.index(name) for name in classes]]
        if settings.label_prior_bias and phase.number == 0:
            set_prior_bias(started, prevalence)
        loss = make_loss(settings.loss, weights / weights.sum(), prevalence)
        learns_studies = settings.pool.kind != NONE and has_study_labels(self.prepared)
        evaluator = partial(
            Evaluator,
            reader=self.reader,
            card=self.card,
            classes=classes,
            weights=weights / weights.sum(),
            loss_function=loss,
            scores_studies=learns_studies,
        )
        validation, heldout = self.parts.validation, self.parts.heldout
        return TrainingLoop(
            self.fabric,
            started,
            self._make_dataset(BlockDataset, index, phase),
            loss,
            phase,
            self.task.checkpoint,
            heads=_weigh_heads(settings, learns_studies=learns_studies),
            earlier=earlier,
            validation=None if validation is None else evaluator(validation),
            curve=evaluator(heldout) if settings.curve == "heldout" and len(heldout) else None,
            shows_meter=self.task.shows_meter,
            listener=self.listener,
        )

    def _make_dataset(self, kind: type[BlockDataset], index: SliceIndex, phase: Phase) -> BlockDataset:
        settings = self.settings.model_copy(update={"batch_blocks": phase.config.batch_blocks})
        return kind(index, self.reader, self.rendering, settings, self.task.config.seed, self.task.fold)


def find_prevalence(labels: np.ndarray) -> np.ndarray:
    """(K,) float64 share of positives among the known ones of (N, K) labels; 0 for a class without known labels."""
    known = ~np.isnan(labels)
    if known.all():
        whole: np.ndarray = labels.mean(0, dtype=np.float64)
        return whole
    sums = np.where(known, labels, 0.0).sum(0, dtype=np.float64)
    shares: np.ndarray = sums / np.maximum(known.sum(0), 1)
    return shares


def _nothing_labelled(task: FoldTask, classes: Sequence[str]) -> FoldError:
    given = task.config.train.given
    where = "" if given is None else f" where {given} is present"
    return FoldError(
        f"train: the training part of fold {task.fold} has no slice with a known label of {', '.join(classes)}{where}. "
        "Prepare scans with such labels, or train other classes (train.classes)."
    )


def has_study_labels(prepared: Prepared) -> bool:
    """Whether the labels of the slices are copies of one row per study."""
    facts, datasets = prepared.manifest.facts, prepared.split("train").dataset.unique()
    return any(facts.get(str(name), {}).get("labels") == "study" for name in datasets)


def _weigh_heads(settings: TrainConfig, *, learns_studies: bool) -> HeadsConfig:
    """The weights of the losses; labels per study are learnt from the pooled logits alone, where there are some."""
    if not learns_studies:
        return settings.heads
    logger.info("train: labels are per study: the logits pooled by %s learn them, slices do not", settings.pool.kind)
    return settings.heads.model_copy(update={"slices": 0.0, "series": 0.0})


def _begin_network(
    task: FoldTask,
    prepared: Prepared,
    identity: Identity,
    card: ModelCard,
    phase: Phase,
    num_classes: int,
    before: nn.Module | None,
) -> DescriptorNetwork:
    """The network at the start of a phase; a head for other classes than before starts from random weights."""
    settings, weights = task.config.train, phase.config.weights
    # The same for every fold, so that embeddings of different folds can be projected into one space.
    torch.manual_seed(derive_seed(task.config.seed, "network", *([phase.number] if phase.number else [])))
    build = partial(
        card.build, drop_rate=settings.drop_rate, drop_path_rate=settings.drop_path_rate, num_classes=num_classes
    )
    if weights != KEEP and not weights.startswith((RUN_PREFIX, MODEL_PREFIX)):
        return build(pretrained=weights)
    network = build()
    if weights.startswith(MODEL_PREFIX):
        _copy_weights(read_other_model(weights, prepared), network, weights)
    if weights.startswith(RUN_PREFIX):
        _copy_weights(_read_run(task, identity, weights.removeprefix(RUN_PREFIX)), network, weights)
    elif before is not None:
        _copy_weights(before.state_dict(), network, "the previous phase")
    return network


def _name_start(task: FoldTask, phase: Phase, network: DescriptorNetwork) -> str:
    """Digest of the first weights; of a run that starts from an earlier one, those that the earlier one started from.

    Folds with one start have embeddings that can be aligned, however long they were trained since.
    """
    if phase.config.weights.startswith(RUN_PREFIX):
        earlier = read_manifest(task.work.fold(phase.config.weights.removeprefix(RUN_PREFIX), task.fold))
        if INITIAL_WEIGHTS in earlier.facts:
            return str(earlier.facts[INITIAL_WEIGHTS])
    return hashlib.sha256(encode_weights(network)).hexdigest()[:16]


def _copy_weights(tensors: dict[str, torch.Tensor], network: DescriptorNetwork, source: str) -> None:
    """Copies weights into a network, except those of a head for other classes and of parts that they lack.

    A network whose slices see each other may start from one without: its context and pool start from random weights.

    Raises:
        ConfigError: the weights belong to another architecture.
    """
    own = network.state_dict()
    in_head, beyond = network.head_names(), {name for name in own if name.startswith(BEYOND_SLICES)}
    lacks_beyond = not any(name in tensors for name in beyond)
    differing = {name for name in own if name not in tensors or tensors[name].shape != own[name].shape}
    refused = (set(tensors) - set(own)) | (differing - in_head - (beyond if lacks_beyond else set()))
    if refused:
        raise ConfigError(
            f"train.phases: the weights of {source} are another network's ({min(refused)} differs). "
            "Use the backbone, the context and the image size they were trained with."
        )
    if differing & in_head - beyond:  # heads are copied as a whole or not at all
        tensors = {name: tensor for name, tensor in tensors.items() if name not in in_head}
    network.load_state_dict(tensors, strict=False)


def _read_run(task: FoldTask, identity: Identity, run: str) -> dict[str, torch.Tensor]:
    """The weights of the same fold of an earlier run.

    Raises:
        ArtifactError: it is unfinished, or may have been trained on slices that are held out here.
    """
    folder = task.work.fold(run, task.fold)
    manifest = read_manifest(folder)
    check_digests(folder, manifest, [WEIGHTS_NAME])
    refuse_other_folds(manifest, identity, run, task.fold, "initialise")
    return load_file(folder / WEIGHTS_NAME)


def _announce(task: FoldTask, parts: Parts, network: DescriptorNetwork, initial: str) -> None:
    settings = task.config.train
    logger.info(
        "fold %d: %s, %.2f M parameters, weights %s; %d slices of %d patients to train on, %d held out%s",
        task.fold,
        settings.backbone,
        sum(parameter.numel() for parameter in network.parameters()) / 1e6,
        "random" if initial == "none" else initial,
        len(parts.train),
        parts.train.patient_id.nunique(),
        len(parts.heldout),
        "" if parts.validation is None else f", {describe_validation(parts)}",
    )


def _name_phase(phase: Phase, known: tuple[str, ...]) -> str:
    """Number and classes of a phase; empty if there is only one."""
    if phase.num_phases == 1:
        return ""
    if phase.config.kind == RESTORE:
        return f"phase {phase.number + 1} of {phase.num_phases}, restoring distorted studies: "
    learns = "every class" if phase.config.classes == known else ", ".join(phase.config.classes)
    return f"phase {phase.number + 1} of {phase.num_phases}, learning {learns}: "


def _warn_of_shared_memory(settings: TrainConfig, num_workers: int, num_channels: int) -> None:
    """Warns if the batches that workers prefetch may not fit into shared memory, which would kill a worker."""
    if num_workers == 0 or not SHARED_MEMORY.is_dir():
        return
    batch = settings.batch_blocks * settings.longest_block * settings.image_size**2 * num_channels
    needed, free = num_workers * _BATCHES_AHEAD * batch, shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        logger.warning(
            "%s has %.1f GB free, but %d workers may hold %.1f GB of batches there. Use fewer "
            "(--set train.workers=%d), or make it larger (docker: --shm-size).",
            SHARED_MEMORY,
            free / 1e9,
            num_workers,
            needed / 1e9,
            max(free // (_BATCHES_AHEAD * batch), 0),
        )


def _save_memory(settings: TrainConfig) -> str:
    """Advice for CUDA out of memory, cheapest remedy first."""
    recompute = "" if settings.grad_checkpointing else ", or --set train.grad_checkpointing=true"
    shorter = ""
    if settings.sampling == "studies":
        shorter = f"shorter parts of studies (train.max_slices, now {settings.max_slices}), "
    return (
        f"Use gradient accumulation: --set train.accumulate={2 * settings.accumulate}{recompute}. "
        f"Or use {shorter}smaller batches (train.batch_blocks, now {settings.batch_blocks}) or images "
        f"(train.image_size, now {settings.image_size})."
    )


def _explain(error: NonFiniteLossError, task: FoldTask, slices: pd.DataFrame) -> ConfigError:
    rows = sorted(set(error.rows))
    names = ", ".join(slices.slice_id.iloc[rows[:_SHOWN_IDS]])
    more = f" and {len(rows) - _SHOWN_IDS} more" if len(rows) > _SHOWN_IDS else ""
    return ConfigError(
        f"train: expected a finite loss, found {error.loss} in fold {task.fold}, epoch {error.epoch + 1}, step "
        f"{error.step + 1}, for the blocks around {names}{more}. Lower train.learning_rate (now "
        f"{task.config.train.learning_rate:g}) or use --set train.precision=32, and start over with --fresh."
    )
