"""The input of the second stage: descriptors of one or more runs for whole studies, and facts about each slice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ichkit.core.errors import ContractError
from ichkit.core.logits import to_logits
from ichkit.core.tasks import Task
from ichkit.stacking.combine import Ensemble
from ichkit.work.schemas import BRAIN_SHARE, KEY

PREPARED_FACTS = ("slice_index", "num_slices", "position_mm", "gap_mm", "padded")
FACTS = (*PREPARED_FACTS, BRAIN_SHARE)


@dataclass(frozen=True)
class Rows:
    """N slices of whole studies, sorted by study, then slice_index; without labels.

    Attributes:
        logits: (N, M, C) float32, the descriptors of M runs before the sigmoid; 0 for classes that a run does not
            predict.
        study_codes: (N,) int64, equal for rows of one study.
        facts: (N, 6) float64, the columns of `FACTS`; gap_mm is NaN at the last slice, brain_share if unknown.
        embeddings: (N, E) float32, penultimate-layer embeddings, aligned to one space; E = 0 without them.
        ensemble: the runs, and how they are combined.
    """

    logits: np.ndarray
    study_codes: np.ndarray
    facts: np.ndarray
    embeddings: np.ndarray
    ensemble: Ensemble

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def num_runs(self) -> int:
        """Number of runs."""
        num_runs: int = self.logits.shape[1]
        return num_runs

    def combined_logits(self) -> np.ndarray:
        """(N, C) float64 combination of the runs: the uncalibrated base of every stacker."""
        return self.ensemble.combine(self.logits)

    def take(self, chosen: np.ndarray | slice) -> "Rows":
        """The chosen rows (mask, slice or ascending row numbers); whole studies must be chosen."""
        kept = (self.logits[chosen], self.study_codes[chosen], self.facts[chosen], self.embeddings[chosen])
        return Rows(*kept, self.ensemble)

    def without_embeddings(self) -> "Rows":
        """The same rows without embeddings."""
        return replace(self, embeddings=self.embeddings[:, :0])


def make_rows(
    tables: Sequence[pd.DataFrame],
    slices: pd.DataFrame,
    task: Task,
    embeddings: np.ndarray | None = None,
    ensemble: Ensemble | None = None,
) -> Rows:
    """The rows of a set of slices with the descriptors of each run.

    Args:
        tables: one predictions table per run, in the order of the runs, each with exactly these slices, in any order.
        slices: slice_id, study_id and the columns of `FACTS`, in any order; brain_share may be missing.
        embeddings: (N, E) of the slices, sorted by study_id and slice_index; None for none.
        ensemble: of the runs; None for the mean of the logits of runs of the whole task.

    Raises:
        ContractError: a table does not have exactly these slices.

    Example:
        >>> from ichkit.work.schemas import make_predictions
        >>> slices = pd.DataFrame(
        ...     {"slice_id": ["x", "y"], "study_id": "a", "slice_index": [0, 1], "num_slices": 2}
        ...     | {"position_mm": [0.0, 5.0], "gap_mm": [5.0, np.nan], "padded": False}
        ... )
        >>> task = find_task("hemorrhage")
        >>> oof = make_predictions(slices, np.full((2, 6), 0.5), task, fold=0)
        >>> make_rows([oof, oof], slices, task).logits.shape
        (2, 2, 6)
    """
    slices = slices.sort_values(KEY, ignore_index=True)
    logits = np.empty((len(slices), len(tables), task.num_classes), np.float32)
    for run, table in enumerate(tables):
        table = table.sort_values(KEY, ignore_index=True)
        if not table.slice_id.equals(slices.slice_id):
            raise ContractError(
                f"descriptors of run {run + 1} of {len(tables)}: expected exactly the {len(slices)} slices given, "
                f"found {len(table)} rows of other slices. Run `ichkit train` again to update the tables."
            )
        logits[:, run] = to_logits(table[task.probability_columns].to_numpy(np.float64))
    ensemble = ensemble or Ensemble.of_whole(task, len(tables))
    logits[:, ~ensemble.knows()] = 0.0
    study_codes, _ = pd.factorize(slices.study_id)
    facts = slices.reindex(columns=list(FACTS)).to_numpy(np.float64, na_value=np.nan)
    kept = np.empty((len(slices), 0), np.float32) if embeddings is None else embeddings
    return Rows(logits, study_codes.astype(np.int64), facts, kept, ensemble)


def known_rows(labels: np.ndarray) -> np.ndarray | slice:
    """The rows of (n,) labels that are not NaN: a slice of all, so that arrays stay as they are, or a mask."""
    unknown = np.isnan(np.asarray(labels, np.float64))
    return ~unknown if unknown.any() else slice(None)


def mean_by_class(losses: np.ndarray) -> np.ndarray:
    """(C,) means of (n, C) losses over the known ones; 0 for a class without any."""
    known = ~np.isnan(losses)
    if known.all():
        means: np.ndarray = losses.mean(axis=0)
        return means
    sums: np.ndarray = np.where(known, losses, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return sums


def log_losses_of_logits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Binary log loss of every element in nats, float64; NaN where the label is.

    Args:
        logits: any shape.
        labels: the same shape, 0 or 1, NaN where unknown.
    """
    logits = np.asarray(logits, np.float64)
    losses: np.ndarray = np.logaddexp(0.0, logits) - labels * logits
    return losses
