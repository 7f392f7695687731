"""`ichkit blend`: a blend of runs and stacks with weights given by hand, or by hill climbing on the other folds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.progress import format_count, logger
from ichkit.core.roles import OUT_OF_FOLD, is_transductive
from ichkit.core.rows import find_row
from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.show.plan import Forecast, Plan
from ichkit.show.table import Table
from ichkit.stacking.weighting import METHODS, climb
from ichkit.validation.catalog import HAND, Source, find_sources, load_out_of_fold, load_split, pick_source
from ichkit.validation.coherence import make_coherent, say_coherence
from ichkit.validation.scope import Scope, label_array
from ichkit.work.artifacts import ArtifactWriter, Manifest, has_artifact, read_manifest
from ichkit.work.folder import WorkFolder, check_name
from ichkit.work.locks import Look, alone, look_at
from ichkit.work.schemas import check_predictions, make_predictions

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

_AVERAGED = -1
_NOTE = "weights.json"
GIVEN = "given_weights"
"""Fact of a blend: the weights as they were typed; None for equal or selected ones."""


@dataclass(frozen=True)
class BlendOptions:
    """Options of `blend`.

    Attributes:
        sources: runs and kinds of stacks, as on the leaderboard.
        weights: one for each; None for equal ones.
        method: a row of `METHODS`.
        selects: weights by hill climbing, for each fold on the labels of the other folds.
        name: of the stack that is written; None for the names of the sources joined by +, then the method.
    """

    sources: Sequence[str]
    weights: Sequence[float] | None = None
    method: str = "mean"
    selects: bool = False
    name: str | None = None


@dataclass(frozen=True)
class BlendPlan(Plan):
    """What `blend` found.

    Attributes:
        sources: the members, in the order they were named.
        weights: (M,) summing to 1; of equal ones where they are selected.
        final: the folder of the blend, a stack with the one kind `hand`.
    """

    config: Config
    work: WorkFolder
    options: BlendOptions
    prepared: Prepared
    sources: tuple[Source, ...]
    weights: np.ndarray
    final: "Path"
    seen: Look

    @cached_property
    def settings(self) -> dict[str, object]:
        """What decides the blend besides its inputs."""
        given = None if self.options.selects else self.weights.tolist()
        names = [source.name for source in self.sources]
        return {"blend": names, "method": self.options.method, "selects": self.options.selects, "weights": given}

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of the members' tables, and of the labels where they are used."""
        tables = {
            path.removeprefix("runs/"): digest for source in self.sources for path, digest in source.digests.items()
        }
        labels = {"prepared/slices.parquet": self.prepared.manifest.sha256_of("slices.parquet")}
        return {**tables, **(labels if self.options.selects else {})}

    @property
    def is_current(self) -> bool:
        """The blend exists, of these members and weights."""
        if not has_artifact(self.final):
            return False
        old = read_manifest(self.final)
        return old.settings == self.settings and old.inputs == self.inputs

    @property
    def writes(self) -> "tuple[Path, ...]":
        """The folder of the blend."""
        return () if self.is_current else (self.final,)

    def forecast(self) -> Forecast:
        """Members and weights; the time is that of reading their tables."""
        names = [source.name for source in self.sources]
        if self.is_current:
            return Forecast((f"blend {self.final.name}: up to date, nothing to do",))
        row = METHODS[self.options.method]
        if self.options.selects:
            how = "weights by hill climbing, for each fold on the labels of the other folds"
        else:
            how = "weights " + ", ".join(f"{name} {one:.3f}" for name, one in zip(names, self.weights, strict=True))
        return Forecast((f"blends {format_count(len(names), 'source')}: {row.description}", how), None)


def plan(config: Config, work: WorkFolder, options: BlendOptions) -> BlendPlan:
    """The members and their weights; writes nothing.

    Raises:
        ConfigError: no such source, sources of other folds or classes, or weights that are none.
        ArtifactError: nothing is prepared, a member is outdated, or the name is that of a stack with second stages.
    """
    prepared = Prepared.open(work.prepared, find_task(config.task))
    known = find_sources(work, prepared.task)
    find_row(METHODS, options.method, "blend --method")
    names = list(dict.fromkeys(options.sources))
    if len(names) < 2 or len(names) < len(options.sources):
        raise ConfigError(
            f"blend: expected two or more different sources, found {', '.join(options.sources) or 'none'}."
        )
    sources = tuple(pick_source(known, name) for name in names)
    for source in sources:
        if (source.folds, source.scope) != (sources[0].folds, sources[0].scope):
            raise ConfigError(
                f"blend: expected sources that predict the same classes on the same folds; {sources[0].name} has folds "
                f"{sources[0].folds_label}, {source.name} {source.folds_label}. Train the missing folds, or use "
                "`ichkit stack` with stack.combine for runs of different classes."
            )
        if source.kind == HAND:
            raise ConfigError(f"blend: {source.name} is a blend by hand. Name its members instead.")
        if source.is_outdated:
            raise ArtifactError(
                f"blend: {source.name} is outdated: its runs have changed. Run `{source.remedy}` first."
            )
    if options.selects:
        _check_selection(options, sources)
    weights = _check_weights(options.weights, names)
    final = work.stack_folder(check_name(options.name or f"{'+'.join(names)}-{options.method}", "blend --name"))
    if has_artifact(final) and "blend" not in read_manifest(final).settings:
        raise ArtifactError(f"{final}: is a stack with second stages, which is kept. Give another --name.")
    return BlendPlan(config, work, options, prepared, sources, weights, final, look_at(final))


def _check_selection(options: BlendOptions, sources: Sequence[Source]) -> None:
    """Refuses weights beside a selection, one fold, and members whose other folds were fitted on the labels of a fold.

    Raises:
        ConfigError: one of these.
    """
    if options.weights is not None:
        raise ConfigError("blend: expected --weights or --select, found both.")
    if len(sources[0].folds) < 2:
        raise ConfigError("blend --select: chooses weights for a fold on the other folds; found one. Train more folds.")
    if later := [source.name for source in sources if not source.is_run]:
        raise ConfigError(
            f"blend --select: expected runs, found {', '.join(later)}. The second stages of other folds were fitted on "
            "the labels of this one: weights that are fitted on their predictions would leak. Use --weights, or "
            "`ichkit stack`, which chooses its blend on inner patients."
        )


def _check_weights(given: Sequence[float] | None, names: Sequence[str]) -> np.ndarray:
    """(M,) weights that sum to 1.

    Raises:
        ConfigError: another number than members, one below 0, or all 0.
    """
    weights = np.ones(len(names)) if given is None else np.array(given, np.float64)
    if len(weights) != len(names) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum():
        raise ConfigError(
            f"blend --weights: expected {len(names)} numbers of 0 or more, one for each of {', '.join(names)}, not all "
            f"0; found {', '.join(f'{weight:g}' for weight in weights)}."
        )
    shares: np.ndarray = weights / weights.sum()
    return shares


@alone(lambda plan: plan.final, lambda old: plan(old.config, old.work, old.options))
def run(plan: BlendPlan) -> Manifest:
    """Writes the blend as a stack with the kind `hand` and returns its manifest.

    Raises:
        ArtifactError: a table is damaged.
        ContractError: a table breaks the contract of predictions.
        DiskFullError: the disk is full.
    """
    if plan.is_current:
        logger.info("blend: %s is up to date", plan.final.name)
        return read_manifest(plan.final)
    task, first = plan.prepared.task, plan.sources[0]
    method = METHODS[plan.options.method]
    tables = [load_out_of_fold(source) for source in plan.sources]
    slices = plan.prepared.split("train")
    slices = slices[slices["fold"].isin(first.folds)]
    for table, source in zip(tables, plan.sources, strict=True):
        check_predictions(table, task, source.path, slices)
    members = _stack(tables, task.probability_columns)
    knows = first.scope.knows
    weights = dict.fromkeys(first.folds, plan.weights)
    if plan.options.selects:
        labels = label_array(
            first.scope.mask(slices).set_index("slice_id").loc[tables[0]["slice_id"]].reset_index(), task
        )
        weights = _select(plan, members[..., knows], labels[:, knows], tables[0]["fold"].to_numpy())
    writer = ArtifactWriter(plan.final, "stack")
    blended = np.full(members.shape[1:], np.nan)
    for fold in first.folds:
        rows = (tables[0]["fold"] == fold).to_numpy()
        own = method.combine(members[:, rows][..., knows], weights[fold], members[..., knows])
        blended[np.ix_(rows, knows)] = own
    writer.write_table(f"{HAND}_{OUT_OF_FOLD}.parquet", make_predictions(tables[0], make_coherent(blended, task), task))
    for split in first.tables:
        if split != OUT_OF_FOLD and all(source.paths(split) for source in plan.sources):
            table = _blend_split(plan, split, weights, members[..., knows])
            writer.write_table(f"{HAND}_{split}.parquet", table)
    names = [source.name for source in plan.sources]
    kept = {str(fold): dict(zip(names, one.tolist(), strict=True)) for fold, one in weights.items()}
    writer.write_json(_NOTE, {"method": method.name, "weights": kept})
    facts = {
        "name": plan.final.name,
        "runs": sorted({run for source in plan.sources for run in source.runs}),
        "folds": list(first.folds),
        "kinds": [HAND],
        "data": max((source.data for source in plan.sources), key=is_transductive),
        "num_slices": len(tables[0]),
        "task": task.name,
        "weights": kept,
        GIVEN: None if plan.options.weights is None else list(plan.options.weights),
        **first.scope.facts(),
    }
    return writer.commit(settings=plan.settings, inputs=plan.inputs, facts=facts)


def render(manifest: Manifest) -> Table:
    """The weights of each member, for each fold."""
    weights = manifest.facts["weights"]
    names = list(next(iter(weights.values())))
    rows = [[name, *(f"{of_fold[name]:.3f}" for of_fold in weights.values())] for name in names]
    how = "Chosen for each fold on the labels of the other folds." if manifest.settings["selects"] else "Given by hand."
    scope = Scope.of_facts(find_task(manifest.facts["task"]), manifest.facts, manifest.facts["name"])
    said = (METHODS[manifest.settings["method"]].description, say_coherence(scope), how)
    note = " ".join([*filter(None, said), "`ichkit evaluate` scores it beside its members."])
    columns = ("member", *(f"fold {fold}" for fold in weights))
    return Table(f"Blend {manifest.facts['name']}-{HAND}", columns, rows, note=note)


def _select(plan: BlendPlan, members: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[int, np.ndarray]:
    """Fold to the (M,) weights by hill climbing on the rows of the other folds."""
    method, knows = METHODS[plan.options.method], plan.sources[0].scope.knows
    class_weights = plan.prepared.task.weight_array()[knows]
    chosen = {}
    for fold in plan.sources[0].folds:
        others = folds != fold

        def combine(own: np.ndarray, weights: np.ndarray) -> np.ndarray:
            return method.combine(own, weights, own)

        chosen[fold] = climb(members[:, others], labels[others], class_weights, combine)
    return chosen


def _blend_split(plan: BlendPlan, split: str, weights: dict[int, np.ndarray], reference: np.ndarray) -> "pd.DataFrame":
    """The blend of the test split or an external set.

    Of runs, the networks of each fold are blended with the weights of that fold, then averaged: what was scored out of
    fold. The tables of stacks are averages over folds already, and are blended as they are.
    """
    task, method, knows = plan.prepared.task, METHODS[plan.options.method], plan.sources[0].scope.knows
    averaged = [load_split(source, split) for source in plan.sources]
    groups = [averaged] * len(weights)
    if all(source.is_run for source in plan.sources):
        groups = [
            [source.read(source.paths(split)[number]) for source in plan.sources] for number in range(len(weights))
        ]
    total = np.zeros((len(averaged[0]), int(knows.sum())))
    for own, tables in zip(weights.values(), groups, strict=True):
        total += method.combine(_stack(tables, task.probability_columns)[..., knows], own, reference)
    blended = np.full((len(total), task.num_classes), np.nan)
    blended[:, knows] = total / len(weights)
    return make_predictions(averaged[0], make_coherent(blended, task), task, _AVERAGED)


def _stack(tables: "Sequence[pd.DataFrame]", columns: Sequence[str]) -> np.ndarray:
    """(M, N, C) float64 probabilities of tables with the same rows."""
    return np.stack([table[list(columns)].to_numpy(np.float64) for table in tables])
