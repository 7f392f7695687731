"""`--protocols`: every source on the external sets under every protocol that publications use.

Published AUCs of one kind of network differ by protocol more than networks differ: which studies, which series, how
slices make a study, and whose reading is the truth. The same predictions are scored in each way.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError
from ichkit.core.progress import Meter, format_count, logger
from ichkit.core.roles import SCANS
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.store import Prepared
from ichkit.show.plan import Forecast, Plan
from ichkit.stages.scores.score_source import (
    load_external,
    missing_studies,
    read_baseline,
    scored_external_sets,
    seed_of_rows,
    study_rows,
    study_scores,
)
from ichkit.stages.scores.stored import BASELINE_SUFFIX
from ichkit.validation.agreement import judge_readers, measure_kappa
from ichkit.validation.catalog import Source, find_sources, load_pooled, looked_at
from ichkit.validation.coherence import make_table_coherent
from ichkit.validation.comparisons import StudyScores, compare_studies
from ichkit.validation.protocols import POOLED_HEAD, REFERENCES, STUDY_SETS, list_protocols
from ichkit.validation.scores import ROC_AUC, score_rows
from ichkit.validation.studies import AGGREGATIONS, MAXIMUM
from ichkit.work.artifacts import ArtifactWriter, Manifest, find_current, has_artifact, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import Look, alone, look_at
from ichkit.work.looks import record_looks

MADE_BY = "ichkit evaluate --protocols"
PROTOCOLS_NAME, READERS_NAME, LEFT_OUT_NAME = "protocols.parquet", "readers.parquet", "left_out.csv"
KAPPA, SENSITIVITY, SPECIFICITY = "fleiss_kappa", "sensitivity", "specificity"
READS_SUFFIX = "_reads.csv"  # after the name of an external set: the reads of its single readers
_PREPARED_FILES = ("slices.parquet", "studies.parquet")
_NO_SERIES, _NOT_SHARED = "no usable series", "not in every set of these scans"
_TESTED = {"other_value": "baseline", "difference": "difference", "low": "difference_low", "high": "difference_high"}
READER_DTYPES = {
    **dict.fromkeys(["dataset", "class", "measure"], "str"),
    "reader": "int64",
    **dict.fromkeys(["value", "low", "high"], "float64"),
    **dict.fromkeys(["n", "n_positive"], "int64"),
}
"""Columns of `readers.parquet`; reader 0 stands for all of them."""
_NO_TEST = dict.fromkeys([*_TESTED.values(), "p_value"], np.nan)
PROTOCOL_DTYPES = {
    **dict.fromkeys(["source", "dataset", "studies", "aggregation", "series", "reference", "class"], "str"),
    **dict.fromkeys(["value", "low", "high"], "float64"),
    **dict.fromkeys(["n", "n_positive", "num_left_out"], "int64"),
    **dict.fromkeys([*_TESTED.values(), "p_value"], "float64"),
}


@dataclass(frozen=True)
class ProtocolsPlan(Plan):
    """What `--protocols` found.

    Attributes:
        sources: every run and stack that can be scored.
        scans: external set to the sets of the same scans, itself first, by series rule.
        settings, inputs: everything the tables depend on.
        current: the manifest of up-to-date tables, else None.
    """

    config: Config
    work: WorkFolder
    prepared: Prepared
    sources: list[Source]
    scans: dict[str, tuple[str, ...]]
    settings: dict[str, Any]
    inputs: dict[str, str]
    current: Manifest | None
    seen: Look

    @property
    def writes(self) -> tuple[Path, ...]:
        """The tables and the evaluation log."""
        return () if self.current is not None else (self.work.protocols, self.work.looks)

    def forecast(self) -> Forecast:
        """The sources and sets to score."""
        if self.current is not None:
            return Forecast(("protocols of the external sets: up to date, nothing to do",))
        sets = ", ".join(name for names in self.scans.values() for name in names)
        sources = format_count(len(self.sources), "source")
        return Forecast((f"scores {sources} under every protocol on {sets}",), basis="unknown; seconds for each source")


def plan(config: Config, work: WorkFolder) -> ProtocolsPlan:
    """The sources and the external sets, and whether they were scored; writes nothing.

    Raises:
        ArtifactError: no external set is prepared, or an artifact is damaged.
    """
    seen = look_at(work.protocols)
    prepared = Prepared.open(work.prepared, find_task(config.task))
    sources = find_sources(work, prepared.task)
    scans = group_by_scans(prepared)
    if not scans:
        raise ArtifactError(
            f"{work.prepared}: expected an external set with slices, found none. Run `ichkit prepare --cq500 PATH`, "
            "then `ichkit train` and `ichkit stack` again."
        )
    tables: dict[str, Mapping[str, object]] = {
        "aggregations": AGGREGATIONS,
        "references": REFERENCES,
        "study sets": STUDY_SETS,
    }
    settings = {**config.evaluate.settings(), "seed": config.seed, "task": config.task}
    settings |= {name: list(table) for name, table in tables.items()} | {"columns": [*PROTOCOL_DTYPES, *READER_DTYPES]}
    inputs = _inputs_of(sources, prepared.manifest)
    current = find_current(work.protocols, settings, inputs)
    return ProtocolsPlan(config, work, prepared, sources, scans, settings, inputs, current, seen)


@alone(lambda plan: plan.work.protocols, lambda old: plan(old.config, old.work))
def run(plan: ProtocolsPlan) -> pd.DataFrame:
    """Scores every source under every protocol unless that was done; returns columns of `PROTOCOL_DTYPES`.

    Raises:
        ArtifactError: a table is damaged.
        ContractError: the table of a source does not contain exactly the expected slices.
    """
    work = plan.work
    if plan.current is not None:
        logger.info("protocols: up to date")
        return read_table(work.protocols / PROTOCOLS_NAME, plan.current.sha256_of(PROTOCOLS_NAME))
    sets = [name for names in plan.scans.values() for name in names]
    record_looks(work, [looked_at(work, source, name, MADE_BY) for source in plan.sources for name in sets])
    rows: list[dict[str, Any]] = []
    with Meter("protocols", len(plan.sources), "source") as meter:
        for source in plan.sources:
            for dataset, names in plan.scans.items():
                rows += [{"source": source.name, "dataset": dataset, **row} for row in _score(plan, source, names)]
            meter.advance(note=source.name)
    table = pd.DataFrame(rows, columns=list(PROTOCOL_DTYPES)).astype(PROTOCOL_DTYPES)
    writer = ArtifactWriter(work.protocols, "protocols")
    writer.write_table(PROTOCOLS_NAME, table)
    writer.write_table(READERS_NAME, _judge_readers(plan))
    writer.write_table(LEFT_OUT_NAME, _list_left_out(plan))
    data = "+".join(sorted({source.data for source in plan.sources}))
    facts = {"data": data, "task": plan.prepared.task.name, "sources": [source.name for source in plan.sources]}
    writer.commit(settings=plan.settings, inputs=plan.inputs, facts=facts)
    return table


def read_protocols(work: WorkFolder, prepared: Prepared, sources: Sequence[Source]) -> pd.DataFrame | None:
    """The table of `run`, if it is of the current tables of all these sources; else None.

    Raises:
        ArtifactError: it is damaged.
    """
    if not has_artifact(work.protocols):
        return None
    manifest = read_manifest(work.protocols)
    if manifest.inputs != _inputs_of(sources, prepared.manifest):
        return None
    return read_table(work.protocols / PROTOCOLS_NAME, manifest.sha256_of(PROTOCOLS_NAME))


def read_left_out(work: WorkFolder) -> pd.DataFrame:
    """dataset, series, studies, study_id, reason: the studies with labels that a protocol does not score.

    Raises:
        ArtifactError: there is no such table, or it is damaged.
    """
    manifest = read_manifest(work.protocols)
    return read_table(work.protocols / LEFT_OUT_NAME, manifest.sha256_of(LEFT_OUT_NAME), dtype="str")


def read_readers(work: WorkFolder) -> pd.DataFrame:
    """The agreement of the readers of every external set with single reads, columns of `READER_DTYPES`.

    Raises:
        ArtifactError: there is no such table, or it is damaged.
    """
    manifest = read_manifest(work.protocols)
    return read_table(work.protocols / READERS_NAME, manifest.sha256_of(READERS_NAME))


def group_by_scans(prepared: Prepared) -> dict[str, tuple[str, ...]]:
    """External set to the sets of the same scans by series rule, itself first; sets without slices are left out."""
    facts = prepared.manifest.facts
    groups: dict[str, list[str]] = {}
    for name in scored_external_sets(prepared):
        groups.setdefault(str(facts.get(name, {}).get(SCANS, name)), []).append(name)
    return {name: tuple(names) for name, names in groups.items()}


def read_reads(prepared: Prepared, dataset: str) -> pd.DataFrame | None:
    """study_id, reader and a column of 0 and 1 for each class; None if the set has no reads of single readers."""
    name = f"{dataset}{READS_SUFFIX}"
    return prepared.read_table(name) if name in prepared.manifest.files else None


def votes_of(reads: pd.DataFrame, studies: pd.Index, classes: Sequence[str]) -> np.ndarray:
    """(N, R, C) float64 reads of these studies by R readers; NaN for a study without reads.

    Args:
        reads: from `read_reads`.
    """
    of_readers = [own.set_index("study_id")[list(classes)].reindex(studies) for _, own in reads.groupby("reader")]
    return np.stack([own.to_numpy(np.float64) for own in of_readers], axis=1)


@dataclass(frozen=True)
class _Series:
    """One external set with the predictions of one source.

    Attributes:
        studies: aggregation to the studies, all in the same order.
        votes: (N, R, C) reads, or None.
        baseline: the probabilities published with the set, or None.
    """

    studies: dict[str, StudyScores]
    votes: np.ndarray | None
    baseline: StudyScores | None


def _score(plan: ProtocolsPlan, source: Source, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of one source on the sets of the same scans, without `source` and `dataset`."""
    series = {name: _read_series(plan, source, name) for name in names}
    every = [set(one.studies[MAXIMUM].labels.index) for one in series.values()]
    has_reads = all(one.votes is not None for one in series.values())
    has_pool = all(POOLED_HEAD in one.studies for one in series.values())
    for protocol in list_protocols(names, has_reads=has_reads, has_pool=has_pool):
        one = series[protocol.series]
        studies = one.studies[protocol.aggregation]
        ids = studies.labels.index
        is_kept = ids.isin(list(STUDY_SETS[protocol.studies].choose(set(ids), every)))
        votes = np.empty((len(ids), 0, 0)) if one.votes is None else one.votes
        chosen = REFERENCES[protocol.reference].label(studies.labels.to_numpy(), votes)
        # What the source is not asked stays unknown under every reference.
        labels = pd.DataFrame(chosen, ids, list(source.task.classes)).where(studies.labels.notna())
        kept = replace(studies, probabilities=studies.probabilities[is_kept], labels=labels[is_kept])
        tests = {} if one.baseline is None else _test(kept, one.baseline, source.task, plan.config.evaluate.level)
        for row in _score_rows(plan, source, kept, names[0]):
            yield {**asdict(protocol), **row, **tests.get(row["class"], _NO_TEST)}


def _read_series(plan: ProtocolsPlan, source: Source, name: str) -> _Series:
    """The studies of one external set by every aggregation, with reads and baseline."""
    prepared, settings = plan.prepared, plan.config.evaluate
    table = load_external(source, prepared, name, settings)
    studies = {
        aggregation: study_scores(table, prepared, name, aggregation, settings.num_top, source.scope)
        for aggregation in AGGREGATIONS
    }
    ids = studies[MAXIMUM].labels.index
    pooled = load_pooled(source, name)
    if pooled is not None:
        pooled = make_table_coherent(pooled, source.task) if settings.coherent_base else pooled
        probabilities = pooled.set_index("study_id").loc[ids, source.task.probability_columns].astype("float64")
        studies[POOLED_HEAD] = replace(studies[MAXIMUM], probabilities=probabilities)
    reads = read_reads(prepared, name)
    votes = None if reads is None else votes_of(reads, ids, source.task.classes)
    return _Series(studies, votes, read_baseline(prepared, name))


def _score_rows(plan: ProtocolsPlan, source: Source, kept: StudyScores, dataset: str) -> Iterator[dict[str, Any]]:
    """The AUC of every class and their mean, with intervals by resampling patients."""
    settings = plan.config.evaluate
    # The name of the set gives the seed: that of `evaluate`, so that the paper's protocol has the board's interval.
    rows = study_rows(kept, plan.prepared)
    rows = replace(rows, place={**rows.place, "dataset": dataset})
    scored = score_rows(
        rows,
        source.task,
        (ROC_AUC,),
        num_draws=settings.num_draws,
        level=settings.level,
        num_bins=settings.num_bins,
        seed=seed_of_rows(rows, plan.config),
    )
    names = ("class", "value", "low", "high", "n", "n_positive", "num_left_out")
    for row in scored.rows:
        yield {name: row[name] for name in names}


def _test(kept: StudyScores, baseline: StudyScores, task: Task, level: float) -> dict[str, dict[str, float]]:
    """Class to DeLong's paired test against the probabilities published with the set."""
    rows = compare_studies(kept, baseline, task, level)
    return {
        row["class"]: {"p_value": row["p_value"], **{name: row[key] for key, name in _TESTED.items()}} for row in rows
    }


def _judge_readers(plan: ProtocolsPlan) -> pd.DataFrame:
    """Fleiss' kappa of the readers of each external set, and each reader against the others, by class."""
    settings, task = plan.config.evaluate, plan.prepared.task
    rows: list[dict[str, Any]] = []
    for dataset in plan.scans:
        reads = read_reads(plan.prepared, dataset)
        if reads is None:
            continue
        votes = votes_of(reads, pd.Index(reads.study_id.unique()), task.classes)
        asked: dict[str, Any] = {
            "num_draws": settings.num_draws,
            "level": settings.level,
            "seed": derive_seed(plan.config.seed, "readers", dataset),
        }
        for c, name in enumerate(task.classes):
            found = [(KAPPA, 0, measure_kappa(votes[:, :, c], **asked))]
            for point in judge_readers(votes[:, :, c], settings.level):
                found += [
                    (SENSITIVITY, point.reader, point.sensitivity),
                    (SPECIFICITY, point.reader, point.specificity),
                ]
            for measure, reader, value in found:
                rows.append({"dataset": dataset, "class": name, "measure": measure, "reader": reader, **asdict(value)})
    return pd.DataFrame(rows, columns=list(READER_DTYPES)).astype(READER_DTYPES)


def _list_left_out(plan: ProtocolsPlan) -> pd.DataFrame:
    """The studies with labels that a protocol does not score, by name."""
    rows = []
    for dataset, names in plan.scans.items():
        every = [set(plan.prepared.split(name).study_id) for name in names]
        for name, own in zip(names, every, strict=True):
            missing = missing_studies(plan.prepared, name)
            for studies in STUDY_SETS.values():
                others = sorted(own - studies.choose(own, every))
                gone = [*((study, _NO_SERIES) for study in missing), *((study, _NOT_SHARED) for study in others)]
                rows += [(dataset, name, studies.name, *one) for one in gone]
    return pd.DataFrame(rows, columns=["dataset", "series", "studies", "study_id", "reason"])


def _inputs_of(sources: Sequence[Source], prepared: Manifest) -> dict[str, str]:
    """SHA-256 of every file that the tables depend on."""
    suffixes = (READS_SUFFIX, BASELINE_SUFFIX)
    read = [name for name in prepared.files if name in _PREPARED_FILES or name.endswith(suffixes)]
    of_store = {f"prepared/{name}": prepared.files[name].sha256 for name in read}
    return of_store | {f"{source.name}:{name}": digest for source in sources for name, digest in source.digests.items()}
