"""Sentences about the network of a run and its training, from the config of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import timm

from ichkit.core.train_config import NONE, ResolvedPhase, ScheduleConfig, TrainConfig
from ichkit.engine.network_cost import NetworkCost
from ichkit.imaging.views import TTA_SETS
from ichkit.models.context import CONTEXTS
from ichkit.models.descriptor import HUB
from ichkit.models.losses import LOSSES
from ichkit.models.pooling import POOLS
from ichkit.show.words import start_sentence
from ichkit.stages.report.sentences.counts import join_words, say_count

_RUN = "run:"
_METRICS = {"weighted_log_loss": "weighted log loss", "loss": "training loss", "mean_auc": "mean AUC"}
_SAMPLING = {
    "blocks": "blocks of adjacent slices",
    "slices": "single slices",
    "studies": "whole studies",
}


def say_network(train: TrainConfig, classes: Sequence[str], cost: NetworkCost | None) -> list[str]:
    """The network of a run: its parts, size, input and output.

    Args:
        classes: those it predicts.
        cost: None if the network cannot be built here.
    """
    said = [f"The network is {train.backbone} as built by timm, with one linear layer on its pooled features."]
    if train.context.kind != NONE:
        context = train.context
        layers = f"{say_count(context.layers, 'layers')}, width {context.width}"
        said.append(f'Context "{context.kind}" ({layers}): {_describe(CONTEXTS, context.kind)}')
    if train.pool.kind != NONE:
        said.append(f'Pooling to a study "{train.pool.kind}": {_describe(POOLS, train.pool.kind)}')
    if cost is None:
        said.append("Its parameters and operations were not counted.")
    else:
        height, width, channels = cost.input_shape
        said.append(
            f"It has {cost.num_parameters / 1e6:.2f} million parameters and takes {_say_operations(cost.flops)} for a "
            f"slice of {height} x {width} x {channels}."
        )
    which = f"{say_count(len(classes), 'classes')}: {', '.join(classes)}"
    said.append(f"Output: for each slice an independent probability (sigmoid) of each of {which}.")
    if train.given:
        said.append(f"The other classes are conditional on {train.given}: trained and scored only on slices with it.")
    return said


def say_weights(train: TrainConfig, classes: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """The initial weights of each phase, with their source and licence.

    Args:
        classes, known: see `TrainConfig.resolve_phases`.
    """
    phases = train.resolve_phases(classes, known)
    names = [f" of phase {number}" for number in range(1, len(phases) + 1)] if len(phases) > 1 else [""]
    starts = [_say_start(phase.weights, train.backbone) for phase in phases]
    return [f"Initial weights{name}: {start}." for name, start in zip(names, starts, strict=True)]


def find_weights(backbone: str) -> dict[str, str]:
    """Name, licence and paper of timm's pretrained weights of a backbone; empty if it has none.

    Example:
        >>> find_weights("resnet50")["licence"]
        'apache-2.0'
    """
    try:
        found = timm.get_pretrained_cfg(backbone)
    except RuntimeError:  # not a model of timm
        return {}
    if found is None or not found.hf_hub_id:
        return {}
    facts = {"name": found.hf_hub_id, "licence": found.license, "paper": found.paper_ids}
    return {name: str(value) for name, value in facts.items() if value}


def _say_start(weights: str, backbone: str) -> str:
    if weights == HUB:
        facts = find_weights(backbone)
        if not facts:
            return "pretrained, of the hub"
        more = [f"licence {facts.get('licence', 'not stated')}", *([facts["paper"]] if "paper" in facts else [])]
        return f"pretrained, {facts['name']} on the Hugging Face Hub ({', '.join(more)})"
    if weights == NONE:
        return "random"
    if weights == "keep":
        return "those of the phase before"
    if weights.startswith(_RUN):
        return f"those of the same fold of run {weights.removeprefix(_RUN)}"
    return "a weights file of the authors"


def say_training(
    train: TrainConfig, classes: Sequence[str], seed: int, facts: Mapping[str, Any], known: Sequence[str] = ()
) -> list[str]:
    """Batches, phases, loss and regularization.

    Args:
        classes, known: see `TrainConfig.resolve_phases`.
        facts: of the manifest of a fold; settings that were adapted to the length of the run are among them.
    """
    adapted = facts.get("adapted") or {}
    blocks = int(adapted.get("batch_blocks", train.batch_blocks))
    if train.sampling == "studies":
        batch = f"{say_count(blocks, 'studies')} of at most {train.max_slices} slices"
    elif train.sampling == "blocks":
        batch = f"{say_count(blocks, 'blocks')} of {train.block_size} adjacent slices"
    else:
        batch = say_count(blocks * train.block_size, "slices")
    said = [f"A batch is {batch}; an epoch draws {_SAMPLING[train.sampling]} ({train.centres})."]
    if train.accumulate > 1:
        said.append(f"Gradients of {train.accumulate} batches are accumulated for a step.")
    phases = train.resolve_phases(classes, known)
    for number, phase in enumerate(phases):
        name = f"Phase {number + 1} of {len(phases)}: " if len(phases) > 1 else ""
        learns = "" if phase.classes == tuple(classes) else f"learns {join_words(phase.classes)}; "
        if phase.kind == "restore":
            learns = "restores distorted studies of the training part, without labels; "
        batch = "" if phase.batch_blocks == train.batch_blocks else f"batches of {phase.batch_blocks}; "
        said.append(name + learns + batch + _say_phase(phase))
    if "num_steps" in facts:
        said.append(f"These are {say_count(int(facts['num_steps']), 'steps')} in the first fold.")
    said.append(f'Loss "{train.loss}": {_describe(LOSSES, train.loss)}')
    said += _say_regularization(train, adapted)
    said.append(f"The random seed is {seed}; numerical precision: {train.precision}.")
    if adapted:
        values = join_words([f"{name} = {value:g}" for name, value in adapted.items()])
        said.append(f"Adapted to the number of steps of this run: {values}.")
    return said


def say_selection(train: TrainConfig) -> list[str]:
    """Which weights are kept, what chooses them, and what is averaged at inference."""
    validation, said = train.validation, []
    averaged = "exponential moving averages of the weights" if train.ema_decay is not None else "weights"
    if validation.share:
        held = f"{validation.share:.0%} of the patients of the training part were held out from training"
        said.append(f"{held} to be evaluated after each epoch ({_METRICS[validation.metric]}).")
    if validation.keep == "best":
        said.append(f"The {averaged} of the epoch with the best value are kept in each phase.")
    else:
        said.append(f"The {averaged} after the last epoch are kept; no epoch is chosen.")
    if validation.patience is not None:
        said.append(f"A phase ends after {say_count(validation.patience, 'epochs')} without a better value.")
    said.append("No choice uses the held-out fold.")
    if train.tta != NONE:
        said.append(f"At inference, {train.tta_average} is averaged over views: {_describe(TTA_SETS, train.tta)}")
    else:
        said.append("At inference there is no test-time augmentation.")
    return said


def _say_phase(phase: ResolvedPhase) -> str:
    parts = [
        f"{say_count(phase.epochs, 'epochs')} with {phase.optimizer}, learning rate {phase.learning_rate:g}",
        _say_schedule(phase.schedule),
        f"weight decay {phase.weight_decay:g}",
    ]
    parts += [f"warm-up over {phase.warmup_epochs:g} epochs"] if phase.warmup_epochs else []
    parts += [f"layer decay {phase.layer_decay:g}"] if phase.layer_decay != 1 else []
    parts += [f"{name.replace('_', ' ')} {value:g}" for name, value in phase.optimizer_args.items()]
    parts += [f"{say_count(phase.frozen_stages, 'stages')} frozen"] if phase.frozen_stages else []
    parts += [f"{join_words(phase.frozen)} frozen"] if phase.frozen else []
    if phase.labels.startswith(_RUN):
        sets = join_words(phase.pseudo_sets)
        parts.append(f"pseudo-labels of {sets} by run {phase.labels.removeprefix(_RUN)}")
    return "; ".join(parts) + "."


def _say_schedule(schedule: ScheduleConfig) -> str:
    """How the learning rate changes within a phase, after its warm-up."""
    drop = f"multiplied by {schedule.drop_factor:g}"
    places = join_words([f"{share:.0%}" for share in schedule.milestones])
    low = f"{schedule.lowest:g}"
    words = {
        "cosine": f"cosine annealing to {low} of it",
        "constant": "constant",
        "step": f"{drop} at {places} of the steps",
        "plateau": f"{drop} after more than {say_count(schedule.patience, 'epochs')} without a better value",
        "one-cycle": f"one cycle up from 1/25 and down to {low} of it",
    }
    return words.get(schedule.kind, f'schedule "{schedule.kind}"')


def _say_operations(flops: int) -> str:
    """Operations of one slice, also as multiply-adds.

    Example:
        >>> _say_operations(42_700_000_000)
        '42.7 GFLOP (21.4 billion multiply-adds)'
    """
    unit, word, scale = ("GFLOP", "billion", 1e9) if flops >= 1e8 else ("MFLOP", "million", 1e6)
    return f"{flops / scale:.3g} {unit} ({flops / scale / 2:.3g} {word} multiply-adds)"


def _say_regularization(train: TrainConfig, adapted: Mapping[str, Any]) -> list[str]:
    drop_rate = adapted.get("drop_rate", train.drop_rate)
    parts = [f"dropout {drop_rate:g}"] if drop_rate else []
    parts += [f"stochastic depth {train.drop_path_rate:g}"] if train.drop_path_rate else []
    parts += [f"gradients clipped to norm {train.clip_norm:g}"] if train.clip_norm else []
    if train.ema_decay is not None:
        parts.append(f"exponential moving average of the weights, decay {adapted.get('ema_decay', train.ema_decay):g}")
    parts += ["the bias of the last layer starts at the prevalence of each class"] if train.label_prior_bias else []
    text = join_words(parts)
    return [f"{start_sentence(text)}."] if text else []


def _describe(table: Mapping[str, Any], name: str) -> str:
    """The description of a row as the end of a sentence; of an unknown row, its name."""
    if name not in table:
        return f"{name}."
    sentence = str(table[name].description).replace("`", "")
    return sentence[:1].lower() + sentence[1:]
