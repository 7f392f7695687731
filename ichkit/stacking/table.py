"""The table of stackers: each fits a training part and gives a model that predicts; the blend is made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ichkit.core.rows import find_row
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import Task
from ichkit.stacking.boosting import fit_boosted, load_boosted
from ichkit.stacking.inner import Training
from ichkit.stacking.rows import Rows

BASE = "base"
BLEND = "blend"


class StackerModel(Protocol):
    """A fitted second-stage model."""

    def predict(self, rows: Rows, base_logits: np.ndarray) -> np.ndarray:
        """(N, C) float64 logits of rows, given their (N, C) calibrated base."""
        ...

    def encode(self) -> dict[str, bytes]:
        """File names to bytes; the stacker's `load` gives back a model that predicts the same bytes."""
        ...


FitStacker = Callable[[Training, Task, StackConfig, int], tuple[StackerModel, np.ndarray]]


@dataclass(frozen=True)
class Stacker:
    """One kind of second-stage model.

    Attributes:
        name: key in `STACKERS`, and its folder in the artifact.
        fit: (training part, task, config, seed) to the model and the (n, C) logits of its inner models for the
            training part's inner patients.
        load: a folder of `StackerModel.encode`'s files to the model.
        needs_torch: False where fitting needs a process without torch.
        takes_embeddings: True where it looks at embeddings, when there are any.
        description: one sentence.
        source: where it comes from.
    """

    name: str
    fit: FitStacker
    load: Callable[[Path], StackerModel]
    needs_torch: bool
    takes_embeddings: bool
    description: str
    source: str


def find_stacker(name: str) -> Stacker:
    """The stacker of that name.

    Raises:
        ConfigError: no such stacker; the message lists the choices.
    """
    return find_row(STACKERS, name, "stack.stackers")


def _fit_fusion(training: Training, task: Task, config: StackConfig, seed: int) -> tuple[StackerModel, np.ndarray]:
    # Imported here, because it brings torch, which the boosters' processes must not hold.
    from ichkit.stacking.fusion import fit_fusion

    return fit_fusion(training, task, config, seed)


def _load_fusion(folder: Path) -> StackerModel:
    from ichkit.stacking.fusion import FusionModel

    return FusionModel.load(folder)


def _fit_sequence(training: Training, task: Task, config: StackConfig, seed: int) -> tuple[StackerModel, np.ndarray]:
    from ichkit.stacking.sequence import fit_sequence

    return fit_sequence(training, task, config, seed)


def _load_sequence(folder: Path) -> StackerModel:
    from ichkit.stacking.sequence import SequenceModel

    return SequenceModel.load(folder)


STACKERS = {
    "fusion": Stacker(
        name="fusion",
        fit=_fit_fusion,
        load=_load_fusion,
        needs_torch=True,
        takes_embeddings=False,
        description="A small convolutional network over the descriptors of adjacent slices.",
        source="MIDL 2020, section 2.2",
    ),
    "lightgbm": Stacker(
        name="lightgbm",
        fit=fit_boosted,
        load=load_boosted,
        needs_torch=False,
        takes_embeddings=False,
        description="Boosted trees on neighbours, study summaries and position, one booster per class.",
        source="RSNA 2019, third place",
    ),
    "sequence": Stacker(
        name="sequence",
        fit=_fit_sequence,
        load=_load_sequence,
        needs_torch=True,
        takes_embeddings=True,
        description="A recurrent network that reads the descriptors of a whole study from both ends.",
        source="RSNA 2019, first and second place: recurrent second stages",
    ),
}
