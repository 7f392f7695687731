"""Configuration of stage 2."""

from typing import Annotated, Literal

from pydantic import Field

from ichkit.core.section import ConfigSection, Count, Odd, Positive, Probability, runtime


class NetworkConfig(ConfigSection):
    """Settings that the second-stage networks share; weight decay and number of epochs are chosen on inner patients.

    `epochs` is the maximum number of epochs, `max_visits` the maximum number of rows seen in all epochs together. The
    weights kept are the mean of those after the last `averaged_epochs` epochs; 1 keeps the last.
    """

    epochs: Count = 20
    max_visits: Count = 3_000_000
    batch_size: Count = 512
    learning_rate: Positive = 5e-3
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = (1e-3, 1e-1)
    num_seeds: Count = 2
    averaged_epochs: Count = 1


class FusionConfig(NetworkConfig):
    """The axial-fusion CNN of the paper: two convolutions and one linear layer."""

    window: Annotated[Odd, Field(ge=3, le=21)] = 7
    channels: tuple[Count, Count] = (32, 64)


class WideConfig(NetworkConfig):
    """A wide recurrent network, fitted beside the small one and used as far as inner patients support; 0 units: none.

    It also reads the differences to the slices before and after. `accelerator` "auto" takes a GPU if there is one.
    """

    units: Annotated[int, Field(ge=0, le=1024)] = 0
    batch_size: Count = 2048
    learning_rate: Positive = 2e-3
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = (1e-1,)
    num_seeds: Count = 1
    averaged_epochs: Count = 5
    dropout: Probability = 0.2
    accelerator: Literal["auto", "cpu", "cuda"] = runtime("auto")


class SequenceConfig(NetworkConfig):
    """A recurrent network over whole studies; augmentation reverses the slice order and drops slices."""

    hidden: Count = 32
    batch_size: Count = 2048
    learning_rate: Positive = 1e-2
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = (1e-1,)
    reversal_probability: Probability = 0.5
    thinning_probability: Probability = 0.25
    wide: WideConfig = WideConfig()


class LightgbmConfig(ConfigSection):
    """Boosted trees on the descriptors of neighbouring slices; the regularisation is chosen on inner patients."""

    window: Odd = 19
    features: tuple[str, ...] = ("neighbours", "steps", "means", "study", "ranks", "position")
    learning_rate: Positive = 0.1
    max_rounds: Count = 300
    patience: Count = 30
    strengths: tuple[str, ...] = ("light", "medium", "strong", "base")
    num_threads: int | None = runtime(None)


class BlendConfig(ConfigSection):
    """Convex weights of the members' logits per class, fitted on inner patients of each fold's training part."""

    tolerance: Annotated[float, Field(ge=0)] = 0.0


class EmbeddingsConfig(ConfigSection):
    """Penultimate-layer embeddings, aligned to one space; `enabled` needs `train --embeddings`."""

    enabled: bool = False
    size: Annotated[int, Field(ge=1, le=256)] = 32
    max_anchors: Count = 20_000


class StackConfig(ConfigSection):
    """Stage 2: from the descriptors of adjacent slices to the final probabilities.

    `combine` is a row of `stacking.combine.COMBINERS`: how several runs become one base. Without `stackers` the stack
    is that base alone, an ensemble of the runs.
    """

    stackers: tuple[str, ...] = ("fusion", "lightgbm")
    combine: str = "mean-logit"
    num_parts: Annotated[int, Field(ge=2)] = 5
    num_inner: Annotated[int, Field(ge=2)] = 4
    calibrate: bool = True
    fusion: FusionConfig = FusionConfig()
    lightgbm: LightgbmConfig = LightgbmConfig()
    sequence: SequenceConfig = SequenceConfig()
    blend: BlendConfig = BlendConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
