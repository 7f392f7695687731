"""The sections of the second stage."""

from typing import Annotated

from pydantic import Field, model_validator

from ichkit.core.section import ConfigSection, Count, Positive, Probability, runtime


class NetworkConfig(ConfigSection):
    """What the networks of the second stage share; decay and length of training are chosen on inner patients.

    `epochs` are the most passes over the rows, and `max_visits` bounds the rows seen in all of them together.
    """

    epochs: Count = 20
    max_visits: Count = 3_000_000
    batch_size: Count = 512
    learning_rate: Positive = 5e-3
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = (1e-3, 1e-1)
    num_seeds: Count = 2


class FusionConfig(NetworkConfig):
    """The axial-fusion CNN of the paper: two convolutions and one linear layer."""

    window: Annotated[int, Field(ge=3, le=21)] = 7
    channels: tuple[Count, Count] = (32, 64)

    @model_validator(mode="after")
    def _check_window(self) -> "FusionConfig":
        _check_odd("stack.fusion.window", self.window)
        return self


class SequenceConfig(NetworkConfig):
    """A recurrent network over whole studies; augmentation turns studies round and leaves slices out."""

    hidden: Count = 32
    batch_size: Count = 2048
    learning_rate: Positive = 1e-2
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = (1e-1,)
    reversal_probability: Probability = 0.5
    thinning_probability: Probability = 0.25


class LightgbmConfig(ConfigSection):
    """Boosted trees on neighbours' descriptors; the strength of regularisation is chosen on inner patients."""

    window: Annotated[int, Field(ge=1)] = 19
    features: tuple[str, ...] = ("neighbours", "steps", "means", "study", "ranks", "position")
    learning_rate: Positive = 0.1
    max_rounds: Count = 300
    patience: Count = 30
    strengths: tuple[str, ...] = ("light", "medium", "strong", "base")
    num_threads: int | None = runtime(None)

    @model_validator(mode="after")
    def _check_window(self) -> "LightgbmConfig":
        _check_odd("stack.lightgbm.window", self.window)
        return self


def _check_odd(key: str, window: int) -> None:
    if window % 2 == 0:
        raise ValueError(f"{key} must be odd, so that it has a middle; found {window}")


class BlendConfig(ConfigSection):
    """Convex weights per class on logits, fitted on inner patients of each fold's training part."""

    tolerance: Annotated[float, Field(ge=0)] = 0.0


class EmbeddingsConfig(ConfigSection):
    """What networks see before their last layer, brought into one space; `enabled` needs `train --embeddings`."""

    enabled: bool = False
    size: Count = 32
    max_anchors: Count = 20_000


class StackConfig(ConfigSection):
    """Stage 2: descriptors of adjacent slices to the final probability."""

    stackers: tuple[str, ...] = ("fusion", "lightgbm")
    num_parts: Annotated[int, Field(ge=2)] = 5
    num_inner: Annotated[int, Field(ge=2)] = 3
    calibrate: bool = True
    fusion: FusionConfig = FusionConfig()
    lightgbm: LightgbmConfig = LightgbmConfig()
    sequence: SequenceConfig = SequenceConfig()
    blend: BlendConfig = BlendConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
