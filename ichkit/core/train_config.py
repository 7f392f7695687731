"""Configuration of stage 1: what the 2D network is, what it sees, and how it learns."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ichkit.core.section import ConfigSection, Count, Positive, Probability, runtime


class AugmentConfig(ConfigSection):
    """Geometry and noise of training images; each `*_probability` is per draw, one draw per block or per slice.

    `noise_hu` is the range of the noise's standard deviation in HU.
    """

    per: Literal["block", "slice"] = "block"
    crop_scale: tuple[Positive, Positive] = (0.7, 1.0)
    crop_probability: Probability = 1.0
    horizontal_flip_probability: Probability = 0.5
    vertical_flip_probability: Probability = 0.0
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 20.0
    shift_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    rotation_probability: Probability = 0.7
    distortion_limit: Annotated[float, Field(ge=0, le=1)] = 0.2
    distortion_probability: Probability = 0.2
    noise_hu: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (1.0, 4.0)
    noise_probability: Probability = 0.2


class CutMixConfig(ConfigSection):
    """CutMix over blocks; probability 0 switches it off."""

    probability: Probability = 0.5
    alpha: Positive = 1.0


class PhaseConfig(ConfigSection):
    """One phase of a run; what is None here is as in `train`.

    `weights` are those it begins with: "keep" (of the phase before; in the first one `train.pretrained`), "hub",
    "none", a file, or "run:NAME", the same fold of an earlier run on the same folds. `frozen_stages` is how many of
    the backbone's stages, counted from the image and with the stem as the first, stay as they are. `classes` are the
    labels it learns; the last phase learns all.
    """

    weights: str = "keep"
    frozen_stages: Annotated[int, Field(ge=0)] = 0
    classes: tuple[str, ...] | None = None
    epochs: Count | None = None
    learning_rate: Positive | None = None
    warmup_epochs: Annotated[float, Field(ge=0)] | None = None


class TrainConfig(ConfigSection):
    """Stage 1: a 2D network on blocks of adjacent slices."""

    backbone: str = "resnet50"
    pretrained: str = "hub"
    image_size: Annotated[int, Field(ge=32)] = 512
    block_size: Annotated[int, Field(ge=1)] = 7
    batch_blocks: Count = 16
    sampling: Literal["blocks", "slices"] = "blocks"
    centres: str = "uniform"
    epochs: Count = 20
    optimizer: str = "adam"
    learning_rate: Positive = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Positive | None = None
    accumulate: Count = 1
    loss: str = "weighted-bce"
    drop_rate: Probability = 0.0
    label_prior_bias: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    augment: AugmentConfig = AugmentConfig()
    cutmix: CutMixConfig = CutMixConfig()
    phases: tuple[PhaseConfig, ...] = ()
    tta: Literal["none", "hflip"] = "none"
    # YAML reads 32 as a number.
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

    @model_validator(mode="after")
    def _check_block(self) -> "TrainConfig":
        if self.block_size % 2 == 0:
            raise ValueError(
                f"train.block_size must be odd, so that a block has a middle slice; found {self.block_size}"
            )
        return self

    @model_validator(mode="after")
    def _check_phases(self) -> "TrainConfig":
        if self.phases and self.phases[-1].classes is not None:
            raise ValueError("train.phases: the last phase learns every class of the task; leave out its `classes`")
        return self

    def resolved_phases(self) -> tuple[PhaseConfig, ...]:
        """At least one phase, none of them with anything left to `train` but `classes`."""
        whole = []
        for number, phase in enumerate(self.phases or (PhaseConfig(),)):
            asked = {
                "weights": self.pretrained if number == 0 and phase.weights == "keep" else phase.weights,
                "epochs": phase.epochs or self.epochs,
                "learning_rate": phase.learning_rate or self.learning_rate,
                "warmup_epochs": self.warmup_epochs if phase.warmup_epochs is None else phase.warmup_epochs,
            }
            whole.append(phase.model_copy(update=asked))
        return tuple(whole)
