"""`evaluate --adversarial`: how well the data sets are told apart, and by what (adversarial validation).

Scores on one set promise little for another one that a classifier tells from it with ease: scans from other scanners,
or another choice of patients. No label is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError, nearest
from ichkit.core.progress import format_count, logger
from ichkit.core.roles import title_of
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import find_task
from ichkit.imaging.store import FACTS_NAME, HEADER_FACTS_NAME, Prepared
from ichkit.show.plan import Forecast, Plan
from ichkit.show.table import NOTHING, Cell, Table, format_interval, format_number
from ichkit.stages.scores.study_features import (
    DESCRIPTORS,
    EMBEDDINGS,
    FACTS,
    KEYS,
    SCAN_FACTS,
    describe_embeddings,
    describe_predictions,
    describe_scans,
    list_sets,
    pick_slices,
    table_of,
    title_of_feature,
)
from ichkit.stages.scores.tables import data_note
from ichkit.validation.adversarial import (
    FEWEST_PATIENTS,
    Sets,
    boost,
    measure_alone,
    reduce_columns,
    regress,
    tell_apart,
)
from ichkit.work.artifacts import ArtifactWriter, Manifest, find_current, has_artifact, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.locks import Look, alone, look_at

MADE_BY = "ichkit evaluate --adversarial"
PAIRS_NAME, FEATURES_NAME = "adversarial.parquet", "features.parquet"
STUDIES_NAME, LIKENESS_NAME = "studies.parquet", "likeness.parquet"
NO_FOLD = -1
CLASSIFIERS = {FACTS: boost, DESCRIPTORS: boost, EMBEDDINGS: regress}
"""Kind of features to its classifier: trees for facts of any unit, a linear one for hundreds of like columns."""
_PREPARED_FILES = ("slices.parquet", FACTS_NAME, HEADER_FACTS_NAME)
PAIR_DTYPES = {
    **dict.fromkeys(["set", "other", "features", "run"], "str"),
    "fold": "int64",
    **dict.fromkeys(["value", "low", "high", "p_value"], "float64"),
    **dict.fromkeys(["num_left_out", "n", "n_other", "num_patients", "num_patients_other"], "int64"),
}
FEATURE_DTYPES = {
    **dict.fromkeys(["set", "other", "features", "feature"], "str"),
    **dict.fromkeys(["value", "median", "median_other"], "float64"),
    **dict.fromkeys(["common", "common_other"], "str"),
}
LIKENESS_DTYPES = {**dict.fromkeys(["set", "other", "features", "of", "study_id"], "str"), "rank": "float64"}
_SHOWN_FEATURES = 3
_SMALL = 0.05
_CLEAR = 0.6  # AUC of a feature alone from which it is named
_NOTE = (
    "AUC of a classifier that tells the studies of two sets apart, on patients that it was not fitted on: 0.5 if it "
    "cannot (or less by chance, with few patients), 1 if it always can. Intervals resample patients. p: the share of "
    "random deals of the patients to the two sets with such an AUC. Told apart: the interval is above 0.5 and p is at "
    "most 0.05, not corrected for the number of pairs. By: features with the highest AUC alone, from 0.6. Facts are of "
    "the scan. Descriptors are a network's logits, embeddings its last layer; both also differ where one set has more "
    "findings. No label is used."
)


@dataclass(frozen=True)
class AdversarialPlan(Plan):
    """What `--adversarial` found.

    Attributes:
        sets: the names of the sets with slices.
        run, fold: the network whose descriptors are compared; "" and `NO_FOLD` without one.
        settings, inputs: everything the result depends on.
        current: the manifest of an up-to-date result, else None.
    """

    config: Config
    work: WorkFolder
    source: str | None
    prepared: Prepared
    sets: tuple[str, ...]
    run: str
    fold: int
    settings: dict[str, Any]
    inputs: dict[str, str]
    current: Manifest | None
    seen: Look

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folder of the result."""
        return () if self.current is not None else (self.work.adversarial,)

    def forecast(self) -> Forecast:
        """The pairs of sets that are compared."""
        pairs = ", ".join(say_pair(*pair) for pair in combinations(self.sets, 2))
        if self.current is not None:
            return Forecast((f"adversarial validation of {pairs}: up to date, nothing to do",))
        by = f", and by descriptors of {self.run}, fold {self.fold}" if self.run else ""
        most = format_count(self.config.adversarial.patients, "patient")
        steps = (f"tells apart {pairs}, at most {most} of each set, by facts of their scans{by}",)
        return Forecast(steps, basis="unknown; seconds to minutes for each pair")


def plan(config: Config, work: WorkFolder, source: str | None = None) -> AdversarialPlan:
    """The sets to compare, and whether that was done; writes nothing.

    Args:
        source: the run whose descriptors are compared; None for the one with the most folds, the first by name.

    Raises:
        ArtifactError: nothing is prepared, there is one set alone, or an artifact is damaged.
        ConfigError: no such run.
    """
    seen = look_at(work.adversarial)
    prepared = Prepared.open(work.prepared, find_task(config.task))
    sets = list_sets(prepared)
    if len(sets) < 2:
        found = ", ".join(sets) or "none"
        raise ArtifactError(
            f"{work.prepared}: expected two sets with slices to tell apart, found {found}. Run `ichkit prepare "
            "--cq500 PATH`, or `--external NAME=PATH`."
        )
    run, fold = _find_network(work, source)
    asked = config.evaluate
    settings = {**config.adversarial.settings(), "num_draws": asked.num_draws, "level": asked.level}
    settings |= {"seed": config.seed, "task": config.task, "source": source or ""}
    inputs = _inputs_of(work, prepared, run, fold)
    current = find_current(work.adversarial, settings, inputs)
    return AdversarialPlan(config, work, source, prepared, sets, run, fold, settings, inputs, current, seen)


@alone(lambda plan: plan.work.adversarial, lambda old: plan(old.config, old.work, old.source))
def run(plan: AdversarialPlan) -> pd.DataFrame:
    """Compares every two sets unless that was done; returns `adversarial.parquet`, columns of `PAIR_DTYPES`.

    Raises:
        ArtifactError: an artifact is damaged.
        ContractError: a table of predictions has other slices than prepared.
    """
    if plan.current is not None:
        logger.info("adversarial: up to date")
        return read_table(plan.work.adversarial / PAIRS_NAME, plan.current.sha256_of(PAIRS_NAME))
    described = _describe(plan)
    pairs: list[dict[str, Any]] = []
    features: list[dict[str, Any]] = []
    likeness: list[pd.DataFrame] = []
    for kind, table in described.items():
        for pair in combinations(plan.sets, 2):
            row, ranks = _compare(plan, kind, table, pair)
            pairs.append(row)
            likeness.append(ranks)
            if kind != EMBEDDINGS and not np.isnan(row["value"]):  # a unit of an embedding has no meaning of its own
                features += _list_features(plan, kind, table, pair)
            logger.info("adversarial: %s by %s, AUC %s", say_pair(*pair), kind, format_number(row["value"], 3))
    found = pd.DataFrame(pairs, columns=list(PAIR_DTYPES)).astype(PAIR_DTYPES)
    writer = ArtifactWriter(plan.work.adversarial, "adversarial")
    writer.write_table(PAIRS_NAME, found)
    writer.write_table(FEATURES_NAME, pd.DataFrame(features, columns=list(FEATURE_DTYPES)).astype(FEATURE_DTYPES))
    writer.write_table(LIKENESS_NAME, pd.concat(likeness, ignore_index=True).astype(LIKENESS_DTYPES))
    writer.write_table(STUDIES_NAME, described[FACTS])
    facts: dict[str, Any] = {"data": str(plan.prepared.manifest.facts["data"]), "task": plan.prepared.task.name}
    facts |= {"sets": list(plan.sets), "run": plan.run, "fold": plan.fold}
    writer.commit(settings=plan.settings, inputs=plan.inputs, facts=facts)
    return found


def read_adversarial(work: WorkFolder, prepared: Prepared) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """`adversarial.parquet` and `features.parquet`, if they are of the present store and network; else None.

    Raises:
        ArtifactError: they are damaged.
    """
    if not has_artifact(work.adversarial):
        return None
    manifest = read_manifest(work.adversarial)
    run, fold = str(manifest.facts["run"]), int(manifest.facts["fold"])
    if run and not has_artifact(work.fold(run, fold)):
        return None
    if manifest.inputs != _inputs_of(work, prepared, run, fold):
        return None
    pairs, features = (
        read_table(work.adversarial / name, manifest.sha256_of(name)) for name in (PAIRS_NAME, FEATURES_NAME)
    )
    return pairs, features


def render_all(plan: AdversarialPlan, pairs: pd.DataFrame) -> Iterator[Table]:
    """The table of every pair, then the features of each pair that is told apart by facts of its scans.

    Args:
        pairs: from `run`.
    """
    features = read_table(plan.work.adversarial / FEATURES_NAME)
    yield render(pairs, features, str(plan.prepared.manifest.facts["data"]))
    for row in pairs.to_dict("records"):
        if row["features"] == FACTS and is_told_apart(row):
            yield render_features(features, (row["set"], row["other"]), FACTS)


def render(pairs: pd.DataFrame, features: pd.DataFrame, data: str) -> Table:
    """Every pair as a table for terminal and report.

    Args:
        pairs, features: from `read_adversarial`.
        data: origin of the scans.
    """
    rows: list[list[Cell | str]] = []
    for row in pairs.to_dict("records"):
        is_told = is_told_apart(row)
        text = Cell(
            format_number(row["value"], 3), format_interval(row["low"], row["high"], 3), "warn" if is_told else ""
        )
        by = say_features(features, row) if is_told else ""
        patients = f"{row['num_patients']:,} | {row['num_patients_other']:,}"
        kind = row["features"] if row["fold"] == NO_FOLD else f"{row['features']} of {row['run']}, fold {row['fold']}"
        shown = format_number(row["p_value"], 3)
        rows.append([say_pair(row["set"], row["other"]), kind, text, shown, patients, by or NOTHING])
    few = f" A set with fewer than {FEWEST_PATIENTS} patients is not compared."
    columns = ("sets", "features", "AUC", "p", "patients", "told apart by")
    return Table("Adversarial validation", columns, rows, note=f"{_NOTE}{few} {data_note(data)}", num_text=2)


def render_features(features: pd.DataFrame, pair: tuple[str, str], kind: str) -> Table:
    """The features of a pair of sets, those that tell them apart best first."""
    own = _features_of(features, pair, kind)
    first, other = (title_of(name) for name in pair)
    rows: list[list[Cell | str]] = []
    for row in own.to_dict("records"):
        fact = SCAN_FACTS.get(row["feature"])
        if fact is not None and fact.digits is None:
            values = [row["common"], row["common_other"]]
        else:
            digits = 2 if fact is None or fact.digits is None else fact.digits
            values = [format_number(row[name], digits) for name in ("median", "median_other")]
        rows.append([title_of_feature(row["feature"]), format_number(row["value"], 3), *values])
    note = "AUC of each feature alone. Medians over studies; of a category, the most common value and its share."
    return Table(f"{say_pair(*pair)}: {kind}", ("feature", "AUC alone", first, other), rows, note=note)


def is_told_apart(row: Any) -> bool:
    """True if the interval of a pair is above 0.5, and hardly a permutation of the patients has such an AUC.

    Args:
        row: of `adversarial.parquet`.
    """
    return bool(row["low"] > 0.5 and row["p_value"] <= _SMALL)


def say_pair(first: str, other: str) -> str:
    """Two sets as text shows them.

    Example:
        >>> say_pair("train", "cq500")
        'train and CQ500'
    """
    return f"{title_of(first)} and {title_of(other)}"


def say_features(features: pd.DataFrame, row: Any) -> str:
    """The features that tell a pair apart best, each with its AUC alone; empty if none does alone.

    Args:
        row: of `adversarial.parquet`.
    """
    own = _features_of(features, (row["set"], row["other"]), row["features"])
    own = own[own.value >= _CLEAR].head(_SHOWN_FEATURES)
    named = zip(own.feature, own.value, strict=True)
    return "; ".join(f"{title_of_feature(name)} ({value:.2f})" for name, value in named)


def _features_of(features: pd.DataFrame, pair: tuple[str, str], kind: str) -> pd.DataFrame:
    own = features[(features.set == pair[0]) & (features.other == pair[1]) & (features.features == kind)]
    return own.sort_values("value", ascending=False, kind="stable", ignore_index=True)


def _find_network(work: WorkFolder, name: str | None) -> tuple[str, int]:
    """The run and its first finished fold."""
    finished = take_inventory(work).finished_runs
    if name is not None and name not in finished:
        raise ConfigError(f'adversarial: "{name}" is not a run with a finished fold. {nearest(name, finished)}')
    if not finished:
        return "", NO_FOLD
    most = max(len(folds) for folds in finished.values())
    run = name or next(run for run in sorted(finished) if len(finished[run]) == most)
    return run, min(finished[run])


def _inputs_of(work: WorkFolder, prepared: Prepared, run: str, fold: int) -> dict[str, str]:
    """SHA-256 of the tables of the store, and of the predictions and embeddings of the network."""
    files = prepared.manifest.files
    found = {f"prepared/{name}": files[name].sha256 for name in _PREPARED_FILES if name in files}
    if not run:
        return found
    folder = work.fold(run, fold)
    manifest, sets = read_manifest(folder), [table_of(name) for name in list_sets(prepared)]
    names = [f"{name}.parquet" for name in sets] + [f"embeddings_{name}.npy" for name in sets]
    own = {f"runs/{run}/fold{fold}/{name}": manifest.files[name].sha256 for name in names if name in manifest.files}
    return found | own


def _describe(plan: AdversarialPlan) -> dict[str, pd.DataFrame]:
    """Kind of features to one row per study of every set."""
    config, prepared, work = plan.config, plan.prepared, plan.work
    asked = config.adversarial

    def pick(fold: int | None) -> dict[str, pd.DataFrame]:
        return {name: pick_slices(prepared, name, asked.patients, config.seed, fold) for name in plan.sets}

    described = {FACTS: describe_scans(prepared, pick(None), asked.slices)}
    if not plan.run:
        return described
    held_out = pick(plan.fold)
    described[DESCRIPTORS] = describe_predictions(work, prepared, plan.run, plan.fold, held_out)
    embeddings = describe_embeddings(work, prepared, plan.run, plan.fold, held_out)
    return described if embeddings is None else {**described, EMBEDDINGS: embeddings}


def _compare(
    plan: AdversarialPlan, kind: str, table: pd.DataFrame, pair: tuple[str, str]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The row of one pair, and the rank of each of its studies."""
    own, sets = _sets_of(table, pair)
    config = plan.config
    if kind == EMBEDDINGS:
        sets = replace(sets, values=reduce_columns(sets.values, config.adversarial.embeddings))
    found = tell_apart(
        sets,
        CLASSIFIERS[kind],
        num_folds=config.adversarial.folds,
        num_draws=config.evaluate.num_draws,
        num_permutations=config.adversarial.permutations,
        level=config.evaluate.level,
        seed=derive_seed(config.seed, "adversarial", kind, *pair),
    )
    first, other = sets.num_patients
    place = {"set": pair[0], "other": pair[1], "features": kind}
    row = {
        **place,
        "run": "" if kind == FACTS else plan.run,
        "fold": NO_FOLD if kind == FACTS else plan.fold,
        **{name: getattr(found, name) for name in ("value", "low", "high", "p_value", "num_left_out")},
        "n": int((~sets.is_other).sum()),
        "n_other": int(sets.is_other.sum()),
        "num_patients": first,
        "num_patients_other": other,
    }
    ranks = pd.DataFrame({**place, "of": own.set, "study_id": own.study_id, "rank": found.ranks})
    return row, ranks[list(LIKENESS_DTYPES)]


def _list_features(
    plan: AdversarialPlan, kind: str, table: pd.DataFrame, pair: tuple[str, str]
) -> list[dict[str, Any]]:
    """Every feature of one pair: its AUC alone, and its medians or most common values."""
    own, sets = _sets_of(table, pair)
    seed = derive_seed(plan.config.seed, "adversarial alone", kind, *pair)
    values = measure_alone(sets, num_folds=plan.config.adversarial.folds, seed=seed)
    rows = []
    for name, value in zip(own.columns.drop(KEYS), values, strict=True):
        sides = [own.loc[sets.is_other == side, name] for side in (False, True)]
        is_number = pd.api.types.is_numeric_dtype(own[name])
        medians = [side.median() if is_number else np.nan for side in sides]
        common = ["" if is_number else _most_common(side) for side in sides]
        rows.append(
            {
                "set": pair[0],
                "other": pair[1],
                "features": kind,
                "feature": name,
                "value": value,
                "median": medians[0],
                "median_other": medians[1],
                "common": common[0],
                "common_other": common[1],
            }
        )
    return rows


def _sets_of(table: pd.DataFrame, pair: tuple[str, str]) -> tuple[pd.DataFrame, Sets]:
    """The rows of two sets, and the same as numbers."""
    own = table[table.set.isin(pair)].reset_index(drop=True)
    features = own.drop(columns=KEYS)
    names = [name for name in features if not pd.api.types.is_numeric_dtype(features[name])]
    columns = {}
    for name in features:
        if name in names:
            codes, _ = pd.factorize(features[name], sort=True)
            columns[name] = np.where(codes < 0, np.nan, codes.astype(np.float64))
        else:
            columns[name] = features[name].to_numpy(np.float64, na_value=np.nan)
    values = np.column_stack(list(columns.values()))
    categories = tuple(number for number, name in enumerate(features) if name in names)
    return own, Sets(values, (own.set == pair[1]).to_numpy(), own.patient_id.to_numpy(), categories)


def _most_common(values: pd.Series) -> str:
    """The most common value and its share, e.g. "16,0,-1024 (88 %)"."""
    counts = values.dropna().value_counts(normalize=True)
    return f"{counts.index[0]} ({counts.iloc[0]:.0%})".replace("%", " %") if len(counts) else ""
