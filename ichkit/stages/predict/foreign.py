"""A model folder from elsewhere is hostile until tried: its sizes, its shapes, whether it gives finite numbers."""

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
_MAX_BYTES = {".json": 16 * 1024**2, ".txt": 256 * 1024**2, ".npy": 1024**3, ".safetensors": 8 * 1024**3}
"""Several times what the largest networks and stacks take."""
_NUM_SLICES = 3


@contextlib.contextmanager
def refuse_failures(folder: Path) -> Iterator[None]:
    """Turns whatever reading a foreign folder raises into one message; errors that have one already keep it.

    Raises:
        ArtifactError: anything else was raised, running out of memory and nesting without end included.
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
    """Refuses a folder with files that no model has, before any of them is opened.

    Raises:
        ArtifactError: too many files, or one that is too large for its kind.
    """
    num_files = 0
    for place, _, names in os.walk(folder):
        num_files += len(names)
        if num_files > _MAX_FILES:
            raise ArtifactError(f"{folder}: expected a model of at most {_MAX_FILES} files, found more.")
        for name in names:
            path = Path(place) / name
            most = _MAX_BYTES.get(path.suffix, max(_MAX_BYTES.values()))
            if path.is_file() and path.stat().st_size > most:
                raise ArtifactError(f"{path}: expected at most {most / 1024**2:.0f} MB, found more.")


def rehearse(networks: "dict[str, dict[int, Predictor]]", stack: Path | None, kind: str, task: Task) -> None:
    """Predicts a study of three slices of air with every part of a model, before any scan is predicted.

    Args:
        networks: of every run and fold.
        stack, kind: see `model.Model`.

    Raises:
        ArtifactError: shapes do not fit each other, or a probability is not finite.
    """
    from ichkit.stacking.chain import predict_chains, read_chains

    with refuse_failures(stack or Path("model")):
        slices = _slices()
        volume = np.full((_NUM_SLICES, 64, 64), -1000, np.int16)
        embeds = stack is not None and read_chains(stack).has_embeddings
        tables: dict[str, dict[int, pd.DataFrame]] = {}
        features: dict[str, dict[int, np.ndarray]] = {}
        for name, of_run in networks.items():
            for k, predictor in of_run.items():
                if embeds:
                    probabilities, seen = predictor.describe_volume(volume)
                    features.setdefault(name, {})[k] = seen
                else:
                    probabilities = predictor.predict_volume(volume)
                if probabilities.shape != (_NUM_SLICES, task.num_classes) or not np.isfinite(probabilities).all():
                    raise ValueError("probabilities")
                tables.setdefault(name, {})[k] = make_predictions(slices, probabilities, task, fold=k)
        if stack is not None:
            predict_chains(stack, tables, slices, features)[kind]


def _slices() -> pd.DataFrame:
    """What `predict_chains` wants to know of the slices of one study."""
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
