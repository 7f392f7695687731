"""The table of stackers: each fits a model on a training part; the blend combines them."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

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
        """File names to bytes; the stacker's `load` returns a model with the same predictions."""
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
        needs_torch: False if fitting needs a process without torch.
        takes_embeddings: True if it uses embeddings.
        description: one sentence.
        source: its origin.
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


def _on_call(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported on its first call: torch must not be loaded where boosters are fitted."""

    def call(*args: Any) -> Any:
        return attrgetter(name)(importlib.import_module(f"ichkit.stacking.{module}"))(*args)

    return call


STACKERS = {
    "fusion": Stacker(
        name="fusion",
        fit=_on_call("fusion", "fit_fusion"),
        load=_on_call("fusion", "FusionModel.load"),
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
        fit=_on_call("sequence", "fit_sequence"),
        load=_on_call("sequence", "load_sequence"),
        needs_torch=True,
        takes_embeddings=True,
        description="A recurrent network that reads the descriptors of a whole study from both ends.",
        source="RSNA 2019, first and second place: recurrent second stages",
    ),
}
