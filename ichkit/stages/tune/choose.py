"""The choice of a search: the best trial, and for each fold the one that is best by patients of its training part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ichkit.core.progress import logger
from ichkit.core.seeding import derive_seed
from ichkit.stages.tune.plan import CHOSEN_BY, TunePlan
from ichkit.stages.tune.trials import COMPLETE, Trial
from ichkit.validation.intervals import Interval
from ichkit.validation.selection import Selection, measure_selection, resample_losses
from ichkit.work.artifacts import ArtifactWriter, has_artifact, read_bytes, read_manifest
from ichkit.work.locks import hold

if TYPE_CHECKING:
    from ichkit.work.artifacts import Manifest


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        best: number of the best trial by its value.
        of_folds: fold to the number of the best trial by the value of that fold alone; empty unless the search is
            nested (`TunePlan.is_nested`).
        intervals: trial to the interval of its out-of-fold loss; empty for an objective of validation patients.
        selection: the optimism of the choice among the complete trials; None for an objective of validation patients.
    """

    best: int
    of_folds: dict[int, int]
    intervals: dict[int, Interval]
    selection: Selection | None


def choose(plan: TunePlan, trials: Sequence[Trial]) -> Choice:
    """The choice among the complete trials; of equal ones the first."""
    complete = [trial for trial in trials if trial.state == COMPLETE]
    turn = plan.objective.turn
    best = min(complete, key=lambda trial: turn(trial.value)).number
    of_folds = {}
    if plan.is_nested:
        of_folds = {fold: min(complete, key=lambda trial: turn(trial.values[fold])).number for fold in plan.folds}
    sums = [trial.sums for trial in complete if trial.sums is not None]
    if len(sums) < len(complete):
        return Choice(best, of_folds, {}, None)
    evaluate, weights = plan.config.evaluate, plan.prepared.task.weight_array()
    seed = derive_seed(plan.config.seed, "tune selection")
    found = resample_losses(sums, weights, num_draws=evaluate.num_draws, level=evaluate.level, seed=seed)
    selection = measure_selection(sums, weights, num_draws=evaluate.num_draws, seed=seed)
    numbers = [trial.number for trial in complete]
    return Choice(best, of_folds, dict(zip(numbers, found, strict=True)), selection)


def copy_chosen(plan: TunePlan, trials: Sequence[Trial], choice: Choice) -> None:
    """Writes the run of the search: fold k is the one of the trial that was chosen for fold k.

    Raises:
        ArtifactError: a file of a trial's run is damaged.
        DiskFullError: the disk is full.
    """
    name = plan.options.name
    for fold, number in choice.of_folds.items():
        source, target = plan.work.fold(trials[number].run, fold), plan.work.fold(name, fold)
        with hold(source), hold(target):
            manifest = read_manifest(source)
            if has_artifact(target) and _is_copy(read_manifest(target), manifest):
                continue
            writer = ArtifactWriter(target, "fold")
            for file in manifest.files:
                writer.write_bytes(file, read_bytes(source / file, manifest.sha256_of(file)))
            chosen = {
                "trial": trials[number].run,
                "objective": plan.objective.name,
                "num_trials": len(trials),
            }
            facts = {**manifest.facts, "run": name, CHOSEN_BY: chosen}
            writer.commit(settings=manifest.settings, inputs=manifest.inputs, facts=facts)
            logger.info("tune: fold %d of the run %s is that of %s", fold, name, trials[number].run)


def _is_copy(copy: "Manifest", manifest: "Manifest") -> bool:
    return copy.files == manifest.files and copy.settings == manifest.settings and copy.inputs == manifest.inputs
