"""`ichkit evaluate`: every run and stack scored, each score with its counts and its interval."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from ichkit.core.artifacts import ArtifactWriter, Manifest, has_artifact, read_manifest, read_table
from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ContractError
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import Meter, logger
from ichkit.core.schemas import check_predictions
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.store import Prepared
from ichkit.validation.catalog import Source, find_sources, load_out_of_fold, load_split
from ichkit.validation.folds import check_folds
from ichkit.validation.metrics import log_loss_by_class, roc_auc_by_class, study_maximum, weighted_log_loss
from ichkit.validation.scores import (
    ALL_CLASSES,
    LOG_LOSS,
    POOLED,
    ROC_AUC,
    SCORE_DTYPES,
    WEIGHTED_LOG_LOSS,
    ScoredRows,
    score_rows,
)
from ichkit.validation.submissions import read_submission, read_truth

MADE_BY = "ichkit evaluate"
SCORES_NAME = "scores.parquet"
_LABEL_FILES = ("slices.parquet", "studies.parquet")


def run(config: Config, work: WorkFolder) -> Manifest:
    """The manifest of `work/scores/`; only sources whose tables or labels changed are scored again.

    Raises:
        ArtifactError: nothing is prepared or trained, or an artifact is damaged.
        ContractError: a source's table does not hold exactly the slices it should.
        FoldError: a patient has more than one fold, or none.
    """
    prepared = Prepared.open(work.prepared, find_task(config.task))
    check_folds(prepared.slices)
    sources = find_sources(work, prepared.task)
    if not sources:
        raise ArtifactError(f"{work.runs}: expected a finished fold of a run, found none. Run `ichkit train` first.")
    for name in sorted({source.name for source in sources if source.is_outdated}):
        logger.warning("evaluate: %s was made from other descriptors than its runs have now; run `ichkit stack`", name)
    settings = {**config.evaluate.settings(), "seed": config.seed, "task": config.task}
    inputs = _inputs_of(sources, prepared.manifest)
    old = read_manifest(work.scores, made_by=MADE_BY) if has_artifact(work.scores) else None
    if old is not None and old.settings == settings and old.inputs == inputs:
        logger.info("evaluate: the scores of %d sources are up to date", len(sources))
        return old
    tables = _still_valid(work, sources, prepared.manifest, old, settings)
    missing = _missing_cq500(prepared)
    _announce(len(sources) - len(tables), len(sources), old is not None, len(missing))
    with Meter("evaluate", len(sources) - len(tables), "source") as meter:
        for source in sources:
            if source.name not in tables:
                tables[source.name] = _score_source(source, prepared, config)
                meter.advance(note=source.name)
    writer = ArtifactWriter(work.scores, "scores")
    writer.write_table(SCORES_NAME, pd.concat([tables[source.name] for source in sources], ignore_index=True))
    facts = {
        "data": "+".join(sorted({source.data for source in sources})),
        "task": prepared.task.name,
        "sources": [source.name for source in sources],
        "cq500_missing": missing,
    }
    return writer.commit(settings=settings, inputs=inputs, facts=facts)


def read_scores(work: WorkFolder, sources: list[Source]) -> pd.DataFrame:
    """The score table, after making sure that it belongs to these sources as they are now.

    Raises:
        ArtifactError: there are no scores, or they were made from other tables or labels.
    """
    manifest = read_manifest(work.scores, made_by=MADE_BY)
    prepared = read_manifest(work.prepared, made_by="ichkit prepare")
    if manifest.inputs != _inputs_of(sources, prepared):
        raise ArtifactError(
            f"{work.scores}: expected the scores of the {len(sources)} sources that are there now, found those of "
            f"{len(manifest.facts['sources'])} made from other tables. Run `{MADE_BY}`."
        )
    return read_table(work.scores / SCORES_NAME)


def score_submission(submission: Path, truth: Path, task: Task) -> pd.DataFrame:
    """The scores of one `ID,Label` file against another: metric, class, value, n, n_positive, one row each.

    Args:
        submission: probabilities; rows in any order, IDs `<slice>_<class>`.
        truth: labels of exactly the same slices, 0 or 1.

    Raises:
        DataError: a file is missing or not CSV.
        ContractError: a file contradicts itself, has gaps or values that are no probabilities, or the two hold
            different slices.
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


def render(scores: pd.DataFrame) -> Table:
    """Scores for a terminal, each with its interval, where it has one, and its counts.

    Args:
        scores: rows of `scores.parquet`, of which those over all folds are shown, or a result of `score_submission`.
    """
    digits = 12  # another program's score of the same file can be compared to the last digit that means anything
    if "fold" in scores:
        scores, digits = scores[scores.fold == POOLED], 5
    table = Table(box=SIMPLE, padding=0)
    place = [name for name in ("source", "dataset", "level", "metric", "class") if name in scores]
    for name in (*place, "value", "interval", "n", "positive"):
        table.add_column(name, justify="left" if name in place else "right", no_wrap=name not in place, overflow="fold")
    for row in scores.to_dict("records"):
        interval = f"[{row['low']:.4f}, {row['high']:.4f}]" if np.isfinite(row.get("low", np.nan)) else "-"
        value = f"{row['value']:.{digits}f}" if np.isfinite(row["value"]) else "undefined"
        table.add_row(*(str(row[name]) for name in place), value, interval, str(row["n"]), str(row["n_positive"]))
    return table


def _inputs_of(sources: list[Source], prepared: Manifest) -> dict[str, str]:
    """Everything the scores of these sources depend on."""
    labels = {f"prepared/{name}": prepared.files[name].sha256 for name in _LABEL_FILES}
    return labels | {f"{source.name}:{name}": digest for source in sources for name, digest in source.digests.items()}


def _still_valid(
    work: WorkFolder, sources: list[Source], prepared: Manifest, old: Manifest | None, settings: dict[str, object]
) -> dict[str, pd.DataFrame]:
    """The rows, by name, of sources whose tables, labels and settings are those they were scored with."""
    if old is None or old.settings != settings:
        return {}
    table = read_table(work.scores / SCORES_NAME)
    kept = {}
    for source in sources:
        prefixes = ("prepared/", f"{source.name}:")
        before = {name: digest for name, digest in old.inputs.items() if name.startswith(prefixes)}
        if before == _inputs_of([source], prepared):
            kept[source.name] = table[table.source == source.name]
    return kept


def _announce(num_to_score: int, num_sources: int, is_remade: bool, num_missing: int) -> None:
    why = ": inputs changed" if is_remade else ""
    logger.info("evaluate: scoring %d of %d sources%s", num_to_score, num_sources, why)
    if num_missing:
        logger.info("evaluate: CQ500 studies without slices, not scored: %d (the manifest names them)", num_missing)


def _missing_cq500(prepared: Prepared) -> list[str]:
    """CQ500 studies that the readers labelled and that have no slices, by name."""
    labelled = prepared.studies.study_id[prepared.studies.dataset == "cq500"]
    without_series = prepared.manifest.facts.get("cq500", {}).get("missing_studies", [])
    return sorted({*labelled, *without_series} - set(prepared.split("cq500").study_id))


def _score_source(source: Source, prepared: Prepared, config: Config) -> pd.DataFrame:
    """Every score of one source, columns of `SCORE_DTYPES`."""
    asked = [(rows, (WEIGHTED_LOG_LOSS, LOG_LOSS, ROC_AUC)) for rows in _out_of_fold_rows(source, prepared)]
    external = _external_rows(source, prepared)
    if external is not None:
        asked.append((external, (ROC_AUC,)))
    tables = [
        score_rows(
            rows,
            prepared.task,
            metrics,
            num_draws=config.evaluate.num_draws,
            level=config.evaluate.level,
            # The source's name stays out, so that two sources are compared on the same draws.
            seed=derive_seed(config.seed, "evaluate", rows.place["dataset"], rows.place["fold"]),
        )
        for rows, metrics in asked
    ]
    scores = pd.concat(tables, ignore_index=True).assign(source=source.name)[list(SCORE_DTYPES)].astype(SCORE_DTYPES)
    _say(scores)
    return scores


def _out_of_fold_rows(source: Source, prepared: Prepared) -> list[ScoredRows]:
    """The pooled rows of all folds of a source, then those of each fold."""
    train = prepared.split("train")
    train = train[train.fold.isin(source.folds)].reset_index(drop=True)
    table = load_out_of_fold(source)
    _check_slices(table, train, source, "oof")
    check_predictions(table, prepared.task, source.path, train)
    p = table[prepared.task.probability_columns].to_numpy(np.float64)
    y = train[list(prepared.task.classes)].to_numpy(np.float64, na_value=np.nan)
    dataset, fold = "+".join(sorted(train.dataset.unique())), table.fold.to_numpy()
    place = {"dataset": dataset, "split": "train", "level": "slice", "aggregation": "none", "subgroup": "all"}
    patients = train.patient_id.to_numpy()
    groups = [ScoredRows({**place, "fold": POOLED}, p, y, patients)]
    for k in source.folds:
        own = fold == k
        groups.append(ScoredRows({**place, "fold": k}, p[own], y[own], patients[own]))
    return groups


def _external_rows(source: Source, prepared: Prepared) -> ScoredRows | None:
    """The CQ500 studies by their maximum; None where none were prepared."""
    slices = prepared.split("cq500")
    if not len(slices):
        return None
    table = load_split(source, "cq500")
    _check_slices(table, slices, source, "cq500")
    top = study_maximum(table, prepared.task)
    studies = prepared.studies[prepared.studies.dataset == "cq500"].set_index("study_id").reindex(top.study_id)
    return ScoredRows(
        place={
            "dataset": "cq500",
            "split": "external",
            "level": "study",
            "aggregation": "maximum",
            "subgroup": "all",
            "fold": POOLED,
        },
        probabilities=top[prepared.task.probability_columns].to_numpy(np.float64),
        labels=studies[list(prepared.task.classes)].to_numpy(np.float64, na_value=np.nan),
        members=top.study_id.to_numpy(),
    )


def _check_slices(table: pd.DataFrame, slices: pd.DataFrame, source: Source, split: str) -> None:
    """Refuses a table that does not hold exactly these slices in this order."""
    if table.slice_id.equals(slices.slice_id):
        return
    num_differ = len(set(table.slice_id) ^ set(slices.slice_id))
    raise ContractError(
        f"{source.path} ({split}): expected exactly the {len(slices)} prepared slices in their order, found "
        f"{len(table)} rows, {num_differ} of other slices. The scans were prepared again since: run `{source.remedy}`."
    )


def _say(scores: pd.DataFrame) -> None:
    """One line with the pooled loss of a source."""
    row = scores[(scores.metric == WEIGHTED_LOG_LOSS) & (scores.fold == POOLED)].iloc[0]
    logger.info(
        "evaluate: %s: weighted log loss %.5f [%.5f, %.5f] on %d slices, %d positive",
        row["source"],
        row["value"],
        row["low"],
        row["high"],
        row["n"],
        row["n_positive"],
    )
