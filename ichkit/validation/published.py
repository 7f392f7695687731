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
