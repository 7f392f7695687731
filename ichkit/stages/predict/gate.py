"""A first model in front of the model of `predict`: studies that it calls positive do not go on to the second."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ichkit.core.errors import ConfigError
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.parts import WHOLE, PartSettings
from ichkit.show.blocks import Prose, Section
from ichkit.show.table import NOTHING, Cell, Table
from ichkit.stages.predict.model import Model, find_model, is_export
from ichkit.stages.predict.thresholds import STUDY, read_thresholds
from ichkit.validation.thresholds import F1_AIM
from ichkit.work.artifacts import read_manifest
from ichkit.work.folder import WorkFolder

if TYPE_CHECKING:
    from ichkit.engine.inference import Predictor

GATE_NAME = "gate.csv"
_USUAL_THRESHOLD = 0.5


@dataclass(frozen=True)
class Gate:
    """The first model.

    Attributes:
        model: an export.
        task: its task, another one or that of the second model.
        threshold: a study goes on where its probability of the main class is below.
    """

    model: Model
    task: Task
    threshold: float

    def check(self, networks: "dict[str, dict[int, Predictor]]") -> None:
        """Checks that its networks predict the main class of whole studies.

        Raises:
            ConfigError: they predict other classes alone, or parts of studies.
        """
        main, cards = self.task.headline_class, [one.card for of_run in networks.values() for one in of_run.values()]
        if not all(main in (card.classes or self.task.classes) for card in cards):
            raise ConfigError(
                f"--gate: expected a model that predicts {main}, found one of {', '.join(cards[0].classes)}. Export a "
                "model of all classes."
            )
        if kinds := {PartSettings.from_json(card.parts).kind for card in cards} - {WHOLE}:
            raise ConfigError(
                f"--gate: expected a model of whole studies, found one of parts ({', '.join(sorted(kinds))}), which "
                "says nothing of a study. Export a model that was trained with prepare.parts.kind=whole."
            )


@dataclass(frozen=True)
class Gated:
    """What the first model says.

    Attributes:
        gate: the first model.
        studies: study_id, num_slices, p_<class> of the task of the gate, and goes_on.
    """

    gate: Gate
    studies: pd.DataFrame

    def keep(self, files: pd.DataFrame) -> pd.DataFrame:
        """The files of studies that go on."""
        return files[files["study_id"].isin(self.studies["study_id"][self.studies["goes_on"]])]


def find_gate(work: WorkFolder, folder: Path, threshold: float | None) -> Gate:
    """The first model of a folder; without a threshold that of its export with the best F1 of studies, else 0.5.

    Raises:
        ConfigError: no export.
        ArtifactError: it is damaged.
    """
    if not is_export(folder):
        raise ConfigError(
            f"--gate: expected a folder written by `ichkit export` at {folder}, found none. Export the model that "
            "shall see the studies first."
        )
    task = find_task(str(read_manifest(folder).facts["task"]))
    model = find_model(work, str(folder), task)
    if threshold is None:
        best = read_thresholds(model, task).get(STUDY, {}).get(F1_AIM, {})
        threshold = best.get(task.headline_class, _USUAL_THRESHOLD)
    return Gate(model, task, threshold)


def apply_gate(gate: Gate, studies: pd.DataFrame) -> Gated:
    """Which studies go on.

    Args:
        studies: of the first model, as in `studies.csv`.
    """
    probability = studies[f"p_{gate.task.headline_class}"]
    return Gated(gate, studies.assign(goes_on=(probability < gate.threshold).to_numpy(bool)))


def gate_table(gated: Gated) -> Table:
    """The probability of every study and what follows, by number without ids."""
    gate, rows = gated.gate, gated.studies
    main = gate.task.headline_class
    cells: list[list[Cell | str]] = [
        [str(number), Cell(f"{p:.3f}", share=p), "goes on" if goes_on else f"{gate.task.finding}: ends here"]
        for number, (p, goes_on) in enumerate(zip(rows[f"p_{main}"].astype(float), rows["goes_on"], strict=True), 1)
    ]
    note = f"Threshold {gate.threshold:.3f}. Study numbers are row numbers of {GATE_NAME}, which contains the IDs."
    title = f"Step 1: probability of {gate.task.finding}, by {gate.model.name}"
    return Table(title, ("study", main, "decision"), cells, note=note)


def score_table(scores: pd.DataFrame) -> Table:
    """The scores of regions, by number without ids."""
    cells: list[list[Cell | str]] = [
        [str(number), *(str(value) or NOTHING for value in row[1:])]
        for number, row in enumerate(scores.itertuples(index=False, name=None), 1)
    ]
    note = "The score is that of the lower side. Study numbers are row numbers of region_scores.csv."
    columns = ("study", "right", "left", "score", "unknown", "right regions", "left regions")
    return Table("Score of regions", columns, cells, note=note)


def gate_section(gated: Gated) -> Section:
    """The first step on the page."""
    gate, goes_on = gated.gate, gated.studies["goes_on"]
    said = (
        f"{gate.model.name} predicts {gate.task.finding} first. {int(goes_on.sum())} of {len(goes_on)} studies are "
        f"below its threshold of {gate.threshold:.3f} and go on to the next model."
    )
    return Section("gate", f"Step 1: {gate.task.finding}", [Prose(said), gate_table(gated)])


def score_section(scores: pd.DataFrame, task: Task, threshold: float) -> Section:
    """The scores of regions on the page."""
    said = f"A side has a point for each region whose probability of {task.counted_class} is below {threshold:.3f}."
    return Section("scores", "Step 2: score of regions", [Prose(said), score_table(scores)])
