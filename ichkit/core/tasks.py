"""The task seam: what is predicted. Nothing below a task knows how many classes there are or what they are called."""

from dataclasses import dataclass

import numpy as np

from ichkit.core.errors import ConfigError, nearest
from ichkit.core.plugins import load_plugins


@dataclass(frozen=True)
class Task:
    """Class names, their weights in the score, and which class says that any of the others is there.

    Attributes:
        name: key in `TASKS`.
        classes: in file order; the predictions tables hold `p_<class>` in this order.
        weights: one per class, summing to 1.
        any_class: the class that is positive where any other is.
        description: one sentence.
        source: where classes and weights come from.
    """

    name: str
    classes: tuple[str, ...]
    weights: tuple[float, ...]
    any_class: str
    description: str
    source: str

    @property
    def num_classes(self) -> int:
        """How many classes a descriptor has."""
        return len(self.classes)

    @property
    def probability_columns(self) -> list[str]:
        """`p_<class>` for each class, in order."""
        return [f"p_{name}" for name in self.classes]

    @property
    def any_index(self) -> int:
        """Position of `any_class`."""
        return self.classes.index(self.any_class)

    @property
    def subtypes(self) -> tuple[str, ...]:
        """Every class but `any_class`, in order."""
        return tuple(name for name in self.classes if name != self.any_class)

    def weight_array(self) -> np.ndarray:
        """(C,) float64 weights."""
        return np.array(self.weights, np.float64)


TASKS = {
    "hemorrhage": Task(
        name="hemorrhage",
        classes=("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"),
        weights=(1 / 7, 1 / 7, 1 / 7, 1 / 7, 1 / 7, 2 / 7),
        any_class="any",
        description="Five subtypes of intracranial hemorrhage per slice, and any of them.",
        source="RSNA 2019 Intracranial Hemorrhage Detection, evaluation page",
    ),
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: no such task; the message lists the choices.
    """
    load_plugins()
    if name not in TASKS:
        raise ConfigError(f'config: unknown task "{name}". {nearest(name, TASKS)}')
    return TASKS[name]
