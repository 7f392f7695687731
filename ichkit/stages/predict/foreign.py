"""Checks of untrusted model folders: file sizes, names, array shapes, finite predictions."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError, IchkitError
from ichkit.core.tasks import Task
from ichkit.work.schemas import make_predictions

if TYPE_CHECKING:
    from ichkit.engine.inference import Predictor

_MAX_FILES = 10_000
_MAX_BYTES = {
    "networks.safetensors": 256 * 1024**2,
    "wide.safetensors": 256 * 1024**2,
    ".json": 16 * 1024**2,
    ".txt": 64 * 1024**2,
    ".npy": 256 * 1024**2,
    ".safetensors": 8 * 1024**3,
}
"""Of files by name or suffix: several times the size of the largest networks and stacks."""
_NUM_SLICES = 3


@contextlib.contextmanager
def refuse_failures(folder: Path) -> Iterator[None]:
    """Turns any exception while an untrusted folder is read into an error with one message.

    Raises:
        IchkitError: as raised inside.
        ArtifactError: any other exception, including MemoryError and RecursionError.
    """
    try:
        yield
    except IchkitError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"{folder}: expected a model that can be used, found one that cannot ({type(error).__name__}). "
            "The folder is not what `ichkit export` wrote; copy it again, or export it again."
        ) from error


def refuse_oversized(folder: Path) -> None:
    """Checks number and sizes of the files in a model folder before any is opened.

    Raises:
        ArtifactError: too many files, or a file is too large for its type.
    """
    num_files = 0
    for place, _, names in os.walk(folder):
        num_files += len(names)
        if num_files > _MAX_FILES:
            raise ArtifactError(f"{folder}: expected a model of at most {_MAX_FILES} files, found more.")
        for name in names:
            path = Path(place) / name
            most = _MAX_BYTES.get(name, _MAX_BYTES.get(path.suffix, max(_MAX_BYTES.values())))
            if path.is_file() and path.stat().st_size > most:
                raise ArtifactError(f"{path}: expected at most {most / 1024**2:.0f} MB, found more.")


def rehearse(networks: "dict[str, dict[int, Predictor]]", stack: Path | None, kind: str, task: Task) -> None:
    """Tries every part of a model on a study of three slices of air, before any scan is predicted.

    Args:
        networks: by run, then fold.
        stack, kind: see `model.Model`.

    Raises:
        ArtifactError: shapes do not match, or a probability is not finite.
    """
    from ichkit.stacking.fold_models import predict_fold_models

    with refuse_failures(stack or Path("model")):
        slices = _slices()
        tables: dict[str, dict[int, pd.DataFrame]] = {}
        features: dict[str, dict[int, np.ndarray]] = {}
        for name, of_run in networks.items():
            for k, predictor in of_run.items():
                sequences = len(predictor.card.sequences.get("names", ()))
                shape = (_NUM_SLICES, *((sequences,) if sequences else ()), 64, 64)
                volume = np.full(shape, -1000, np.int16)
                probabilities, features.setdefault(name, {})[k] = predictor.describe_volume(volume)
                if probabilities.shape != (_NUM_SLICES, len(predictor.classes)) or not np.isfinite(probabilities).all():
                    raise ValueError("probabilities")
                tables.setdefault(name, {})[k] = make_predictions(slices, predictor.spread(probabilities), task, fold=k)
        if stack is not None:
            predict_fold_models(stack, tables, slices, features)[kind]


def _slices() -> pd.DataFrame:
    """The columns of slices that `predict_fold_models` reads, for one study."""
    index = np.arange(_NUM_SLICES)
    return pd.DataFrame(
        {
            "slice_id": [f"slice{i}" for i in index],
            "study_id": "rehearsal",
            "slice_index": index,
            "num_slices": _NUM_SLICES,
            "position_mm": index * 5.0,
            "gap_mm": [5.0, 5.0, np.nan],
            "padded": False,
            "brain_share": 0.0,
        }
    )
