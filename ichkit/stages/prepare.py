"""DICOM to the Hounsfield store: `work/prepared/`."""

import hashlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from functools import partial
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
from ichkit.core.errors import ArtifactError, ConfigError, DataError, FoldError, nearest
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import StopFlag, format_seconds, logger, stop_on_signal
from ichkit.core.schemas import FOLDS
from ichkit.core.tasks import find_task
from ichkit.engine.parallel import RunTasks, count_cores, count_workers, run_tasks
from ichkit.imaging.store import MADE_BY
from ichkit.sources.collect import PlannedSource
from ichkit.sources.decode import decode_all
from ichkit.sources.files import file_refs, scan_files
from ichkit.sources.index import KEPT_COLUMNS, read_index
from ichkit.sources.plan import Found, SourcePlan, StudyTasks, order_slices
from ichkit.sources.series import read_override
from ichkit.sources.study import PixelSettings
from ichkit.sources.table import SOURCES, TRAINING_SOURCES, Source, is_phantom, locate
from ichkit.stages.prepared import Stamp, write_tables

SETTINGS_FILE = "settings.json"
_BYTES_PER_PIXEL = 0.51
"""Of a compressed volume: 132 kB for a slice of 512 x 512, the noisiest of four real sets."""
_SECONDS_PER_PIXEL = 1.0e-8
"""Of one core, header included: 2.6 ms for a slice of 512 x 512 (`benchmarks/results/prepare.json`)."""
_BASE_BYTES = 300 * 1024**2
_COPIES_OF_A_VOLUME = 2.5
"""A worker holds the volume, its compressed frame, and what the codec needs on the way."""


@dataclass(frozen=True)
class PrepareOptions:
    """What one call of `prepare` may ask for.

    Attributes:
        source: where training data come from, a key of `TRAINING_SOURCES`; None for rsna, or folder where one is named.
        rsna, cq500, folder: roots; None looks where `sources.table.locate` says.
        labels: the label file of a folder.
        series_override: CSV of series chosen by hand (study_id, series).
        limit_studies: the first so many studies of each split, by id.
        fresh: forget what was prepared, except `folds.csv`.
        new_folds: deal the folds anew.
        folds_file: import folds from this CSV (patient_id, fold).
        strict: stop at the first file that cannot be read.
        backend: "processes" or "ray"; None takes the config's.
    """

    source: str | None = None
    rsna: Path | None = None
    cq500: Path | None = None
    folder: Path | None = None
    labels: Path | None = None
    series_override: Path | None = None
    limit_studies: int | None = None
    fresh: bool = False
    new_folds: bool = False
    folds_file: Path | None = None
    strict: bool = False
    backend: str | None = None


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
    source = _training_source(options)
    settings = {
        "task": config.task,
        "source": source,
        "size": config.prepare.size,
        "num_folds": config.prepare.num_folds,
        "hull_hu": list(config.channels.hull_hu()),
    }
    folds = _kept_folds(work, options)
    if not options.fresh:
        _check_settings(work, settings)
    override = None if options.series_override is None else read_override(options.series_override)
    listings = _list_sources(config, options, source)
    inputs = _digest_inputs(listings, options, override)
    asks_folds = options.new_folds or options.folds_file is not None
    if has_artifact(work.prepared) and not options.fresh and not asks_folds:
        manifest = read_manifest(work.prepared, made_by=MADE_BY)
        if all(manifest.inputs.get(name) == digest for name, digest in inputs.items()):
            logger.info("prepare: up to date (%d slices)", manifest.facts["num_slices"])
            return manifest
        logger.info("prepare: the files have changed; taking them up")
    _say_what_is_needed(listings, config, work)
    writer = ArtifactWriter(work.prepared, "prepared", resume=not options.fresh)
    write_bytes_atomically(writer.folder / SETTINGS_FILE, encode_json(settings))
    if folds is not None:
        write_bytes_atomically(writer.folder / "folds.csv", encode_table(folds, ".csv"))
    if options.fresh and work.prepared.exists():
        # Only now: the data were found and the folds are kept, so that a wrong path or a kill here loses nothing.
        shutil.rmtree(work.prepared)
    runner = partial(run_tasks, backend=options.backend or config.prepare.backend)
    with stop_on_signal() as stop:
        read = partial(runner, workers=config.prepare.workers)
        planned = [_plan(item, writer, work, config, options, override, read, stop) for item in listings]
        _check_override(override, planned)
        largest = max(item.tasks.largest_bytes for item in planned)
        workers = count_workers(config.prepare.workers, _BASE_BYTES + int(_COPIES_OF_A_VOLUME * largest))
        records = decode_all(
            [item.tasks for item in planned],
            writer.folder,
            work.prepared,
            run=partial(runner, workers=workers),
            strict=options.strict,
            stop=stop,
        )
    writer.discard(SETTINGS_FILE)
    refused = {item.source.name: item.refused for item in listings}
    data = "phantom" if any(is_phantom(item.root) for item in listings) else source
    return write_tables(writer, planned, records, refused, folds, Stamp(settings, inputs, data), config)


def _training_source(options: PrepareOptions) -> str:
    name = options.source or ("rsna" if options.folder is None else "folder")
    if name not in TRAINING_SOURCES:
        raise ConfigError(f'--source: "{name}" is no source of training data. {nearest(name, TRAINING_SOURCES)}')
    if name != "folder" and (options.folder or options.labels):
        raise ConfigError("--folder and --labels belong to --source folder; RSNA brings its own labels.")
    return name


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


def _list_sources(config: Config, options: PrepareOptions, training: str) -> list[_Listing]:
    given = {
        "rsna": options.rsna or config.prepare.rsna,
        "cq500": options.cq500 or config.prepare.cq500,
        "folder": options.folder,
    }
    listings = []
    for source in (SOURCES[training], SOURCES["cq500"]):
        root = locate(source, given[source.name])
        if root is None:
            places = " or ".join(map(str, source.folders))
            logger.info("prepare: no %s at %s; going on without it", source.name, places)
            continue
        files, refused = scan_files(root)
        listings.append(_Listing(source, root, files, source.find_images(files), refused))
    return listings


def _digest_inputs(listings: list[_Listing], options: PrepareOptions, override: pd.DataFrame | None) -> dict[str, str]:
    """What tells whether there is anything to do: names and sizes of all files, and the content of their tables."""
    inputs = {"limit_studies": str(options.limit_studies or "all")}
    for item in listings:
        inputs[f"{item.source.name}_files"] = digest_table(item.files[["relative", "num_bytes"]])
        tables = item.files[item.files["relative"].str.lower().str.endswith(".csv")]
        sha = hashlib.sha256()
        for ref in file_refs(tables):
            sha.update(ref.read())
        inputs[f"{item.source.name}_tables"] = sha.hexdigest()[:16]
    if options.labels is not None and options.labels.is_file():
        inputs["label_file"] = hashlib.sha256(options.labels.read_bytes()).hexdigest()[:16]
    inputs["series_override"] = "none" if override is None else digest_table(override)
    return inputs


def _say_what_is_needed(listings: list[_Listing], config: Config, work: WorkFolder) -> None:
    """Files, the disk they will take at most beside what is free, and about how long it will take."""
    num_files = sum(len(item.images) for item in listings)
    num_bytes = sum(int(item.images["num_bytes"].sum()) for item in listings)
    # Two bytes a stored pixel; headers are short.
    read_pixels = num_bytes / 2
    written_pixels = num_files * config.prepare.size**2 if config.prepare.size else read_pixels
    needed = written_pixels * _BYTES_PER_PIXEL
    workers = config.prepare.workers or count_cores()
    seconds = read_pixels * _SECONDS_PER_PIXEL / workers
    place = next(folder for folder in (work.root.absolute(), *work.root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    logger.info(
        "prepare: %d files, %.2f GB, on %d processes; at most %.2f GB of disk, %.2f GB free",
        num_files,
        num_bytes / 1e9,
        workers,
        needed / 1e9,
        free / 1e9,
    )
    logger.info(
        "prepare: about %s where the disk reads %.0f MB/s",
        format_seconds(seconds),
        num_bytes / 1e6 / max(seconds, 1e-9),
    )
    if needed > free:
        logger.warning("prepare: the disk may be too small; what is finished stays valid if it fills up")


def _plan(
    listing: _Listing,
    writer: ArtifactWriter,
    work: WorkFolder,
    config: Config,
    options: PrepareOptions,
    override: pd.DataFrame | None,
    read: RunTasks,
    stop: StopFlag,
) -> PlannedSource:
    """Headers of one source, then which file is which slice of which study."""
    source, task = listing.source, find_task(config.task)
    name = f"index_{source.name}.parquet"
    known = next((path for path in (writer.folder / name, work.prepared / name) if path.exists()), None)
    files = listing.images[listing.files.columns]
    index = read_index(files, None if known is None else read_table(known), run=read, stop=stop)
    if source.keeps_index:
        writer.write_table(name, index[KEPT_COLUMNS])
    salt = b"" if source.keeps_index else _read_salt(work)
    plan = source.plan(Found(listing.files, listing.images, index, task, options.labels, override, salt))
    plan = _limit(plan, options.limit_studies)
    if options.strict and len(plan.rejected):
        first = plan.rejected.iloc[0]
        raise DataError(f"{source.name}: {first.file} cannot be taken: {first.reason} (--strict).")
    pixels = PixelSettings(source.repair, config.channels.hull_hu(), config.prepare.size)
    ordered, slices = order_slices(plan.files)
    return PlannedSource(plan, StudyTasks(ordered, pixels), slices, source.repair)


def _read_salt(work: WorkFolder) -> bytes:
    """The secret of this work folder: the same patient must have the same digest in every call, or folds would move."""
    named = os.environ.get("ICHKIT_SALT")
    if named:
        return named.encode()[:64]
    path = work.root / "salt"
    if not path.exists():
        write_bytes_atomically(path, secrets.token_hex(16).encode())
        path.chmod(0o600)
    return path.read_bytes()


def _check_override(override: pd.DataFrame | None, planned: list[PlannedSource]) -> None:
    if override is None:
        return
    known = {study for item in planned for study in item.plan.series_choice["study_id"]}
    unknown = [study for study in override["study_id"] if study not in known]
    if unknown:
        raise DataError(
            f"series override: {len(unknown)} studies are not among the {len(known)} whose series are chosen, "
            f"e.g. {unknown[0]}. Use the ids of series_choice.csv."
        )


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
