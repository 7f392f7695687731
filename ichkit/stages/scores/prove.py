"""`--prove`: the gain of every second stage out of fold beside its gain on the locked patients.

A stack is fitted on descriptors of networks that saw the fold it is scored on, though not through its labels in the
second stage. Whether that inflates its out-of-fold gain is measured on patients of `prepare --lock`, which no network,
stacker, calibration, threshold or choice has seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, nearest
from ichkit.core.logits import to_probabilities
from ichkit.core.progress import logger
from ichkit.core.roles import LOCKED
from ichkit.core.stack_config import EmbeddingsConfig
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.store import Prepared
from ichkit.show.plan import Forecast, Plan
from ichkit.show.table import Cell, Table, format_number
from ichkit.stacking.fold_models import predict_each_fold_model
from ichkit.stacking.inputs import Inputs, read_inputs
from ichkit.stacking.rows import Rows, make_rows
from ichkit.stages.scores.book import PROOF_NAME
from ichkit.stages.scores.tables import data_note
from ichkit.validation.catalog import HAND, Source, find_sources, load_out_of_fold, looked_at
from ichkit.validation.coherence import make_coherent
from ichkit.validation.proof import Gain, compare_gains, measure_gain, seed_of_gain
from ichkit.validation.scope import label_array
from ichkit.work.artifacts import ArtifactWriter, Manifest, digest_table, find_current, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import Look, alone, look_at
from ichkit.work.looks import record_looks

MADE_BY = "ichkit evaluate --prove"
_NO_LOCK = (
    "no patients are locked. Run `ichkit prepare --lock 0.15` before training: patients must be locked before any "
    "network is trained."
)
_NOTE = (
    "Gain: weighted log loss of the base (the mean of the runs, scored as on the leaderboard) minus that of the second "
    "stage, on the same rows. Out "
    "of fold: each patient by the model of its fold. Locked: patients that nothing was fitted on or chosen by, "
    "by every fold model alone, averaged. Difference: out of fold minus locked, above 0 if the out-of-fold gain "
    "promises too much; * if its interval excludes 0."
)


@dataclass(frozen=True)
class ProveOptions:
    """Options of `--prove`.

    Attributes:
        stack: the name of one stack; None for every stack.
    """

    stack: str | None = None


@dataclass(frozen=True)
class ProvePlan(Plan):
    """What `--prove` found.

    Attributes:
        sources: kinds of stacks that are up to date with their runs.
        settings, inputs: everything the proof depends on.
        current: the manifest of an up-to-date proof, else None.
    """

    config: Config
    work: WorkFolder
    options: ProveOptions
    prepared: Prepared
    sources: list[Source]
    settings: dict[str, object]
    inputs: dict[str, str]
    current: Manifest | None
    seen: Look

    @property
    def data(self) -> str:
        """Origin of the scans of the sources, e.g. "phantom"."""
        return "+".join(sorted({source.data for source in self.sources}))

    @property
    def writes(self) -> tuple[Path, ...]:
        """The proof and the evaluation log."""
        return () if self.current is not None else (self.work.proof, self.work.looks)

    def forecast(self) -> Forecast:
        """The sources that are scored on the locked patients."""
        names = ", ".join(source.name for source in self.sources)
        if self.current is not None:
            return Forecast((f"proof of {names}: up to date, nothing to do",))
        locked = self.prepared.split(LOCKED)
        steps = (
            f"scores {names} on {locked.patient_id.nunique()} locked patients, {len(locked)} slices",
            "adds these evaluations to looks.csv",
        )
        return Forecast(steps, basis="unknown; seconds for each stack")


def plan(config: Config, work: WorkFolder, options: ProveOptions | None = None) -> ProvePlan:
    """The stacks to score on locked patients, and whether that was done; writes nothing.

    Raises:
        ArtifactError: no patients are locked, there is no stack, the stack of that name does not exist, or it is
            outdated.
    """
    options, seen = options or ProveOptions(), look_at(work.proof)
    prepared = Prepared.open(work.prepared, find_task(config.task))
    if LOCKED not in prepared.external_sets():
        raise ArtifactError(f"{work.prepared}: {_NO_LOCK}")
    stacks = [source for source in find_sources(work, prepared.task) if source.kind not in ("base", HAND)]
    if options.stack is not None:
        names = sorted({_stack_of(source) for source in stacks})
        stacks = [source for source in stacks if _stack_of(source) == options.stack]
        if not stacks:
            raise ArtifactError(f'prove: "{options.stack}" is not a finished stack. {nearest(options.stack, names)}')
    outdated = sorted({_stack_of(source) for source in stacks if source.is_outdated})
    if options.stack is None:
        stacks = [source for source in stacks if not source.is_outdated]
    if not stacks or (outdated and options.stack is not None):
        found = f"found {', '.join(outdated)}, whose runs have changed since" if outdated else "found none"
        raise ArtifactError(f"prove: expected a stack of the current runs, {found}. Run `ichkit stack`.")
    settings: dict[str, object] = {**config.evaluate.settings(), "seed": config.seed, "task": config.task}
    locked = prepared.split(LOCKED)
    inputs = {"locked": digest_table(locked[["slice_id", "patient_id", *prepared.task.classes]])}
    for source in stacks:
        if not source.paths(LOCKED):
            raise ArtifactError(
                f"{source.path}: has no predictions for the locked patients, who were locked later. Run "
                "`ichkit train` and `ichkit stack` again."
            )
        inputs |= {f"{source.name}:{name}": digest for name, digest in source.digests.items()}
    current = find_current(work.proof, settings, inputs)
    return ProvePlan(config, work, options, prepared, stacks, settings, inputs, current, seen)


@alone(lambda plan: plan.work.proof, lambda old: plan(old.config, old.work, old.options))
def run(plan: ProvePlan) -> pd.DataFrame:
    """Scores the stacks on the locked patients unless that was done, and returns the proof: a row for each kind.

    Returns:
        source, stack, kind; oof_gain, locked_gain and difference, each with its interval `_low` and `_high`; p_value;
        gain_kept; oof_patients and locked_patients.

    Raises:
        ArtifactError: a table is damaged.
        ContractError: a table has other slices than prepared.
    """
    if plan.current is not None:
        return read_table(plan.work.proof / PROOF_NAME, plan.current.sha256_of(PROOF_NAME))
    by_stack: dict[str, list[Source]] = {}
    for source in plan.sources:
        by_stack.setdefault(_stack_of(source), []).append(source)
    rows = [row for stack, sources in by_stack.items() for row in _prove(plan, stack, sources)]
    table = pd.DataFrame(rows)
    record_looks(plan.work, [looked_at(plan.work, source, LOCKED, MADE_BY) for source in plan.sources])
    writer = ArtifactWriter(plan.work.proof, "proof")
    writer.write_table(PROOF_NAME, table)
    facts = {"task": plan.prepared.task.name, "data": plan.data}
    writer.commit(settings=plan.settings, inputs=plan.inputs, facts=facts)
    return table


def render(table: pd.DataFrame, data: str) -> Table:
    """The proof as a table for terminal and report.

    Args:
        table: from `run`.
        data: origin of the scans.
    """
    rows: list[list[Cell | str]] = []
    for record in table.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        promises_too_much = row["difference_low"] > 0
        star = "*" if promises_too_much or row["difference_high"] < 0 else ""
        rows.append(
            [
                row["source"],
                _gain_cell(row, "oof_gain"),
                _gain_cell(row, "locked_gain"),
                _gain_cell(row, "difference", star, "bad" if promises_too_much else ""),
                format_number(row["gain_kept"], 2),
            ]
        )
    counts = f"{table.oof_patients.max():,} patients out of fold, {table.locked_patients.max():,} locked."
    columns = ("source", "gain\nout of fold", "gain\nlocked", "difference", "gain kept")
    return Table("Proof on locked patients", columns, rows, note=f"{_NOTE} {counts} {data_note(data)}")


def _gain_cell(row: Mapping[str, Any], name: str, star: str = "", tone: str = "") -> Cell:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return Cell(f"{row[name]:+z.5f}{star}", "" if np.isnan(low) else f"{low:+z.4f} to {high:+z.4f}", tone)


def _stack_of(source: Source) -> str:
    """The stack of a source that is a kind of it."""
    return Path(source.path).parent.name


def _prove(plan: ProvePlan, stack: str, sources: list[Source]) -> list[dict[str, object]]:
    """The rows of one stack."""
    work, task, seed = plan.work, plan.prepared.task, plan.config.seed
    folder = work.stack_folder(stack)
    inputs = read_inputs(work, task, sources[0].runs, _embeddings_of(folder))
    asked = plan.config.evaluate
    settings: dict[str, Any] = {"is_coherent": asked.coherent_base, "num_draws": asked.num_draws, "level": asked.level}
    logger.info("prove: %s on %d locked patients", stack, inputs.external[LOCKED].patient_id.nunique())
    own = _out_of_fold_gains(sources, inputs, task, seed_of_gain(seed, "oof"), **settings)
    locked = _locked_gains(folder, sources, inputs, task, seed_of_gain(seed, LOCKED), **settings)
    rows = []
    for source in sources:
        kept = compare_gains(own[source.kind], locked[source.kind], plan.config.evaluate.level)
        rows.append(
            {
                "source": source.name,
                "stack": stack,
                "kind": source.kind,
                **_describe("oof_gain", own[source.kind]),
                **_describe("locked_gain", locked[source.kind]),
                "difference": kept.difference,
                "difference_low": kept.low,
                "difference_high": kept.high,
                "p_value": kept.p_value,
                "gain_kept": kept.share,
                "oof_patients": own[source.kind].num_patients,
                "locked_patients": locked[source.kind].num_patients,
            }
        )
    return rows


def _describe(name: str, gain: Gain) -> dict[str, float]:
    return {name: gain.value, f"{name}_low": gain.low, f"{name}_high": gain.high}


def _embeddings_of(folder: Path) -> EmbeddingsConfig:
    """The settings that a stack was fitted with."""
    return EmbeddingsConfig(**read_manifest(folder).settings["stack"]["embeddings"])


def _out_of_fold_gains(
    sources: list[Source], inputs: Inputs, task: Task, seed: int, *, is_coherent: bool, num_draws: int, level: float
) -> dict[str, Gain]:
    """The gain of each kind on the rows that it was scored on."""
    train = inputs.train
    rows = make_rows([inputs.out_of_fold(run) for run in inputs.runs], train, task)
    base = _base(rows, task, is_coherent=is_coherent)
    labels, patients = label_array(train, task), train.patient_id.to_numpy()
    gains = {}
    for source in sources:
        table = load_out_of_fold(source)
        assert table.slice_id.equals(train.slice_id)
        second = table[task.probability_columns].to_numpy(np.float64)
        gains[source.kind] = measure_gain(
            base, second, labels, patients, task, num_draws=num_draws, level=level, seed=seed
        )
    return gains


def _locked_gains(
    folder: Path,
    sources: list[Source],
    inputs: Inputs,
    task: Task,
    seed: int,
    *,
    is_coherent: bool,
    num_draws: int,
    level: float,
) -> dict[str, Gain]:
    """The gain of each kind on the locked patients, every fold model scored alone, as it is out of fold."""
    locked = inputs.external[LOCKED]
    features = {run: anchored.features[LOCKED] for run, anchored in inputs.embeddings.items()}
    bases: list[np.ndarray] = []
    seconds: dict[str, list[np.ndarray]] = {source.kind: [] for source in sources}
    for rows, kinds in predict_each_fold_model(folder, inputs.tables[LOCKED], locked, features):
        bases.append(_base(rows, task, is_coherent=is_coherent))
        for kind, of_kind in seconds.items():
            of_kind.append(make_coherent(to_probabilities(kinds[kind]), task))
    labels, patients = label_array(locked, task), locked.patient_id.to_numpy()
    base, repeats = np.concatenate(bases), len(bases)
    return {
        kind: measure_gain(
            base,
            np.concatenate(of_kind),
            np.tile(labels, (repeats, 1)),
            np.tile(patients, repeats),
            task,
            num_draws=num_draws,
            level=level,
            seed=seed,
        )
        for kind, of_kind in seconds.items()
    }


def _base(rows: Rows, task: Task, *, is_coherent: bool) -> np.ndarray:
    """(N, C) probabilities of the mean of the runs, made coherent where `evaluate` scores runs so."""
    probabilities = to_probabilities(rows.combined_logits())
    return make_coherent(probabilities, task) if is_coherent else probabilities
