"""From the descriptors of first-stage models to final probabilities, by the files of a stack alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.artifacts import encode_json
from ichkit.core.errors import ArtifactError, ContractError
from ichkit.core.schemas import KEY, make_predictions
from ichkit.core.tasks import Task, find_task
from ichkit.stacking.blend import Blend
from ichkit.stacking.calibration import Calibration
from ichkit.stacking.rows import Rows, make_rows, to_probabilities
from ichkit.stacking.table import BASE, BLEND, find_stacker

BLEND_FILE = "blend.json"
AVERAGED = -1


@dataclass(frozen=True)
class Chain:
    """One second-stage model behind one first-stage fold.

    Attributes:
        name: its folder below each stacker's.
        fold: the first-stage models whose descriptors it reads.
        calibration: of the base.
        blend: of the calibrated base and the stackers.
    """

    name: str
    fold: int
    calibration: Calibration
    blend: Blend

    def predict(self, stack_folder: Path, rows: Rows) -> dict[str, np.ndarray]:
        """Kind to (N, C) float64 logits: every stacker and the blend."""
        base = self.calibration.apply(rows.mean_logits())
        logits = {BASE: base}
        for name in self.blend.members:
            if name != BASE:
                logits[name] = find_stacker(name).load(stack_folder / name / self.name).predict(rows, base)
        blended = self.blend.apply(np.stack([logits[name] for name in self.blend.members]))
        return {name: value for name, value in logits.items() if name != BASE} | {BLEND: blended}


@dataclass(frozen=True)
class Chains:
    """All chains of a stack.

    Attributes:
        runs: whose descriptors are read, in this order.
    """

    task: Task
    runs: tuple[str, ...]
    chains: tuple[Chain, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The tables a stack gives: its stackers, then the blend."""
        return (*(name for name in self.chains[0].blend.members if name != BASE), BLEND)

    def encode(self) -> bytes:
        """The bytes of `blend.json`."""
        return encode_json(
            {
                "task": self.task.name,
                "classes": self.task.classes,
                "runs": self.runs,
                "members": self.chains[0].blend.members,
                "chains": [
                    {
                        "name": chain.name,
                        "fold": chain.fold,
                        "slope": chain.calibration.slope.tolist(),
                        "intercept": chain.calibration.intercept.tolist(),
                        "weights": chain.blend.weights.tolist(),
                    }
                    for chain in self.chains
                ],
            }
        )


def read_chains(stack_folder: Path) -> Chains:
    """The chains of a stack.

    Raises:
        ArtifactError: `blend.json` is missing or is not what `Chains.encode` wrote.
    """
    path = stack_folder / BLEND_FILE
    try:
        note = json.loads(path.read_text())
        members = tuple(note["members"])
        chains = tuple(
            Chain(
                name=chain["name"],
                fold=int(chain["fold"]),
                calibration=Calibration(np.array(chain["slope"]), np.array(chain["intercept"])),
                blend=Blend(members, np.array(chain["weights"])),
            )
            for chain in note["chains"]
        )
        return Chains(find_task(note["task"]), tuple(note["runs"]), chains)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not readable ({error}). Run `ichkit stack` again.") from error


def predict_chains(
    stack_folder: Path, descriptors: Mapping[str, Mapping[int, pd.DataFrame]], slices: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Predictions of every kind, averaged over the chains: each first-stage fold followed by its second-stage models.

    Args:
        descriptors: run, then fold, to the predictions table of that first-stage model; more than needed may be there.
        slices: slice_id, study_id, slice_index, num_slices, position_mm, gap_mm, padded, one row per slice.

    Returns:
        Kind ("fusion", "lightgbm", "blend", as configured) to a predictions table with fold -1, sorted by study_id
        and slice_index; the probabilities of the chains are averaged arithmetically.

    Raises:
        ContractError: descriptors of a run and fold that a chain needs are not given, or hold other slices.
        ArtifactError: a file of the stack is missing or damaged.

    Source: chosen here: the chains averaged are exactly those whose out-of-fold scores are told.
    """
    stack = read_chains(stack_folder)
    slices = slices.sort_values(KEY, ignore_index=True)
    totals = {kind: np.zeros((len(slices), stack.task.num_classes)) for kind in stack.kinds}
    for chain in stack.chains:
        rows = make_rows(_tables_of(descriptors, stack.runs, chain.fold), slices, stack.task)
        for kind, logits in chain.predict(stack_folder, rows).items():
            totals[kind] += to_probabilities(logits)
    return {
        kind: make_predictions(slices, total / len(stack.chains), stack.task, AVERAGED)
        for kind, total in totals.items()
    }


def _tables_of(
    descriptors: Mapping[str, Mapping[int, pd.DataFrame]], runs: Sequence[str], fold: int
) -> list[pd.DataFrame]:
    for run in runs:
        if fold not in descriptors.get(run, {}):
            found = {name: sorted(tables) for name, tables in descriptors.items()}
            raise ContractError(
                f"stack: expected descriptors of run {run}, fold {fold}, found {found}. "
                "Give the tables of every run and fold that the stack was made from."
            )
    return [descriptors[run][fold] for run in runs]
