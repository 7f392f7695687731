"""The tables of `work/prepared/`, written after all volumes."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import DataError
from ichkit.core.progress import format_count, logger
from ichkit.core.roles import LOCKED, Role, order_external, title_of
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.parts import whole_id
from ichkit.imaging.store import CROPS_NAME, FACTS_NAME, FLOW, HEADER_FACTS_NAME, SUBGROUPS_NAME
from ichkit.sources.collect import (
    PlannedSource,
    collect_crops,
    collect_failures,
    collect_groups,
    collect_header_facts,
    collect_slices,
    collect_studies,
    count_images,
)
from ichkit.sources.decode import keep_records
from ichkit.sources.folder import hide_files
from ichkit.sources.plan import count_reasons
from ichkit.sources.study import StudyRecord
from ichkit.stages.prepare.audit import write_audit
from ichkit.stages.prepare.crop_audit import describe_crops, draw_crops, measure_crops
from ichkit.stages.prepare.plan import FOLDS_NAME, LOCKS_NAME
from ichkit.validation.folds import assign_folds, check_folds, lock_patients, tally_studies
from ichkit.work.artifacts import ArtifactWriter, Manifest, encode_table, write_bytes_atomically
from ichkit.work.schemas import BRAIN_SHARE, CROPS, KEY, MIRRORED, REJECTED, SERIES_CHOICE, TILT

_FACT_COLUMNS = ["slice_id", "dataset", BRAIN_SHARE, TILT]


@dataclass(frozen=True)
class Stamp:
    """Provenance for the manifest.

    Attributes:
        settings, inputs: as in the manifest.
        data: "rsna", "phantom" or "folder".
    """

    settings: dict[str, object]
    inputs: dict[str, str]
    data: str


def write_tables(
    writer: ArtifactWriter,
    planned: list[PlannedSource],
    records: dict[str, StudyRecord],
    refused: dict[str, pd.DataFrame],
    kept: tuple[pd.DataFrame | None, pd.DataFrame | None],
    stamp: Stamp,
    config: Config,
) -> Manifest:
    """Assigns the folds, writes all tables and the audit page, and commits the artifact.

    Args:
        records: of every study, by key.
        refused: zip members rejected unread, by dataset (relative, reason).
        kept: the folds and the locked patients of an earlier call.

    Raises:
        DataError: no training slice is left.
        FoldError: inconsistent folds.
    """
    task = find_task(config.task)
    slices = pd.concat([collect_slices(item, records, task) for item in planned], ignore_index=True)
    known_folds, known_locks = kept
    locked = _lock(slices, known_locks, stamp, config, task)
    slices = slices.sort_values(["dataset", *KEY], ignore_index=True)
    train = slices["split"] == "train"
    rejected = _collect_rejected(planned, records, refused)
    if not train.any():
        raise _nothing_usable(writer, rejected)
    tally = tally_studies(slices[train], task.classes)
    if known_folds is not None and locked is not None:
        known_folds = known_folds[~known_folds["patient_id"].isin(locked["patient_id"][locked["is_locked"]])]
    folds = assign_folds(tally, config.prepare.num_folds, task.classes, config.seed, known_folds)
    fold_of = folds.set_index("patient_id")["fold"]
    slices.loc[train, "fold"] = slices["patient_id"][train].map(fold_of).astype("Int16")
    check_folds(slices)
    _check_external(slices)
    studies = collect_studies(slices, [item.plan for item in planned], task)
    choices = [item.plan.series_choice for item in planned if len(item.plan.series_choice)]
    samples = [item.plan.sample_ids for item in planned if len(item.plan.sample_ids)]
    writer.write_table("slices.parquet", slices.drop(columns=[BRAIN_SHARE, TILT]))
    writer.write_table(FACTS_NAME, slices[_FACT_COLUMNS])
    writer.write_table("studies.parquet", studies)
    if names := stamp.settings.get("header_facts"):
        assert isinstance(names, list)
        writer.write_table(HEADER_FACTS_NAME, collect_header_facts(planned, slices, names))
    if (groups := collect_groups(planned, slices)) is not None:
        writer.write_table(SUBGROUPS_NAME, groups)
    crops = measure_crops(pd.concat([collect_crops(item, records) for item in planned], ignore_index=True))
    has_crops = any(not item.tasks.pixels.is_plain for item in planned)
    has_parts = any(item.tasks.pixels.has_parts for item in planned)
    # Registered sequences have no box in a source picture to draw.
    is_drawn = has_crops and all(item.tasks.pixels.sequences is None for item in planned)
    if has_crops:
        writer.write_table(CROPS_NAME, crops[[name for name in (*CROPS, MIRRORED) if name in crops]])
    writer.write_table(FOLDS_NAME, folds)
    if locked is not None:
        writer.write_table(LOCKS_NAME, locked)
    writer.write_table("rejected.csv", rejected)
    writer.write_table("series_choice.csv", pd.concat(choices) if choices else pd.DataFrame(columns=SERIES_CHOICE))
    writer.write_table("sample_ids.csv", samples[0] if samples else pd.DataFrame(columns=["ID"]))
    for item in planned:
        for name, table in item.plan.tables.items():
            writer.write_table(name, table)
    keep_records(writer, records)
    facts = {
        "data": stamp.data,
        "num_slices": len(slices),
        "num_studies": len(studies),
        "num_rejected": len(rejected),
        FLOW: {item.plan.dataset: count_images(item, records, len(refused[item.plan.dataset])) for item in planned},
        **{item.plan.dataset: _describe_source(item, slices) for item in planned},
    }
    if has_crops:
        facts["crop"] = {**describe_crops(crops), **({"parts": config.prepare.parts.kind} if has_parts else {})}
    write_audit(writer, slices, studies, rejected, facts, config, draw_crops(crops, planned) if is_drawn else "")
    inputs = dict(stamp.inputs)
    for item in planned:
        inputs |= item.plan.inputs
    manifest = writer.commit(settings=stamp.settings, inputs=inputs, facts=facts)
    _log_result(slices, studies, rejected, facts, task)
    return manifest


def _describe_source(item: PlannedSource, slices: pd.DataFrame) -> dict[str, Any]:
    """The facts of a source; the studies of an external set of which no file could be read are missing from it."""
    facts, files = item.plan.facts, item.plan.files
    names = slices["study_id"][slices["dataset"] == item.plan.dataset].drop_duplicates().astype(str).to_list()
    kept = {*names, *map(whole_id, names)}
    known = facts.get("missing_studies", [])
    assert isinstance(known, list)
    lost = set(files["study_id"][files["split"] == Role.EXTERNAL.value]) - kept - set(known)
    return {**facts, "missing_studies": [*known, *sorted(lost)]} if lost else facts


def _lock(
    slices: pd.DataFrame, known: pd.DataFrame | None, stamp: Stamp, config: Config, task: Task
) -> pd.DataFrame | None:
    """Moves the slices of locked patients to a set of their own, in place; returns who is locked, None without a lock.

    The set is external, so that every run and stack predicts it and nothing is fitted on it.
    """
    share = stamp.settings.get("lock")
    if share is None:
        return None
    train = slices["split"] == "train"
    assert isinstance(share, float)
    locked = lock_patients(tally_studies(slices[train], task.classes), share, task.classes, config.seed, known)
    rows = train & slices["patient_id"].isin(locked["patient_id"][locked["is_locked"]])
    slices.loc[rows, "dataset"], slices.loc[rows, "split"] = LOCKED, Role.EXTERNAL.value
    return locked


def refuse_nothing(writer: ArtifactWriter, training: PlannedSource, refused: dict[str, pd.DataFrame]) -> None:
    """Stops before any pixel is read if all training files were rejected by their headers.

    Raises:
        DataError: all were rejected; lists the number of files by reason.
    """
    if training.plan.files.empty:
        raise _nothing_usable(writer, _collect_rejected([training], {}, refused))


def _nothing_usable(writer: ArtifactWriter, rejected: pd.DataFrame) -> DataError:
    """Writes rejected.csv next to the store, which is not created, and returns the error."""
    path = writer.final.parent / "rejected.csv"
    write_bytes_atomically(path, encode_table(rejected, ".csv"))
    return DataError(
        f"prepare: expected slices of head CT to train on, no training slice could be used: "
        f"{count_reasons(rejected)}. "
        f"{path} has every file; check the path."
    )


def _collect_rejected(
    planned: list[PlannedSource], records: dict[str, StudyRecord], refused: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """Every rejected file: by its header, by its pixels, or as a zip member."""
    parts = []
    for item in planned:
        members = refused[item.plan.dataset].rename(columns={"relative": "file"}).assign(dataset=item.plan.dataset)
        found = [collect_failures(item, records), members.reindex(columns=REJECTED)]
        if item.plan.salt is not None:
            found = [hide_files(table, item.plan.salt) for table in found]
        parts += [item.plan.rejected, *found]
    parts = [table for table in parts if len(table)] or [pd.DataFrame(columns=REJECTED)]
    return pd.concat(parts).sort_values(["dataset", "file"], ignore_index=True)


def _check_external(slices: pd.DataFrame) -> None:
    """Refuses external sets that share studies with the training data.

    Raises:
        DataError: names the set and one shared study.
    """
    train_ids = set(slices["study_id"][slices["split"] == "train"])
    external = slices[slices["split"] == "external"]
    for name, studies in external.groupby("dataset")["study_id"].unique().items():
        shared = sorted(train_ids.intersection(studies))
        if shared:
            raise DataError(
                f"{name}: {len(shared)} of its {len(studies)} studies are training studies too, e.g. {shared[0]}. "
                "An external set must not contain training studies; remove them from one of the two."
            )


def _log_result(
    slices: pd.DataFrame, studies: pd.DataFrame, rejected: pd.DataFrame, facts: dict[str, Any], task: Task
) -> None:
    for (dataset, split), rows in slices.groupby(["dataset", "split"]):
        of_split = studies[(studies["dataset"] == dataset) & (studies["split"] == split)]
        positive = of_split[task.headline_class].sum()
        known = "" if split == "test" else f", {positive} of them positive"
        counts = f"{format_count(len(rows), 'slice')} of {format_count(len(of_split), 'study', 'studies')}"
        logger.info("prepare: %s %s: %s%s", dataset, split, counts, known)
    for reason, count in rejected["reason"].value_counts().items():
        logger.info("prepare: %d rejected: %s", count, reason)
    if "crop" in facts:
        whole, of_all = facts["crop"]["not_found"], format_count(facts["crop"]["studies"], "study", "studies")
        done = f"cut into parts ({facts['crop']['parts']})" if "parts" in facts["crop"] else "cropped to the head"
        if whole:
            logger.info("prepare: %s; no head found in %d of %s: whole picture kept", done, whole, of_all)
        else:
            logger.info("prepare: %s: %s", done, of_all)
    for name in order_external(studies["dataset"][studies["split"] == "external"]):
        missing = facts.get(name, {}).get("missing_studies", [])
        if missing:
            shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
            logger.info(
                "prepare: %d labelled %s studies have no usable series: %s", len(missing), title_of(name), shown
            )
