"""Configuration of stage 1: the 2D network, its input and its training."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from ichkit.core.errors import ConfigError, nearest
from ichkit.core.section import ConfigSection, Count, Odd, Positive, Probability, runtime

NONE = "none"
Share = Annotated[float, Field(gt=0, le=1)]


class AugmentConfig(ConfigSection):
    """Augmentation of training images; parameters are drawn once per block or once per slice.

    `crop_scale` is the range of a crop's share of the slice's area, `crop_ratio` that of its width by its height (by
    default that of heads, from the narrowest to the broadest). `scale` is the range of the linear magnification about
    the centre, drawn together with the rotation and the shift, with `rotation_probability`; below 1 the border is
    filled with air. `shift_hu` is the largest shift, either sign, and `contrast` the range of the factor on HU (0 HU,
    water, stays where it is), both drawn with `intensity_probability`. `noise_hu` is the range of the noise's standard
    deviation in HU. `dropout_holes` is the number of rectangles filled with air, `dropout_size` the range of their
    sides as shares of the image's.

    `every_second_probability` and `reversed_probability` are for whole studies (`sampling: studies`): only every second
    slice, and the slices from head to feet; their positions stay true.
    """

    per: Literal["block", "slice"] = "block"
    crop_scale: tuple[Share, Share] = (0.7, 1.0)
    crop_ratio: tuple[Positive, Positive] = (0.8, 1.25)
    crop_probability: Probability = 1.0
    horizontal_flip_probability: Probability = 0.5
    vertical_flip_probability: Probability = 0.0
    transpose_probability: Probability = 0.0
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 20.0
    shift_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    rotation_probability: Probability = 0.7
    distortion_limit: Annotated[float, Field(ge=0, le=1)] = 0.2
    distortion_probability: Probability = 0.2
    noise_hu: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (1.0, 4.0)
    noise_probability: Probability = 0.2
    every_second_probability: Probability = 0.0
    reversed_probability: Probability = 0.0
    shift_hu: Annotated[int, Field(ge=0, le=1000)] = 0
    contrast: tuple[Positive, Positive] = (1.0, 1.0)
    intensity_probability: Probability = 0.0
    dropout_holes: tuple[Count, Count] = (1, 4)
    dropout_size: tuple[Share, Share] = (0.05, 0.2)
    dropout_probability: Probability = 0.0

    @field_validator("crop_scale", "crop_ratio", "scale", "noise_hu", "contrast", "dropout_holes", "dropout_size")
    @classmethod
    def _check_range(cls, values: tuple[float, float]) -> tuple[float, float]:
        if values[0] > values[1]:
            raise ValueError("expected a range [lowest, highest]")
        return values


class CutMixConfig(ConfigSection):
    """CutMix between blocks, for a share `probability` of the batches; 0 switches it off."""

    probability: Probability = 0.5
    alpha: Positive = 1.0


class MixupConfig(ConfigSection):
    """Mixup of blocks, for a share `probability` of the batches without CutMix; 0 switches it off."""

    probability: Probability = 0.0
    alpha: Positive = 0.2


class ScheduleConfig(ConfigSection):
    """Learning rate schedule; `train.schedule: step` is short for `train.schedule: {kind: step}`.

    `kind` is a row of `SCHEDULES`. `lowest` is the lowest factor on the learning rate. `milestones` are shares of the
    steps after warm-up (step). `drop_factor` multiplies the rate at each drop (step, plateau). `patience` is the number
    of epochs without a better validation value before a drop (plateau).
    """

    kind: str = "cosine"
    lowest: Probability = 0.0
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.6, 0.85)
    drop_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=0)] = 2


class ValidationConfig(ConfigSection):
    """Patients of the training part that are held out from training and evaluated after each epoch.

    `share` is the share of the patients of the training part, one part in round(1 / share); 0 holds out nobody. `keep`
    is "last" or "best", the weights of the epoch with the best `metric` in each phase. `patience` ends a phase after
    that many epochs without a better value.
    """

    share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    keep: Literal["last", "best"] = "last"
    patience: Count | None = None
    metric: Literal["weighted_log_loss", "loss", "mean_auc"] = "weighted_log_loss"


def _expand_kind(value: Any) -> Any:
    """A section that is written as one word: `context: gru` is `context: {kind: gru}`."""
    return {"kind": value} if isinstance(value, str) else value


NamedSchedule = Annotated[ScheduleConfig, BeforeValidator(_expand_kind)]


class RateFactors(ConfigSection):
    """Factors on the learning rate per part of the network.

    `head` is the classifier, `backbone` the rest of the timm model, `context` whatever follows the backbone.
    """

    backbone: Annotated[float, Field(ge=0)] = 1.0
    context: Annotated[float, Field(ge=0)] = 1.0
    head: Annotated[float, Field(ge=0)] = 1.0


RESERVED_ARGUMENTS = frozenset(
    {"model_name", "in_chans", "num_classes", "img_size", "drop_rate", "drop_path_rate", "features_only"}
    | {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
    | {"scriptable", "exportable", "no_jit"}
)
_LARGEST_ARGUMENT = 2**16


def check_backbone_args(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments, if they may be passed to timm: numbers, words and lists of them, without reserved names.

    Raises:
        ValueError: a name is set elsewhere in the config or could read a file; a value is of another kind or too large.
    """
    for name, value in arguments.items():
        if name in RESERVED_ARGUMENTS:
            raise ValueError(f'"{name}" is not an argument of the architecture; other settings set it')
        for item in value if isinstance(value, list | tuple) else [value]:
            is_number = isinstance(item, int | float) and abs(item) <= _LARGEST_ARGUMENT
            if not (item is None or isinstance(item, bool | str) or is_number):
                raise ValueError(f'expected a number up to {_LARGEST_ARGUMENT}, a word, or a list of them for "{name}"')
    return arguments


LayerDecay = Annotated[float, Field(gt=0, le=1)]


class ContextConfig(ConfigSection):
    """How the slices of a block see each other; `kind` is a row of `models.context.CONTEXTS`.

    `width` is the number of features of a slice inside, `heads` those of the attention.
    """

    kind: str = "none"
    layers: Annotated[int, Field(ge=1, le=12)] = 2
    heads: Annotated[int, Field(ge=1, le=32)] = 2
    width: Annotated[int, Field(ge=8, le=2048)] = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _check_width(self) -> "ContextConfig":
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of twice the heads, so of {2 * self.heads}")
        return self


OF_SLICES: Literal["slices"] = "slices"
OF_STUDY: Literal["study"] = "study"


class PoolConfig(ConfigSection):
    """How the slices of a study make the logits of the study; `kind` is a row of `models.pooling.POOLS`.

    `top` is the number of slices of "top-mean", `width` the hidden features of "attention", and `positions` the number
    of trainable weights of "slice-weights". `writes` is what tables of predictions hold for a slice: its own
    probability ("slices"), or that of its study ("study"), for networks that only learn labels of studies.
    """

    kind: str = "none"
    top: Annotated[int, Field(ge=1, le=1000)] = 3
    width: Annotated[int, Field(ge=1, le=2048)] = 64
    positions: Annotated[int, Field(ge=2, le=1000)] = 32
    writes: Literal["slices", "study"] = OF_SLICES

    def settings(self) -> dict[str, Any]:
        """As of any section, without `writes` at its default: earlier runs had no such setting."""
        return {name: value for name, value in super().settings().items() if (name, value) != ("writes", OF_SLICES)}


class HeadsConfig(ConfigSection):
    """Weights of the losses of a network with several heads; they are divided by their sum.

    `slices` is for the logits of each slice alone, `series` for those that see the other slices (`train.context`), and
    `study` for the pooled ones (`train.pool`).
    """

    slices: Annotated[float, Field(ge=0)] = 1.0
    series: Annotated[float, Field(ge=0)] = 2.0
    study: Annotated[float, Field(ge=0)] = 1.0


OWN_LABELS = "own"


def _check_labels(labels: str) -> str:
    if labels != OWN_LABELS and not re.fullmatch(r"run:.+", labels):
        raise ValueError('must be "own" or "run:NAME", an earlier run on the same folds')
    return labels


class PhaseConfig(ConfigSection):
    """One phase of a run; None means the value of `train`.

    `labels` are "own", or "run:NAME" to add slices of `pseudo_sets` (the test split or external sets without labels)
    with the predictions of the same fold of that run as soft labels, about `pseudo_share` of the phase's slices.

    `weights` are the initial weights: "keep" (of the previous phase; in the first phase `train.pretrained`), "hub",
    "none", a file, "run:NAME", the same fold of an earlier run on the same folds, or "model:FOLDER", the first network
    of an export of other data, refused where it has learnt from patients that are prepared here. `frozen_stages` is the
    number of frozen backbone stages, counted from the input with the stem as the first; `frozen` names further parts of
    the network that keep their weights and statistics, such as "backbone.gates" or "pool". `classes` are the labels to
    train on, any of the task; the last phase trains on all of the run.

    `batch_blocks` is that of the phase, and `optimizer_args` are passed to its optimizer. `kind` is "labels", or
    "restore" to pretrain a backbone of volumes without labels: it learns to restore distorted studies of the training
    part (`imaging.distort`).
    """

    kind: Literal["labels", "restore"] = "labels"
    weights: str = "keep"
    labels: Annotated[str, AfterValidator(_check_labels)] = OWN_LABELS
    pseudo_sets: Annotated[tuple[str, ...], Field(min_length=1)] = ("test",)
    pseudo_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    frozen_stages: Annotated[int, Field(ge=0)] = 0
    frozen: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    batch_blocks: Count | None = None
    optimizer_args: dict[str, float] = Field(default_factory=dict)
    epochs: Count | None = None
    learning_rate: Positive | None = None
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None
    schedule: NamedSchedule | None = None
    optimizer: str | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    layer_decay: LayerDecay | None = None
    rate_factors: RateFactors | None = None


@dataclass(frozen=True)
class ResolvedPhase:
    """One phase with every value set.

    Attributes:
        kind: what is learnt, as in `PhaseConfig`.
        weights: initial weights, as in `PhaseConfig`.
        labels, pseudo_sets, pseudo_share: pseudo-labels, as in `PhaseConfig`.
        frozen_stages: number of frozen backbone stages.
        frozen: further frozen parts, names of modules or tensors of the network.
        classes: the labels to train on, in the order of the task.
        optimizer_args: further arguments of the optimizer.
        spares_norms_and_biases: True if weight decay leaves out norms, biases and what timm lists for the backbone.
        batch_blocks, epochs, learning_rate, warmup_epochs, schedule, optimizer, weight_decay, layer_decay,
            rate_factors: of the phase, else of `train`.
    """

    kind: str
    weights: str
    labels: str
    pseudo_sets: tuple[str, ...]
    pseudo_share: float
    frozen_stages: int
    frozen: tuple[str, ...]
    classes: tuple[str, ...]
    optimizer_args: dict[str, float]
    batch_blocks: int
    epochs: int
    learning_rate: float
    warmup_epochs: float
    schedule: ScheduleConfig
    optimizer: str
    weight_decay: float
    spares_norms_and_biases: bool
    layer_decay: float
    rate_factors: RateFactors


class TrainConfig(ConfigSection):
    """Stage 1: a 2D network on blocks of adjacent slices.

    `backbone_args` are passed to timm. `weight_decay_on` is "weights" (norms, biases and what timm lists for the
    backbone are left out) or "all". `layer_decay` multiplies the learning rate once for each layer away from the head.
    `curve: heldout` records the scores of the held-out fold after each epoch, for display only.

    `classes` are the classes that the run predicts, by default all of the task. `given` is a class of the task: the
    other classes of the run are asked only where it is present. Their labels elsewhere are never read, and their
    probabilities are conditional on it (see `stack.combine: cascade`).

    With `adapts_to_length`, `batch_blocks`, `ema_decay` and `cutmix.probability` are upper limits; a run of few steps
    has smaller ones, and one on few studies has `drop_rate` and `mixup` where the config has none (`engine.length`).
    """

    backbone: str = "resnet50"
    backbone_args: Annotated[dict[str, Any], AfterValidator(check_backbone_args)] = Field(default_factory=dict)
    pretrained: str = "hub"
    image_size: Annotated[int, Field(ge=32)] = 512
    block_size: Odd = 7
    batch_blocks: Count = 16
    sampling: Literal["blocks", "slices", "studies"] = "blocks"
    max_slices: Annotated[int, Field(ge=2, le=1000)] = 60
    centres: str = "uniform"
    context: Annotated[ContextConfig, BeforeValidator(_expand_kind)] = ContextConfig()
    pool: Annotated[PoolConfig, BeforeValidator(_expand_kind)] = PoolConfig()
    heads: HeadsConfig = HeadsConfig()
    epochs: Count = 20
    optimizer: str = "adam"
    learning_rate: Positive = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    weight_decay_on: Literal["weights", "all"] = "weights"
    layer_decay: LayerDecay = 1.0
    rate_factors: RateFactors = RateFactors()
    schedule: NamedSchedule = ScheduleConfig()
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Positive | None = None
    accumulate: Count = 1
    loss: str = "weighted-bce"
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    given: str | None = None
    drop_rate: Probability = 0.0
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    label_prior_bias: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    adapts_to_length: bool = False
    augment: AugmentConfig = AugmentConfig()
    cutmix: CutMixConfig = CutMixConfig()
    mixup: MixupConfig = MixupConfig()
    validation: ValidationConfig = ValidationConfig()
    phases: tuple[PhaseConfig, ...] = ()
    tta: str = "none"
    tta_average: Literal["probability", "logit"] = "probability"
    # YAML parses 32 as a number.
    precision: Annotated[Literal["auto", "32", "64", "bf16-mixed", "16-mixed"], BeforeValidator(str)] = "auto"
    grad_checkpointing: bool = False
    accelerator: str = runtime("auto")
    compile: bool = runtime(False)
    workers: int | None = runtime(None)
    threads: int | None = runtime(None)
    log_every: Count = runtime(50)
    backend: Literal["processes", "ray"] = runtime("processes")
    ray_gpus: Annotated[int, Field(ge=0)] = runtime(0)
    predict_batch: Count = runtime(64)
    embeddings: bool = runtime(False)
    keep_slice_head: bool = runtime(False)
    curve: Literal["none", "heldout"] = runtime("none")

    @model_validator(mode="after")
    def _check_blocks(self) -> "TrainConfig":
        if self.sampling == "slices" and self.context.kind != NONE:
            raise ValueError("train.context: needs blocks of slices; use --set train.sampling=studies, or blocks")
        if self.pool.writes == OF_STUDY and self.pool.kind == NONE:
            raise ValueError(
                "train.pool.writes: without a pool there is no probability of the study; set train.pool.kind"
            )
        if self.sampling != "studies" and self.pool.kind != NONE:
            raise ValueError("train.pool: a study is pooled from all its slices; use --set train.sampling=studies")
        if self.sampling == "studies" and self.centres != "uniform":
            raise ValueError(
                "train.centres: with train.sampling=studies each study is seen once per epoch; leave it at uniform"
            )
        return self

    @model_validator(mode="after")
    def _check_phases(self) -> "TrainConfig":
        if self.phases and self.phases[-1].classes is not None:
            raise ValueError("train.phases: the last phase trains on all classes of the run; leave out its `classes`")
        if self.phases and self.phases[-1].kind != "labels":
            raise ValueError("train.phases: a phase of kind restore must be followed by one that learns labels")
        return self

    @model_validator(mode="after")
    def _check_choices(self) -> "TrainConfig":
        kinds = {self.schedule.kind, *(phase.schedule.kind for phase in self.phases if phase.schedule is not None)}
        needs = {
            "keep: best": self.validation.keep == "best",
            f"patience: {self.validation.patience}": self.validation.patience is not None,
            "train.schedule: plateau": "plateau" in kinds,
        }
        asked = ", ".join(name for name, is_set in needs.items() if is_set)
        if asked and not self.validation.share:
            raise ValueError(
                f"train.validation.share: is 0, but {asked} needs patients to choose by. Set it to 0.1 or more, which "
                "holds out a tenth of the patients of the training part"
            )
        if asked and self.curve == "heldout":
            raise ValueError(
                f"train.curve: the curve of the held-out fold is for display only, and {asked} makes choices during "
                "training. Use train.curve: none with it"
            )
        return self

    @property
    def sees_blocks(self) -> bool:
        """True if the network reads blocks as such, not each slice on its own."""
        return self.context.kind != NONE or self.pool.kind != NONE

    @property
    def longest_block(self) -> int:
        """Most slices of a block."""
        return self.max_slices if self.sampling == "studies" else self.block_size

    @property
    def total_epochs(self) -> int:
        """Epochs of all phases."""
        return sum(phase.epochs or self.epochs for phase in self.phases or (PhaseConfig(),))

    def resolve_phases(self, classes: Sequence[str], known: Sequence[str] = ()) -> tuple[ResolvedPhase, ...]:
        """The phases of a run; without `train.phases` there is one, the run itself.

        Args:
            classes: of the run, in order.
            known: every class of the task, in order; empty for those of the run.

        Raises:
            ConfigError: a phase has a class that is not of the task.
        """
        return tuple(
            ResolvedPhase(
                kind=phase.kind,
                weights=self.pretrained if number == 0 and phase.weights == "keep" else phase.weights,
                labels=phase.labels,
                pseudo_sets=phase.pseudo_sets,
                pseudo_share=phase.pseudo_share,
                frozen_stages=phase.frozen_stages,
                frozen=phase.frozen,
                classes=_order_classes(phase.classes, known or classes) if phase.classes else tuple(classes),
                optimizer_args=phase.optimizer_args,
                spares_norms_and_biases=self.weight_decay_on == "weights",
                **{name: getattr(phase if getattr(phase, name) is not None else self, name) for name in _OVERRIDABLE},
            )
            for number, phase in enumerate(self.phases or (PhaseConfig(),))
        )


_OVERRIDABLE = (
    "batch_blocks",
    "epochs",
    "learning_rate",
    "warmup_epochs",
    "schedule",
    "optimizer",
    "weight_decay",
    "layer_decay",
    "rate_factors",
)


def _order_classes(asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The requested classes, each once and in the order of the task."""
    for name in asked:
        if name not in known:
            raise ConfigError(f'train.phases: unknown class "{name}". {nearest(name, known)}')
    return tuple(name for name in known if name in asked)
