"""The scope of a predictor: the classes that it predicts, and the class that they are conditional on, if any."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError, ConfigError, nearest
from ichkit.core.tasks import Task

SCOPE = "scope"
"""The fact of a manifest that holds a scope; a predictor of the whole task has none."""


@dataclass(frozen=True)
class Scope:
    """The classes that a predictor predicts.

    Attributes:
        task: its task.
        classes: those it predicts, in the order of the task; its tables have NaN for the others.
        given: the class that must be present for the others to be asked: their probabilities are conditional on it,
            and their labels count only where it is positive. None for no such class.
    """

    task: Task
    classes: tuple[str, ...]
    given: str | None = None

    @classmethod
    def of(cls, task: Task, classes: Sequence[str] | None = None, given: str | None = None) -> "Scope":
        """The scope of some classes, all of the task for None, each once and in the order of the task.

        Raises:
            ConfigError: a class is not of the task, or there is none.

        Example:
            >>> from ichkit.core.tasks import find_task
            >>> Scope.of(find_task("hemorrhage"), ("any",)).is_whole
            False
        """
        for where, names in (("train.classes", classes), ("train.given", (given,) if given else ())):
            for name in names or ():
                if name not in task.classes:
                    raise ConfigError(f'{where}: unknown class "{name}". {nearest(name, task.classes)}')
        chosen = tuple(name for name in task.classes if classes is None or name in classes)
        if not chosen:
            raise ConfigError(f"train.classes: expected one or more of {', '.join(task.classes)}, found none.")
        return cls(task, chosen, given)

    @classmethod
    def of_facts(cls, task: Task, facts: Mapping[str, Any], where: str) -> "Scope":
        """The scope in the facts of a manifest.

        Args:
            where: the artifact, for the message.

        Raises:
            ArtifactError: it is no scope of the task.
        """
        try:
            return cls.of(task, **facts.get(SCOPE, {}))
        except (ConfigError, TypeError) as error:
            raise ArtifactError(
                f"{where}: its manifest has an invalid scope ({error}). Run its command again."
            ) from error

    @property
    def is_whole(self) -> bool:
        """True for every class of the task, on every slice."""
        return self.classes == self.task.classes and self.given is None

    @property
    def knows(self) -> np.ndarray:
        """(C,) bool: the classes of the task that are predicted."""
        return np.isin(self.task.classes, self.classes)

    @property
    def asked_if_given(self) -> tuple[str, ...]:
        """The classes that are predicted conditionally on `given`."""
        return () if self.given is None else tuple(name for name in self.classes if name != self.given)

    def facts(self) -> dict[str, Any]:
        """The fact of a manifest, as `of_facts` reads it; empty for the whole task."""
        return {} if self.is_whole else {SCOPE: {"classes": list(self.classes), "given": self.given}}

    def mask(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with labels outside the scope set to unknown: other classes, and rows without `given`.

        Args:
            table: a column of labels for each class of the task, 0, 1 or missing; other columns are kept.
        """
        if self.is_whole:
            return table
        nowhere = np.zeros(len(table), bool)
        changed = {name: table[name].where(nowhere) for name in self.task.classes if name not in self.classes}
        if self.given is not None:
            is_present = (table[self.given] == 1).fillna(False).astype(bool)
            changed |= {name: table[name].where(is_present) for name in self.asked_if_given}
        return table.assign(**changed)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(..., C) values of every class of the task, NaN for those that are not predicted, from (..., K) values."""
        if self.classes == self.task.classes:
            return values
        spread = np.full((*values.shape[:-1], self.task.num_classes), np.nan, values.dtype)
        spread[..., self.knows] = values
        return spread


def label_array(table: pd.DataFrame, task: Task) -> np.ndarray:
    """(N, C) float64 labels of a table, NaN where unknown."""
    labels: np.ndarray = table[list(task.classes)].to_numpy(np.float64, na_value=np.nan)
    return labels
