"""The plan of `stack`: the runs, whether their stack is up to date, and the disk and time needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError
from ichkit.core.progress import logger
from ichkit.core.roles import title_of
from ichkit.core.stack_config import StackConfig
from ichkit.core.tasks import Task, find_task
from ichkit.show.plan import Forecast, Plan
from ichkit.stacking.inputs import FoldModelPlan, Inputs, plan_fold_models, read_inputs
from ichkit.stacking.table import find_stacker
from ichkit.work.artifacts import Manifest, has_artifact, read_manifest
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.locks import Look, look_at

MADE_BY = "ichkit stack"


@dataclass(frozen=True)
class StackOptions:
    """Options of `stack`.

    Attributes:
        runs: names of runs; None for all complete ones (see `choose_runs`).
        name: name of the stack; None joins the names of the runs by `+`.
        proves: afterwards measure its gains on locked patients (`stages.scores.prove`).
    """

    runs: Sequence[str] | None = None
    name: str | None = None
    proves: bool = False


@dataclass(frozen=True)
class StackPlan(Plan):
    """What `stack` found.

    Attributes:
        stackers: the configured ones, each once.
        inputs: the tables of the runs.
        final: the folder of the stack.
        settings: the settings that determine it, besides its inputs.
        current: its manifest if it is up to date, else None.
    """

    config: Config
    work: WorkFolder
    options: StackOptions
    task: Task
    stackers: tuple[str, ...]
    inputs: Inputs
    final: Path
    settings: dict[str, Any]
    current: Manifest | None
    seen: Look

    @cached_property
    def fold_models(self) -> Sequence[FoldModelPlan]:
        """The rows that each fold model predicts."""
        return plan_fold_models(self.inputs, self.task, self.config.stack.num_parts, self.config.seed)

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folder of the stack."""
        return () if self.current is not None else (self.final,)

    def forecast(self) -> Forecast:
        """The runs with their rows, then the fits; estimated from the first stack of the same stackers.

        Disk space by number of rows; time also by number of fold models.
        """
        if self.current is not None:
            return Forecast((f"stack {self.final.name}: up to date, nothing to do",))
        inputs, num_fits, like = self.inputs, len(self.fold_models) * len(self.stackers), self._find_like()
        outside = ", ".join(f"{len(slices)} {title_of(name)}" for name, slices in inputs.external.items())
        steps = (
            f"runs {', '.join(inputs.runs)}, folds {', '.join(map(str, inputs.folds))}: {len(inputs.train)} rows, "
            f"{len(inputs.test)} test, {outside}",
            f"{', '.join(self.stackers)} and their blend: {num_fits} fits of {len(self.fold_models)} fold models"
            if self.stackers
            else f"{self.config.stack.combine} of the runs, without second-stage models",
        )
        if like is None:
            return Forecast(steps, basis="unknown: there is no stack of these stackers to compare with")
        share = len(inputs.train) / like.facts["num_slices"]
        num_bytes = share * sum(file.num_bytes for file in like.files.values())
        seconds = share * like.facts["seconds"] / len(like.facts["chains"]) * len(self.fold_models)
        return Forecast(steps, num_bytes, seconds, f"measured on {like.facts['name']}")

    def _find_like(self) -> Manifest | None:
        """The first stack of these stackers that was timed; None if there is none."""
        inventory = take_inventory(self.work)
        for name in inventory.finished_stacks:
            manifest = inventory.stacks[name].manifest
            facts = manifest.facts
            if "seconds" in facts and set(self.stackers) <= set(facts["kinds"]) and facts["num_slices"]:
                return manifest
        return None


def plan(config: Config, work: WorkFolder, options: StackOptions | None = None) -> StackPlan:
    """Reads the tables of the runs and checks whether their stack is up to date; writes nothing.

    Raises:
        ArtifactError: nothing was trained, or a run, fold or table is missing or damaged.
        ContractError: a table breaks the out-of-fold contract.
        ConfigError: an unknown stacker, an invalid name, or embeddings that no stacker uses.
    """
    options, task = options or StackOptions(), find_task(config.task)
    stackers = _choose_stackers(config.stack)
    inputs = read_inputs(work, task, options.runs, config.stack.embeddings, config.stack.combine)
    final = work.stack_folder("+".join(inputs.runs) if options.name is None else options.name)
    settings = {"task": task.name, "seed": config.seed, "runs": list(inputs.runs), "stack": config.stack.settings()}
    seen = look_at(final)
    current = _find_current(final, settings, inputs)
    return StackPlan(config, work, options, task, stackers, inputs, final, settings, current, seen)


def _choose_stackers(config: StackConfig) -> tuple[str, ...]:
    """The configured stackers, each once.

    Raises:
        ConfigError: one does not exist, or embeddings are enabled and no stacker uses them.
    """
    stackers = tuple(find_stacker(stacker).name for stacker in dict.fromkeys(config.stackers))
    if config.embeddings.enabled and not any(find_stacker(stacker).takes_embeddings for stacker in stackers):
        raise ConfigError(
            f"config: stack.embeddings.enabled, but none of stack.stackers ({', '.join(stackers)}) uses "
            'embeddings. Add "sequence".'
        )
    return stackers


def _find_current(final: Path, settings: dict[str, Any], inputs: Inputs) -> Manifest | None:
    """The manifest of the stack if it is up to date; otherwise logs which settings and inputs changed."""
    if not has_artifact(final):
        return None
    manifest = read_manifest(final)
    before, now = {**manifest.settings, **manifest.inputs}, {**settings, **inputs.digests}
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if not changed:
        logger.info("stack %s: up to date", final.name)
        return manifest
    logger.info("stack %s: fitted again, because %s changed", final.name, ", ".join(changed))
    return None
