"""The plan of `stack`: which runs, whether their stack stands already, and what making it takes."""

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
from ichkit.show.plan import Plan
from ichkit.stacking.inputs import ChainPlan, Inputs, plan_chains, read_inputs
from ichkit.stacking.table import find_stacker
from ichkit.work.artifacts import Manifest, has_artifact, read_manifest
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.locks import Look, look_at

MADE_BY = "ichkit stack"


@dataclass(frozen=True)
class StackOptions:
    """What one call of `stack` may ask for.

    Attributes:
        runs: names of runs; None takes all complete ones (see `choose_runs`).
        name: of the stack; None joins the runs by `+`.
    """

    runs: Sequence[str] | None = None
    name: str | None = None


@dataclass(frozen=True)
class StackPlan(Plan):
    """What one call of `stack` starts from.

    Attributes:
        stackers: the configured ones, each once.
        inputs: the tables of the runs.
        final: where the stack stands.
        settings: what decides it besides its inputs.
        standing: its manifest where it is up to date; None where there is work.
    """

    config: Config
    work: WorkFolder
    options: StackOptions
    task: Task
    stackers: tuple[str, ...]
    inputs: Inputs
    final: Path
    settings: dict[str, Any]
    standing: Manifest | None
    seen: Look

    @cached_property
    def chains(self) -> Sequence[ChainPlan]:
        """Which chain predicts which rows."""
        return plan_chains(self.inputs, self.task, self.config.stack.num_parts, self.config.seed)

    @property
    def steps(self) -> tuple[str, ...]:
        """The runs with their rows, then the fits."""
        if self.standing is not None:
            return (f"stack {self.final.name}: up to date, nothing to do",)
        inputs = self.inputs
        outside = ", ".join(f"{len(slices)} {title_of(name)}" for name, slices in inputs.external.items())
        return (
            f"runs {', '.join(inputs.runs)}, folds {', '.join(map(str, inputs.folds))}: {len(inputs.train)} rows, "
            f"{len(inputs.test)} test, {outside}",
            f"{', '.join(self.stackers)} and their blend: {self._num_fits} fits in {len(self.chains)} chains",
        )

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folder of the stack."""
        return () if self.standing is not None else (self.final,)

    @property
    def num_bytes(self) -> float | None:
        """By the first stack of the same stackers, rows for rows."""
        return None if self._like is None else self._like.num_bytes * len(self.inputs.train) / self._like.num_rows

    @property
    def seconds(self) -> float | None:
        """By the same stack, rows for rows and fits for fits."""
        like = self._like
        if like is None:
            return None
        return like.seconds * len(self.inputs.train) / like.num_rows * self._num_fits / like.num_fits

    @property
    def basis(self) -> str:
        """That stack, if there is one."""
        if self._like is None:
            return "not known: no stack of these stackers stands here to go by"
        return f"as {self._like.name} took"

    @property
    def _num_fits(self) -> int:
        return len(self.chains) * len(self.stackers)

    @cached_property
    def _like(self) -> "_Measured | None":
        inventory = take_inventory(self.work)
        for name in inventory.finished_stacks:
            manifest = inventory.stacks[name].manifest
            facts = manifest.facts
            if "seconds" in facts and set(self.stackers) <= set(facts["kinds"]) and facts["num_slices"]:
                num_bytes = sum(file.num_bytes for file in manifest.files.values())
                num_fits = len(facts["chains"]) * len(self.stackers)
                return _Measured(name, facts["num_slices"], num_fits, num_bytes, facts["seconds"])
        return None


@dataclass(frozen=True)
class _Measured:
    """A stack that stands, as a measure for another."""

    name: str
    num_rows: int
    num_fits: int
    num_bytes: int
    seconds: float


def plan(config: Config, work: WorkFolder, options: StackOptions | None = None) -> StackPlan:
    """Reads the tables of the runs and says whether their stack is up to date; writes nothing.

    Raises:
        ArtifactError: nothing was trained, or a run, fold or table is missing or damaged.
        ContractError: a table breaks the out-of-fold contract.
        ConfigError: an unknown stacker, a name that cannot name a folder, or embeddings that no stacker looks at.
    """
    options, task = options or StackOptions(), find_task(config.task)
    stackers = _choose_stackers(config.stack)
    inputs = read_inputs(work, task, options.runs, config.stack.embeddings)
    final = work.stack_folder(options.name or "+".join(inputs.runs))
    settings = {"task": task.name, "seed": config.seed, "runs": list(inputs.runs), "stack": config.stack.settings()}
    seen = look_at(final)
    standing = _find_standing(final, settings, inputs)
    return StackPlan(config, work, options, task, stackers, inputs, final, settings, standing, seen)


def _choose_stackers(config: StackConfig) -> tuple[str, ...]:
    """The configured stackers, each once.

    Raises:
        ConfigError: one does not exist, or embeddings are asked for and none of them looks at any.
    """
    stackers = tuple(find_stacker(stacker).name for stacker in dict.fromkeys(config.stackers))
    if config.embeddings.enabled and not any(find_stacker(stacker).takes_embeddings for stacker in stackers):
        raise ConfigError(
            f"config: stack.embeddings.enabled, but none of stack.stackers ({', '.join(stackers)}) looks at "
            'embeddings. Add "sequence".'
        )
    return stackers


def _find_standing(final: Path, settings: dict[str, Any], inputs: Inputs) -> Manifest | None:
    """The manifest of the stack that stands there, if it was made from the same settings and inputs; says which not."""
    if not has_artifact(final):
        return None
    manifest = read_manifest(final)
    before, now = {**manifest.settings, **manifest.inputs}, {**settings, **inputs.digests}
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if not changed:
        logger.info("stack %s: up to date", final.name)
        return manifest
    logger.info("stack %s: made again, because %s changed", final.name, ", ".join(changed))
    return None
