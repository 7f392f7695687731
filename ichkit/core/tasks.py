"""Prediction tasks: the classes to predict. No other module hard-codes their number or names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ichkit.core.errors import ConfigError
from ichkit.core.rows import find_row


@dataclass(frozen=True)
class Task:
    """Class names, their weights in the score, and which class covers which; validated on creation.

    Attributes:
        name: key in `TASKS`.
        classes: in file order; the predictions tables hold `p_<class>` in this order.
        weights: one per class, 0 or more, summing to 1.
        any_class: the class that is positive if any other is; None for a task without one.
        description: one sentence.
        source: where classes and weights come from.
        covers: class to the classes that it covers: if one of them is positive, so is it. `any_class` covers every
            other class and need not be listed here.
        finding: what a positive slice shows, a noun for pages and messages.
        title: heading of reports; empty for the description.
        categories: what a label file may say in one column, to the label of every class; None for unknown, so that the
            class neither learns from it nor is scored on it.
        counted_class: the class whose regions a score of regions counts (`imaging.region_scores`); None for no score.

    Raises:
        ConfigError: classes repeat, weights do not fit them, or `any_class`, `covers`, `categories` or `counted_class`
            name an unknown class.

    Example:
        >>> Task("side", ("left", "right"), (0.5, 0.5), None, "Which side.", "an example").headline_class
        'left'
    """

    name: str
    classes: tuple[str, ...]
    weights: tuple[float, ...]
    any_class: str | None
    description: str
    source: str
    covers: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    finding: str = "finding"
    title: str = ""
    categories: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict, hash=False)
    counted_class: str | None = None

    def __post_init__(self) -> None:
        covers = {name: tuple(covered) for name, covered in self.covers.items()}
        if self.any_class is not None:
            covers[self.any_class] = tuple(name for name in self.classes if name != self.any_class)
        object.__setattr__(self, "covers", covers)
        object.__setattr__(self, "title", self.title or self.description.rstrip("."))
        if problem := self._find_problem():
            raise ConfigError(f'task "{self.name}": {problem} Change the row that defines the task.')

    def _find_problem(self) -> str:
        """What is wrong with the row, as a sentence; empty if it is valid."""
        if not self.classes or len(set(self.classes)) < len(self.classes):
            return f"expected one or more classes, each once, found {list(self.classes)}."
        if len(self.weights) != len(self.classes):
            return f"expected {len(self.classes)} weights, one for each class, found {len(self.weights)}."
        if not all(weight >= 0 for weight in self.weights) or not math.isclose(sum(self.weights), 1, abs_tol=1e-9):
            return f"expected weights of 0 or more that sum to 1, found {list(self.weights)} ({sum(self.weights):g})."
        if self.any_class is not None and self.any_class not in self.classes:
            return f'any_class is "{self.any_class}", expected None or one of {list(self.classes)}.'
        for name, covered in self.covers.items():
            for unknown in sorted({name, *covered} - set(self.classes)):
                return f'covers names "{unknown}", expected classes among {list(self.classes)}.'
            if name in self._all_covered_by(name):
                return f'covers: "{name}" covers itself.'
        if self.counted_class is not None and self.counted_class not in self.classes:
            return f'counted_class is "{self.counted_class}", expected None or one of {list(self.classes)}.'
        for name, labels in self.categories.items():
            if set(labels) != set(self.classes):
                return f'categories: "{name}" labels {sorted(labels)}, expected each of {list(self.classes)}.'
        return ""

    def _all_covered_by(self, name: str) -> set[str]:
        """Every class that `name` covers, directly or through another."""
        found: set[str] = set()
        waiting = list(self.covers.get(name, ()))
        while waiting:
            if (covered := waiting.pop()) not in found:
                found.add(covered)
                waiting += self.covers.get(covered, ())
        return found

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def probability_columns(self) -> list[str]:
        """`p_<class>` for each class, in order."""
        return [f"p_{name}" for name in self.classes]

    @property
    def headline_class(self) -> str:
        """The class that tables and pages are sorted by: `any_class`, or the first class of a task without one."""
        return self.classes[0] if self.any_class is None else self.any_class

    @property
    def headline_index(self) -> int:
        """Position of `headline_class`."""
        return self.classes.index(self.headline_class)

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
        description="Five subtypes of intracranial hemorrhage per slice, and any hemorrhage.",
        source="RSNA 2019 Intracranial Hemorrhage Detection, evaluation page",
        finding="hemorrhage",
        title="Intracranial hemorrhage on head CT",
    ),
    "subtypes": Task(
        name="subtypes",
        classes=("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"),
        weights=(0.2, 0.2, 0.2, 0.2, 0.2),
        any_class=None,
        description="Five subtypes of intracranial hemorrhage per slice, without a class for any of them.",
        source="Huang and Chen, DLMI 2021, section 3.1: the classes of a course competition on RSNA 2019",
        finding="hemorrhage",
        title="Subtypes of intracranial hemorrhage on head CT",
    ),
    "ischemia": Task(
        name="ischemia",
        classes=("early", "old"),
        weights=(0.5, 0.5),
        any_class=None,
        description="Early ischemic signs and old infarcts, each against intact brain, per region of the brain.",
        source="Jung and Whangbo, Journal of Internet Technology 2020, section 3.1: pairs of its six categories",
        finding="infarct",
        title="Ischemic stroke on head CT",
        categories={
            "intact": {"early": 0, "old": 0},
            "old infarction": {"early": None, "old": 1},
            "recent infarction": {"early": None, "old": None},
            "frank hypodensity": {"early": 1, "old": None},
            "territorial infarction": {"early": 1, "old": None},
            "scattered infarction": {"early": None, "old": None},
        },
        counted_class="early",
    ),
    "onset": Task(
        name="onset",
        classes=("tss45", "tss3", "stroke"),
        weights=(1 / 3, 1 / 3, 1 / 3),
        any_class=None,
        description="A stroke in this half of the brain, and whether its onset was less than 3 and 4.5 hours ago.",
        source="Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2.3; equal weights chosen here",
        covers={"tss45": ("tss3",)},
        finding="stroke of less than 4.5 hours",
        title="Time since the onset of a stroke on MR of the brain",
    ),
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: no such task; the message lists the choices.
    """
    return find_row(TASKS, name, "task")
