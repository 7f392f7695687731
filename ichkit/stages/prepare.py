"""DICOM to the Hounsfield store: `work/prepared/`."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from ichkit.core.artifacts import (
    ArtifactWriter,
    Manifest,
    digest_table,
    encode_json,
    encode_table,
    has_artifact,
    list_differences,
    partial_of,
    read_manifest,
    read_table,
    write_bytes_atomically,
)
from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, DataError, FoldError
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import StopFlag, logger, stop_on_signal
from ichkit.core.schemas import FOLDS, KEY, REJECTED, SERIES_CHOICE
from ichkit.core.tasks import Task, find_task
from ichkit.engine.parallel import count_cores
from ichkit.imaging.store import MADE_BY
from ichkit.sources.collect import PlannedSource, collect_failures, collect_slices, collect_studies
from ichkit.sources.decode import decode_all, keep_records
from ichkit.sources.files import scan_files
from ichkit.sources.index import read_index
from ichkit.sources.plan import SourcePlan, StudyTasks, order_slices
from ichkit.sources.study import PixelSettings, StudyRecord
from ichkit.sources.table import SOURCES, Source, is_phantom, locate
from ichkit.validation.folds import assign_folds, check_folds, tally_studies

SETTINGS_FILE = "settings.json"
_BYTES_PER_PIXEL = 0.45
"""Of a compressed volume; 115 kB for a slice of 512 x 512, the largest of three real sets."""


@dataclass(frozen=True)
class PrepareOptions:
    """What one call of `prepare` may ask for.

    Attributes:
        rsna, cq500: roots; None looks where `sources.table.locate` says.
        limit_studies: the first so many studies of each split, by id.
        fresh: forget what was prepared, except `folds.csv`.
        new_folds: deal the folds anew.
        folds_file: import folds from this CSV (patient_id, fold).
        strict: stop at the first file that cannot be read.
    """

    rsna: Path | None = None
    cq500: Path | None = None
    limit_studies: int | None = None
    fresh: bool = False
    new_folds: bool = False
    folds_file: Path | None = None
    strict: bool = False


@dataclass(frozen=True)
class _Stamp:
    """What the manifest will say of where the artifact came from."""

    settings: dict[str, object]
    inputs: dict[str, str]


@dataclass(frozen=True)
class _Listing:
    """A source found on this machine: its files, and the images among them."""

    source: Source
    root: Path
    files: pd.DataFrame
    images: pd.DataFrame
    refused: pd.DataFrame


def run(config: Config, work: WorkFolder, options: PrepareOptions = PrepareOptions()) -> Manifest:
    """Makes `work/prepared/`, or takes up new files in it, or finds nothing to do.

    Raises:
        DataError: no data, or data that contradict themselves.
        ArtifactError: what is there was made from other settings.
        FoldError: folds that do not fit.
        Stopped: a stop signal; the next call goes on.
    """
    settings = {
        "task": config.task,
        "size": config.prepare.size,
        "num_folds": config.prepare.num_folds,
        "hull_hu": list(config.channels.hull_hu()),
    }
    folds = _kept_folds(work, options)
    if not options.fresh:
        _check_settings(work, settings)
    listings = _list_sources(config, options)
    _say_what_is_needed(listings, config, work)
    inputs = {f"{item.source.name}_files": digest_table(item.files[["relative", "num_bytes"]]) for item in listings}
    inputs["limit_studies"] = str(options.limit_studies or "all")
    asks_folds = options.new_folds or options.folds_file is not None
    if has_artifact(work.prepared) and not options.fresh and not asks_folds:
        manifest = read_manifest(work.prepared, made_by=MADE_BY)
        if all(manifest.inputs.get(name) == digest for name, digest in inputs.items()):
            logger.info("prepare: up to date (%d slices)", manifest.facts["num_slices"])
            return manifest
        logger.info("prepare: the files have changed; taking them up")
    writer = ArtifactWriter(work.prepared, "prepared", resume=not options.fresh)
    write_bytes_atomically(writer.folder / SETTINGS_FILE, encode_json(settings))
    if folds is not None:
        write_bytes_atomically(writer.folder / "folds.csv", encode_table(folds, ".csv"))
    if options.fresh and work.prepared.exists():
        # Only now: the data were found and the folds are kept, so that a wrong path or a kill here loses nothing.
        shutil.rmtree(work.prepared)
    with stop_on_signal() as stop:
        planned = [_plan(item, writer, work, config, options, stop) for item in listings]
        records = decode_all(
            [item.tasks for item in planned],
            writer.folder,
            work.prepared,
            workers=config.prepare.workers,
            strict=options.strict,
            stop=stop,
        )
    return _write_tables(writer, planned, listings, records, folds, _Stamp(settings, inputs), config)


def _check_settings(work: WorkFolder, settings: dict[str, object]) -> None:
    """Refuses to go on with work made from other settings."""
    unfinished = partial_of(work.prepared) / SETTINGS_FILE
    if has_artifact(work.prepared):
        found = read_manifest(work.prepared, made_by=MADE_BY).settings
    elif unfinished.exists():
        found = json.loads(unfinished.read_text())
    else:
        return
    if differences := list_differences(found, settings):
        raise ArtifactError(
            f"{work.prepared}: made from other settings ({'; '.join(differences)}). "
            "Use the same settings, another --work, or start over with `ichkit prepare --fresh` (folds.csv is kept)."
        )


def _kept_folds(work: WorkFolder, options: PrepareOptions) -> pd.DataFrame | None:
    """Folds imported, or those of an earlier call; None where they are to be dealt anew."""
    if options.folds_file is not None:
        return _read_folds(options.folds_file)
    if options.new_folds:
        return None
    places = [work.prepared / "folds.csv", partial_of(work.prepared) / "folds.csv"]
    found = next((path for path in places if path.exists()), None)
    return None if found is None else _read_folds(found)


def _read_folds(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype={"patient_id": "str", "fold": "int64"})[FOLDS]
    except (OSError, ValueError, KeyError) as error:
        raise FoldError(f"{path}: expected a CSV with columns patient_id, fold (a whole number): {error}") from error


def _list_sources(config: Config, options: PrepareOptions) -> list[_Listing]:
    given = {"rsna": options.rsna or config.prepare.rsna, "cq500": options.cq500 or config.prepare.cq500}
    listings = []
    for name, source in SOURCES.items():
        root = locate(source, given[name])
        if root is None:
            logger.info("prepare: no %s at %s; going on without it", name, " or ".join(map(str, source.folders)))
            continue
        files, refused = scan_files(root)
        listings.append(_Listing(source, root, files, source.find_images(files), refused))
    return listings


def _say_what_is_needed(listings: list[_Listing], config: Config, work: WorkFolder) -> None:
    """Files, and the disk they will take at most beside what is free."""
    num_files = sum(len(item.images) for item in listings)
    pixels = config.prepare.size**2 if config.prepare.size else 512**2
    needed = num_files * pixels * _BYTES_PER_PIXEL
    place = next(folder for folder in (work.root.absolute(), *work.root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    logger.info(
        "prepare: %d files on %d processes; at most %.2f GB of disk, %.2f GB free",
        num_files,
        config.prepare.workers or count_cores(),
        needed / 1e9,
        free / 1e9,
    )
    if needed > free:
        logger.warning("prepare: the disk may be too small; what is finished stays valid if it fills up")


def _plan(
    listing: _Listing,
    writer: ArtifactWriter,
    work: WorkFolder,
    config: Config,
    options: PrepareOptions,
    stop: StopFlag,
) -> PlannedSource:
    """Headers of one source, then which file is which slice of which study."""
    name = f"index_{listing.source.name}.parquet"
    known = next((path for path in (writer.folder / name, work.prepared / name) if path.exists()), None)
    files = listing.images[listing.files.columns]
    index = read_index(files, None if known is None else read_table(known), workers=config.prepare.workers, stop=stop)
    writer.write_table(name, index)
    plan = listing.source.plan(listing.files, listing.images, index, find_task(config.task))
    plan = _limit(plan, options.limit_studies)
    if options.strict and len(plan.rejected):
        first = plan.rejected.iloc[0]
        raise DataError(f"{listing.source.name}: {first.file} cannot be taken: {first.reason} (--strict).")
    pixels = PixelSettings(listing.source.repair, config.channels.hull_hu(), config.prepare.size)
    ordered, slices = order_slices(plan.files)
    return PlannedSource(plan, StudyTasks(ordered, pixels), slices, listing.source.repair)


def _limit(plan: SourcePlan, limit: int | None) -> SourcePlan:
    """The first `limit` studies of each split by id, and the sample ids of the test slices that are left."""
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


def _write_tables(
    writer: ArtifactWriter,
    planned: list[PlannedSource],
    listings: list[_Listing],
    records: dict[str, StudyRecord],
    folds: pd.DataFrame | None,
    stamp: _Stamp,
    config: Config,
) -> Manifest:
    """Tables, folds and manifest, once every volume is written."""
    task = find_task(config.task)
    slices = pd.concat([collect_slices(item, records, task) for item in planned], ignore_index=True)
    slices = slices.sort_values(["dataset", *KEY], ignore_index=True)
    train = slices["split"] == "train"
    if not train.any():
        raise DataError("prepare: no training slice could be read; see the reasons with --debug, or check the path.")
    folds = _deal(slices[train], folds, config, task)
    fold_of = folds.set_index("patient_id")["fold"]
    slices.loc[train, "fold"] = slices["patient_id"][train].map(fold_of).astype("Int16")
    check_folds(slices)
    studies = collect_studies(slices, [item.plan for item in planned], task)
    failures = [collect_failures(item, records) for item in planned]
    refused = [_refused_members(item) for item in listings]
    rejected = [*(item.plan.rejected for item in planned), *failures, *refused]
    rejected = pd.concat([table for table in rejected if len(table)] or [pd.DataFrame(columns=REJECTED)])
    choices = [item.plan.series_choice for item in planned if len(item.plan.series_choice)]
    samples = [item.plan.sample_ids for item in planned if len(item.plan.sample_ids)]
    writer.write_table("slices.parquet", slices)
    writer.write_table("studies.parquet", studies)
    writer.write_table("folds.csv", folds)
    writer.write_table("rejected.csv", rejected.sort_values(["dataset", "file"], ignore_index=True))
    writer.write_table("series_choice.csv", pd.concat(choices) if choices else pd.DataFrame(columns=SERIES_CHOICE))
    writer.write_table("sample_ids.csv", samples[0] if samples else pd.DataFrame(columns=["ID"]))
    keep_records(writer, records)
    (writer.folder / SETTINGS_FILE).unlink()
    facts = {
        "data": "phantom" if any(is_phantom(item.root) for item in listings) else "rsna",
        "num_slices": len(slices),
        "num_studies": len(studies),
        "num_rejected": len(rejected),
        **{item.source.name: plan.plan.facts for item, plan in zip(listings, planned, strict=True)},
    }
    inputs = dict(stamp.inputs)
    for item in planned:
        inputs |= item.plan.inputs
    manifest = writer.commit(settings=stamp.settings, inputs=inputs, facts=facts)
    _say_what_came(slices, studies, rejected, facts)
    return manifest


def _deal(train: pd.DataFrame, existing: pd.DataFrame | None, config: Config, task: Task) -> pd.DataFrame:
    """Folds of every patient, known ones where they were; patients of `existing` that are not here keep their row."""
    tally = tally_studies(train, task.classes)
    return assign_folds(tally, config.prepare.num_folds, task.classes, config.seed, existing)


def _refused_members(listing: _Listing) -> pd.DataFrame:
    table = listing.refused.rename(columns={"relative": "file"}).assign(dataset=listing.source.name)
    return table.reindex(columns=REJECTED)


def _say_what_came(slices: pd.DataFrame, studies: pd.DataFrame, rejected: pd.DataFrame, facts: dict) -> None:
    for (dataset, split), rows in slices.groupby(["dataset", "split"]):
        of_split = studies[(studies["dataset"] == dataset) & (studies["split"] == split)]
        positive = of_split[of_split.columns[-1]].sum()
        seen = "" if split == "test" else f", {positive} of them positive"
        logger.info("prepare: %s %s: %d slices of %d studies%s", dataset, split, len(rows), len(of_split), seen)
    for reason, count in rejected["reason"].value_counts().items():
        logger.info("prepare: %d rejected: %s", count, reason)
    missing = facts.get("cq500", {}).get("missing_studies", [])
    if missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        logger.info("prepare: %d CQ500 studies of reads.csv have no usable series: %s", len(missing), shown)
