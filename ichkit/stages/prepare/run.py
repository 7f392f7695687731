"""`ichkit prepare`: converts DICOM to the Hounsfield store `work/prepared/`."""

from dataclasses import replace
from functools import partial

import pandas as pd

from ichkit.core.errors import DataError
from ichkit.core.progress import StopFlag, logger, stop_on_signal
from ichkit.core.tasks import find_task
from ichkit.engine.parallel import RunTasks, count_workers, run_tasks
from ichkit.sources.collect import PlannedSource
from ichkit.sources.decode import RECORDS_FOLDER, decode_all
from ichkit.sources.index import CT, KEPT_COLUMNS, check_decoders, read_index, refuse_raw
from ichkit.sources.plan import Found, SourcePlan, StudyTasks, order_slices
from ichkit.sources.series import check_override
from ichkit.sources.study import PixelSettings
from ichkit.sources.table import PHANTOM, is_phantom
from ichkit.stages.prepare.plan import (
    FOLDS_NAME,
    LOCKS_NAME,
    SETTINGS_FILE,
    ListedSource,
    PrepareOptions,
    PreparePlan,
    plan,
)
from ichkit.stages.prepare.tables import Stamp, refuse_nothing, write_tables
from ichkit.work.artifacts import (
    ArtifactWriter,
    Manifest,
    encode_json,
    encode_table,
    read_table,
    write_bytes_atomically,
)
from ichkit.work.locks import alone
from ichkit.work.patients import read_salt
from ichkit.work.places import discard, partial_of

__all__ = ["PrepareOptions", "PreparePlan", "plan", "run"]

_BASE_BYTES = 300 * 1024**2
_COPIES_OF_A_VOLUME = 2.5
"""A worker holds the volume, its compressed frame and the buffers of the codec."""


@alone(lambda plan: plan.work.prepared, lambda old: plan(old.config, old.work, old.options))
def run(plan: PreparePlan) -> Manifest:
    """Creates `work/prepared/`, or updates it if input files have changed.

    Raises:
        DataError: inconsistent data.
        FoldError: folds that do not fit the patients.
        Stopped: a stop signal arrived; the next call continues.
    """
    config, work, options = plan.config, plan.work, plan.options
    if plan.current is not None:
        logger.info("prepare: up to date (%d slices)%s", plan.current.facts["num_slices"], plan.note_on_codec)
        if not (partial_of(work.prepared) / RECORDS_FOLDER).exists():
            discard(partial_of(work.prepared))  # of a call that stopped before its first study
        return plan.current
    if plan.is_update:
        logger.info("prepare: the input files have changed; updating the store")
    plan.log_needs()
    writer = ArtifactWriter(work.prepared, "prepared", resume=not options.fresh, keeps=(FOLDS_NAME, LOCKS_NAME))
    write_bytes_atomically(writer.folder / SETTINGS_FILE, encode_json(plan.settings))
    for name, table in ((FOLDS_NAME, plan.folds), (LOCKS_NAME, plan.locked)):
        if table is not None:
            write_bytes_atomically(writer.folder / name, encode_table(table, ".csv"))
    if options.fresh:
        # Only after the data were found and the folds saved: a wrong path or a kill loses nothing.
        discard(work.prepared)
    runner = partial(run_tasks, backend=options.backend or config.prepare.backend)
    with stop_on_signal() as stop:
        read = partial(runner, workers=config.prepare.workers)
        planned = [_plan_source(plan, item, writer, read, stop) for item in plan.listings]
        refuse_nothing(writer, planned[0], {item.source.name: item.refused for item in plan.listings})
        check_override(plan.override, [item.plan.series_choice for item in planned])
        largest = max(item.tasks.largest_bytes for item in planned)
        workers = count_workers(config.prepare.workers, _BASE_BYTES + int(_COPIES_OF_A_VOLUME * largest))
        records = decode_all(
            [item.tasks for item in planned],
            writer.folder,
            work.prepared,
            run=partial(runner, workers=workers),
            strict=options.strict,
            stop=stop,
            codec=plan.codec,
        )
    refused = {item.source.name: item.refused for item in plan.listings}
    data = "phantom" if any(is_phantom(item.root) for item in plan.listings) else plan.source
    stamp = Stamp(plan.settings, plan.inputs, data)
    return write_tables(writer, planned, records, refused, (plan.folds, plan.locked), stamp, config)


def _plan_source(
    plan: PreparePlan, listing: ListedSource, writer: ArtifactWriter, read: RunTasks, stop: StopFlag
) -> PlannedSource:
    """Reads the headers of one source and maps its files to slices of studies."""
    source, task = listing.source, find_task(plan.config.task)
    name = f"index_{source.name}.parquet"
    known = next((path for path in (writer.folder / name, plan.work.prepared / name) if path.exists()), None)
    files = listing.images[listing.files.columns]
    old = None if known is None else read_table(known)
    index = read_index(files, old, run=read, stop=stop, modality=source.modality)
    if source.keeps_index:
        writer.write_table(name, index[KEPT_COLUMNS])
    # RSNA's headers are repaired by a rule of its own; other values must be HU unless --accept-raw is given.
    judges_hu = not source.repair and not plan.options.accept_raw and source.modality == CT
    index = check_decoders(refuse_raw(index) if judges_hu else index, skip=plan.options.skip_undecodable)
    salt = b"" if source.keeps_index else read_salt(plan.work.root)
    labels, override = listing.labels, plan.override
    found = source.plan(
        Found(
            *(listing.files, listing.images, index, task, labels, override, salt, judges_hu, plan.by_part),
            subgroups=plan.subgroups,
            sequences=plan.sequences,
            parts=plan.parts,
        )
    )
    whole = found
    found = _limit(found, plan.options.limit_studies)
    found = replace(found, facts={**found.facts, PHANTOM: is_phantom(listing.root)})
    if plan.options.strict and len(found.rejected):
        first = found.rejected.iloc[0]
        raise DataError(f"{source.name}: {first.file} cannot be used: {first.reason} (--strict).")
    config = plan.config
    treatment = (config.channels.hull_hu(), config.prepare.size, judges_hu, config.prepare.steps(), plan.parts)
    pixels = PixelSettings(source.repair, *treatment, plan.sequences)
    ordered, slices = order_slices(found.files)
    beyond = len(whole.files) + len(whole.rejected) - len(found.files) - len(found.rejected)
    return PlannedSource(found, StudyTasks(ordered, pixels), slices, source.repair, len(index), beyond)


def _limit(plan: SourcePlan, limit: int | None) -> SourcePlan:
    """The first `limit` studies of each split by id, and the sample ids of the remaining test slices."""
    if limit is None:
        return plan
    studies = plan.files[["split", "study_id"]].drop_duplicates().sort_values(["split", "study_id"])
    kept = studies[studies.groupby("split").cumcount() < limit]
    files = plan.files.merge(kept, on=["split", "study_id"])
    rejected = plan.rejected
    known = rejected["study_id"].fillna("").ne("") & rejected["study_id"].isin(studies["study_id"])
    rejected = rejected[~known | rejected["study_id"].isin(kept["study_id"])]
    test = pd.concat([table["slice_id"][table["split"] == "test"] for table in (files, rejected)])
    named = plan.sample_ids["ID"].str.rsplit("_", n=1).str[0]
    sample = plan.sample_ids[named.isin(test)].reset_index(drop=True)
    return replace(plan, files=files, rejected=rejected, sample_ids=sample)
