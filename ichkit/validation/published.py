"""Published results on external sets, for comparison."""

from dataclasses import dataclass

from ichkit.core.tasks import Task
from ichkit.validation.scores import MEAN_CLASS


@dataclass(frozen=True)
class Published:
    """A published result: AUC per study of each class and their mean, without intervals.

    Attributes:
        dataset: the external set it was measured on.
        task: the task whose classes it is of.
        roc_auc: class, or "mean", to AUC.
    """

    name: str
    dataset: str
    task: str
    roc_auc: dict[str, float]
    source: str


PUBLISHED = {
    "paper": Published(
        name="paper",
        dataset="cq500",
        task="hemorrhage",
        roc_auc={
            "any": 0.9612,
            "intraparenchymal": 0.9691,
            "intraventricular": 0.9832,
            "subarachnoid": 0.9596,
            "subdural": 0.9694,
            "epidural": 0.9814,
            MEAN_CLASS: 0.9710,
        },
        source="MIDL 2020, table 1: axial fusion on one ResNet-50, study maximum",
    ),
    "baseline": Published(
        name="baseline",
        dataset="cq500",
        task="hemorrhage",
        roc_auc={
            "any": 0.9419,
            "intraparenchymal": 0.9544,
            "intraventricular": 0.9310,
            "subarachnoid": 0.9574,
            "subdural": 0.9521,
            "epidural": 0.9731,
            MEAN_CLASS: 0.9520,
        },
        source="Chilamkurthy et al., Lancet 392, 2018, as quoted by MIDL 2020, table 1",
    ),
}


def find_published(dataset: str, task: Task) -> dict[str, Published]:
    """The published results on an external set for a task, by name; may be empty."""
    return {name: row for name, row in PUBLISHED.items() if (row.dataset, row.task) == (dataset, task.name)}


@dataclass(frozen=True)
class Reported:
    """The AUC of one class on an external set as a paper reports it.

    Attributes:
        num_studies: None if it is not stated.
        source: the paper, and what its protocol leaves open.
    """

    name: str
    dataset: str
    task: str
    roc_auc: float
    num_studies: int | None
    source: str


REPORTED = {
    row.name: row
    for row in (
        Reported("Yeo 2023", "cq500", "hemorrhage", 0.966, 491, "Yeo 2023; its slice network alone has .854"),
        Reported("MIDL 2020", "cq500", "hemorrhage", 0.9612, 490, "MIDL 2020, table 1: maximum over the slices"),
        Reported("Wu 2024", "cq500", "hemorrhage", 0.96, 491, "Wu 2024"),
        Reported("Wang 2021", "cq500", "hemorrhage", 0.949, None, "Wang 2021"),
        Reported("Chilamkurthy 2018", "cq500", "hemorrhage", 0.9419, 491, "Chilamkurthy et al., Lancet 392, 2018"),
        Reported("Lin and Yuh 2024", "cq500", "hemorrhage", 0.939, 481, "Lin and Yuh 2024; with labels alone .907"),
        Reported(
            "Teneggi 2023",
            "cq500",
            "hemorrhage",
            0.92,
            436,
            "Teneggi 2023; which 436 studies is not known here, so this protocol cannot be reproduced",
        ),
    )
}
"""Of the headline class, the highest first."""


def find_reported(dataset: str, task: Task) -> list[Reported]:
    """What papers report of the headline class on an external set; may be empty."""
    return [row for row in REPORTED.values() if (row.dataset, row.task) == (dataset, task.name)]
