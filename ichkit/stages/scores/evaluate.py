"""`ichkit evaluate`: scores every run and stack, with counts and confidence intervals."""

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError, ContractError
from ichkit.core.progress import Meter, format_count, logger
from ichkit.core.roles import title_of
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.store import Prepared
from ichkit.show.plan import Forecast, Plan
from ichkit.stages.scores import protocols
from ichkit.stages.scores.board import make_board, track
from ichkit.stages.scores.book import open_book
from ichkit.stages.scores.protocols import ProtocolsPlan
from ichkit.stages.scores.score_source import (
    SourceScores,
    load_external,
    missing_studies,
    read_baseline,
    read_out_of_fold,
    score_source,
    scored_external_sets,
    study_scores,
)
from ichkit.stages.scores.stored import (
    COMPARISONS_NAME,
    DRAWS_NAME,
    MADE_BY,
    MISSING_SUFFIX,
    RELIABILITY_NAME,
    SCORES_NAME,
    SELECTION_NAME,
    inputs_of,
)
from ichkit.tracking.loggers import check_loggers
from ichkit.validation.catalog import Source, find_sources, looked_at
from ichkit.validation.comparisons import BASELINE, StudyScores, compare_pairs, compare_studies, make_comparisons
from ichkit.validation.folds import check_folds
from ichkit.validation.metrics import log_loss_by_class, roc_auc_by_class, weighted_log_loss
from ichkit.validation.scores import ALL_CLASSES, LOG_LOSS, METRICS, POOLED, ROC_AUC, WEIGHTED_LOG_LOSS
from ichkit.validation.selection import LossSums, measure_selection
from ichkit.validation.studies import AGGREGATIONS, MAXIMUM
from ichkit.validation.subgroups import ALL, SLICE_PARTITIONS, STUDY_PARTITIONS
from ichkit.validation.submissions import read_submission, read_truth
from ichkit.work.artifacts import ArtifactWriter, Manifest, has_artifact, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import Look, alone, look_at
from ichkit.work.looks import record_looks

SELECTION_DTYPES = {
    **dict.fromkeys(["folds", "source"], "str"),
    **dict.fromkeys(["num_sources", "num_left_out"], "int64"),
    **dict.fromkeys(["value", "optimism", "corrected", "share_chosen"], "float64"),
}
# File to the field of `SourceScores` it stores for every source.
_TABLES = {SCORES_NAME: "scores", RELIABILITY_NAME: "curves", DRAWS_NAME: "draws"}


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`.

    Attributes:
        source: the run or stack to show with all tables; None shows a summary of the best one.
        is_whole: show every row of `scores.parquet`.
        protocols: afterwards score the external sets under every protocol (`stages.scores.protocols`) and show that.
        proves: afterwards show the gains of second stages on locked patients (`stages.scores.prove`) instead.
        perturbs: score a run's networks on perturbed scans (`stages.scores.robustness`) instead.
        is_adversarial: tell the data sets apart (`stages.scores.adversarial`) instead; needs no trained run.
        submission, truth: score this file (ID,Label) against these labels instead; nothing is written.

    Raises:
        ConfigError: a submission without its labels, or labels without a submission.
    """

    source: str | None = None
    is_whole: bool = False
    proves: bool = False
    protocols: bool = False
    perturbs: bool = False
    is_adversarial: bool = False
    submission: Path | None = None
    truth: Path | None = None

    def __post_init__(self) -> None:
        if (self.submission is None) != (self.truth is None):
            raise ConfigError(
                "evaluate: expected --submission and --truth together, the file to score and its labels; found one."
            )


@dataclass(frozen=True)
class FilePlan(Plan):
    """The plan of `evaluate` for a submission file: it writes nothing."""

    submission: Path
    truth: Path
    task: Task

    @property
    def writes(self) -> tuple[Path, ...]:
        """Nothing."""
        return ()

    def forecast(self) -> Forecast:
        """The comparison of the two files."""
        return Forecast((f"scores {self.submission} against {self.truth}; prints a table and writes no file",))


@dataclass(frozen=True)
class EvaluatePlan(Plan):
    """The plan of `evaluate`, and of every command that needs scores.

    Attributes:
        prepared: the prepared data.
        sources: every run and stack that can be scored.
        settings, inputs: everything the scores depend on.
        old: the manifest of the existing scores; None if there are none.
        protocols: the plan of `--protocols`; None unless it was asked for.
    """

    config: Config
    work: WorkFolder
    options: EvaluateOptions
    prepared: Prepared
    sources: list[Source]
    settings: dict[str, Any]
    inputs: dict[str, str]
    old: Manifest | None
    seen: Look
    protocols: ProtocolsPlan | None = None

    @property
    def is_current(self) -> bool:
        """True if the existing scores are up to date."""
        return self.old is not None and self.old.settings == self.settings and self.old.inputs == self.inputs

    @property
    def stale(self) -> list[Source]:
        """The sources without up-to-date scores."""
        if self.old is None or self.old.settings != self.settings:
            return self.sources
        return [source for source in self.sources if not _is_scored(source, self.prepared.manifest, self.old)]

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folder of the scores, and what `--protocols` writes."""
        return (*(() if self.is_current else (self.work.scores,)), *(self.protocols.writes if self.protocols else ()))

    def forecast(self) -> Forecast:
        """The sources to score; disk space and time extrapolated from the existing scores."""
        stale, counted = self.stale, format_count(len(self.sources), "source")
        steps: tuple[str, ...] = (f"scores of {counted}: up to date, nothing to do",)
        if not self.is_current:
            steps = (
                f"scores {len(stale)} of {counted} ({', '.join(source.name for source in stale)})",
                f"{self.config.evaluate.num_draws} bootstrap samples of patients for each interval",
            )
        steps += () if self.protocols is None else self.protocols.forecast().steps
        num_bytes = each = None
        if self.old is not None:
            share = len(self.sources) / len(self.old.facts["sources"])
            num_bytes = share * sum(file.num_bytes for file in self.old.files.values())
            each = self.old.facts.get("seconds_per_source")
        if each is None:
            return Forecast(steps, num_bytes, basis="unknown: no source has been scored yet")
        return Forecast(steps, num_bytes, each * len(stale), "by the time of earlier sources")


@dataclass(frozen=True)
class ScoredPlan(Plan):
    """The plan of a command that computes missing scores and then writes its own files."""

    scoring: EvaluatePlan

    @property
    @abstractmethod
    def own_writes(self) -> tuple[Path, ...]:
        """Its own files."""

    @property
    def writes(self) -> tuple[Path, ...]:
        """The scores, if they are out of date, and its own files."""
        return (*self.scoring.writes, *self.own_writes)

    def after_scoring(self, steps: Sequence[str], num_bytes: int | None = None) -> Forecast:
        """The missing scores, then its own steps; time of the scoring only, because writing is not timed.

        Args:
            steps, num_bytes: its own.
        """
        if self.scoring.is_current:
            return Forecast(tuple(steps), num_bytes, basis="unknown; everything is scored")
        scores = self.scoring.forecast()
        total = None if scores.num_bytes is None or num_bytes is None else scores.num_bytes + num_bytes
        return replace(scores, steps=(*scores.steps, *steps), num_bytes=total)


def plan(config: Config, work: WorkFolder, options: EvaluateOptions | None = None) -> EvaluatePlan | FilePlan:
    """The plan of scoring all sources, or the given submission file; raises as `plan_scores`."""
    if options is not None and options.submission is not None and options.truth is not None:
        return FilePlan(options.submission, options.truth, find_task(config.task))
    return plan_scores(config, work, options)


def plan_scores(config: Config, work: WorkFolder, options: EvaluateOptions | None = None) -> EvaluatePlan:
    """Every source, and which of them have up-to-date scores; writes nothing.

    Raises:
        ArtifactError: nothing is prepared or trained, or an artifact is damaged.
        FoldError: a patient has no fold, or more than one.
        ConfigError: a logger is unknown or not installed.
    """
    check_loggers(config.tracking.loggers)
    seen = look_at(work.scores)
    prepared = Prepared.open(work.prepared, find_task(config.task))
    check_folds(prepared.slices)
    sources = find_sources(work, prepared.task)
    if not sources:
        raise ArtifactError(f"{work.runs}: expected a finished fold of a run, found none. Run `ichkit train` first.")
    for name, remedy in sorted({source.name: source.remedy for source in sources if source.is_outdated}.items()):
        logger.warning("evaluate: %s is outdated: its runs have changed since; run `%s`", name, remedy)
    measured: dict[str, Mapping[str, object]] = {
        "metrics": METRICS,
        "subgroups": SLICE_PARTITIONS | STUDY_PARTITIONS,
        "aggregations": AGGREGATIONS,
    }
    settings = {**config.evaluate.settings(), "seed": config.seed, "task": config.task}
    settings |= {name: list(table) for name, table in measured.items()} | {"selection": list(SELECTION_DTYPES)}
    inputs = inputs_of(sources, prepared.manifest)
    old = read_manifest(work.scores) if has_artifact(work.scores) else None
    options = options or EvaluateOptions()
    of_protocols = protocols.plan(config, work) if options.protocols else None
    return EvaluatePlan(config, work, options, prepared, sources, settings, inputs, old, seen, of_protocols)


@alone(lambda plan: plan.work.scores, lambda old: plan_scores(old.config, old.work, old.options))
def run(plan: EvaluatePlan) -> Manifest:
    """Writes `work/scores/` and returns its manifest; only sources whose inputs changed are scored again.

    Raises:
        ArtifactError: a table is damaged.
        ContractError: the table of a source does not contain exactly the expected slices.
    """
    began = time.monotonic()
    config, work, prepared, sources, old = plan.config, plan.work, plan.prepared, plan.sources, plan.old
    _record_looks(plan)
    if plan.is_current:
        assert old is not None
        logger.info("evaluate: the scores of %s are up to date", format_count(len(sources), "source"))
        _track(plan)
        return old
    kept = _still_valid(plan)
    missing = {name: missing_studies(prepared, name) for name in prepared.external_sets()}
    num_to_score = len(sources) - len(kept)
    _announce(num_to_score, len(sources), old is not None, missing)
    with Meter("evaluate", num_to_score, "source") as meter:
        for source in sources:
            if source.name not in kept:
                kept[source.name] = score_source(source, prepared, config)
                _log_loss_of(kept[source.name].scores)
                meter.advance(note=source.name)
    writer = ArtifactWriter(work.scores, "scores")
    for name, part in _TABLES.items():
        tables = [getattr(kept[source.name], part) for source in sources]
        writer.write_table(name, pd.concat(tables, ignore_index=True))
    writer.write_table(COMPARISONS_NAME, _compare(sources, kept, prepared, config))
    writer.write_table(SELECTION_NAME, _select(sources, kept, prepared, config))
    facts = {
        "data": "+".join(sorted({source.data for source in sources})),
        "task": prepared.task.name,
        "sources": [source.name for source in sources],
        **{f"{name}{MISSING_SUFFIX}": studies for name, studies in missing.items()},
        "seconds_per_source": round((time.monotonic() - began) / num_to_score, 1) if num_to_score else None,
    }
    made = writer.commit(settings=plan.settings, inputs=plan.inputs, facts=facts)
    _track(plan)
    return made


def _track(plan: EvaluatePlan) -> None:
    """Sends the scores to the loggers."""
    if plan.config.tracking.loggers:
        track(make_board(open_book(plan.work, plan.prepared.task), plan.work, None), plan.config.tracking, plan.work)


def _record_looks(plan: EvaluatePlan) -> None:
    """Logs the external sets that are scored; before the scores are written, so that a killed call leaves no gap."""
    sets = scored_external_sets(plan.prepared)
    record_looks(plan.work, [looked_at(plan.work, source, name, MADE_BY) for source in plan.sources for name in sets])


def make_current(plan: EvaluatePlan) -> None:
    """Computes missing scores; logs nothing if there are none. Raises as `run`."""
    if not plan.is_current:
        run(plan)


def score_submission(submission: Path, truth: Path, task: Task) -> pd.DataFrame:
    """The scores of one `ID,Label` file against another: metric, class, value, n, n_positive, one row each.

    Args:
        submission: probabilities; rows in any order, IDs `<slice>_<class>`.
        truth: labels of exactly the same slices, 0 or 1.

    Raises:
        DataError: a file is missing or not CSV.
        ContractError: a file has contradictory rows, gaps or values outside 0 to 1, or the two files have different
            slices.
    """
    labels = read_truth(truth, task)
    predicted = read_submission(submission, task)
    missing, foreign = labels.index.difference(predicted.index), predicted.index.difference(labels.index)
    if len(missing) or len(foreign):
        example = missing[0] if len(missing) else foreign[0]
        raise ContractError(
            f"{submission}: expected exactly the {len(labels)} slices of {truth}, found {len(predicted)}: "
            f"{len(missing)} are missing and {len(foreign)} are not in the truth, e.g. {example}. "
            "Score a file against the labels it was made for."
        )
    p, y = predicted.loc[labels.index].to_numpy(), labels.to_numpy()
    loss, losses, aucs = weighted_log_loss(p, y, task.weight_array()), log_loss_by_class(p, y), roc_auc_by_class(p, y)
    positive = (y > 0).sum(0)
    rows = [(WEIGHTED_LOG_LOSS, ALL_CLASSES, loss, int((y > 0).any(1).sum()))]
    for metric, values in ((LOG_LOSS, losses), (ROC_AUC, aucs)):
        rows += [(metric, name, values[c], positive[c]) for c, name in enumerate(task.classes)]
    table = pd.DataFrame(rows, columns=["metric", "class", "value", "n_positive"])
    table.insert(3, "n", len(labels))
    return table


def _still_valid(plan: EvaluatePlan) -> dict[str, SourceScores]:
    """The existing scores, by source, of sources whose tables, labels and settings have not changed."""
    old, stale = plan.old, {source.name for source in plan.stale}
    names = [source.name for source in plan.sources if source.name not in stale]
    if old is None or not names:
        return {}
    tables = {part: read_table(plan.work.scores / name, old.sha256_of(name)) for name, part in _TABLES.items()}
    found: dict[str, SourceScores] = {}
    for name in names:
        scores, curves, draws = (tables[part][tables[part].source == name] for part in ("scores", "curves", "draws"))
        found[name] = SourceScores(scores, curves, draws)
    return found


def _is_scored(source: Source, prepared: Manifest, old: Manifest) -> bool:
    """True if the old scores are of the current tables of this source."""
    prefixes = ("prepared/", f"{source.name}:")
    before = {name: digest for name, digest in old.inputs.items() if name.startswith(prefixes)}
    return before == inputs_of([source], prepared)


def _compare(
    sources: list[Source], scored: dict[str, SourceScores], prepared: Prepared, config: Config
) -> pd.DataFrame:
    """Every pair of sources of the same folds, and each source with the published baseline of an external set.

    All are recomputed if one source changed, so that no comparison is of outdated scores.
    """
    task, settings = prepared.task, config.evaluate
    sets = scored_external_sets(prepared)
    baselines = {name: found for name in sets if (found := read_baseline(prepared, name)) is not None}
    studies: dict[str, list[StudyScores]] = {}
    for source in sources if len(sources) > 1 or baselines else ():
        of_sets = {name: load_external(source, prepared, name, settings) for name in sets}
        studies[source.name] = [
            study_scores(table, prepared, name, MAXIMUM, settings.num_top, source.scope)
            for name, table in of_sets.items()
        ]
    draws = {name: scores.draws for name, scores in scored.items()}
    tables = []
    for asked in dict.fromkeys((source.folds, source.scope) for source in sources):
        names = [source.name for source in sources if (source.folds, source.scope) == asked]
        tables.append(compare_pairs(draws, studies, names, task, settings.level))
    for name, own in studies.items():
        for scores in own:
            baseline = baselines.get(scores.place["dataset"])
            if baseline is not None:
                rows = compare_studies(scores, baseline, task, settings.level)
                tables.append(make_comparisons([{"source": name, "other": BASELINE, **row} for row in rows]))
    return pd.concat(tables, ignore_index=True)


def _select(sources: list[Source], scored: dict[str, SourceScores], prepared: Prepared, config: Config) -> pd.DataFrame:
    """The best of all sources of the same folds by their loss, and the optimism of that choice.

    Sources that predict some classes alone have no rank, so that none of them is chosen.
    """
    ranked = [source for source in sources if source.scope.is_whole]
    rows = []
    for folds in dict.fromkeys(source.folds_label for source in ranked):
        peers = [source for source in ranked if source.folds_label == folds]
        sums = [
            scored[source.name].losses or LossSums.of(read_out_of_fold(source, prepared, config).slices)
            for source in peers
        ]
        seed = derive_seed(config.seed, "selection", folds)
        found = measure_selection(sums, prepared.task.weight_array(), num_draws=config.evaluate.num_draws, seed=seed)
        rows.append(
            {
                "folds": folds,
                "source": peers[found.best].name,
                "num_sources": len(peers),
                "num_left_out": found.num_left_out,
                "value": found.value,
                "optimism": found.optimism,
                "corrected": found.value + found.optimism,
                "share_chosen": found.shares[found.best],
            }
        )
    return pd.DataFrame(rows, columns=list(SELECTION_DTYPES)).astype(SELECTION_DTYPES)


def _announce(num_to_score: int, num_sources: int, is_remade: bool, missing: Mapping[str, list[str]]) -> None:
    why = ": inputs changed" if is_remade else ""
    logger.info("evaluate: scoring %d of %s%s", num_to_score, format_count(num_sources, "source"), why)
    for name, studies in missing.items():
        if studies:
            message = "evaluate: %s studies without slices, not scored: %d (listed in the manifest)"
            logger.info(message, title_of(name), len(studies))


def _log_loss_of(scores: pd.DataFrame) -> None:
    """Logs the pooled loss of a source, and how many classes it covers if not all."""
    pooled = scores[(scores.fold == POOLED) & (scores.subgroup == ALL) & (scores.split == "train")]
    weighted = pooled[pooled.metric == WEIGHTED_LOG_LOSS]
    if weighted.empty:
        known = pooled[(pooled.metric == LOG_LOSS) & (pooled.n > 0)]
        name, predicted = pooled["source"].iloc[0], ", ".join(known["class"])
        logger.info("evaluate: %s predicts %s alone: it is scored by class", name, predicted or "no labelled class")
        return
    row = weighted.iloc[0]
    of_classes = pooled[pooled.metric == LOG_LOSS]
    num_scored = int(((of_classes.n_positive > 0) & (of_classes.n_positive < of_classes.n)).sum())
    some = f"; {num_scored} of {len(of_classes)} classes scored" if num_scored < len(of_classes) else ""
    logger.info(
        "evaluate: %s: weighted log loss %.5f [%.5f, %.5f] on %d slices, %d positive%s",
        row["source"],
        row["value"],
        row["low"],
        row["high"],
        row["n"],
        row["n_positive"],
        some,
    )
