"""How the predictions of several runs become one base: the table `COMBINERS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ichkit.core.errors import ConfigError
from ichkit.core.logits import to_logits, to_probabilities
from ichkit.core.rows import find_row
from ichkit.core.tasks import Task
from ichkit.validation.scope import Scope

MEAN_LOGIT, MEAN_PROBABILITY, CASCADE = "mean-logit", "mean-probability", "cascade"


@dataclass(frozen=True)
class Combiner:
    """A row of `COMBINERS`.

    Attributes:
        name: key in the table.
        combine: (N, R, K) float64 logits of K classes by the R runs that know all of them, to (N, K).
        multiplies: a class that runs ask only where another is present gets the product of both probabilities.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    combine: Callable[[np.ndarray], np.ndarray]
    multiplies: bool
    description: str
    source: str


@dataclass(frozen=True)
class Ensemble:
    """Some runs, and how they are combined.

    Attributes:
        combiner: the row of `COMBINERS`.
        scopes: of each run.
        scope: of their combination.
    """

    combiner: Combiner
    scopes: tuple[Scope, ...]
    scope: Scope

    @classmethod
    def of(cls, name: str, runs: Mapping[str, Scope]) -> "Ensemble":
        """The ensemble of runs by name.

        Raises:
            ConfigError: no such combiner, or one that cannot combine these runs.
        """
        combiner, task = find_row(COMBINERS, name, "stack.combine"), next(iter(runs.values())).task
        classes = tuple(one for one in task.classes if any(one in scope.classes for scope in runs.values()))
        given = {scope.given for scope in runs.values()}
        if combiner.multiplies:
            _check_cascade(runs)
            return cls(combiner, tuple(runs.values()), Scope(task, classes))
        if len(given) > 1:
            asked = "; ".join(f"{run}: {scope.given or 'on every slice'}" for run, scope in runs.items())
            raise ConfigError(
                f"stack.combine: {name} expects runs with the same train.given, found "
                f"{asked}. Use --set stack.combine={CASCADE}, or name other --runs."
            )
        return cls(combiner, tuple(runs.values()), Scope(task, classes, given.pop()))

    @classmethod
    def of_whole(cls, task: Task, num_runs: int) -> "Ensemble":
        """The mean of the logits of runs of the whole task."""
        return cls(COMBINERS[MEAN_LOGIT], (Scope.of(task),) * num_runs, Scope.of(task))

    def knows(self) -> np.ndarray:
        """(R, C) bool: the classes of the task that each run predicts."""
        return np.stack([scope.knows for scope in self.scopes])

    def combine(self, logits: np.ndarray) -> np.ndarray:
        """(N, C) float64 logits of the combination; 0 for a class that no run predicts.

        Args:
            logits: (N, R, C) of the runs; those of classes that a run does not predict are ignored.
        """
        if all(scope.classes == scope.task.classes for scope in self.scopes) and not self._conditional():
            return self.combiner.combine(logits)
        task, conditional = self.scope.task, self._conditional()
        combined = np.zeros((len(logits), task.num_classes))
        for column, name in enumerate(task.classes):
            own = [run for run, scope in enumerate(self.scopes) if name in scope.classes]
            if own:
                combined[:, column] = self.combiner.combine(logits[:, own, column : column + 1])[:, 0]
        for name, given in conditional.items():
            both = combined[:, [task.classes.index(name), task.classes.index(given)]]
            combined[:, task.classes.index(name)] = to_logits(to_probabilities(both).prod(1))
        return combined

    def _conditional(self) -> dict[str, str]:
        """Class to the class it is multiplied with; empty unless the combiner multiplies."""
        if not self.combiner.multiplies:
            return {}
        return {name: scope.given for scope in self.scopes if scope.given for name in scope.asked_if_given}


def _check_cascade(runs: Mapping[str, Scope]) -> None:
    """Refuses runs that do not make a cascade.

    Raises:
        ConfigError: no run has `given`; nobody predicts the given class on every slice; or a class is predicted both on
            every slice and where another is present.
    """
    conditional = {name: (run, scope.given) for run, scope in runs.items() for name in scope.asked_if_given}
    everywhere = {name for scope in runs.values() for name in set(scope.classes) - set(scope.asked_if_given)}
    if not conditional:
        raise ConfigError(
            f"stack.combine: {CASCADE} expects a run with train.given, whose classes are conditional on another "
            f"class; found none among {', '.join(runs)}. Train one, or use {MEAN_LOGIT}."
        )
    for name, (run, given) in conditional.items():
        if given not in everywhere:
            raise ConfigError(
                f"stack.combine: {CASCADE} expects a run that predicts {given} on every slice, because {run} predicts "
                f"{name} only where {given} is present; found none among {', '.join(runs)}. Add it to --runs."
            )
        if name in everywhere or any(scope.given not in (None, given) for scope in runs.values()):
            raise ConfigError(
                f"stack.combine: {CASCADE} expects each class either on every slice or where one other class is "
                f"present, found both for {name} among {', '.join(runs)}. Name other --runs."
            )


def _mean_logit(logits: np.ndarray) -> np.ndarray:
    mean: np.ndarray = logits.mean(axis=1, dtype=np.float64)
    return mean


def _mean_probability(logits: np.ndarray) -> np.ndarray:
    if logits.shape[1] == 1:
        return np.asarray(logits[:, 0], np.float64)
    return to_logits(to_probabilities(logits).mean(axis=1))


COMBINERS = {
    MEAN_LOGIT: Combiner(
        name=MEAN_LOGIT,
        combine=_mean_logit,
        multiplies=False,
        description="The mean of the logits of the runs that predict the class.",
        source="logarithmic opinion pool, Genest and Zidek, Statistical Science 1, 1986",
    ),
    MEAN_PROBABILITY: Combiner(
        name=MEAN_PROBABILITY,
        combine=_mean_probability,
        multiplies=False,
        description="The mean of the probabilities of the runs that predict the class.",
        source="linear opinion pool, Stone, Annals of Mathematical Statistics 32, 1961",
    ),
    CASCADE: Combiner(
        name=CASCADE,
        combine=_mean_logit,
        multiplies=True,
        description="p(given) times p(class | given) for runs with train.given; otherwise as mean-logit.",
        source="chain rule of probability; Alqnatri, FIIT STU 2021, figure 21: subtypes are asked after the first run",
    ),
}
