"""The plan of `prepare`: the sources, settings and folds found, and the disk and time needed."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.csv_tables import read_csv
from ichkit.core.errors import ArtifactError, ConfigError, DataError, FoldError, nearest
from ichkit.core.progress import format_count, format_seconds, logger
from ichkit.core.roles import Role, title_of
from ichkit.core.rows import find_row
from ichkit.core.tasks import find_task
from ichkit.engine.parallel import Backend, count_cores
from ichkit.imaging.dicom import MAX_FILE_BYTES
from ichkit.imaging.header_facts import HEADER_FACTS
from ichkit.imaging.parts import WHOLE, PartSettings
from ichkit.imaging.sequence_steps import SEQUENCE_STEPS
from ichkit.imaging.sequences import SequenceSettings
from ichkit.imaging.steps import find_step
from ichkit.imaging.store import Codec
from ichkit.show.plan import Forecast, Plan, format_bytes, nearest_folder
from ichkit.sources.external import ExternalSet, find_external_source
from ichkit.sources.files import count_read, digest_tables, scan_files
from ichkit.sources.index import CT, MR
from ichkit.sources.labels import check_subgroups
from ichkit.sources.sequence_files import with_landmarks
from ichkit.sources.series import read_override
from ichkit.sources.table import (
    OTHER_SERIES,
    SOURCES,
    DataSource,
    external_sources,
    locate,
    takes_folder,
    training_sources,
)
from ichkit.stages.prepare.label_ids import compare_ids
from ichkit.work.artifacts import Manifest, digest_file, digest_table, has_artifact, list_differences, read_manifest
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import Look, look_at
from ichkit.work.places import partial_of
from ichkit.work.schemas import FOLDS, LOCKS

SETTINGS_FILE = "settings.json"
FOLDS_NAME, LOCKS_NAME = "folds.csv", "locked.csv"
_FILES = "_files"
_SUBGROUPS = "subgroups"
LOCK = "lock"
"""Setting of a store with locked patients: their share."""
_BYTES_PER_PIXEL: dict[Codec, float] = {"compact": 0.51, "fast": 0.63}
"""Size of a compressed volume: 132 kB per slice of 512 x 512, the noisiest of four real data sets."""
_SECONDS_PER_PIXEL = 1.0e-8
"""Time of one core, header included: 2.6 ms per slice of 512 x 512 (`benchmarks/results/prepare.json`)."""
_START_SECONDS = 5.0
"""Time to start the processes and compile their kernels: most of the time of small data."""


@dataclass(frozen=True)
class PrepareOptions:
    """Options of `prepare`.

    Attributes:
        source: training data, one of `training_sources`; None for "folder" if `folder` is given, else "rsna".
        rsna, cq500, folder: roots; None for the default folders of `sources.table.locate`.
        labels: the label file of the folder.
        external: external sets in addition to those of `SOURCES`.
        subgroups: columns of the label files that make subgroups; empty for those of the existing store.
        series_override: CSV of manually chosen series (study_id, series).
        limit_studies: only this many studies of each split, first by id.
        lock: the share of patients to lock away from training, for `--prove`; None keeps an earlier lock.
        fresh: discard what was prepared, except `folds.csv`.
        new_folds: re-create the folds; existing runs become invalid.
        folds_file: import folds from this CSV (patient_id, fold).
        strict: stop at the first unreadable file.
        accept_raw: accept slices whose values may not be Hounsfield units.
        skip_undecodable: reject images whose decoder is not installed, instead of stopping.
        backend: "processes" or "ray"; None takes the config's.
        store: how volumes are compressed, "compact" or "fast"; None takes the config's.
    """

    source: str | None = None
    rsna: Path | None = None
    cq500: Path | None = None
    folder: Path | None = None
    labels: Path | None = None
    external: tuple[ExternalSet, ...] = ()
    subgroups: tuple[str, ...] = ()
    series_override: Path | None = None
    limit_studies: int | None = None
    lock: float | None = None
    fresh: bool = False
    new_folds: bool = False
    folds_file: Path | None = None
    strict: bool = False
    accept_raw: bool = False
    skip_undecodable: bool = False
    backend: Backend | None = None
    store: Codec | None = None


@dataclass(frozen=True)
class ListedSource:
    """A source found on this machine: all its files, its image files, rejected zip members, and its label file."""

    source: DataSource
    labels: Path | None
    root: Path
    files: pd.DataFrame
    images: pd.DataFrame
    refused: pd.DataFrame


@dataclass(frozen=True)
class PreparePlan(Plan):
    """What `prepare` found; no DICOM header is read yet.

    Attributes:
        source: the training data.
        settings: the settings that determine the bytes of the store.
        folds: imported or existing folds; None to create them.
        locked: the patients that are locked, and those that are not; None if nothing was locked before.
        override: manually chosen series.
        listings: the sources found.
        inputs: digests of the input files.
        current: the manifest of a store that is up to date, else None.
        is_update: a finished store of other input files exists.
        subgroups: columns of the label files that make subgroups.
        sequences: how the sequences of a study become one volume; None for CT.
    """

    config: Config
    work: WorkFolder
    options: PrepareOptions
    source: str
    settings: dict[str, Any]
    folds: pd.DataFrame | None
    locked: pd.DataFrame | None
    override: pd.DataFrame | None
    listings: list[ListedSource]
    inputs: dict[str, str]
    current: Manifest | None
    is_update: bool
    seen: Look
    subgroups: tuple[str, ...] = ()
    sequences: SequenceSettings | None = None

    @property
    def parts(self) -> PartSettings:
        """How studies are cut."""
        return PartSettings.from_json(self.settings.get("parts"))

    @property
    def by_part(self) -> bool:
        """Whether studies are cut, so that labels may be those of parts."""
        return "parts" in self.settings

    @property
    def codec(self) -> Codec:
        """How the volumes are compressed that it writes."""
        return self.options.store or self.config.prepare.store

    @property
    def note_on_codec(self) -> str:
        """What a message on a store that stays as it is adds where `--store` is given."""
        return f"; volumes stay as they are, --fresh writes all with --store {self.codec}" if self.options.store else ""

    @property
    def writes(self) -> tuple[Path, ...]:
        """The store."""
        return () if self.current is not None else (self.work.prepared,)

    def forecast(self) -> Forecast:
        """The sources, their label files, the folds, and what happens to an existing store.

        Disk space is an upper bound from file sizes; time is that of all processes, if the disk is fast enough.

        Raises:
            DataError: a label file is invalid, or not of these scans.
        """
        if self.current is not None:
            return Forecast((f"prepare: up to date, nothing to do{self.note_on_codec}",))
        estimate, task = self._estimate(), find_task(self.config.task)
        compared = [
            compare_ids(item.labels, item.images, task, self.subgroups, by_part=self.by_part)
            for item in self.listings
            if item.labels is not None and item.source.modality == CT
        ]
        return replace(estimate, steps=(*estimate.steps, *compared))

    def _estimate(self) -> Forecast:
        """The forecast without a look into any file."""
        steps = [
            f"{item.source.name}: {num_files} files of {item.root}, {format_bytes(num_bytes)}{_say_others(item)}"
            for item, (num_files, num_bytes) in self._count_by_source()
        ]
        if self.options.limit_studies is not None:
            limit = self.options.limit_studies
            steps.append(f"only {limit} studies of each split: less disk and time than estimated here")
        if self.folds is None:
            steps.append(f"assigns the patients to {self.config.prepare.num_folds} folds")
        else:
            steps.append(f"keeps the folds of {len(self.folds)} patients and assigns new patients to them")
        if self.locked is not None:
            steps.append(f"keeps {self.locked['is_locked'].sum()} patients locked")
        elif lock := self.settings.get(LOCK):
            steps.append(f"locks one patient in {round(1 / lock)} away from training, for --prove")
        if self.is_update:
            steps.append("the input files have changed: studies that are prepared already are reused")
        elif self.options.fresh and self.work.prepared.exists():
            steps.append(f"removes {self.work.prepared} first (--fresh)")
        num_files, read_bytes = self.count_images()
        size, workers = self.config.prepare.size, self.config.prepare.workers or count_cores()
        # Two bytes per stored pixel; headers are short.
        written_pixels = num_files * size**2 if size else read_bytes / 2
        return Forecast(
            tuple(steps),
            written_pixels * _BYTES_PER_PIXEL[self.codec],
            _START_SECONDS + read_bytes / 2 * _SECONDS_PER_PIXEL / workers,
            f"on {format_count(workers, 'process', 'processes')}, if the disk is fast enough",
        )

    def count_images(self) -> tuple[int, int]:
        """Number and total size in bytes of the image files, without those too large to be read."""
        counts = [count for _, count in self._count_by_source()]
        return sum(num_files for num_files, _ in counts), sum(num_bytes for _, num_bytes in counts)

    def _count_by_source(self) -> list[tuple[ListedSource, tuple[int, int]]]:
        return [(item, count_read(item.images)) for item in self.listings]

    def count_roles(self) -> tuple[int, int]:
        """Number of image files of the training data, and of the external sets."""
        counts = {item.source.name: len(item.images) for item in self.listings}
        own = counts.pop(self.source)
        return own, sum(counts.values())

    def log_needs(self) -> None:
        """Logs the files, the disk space needed at most and free, and the time."""
        (num_files, num_bytes), forecast = self.count_images(), self._estimate()
        needed, seconds = forecast.num_bytes or 0, forecast.seconds or 0
        free = shutil.disk_usage(nearest_folder(self.work.root)).free
        logger.info(
            "prepare: %s, %.2f GB; at most %.2f GB of disk, %.2f GB free",
            format_count(num_files, "file"),
            num_bytes / 1e9,
            needed / 1e9,
            free / 1e9,
        )
        speed = num_bytes / 1e6 / max(seconds, 1e-9)
        logger.info("prepare: about %s %s (%.0f MB/s)", format_seconds(seconds), forecast.basis, speed)
        if needed > free:
            logger.warning("prepare: the disk may be too small; if it fills up, finished studies are kept")


def _say_others(item: ListedSource) -> str:
    """The number of files that are no images by their names, of which `rejected.csv` has no row."""
    num_others = len(item.files) - len(item.images)
    return f"; {format_count(num_others, 'other file')}, by name no image" if num_others else ""


def plan(config: Config, work: WorkFolder, options: PrepareOptions | None = None) -> PreparePlan:
    """Lists the files, checks the options, and decides whether there is anything to do; writes nothing.

    Raises:
        DataError: no data in a folder that was named, or none at all.
        ConfigError: options exclude each other, or an unknown `prepare.crop` or `prepare.parts`.
        ArtifactError: the existing store was made from other settings.
        FoldError: an invalid file of folds.
    """
    options, seen, task = options or PrepareOptions(), look_at(work.prepared), find_task(config.task)
    source = _training_source(options)
    settings, sequences = store_settings(config, source), _find_sequences(config, source)
    folds, locked = _kept_folds(work, options), _kept_locks(work)
    lock = options.lock or (None if locked is None else _earlier_settings(work).get(LOCK))
    if lock is not None:
        settings[LOCK] = lock
    if not options.fresh:
        _check_settings(work, settings)
    override = None if options.series_override is None else read_override(options.series_override)
    listings = _list_sources(config, options, source)
    inputs = _digest_inputs(listings, options, override)
    if subgroups := options.subgroups or _earlier_subgroups(work, options):
        subgroups = check_subgroups(subgroups, [item.labels for item in listings if item.labels is not None], task)
        inputs[_SUBGROUPS] = ",".join(subgroups)
    asks_folds = options.new_folds or options.folds_file is not None
    is_update = has_artifact(work.prepared) and not options.fresh and not asks_folds
    current = read_manifest(work.prepared) if is_update else None
    if current is not None and _is_old(current, inputs, listings):
        _refuse_to_drop(current, listings)
        current = None
    return PreparePlan(
        *(config, work, options, source, settings, folds, locked, override, listings, inputs, current, is_update, seen),
        subgroups=subgroups,
        sequences=sequences,
    )


def store_settings(config: Config, source: str) -> dict[str, Any]:
    """The settings of a store of this source, by which it is known again; `lock` is added where patients are locked.

    Raises:
        ConfigError, DataError: see `plan`.
    """
    settings: dict[str, Any] = {
        "task": config.task,
        "source": source,
        "size": config.prepare.size,
        "num_folds": config.prepare.num_folds,
        "hull_hu": list(config.channels.hull_hu()),
    }
    if steps := config.prepare.steps():
        settings["steps"] = [find_step(name).name for name in steps]
    if (sequences := _find_sequences(config, source)) is not None:
        settings["sequences"] = sequences.to_json()
    parts = PartSettings.of(config.prepare.parts)
    if parts.kind != WHOLE:
        settings["parts"] = parts.to_json()
    if facts := config.prepare.header_facts:
        settings["header_facts"] = sorted({find_row(HEADER_FACTS, name, "prepare.header_facts").name for name in facts})
    return settings


def _find_sequences(config: Config, source: str) -> SequenceSettings | None:
    """How the sequences of a study become one volume; None for a source of CT.

    Raises:
        ConfigError: sequences of CT, or none of MR; an unknown step; `prepare.crop`.
        DataError: the template or the reference study cannot be read.
    """
    given, is_mr = config.prepare.sequences, SOURCES[source].modality == MR
    if bool(given.names) != is_mr:
        found = f"names {list(given.names)}" if given.names else "none"
        raise ConfigError(
            f"prepare.sequences.names: expected {'the sequences of a study' if is_mr else 'none'} for --source "
            f"{source}, found {found}. The config onset2021 has those of MR."
        )
    settings = SequenceSettings.of(given)
    if settings is None:
        return None
    for name in settings.steps:
        find_row(SEQUENCE_STEPS, name, "prepare.sequences.steps")
    if config.prepare.crop != "none":
        raise ConfigError("prepare.crop: sequences have a grid of their own. Set prepare.sequences.field_mm instead.")
    reference = given.histogram if "histogram" in settings.steps else None
    return settings if reference is None else with_landmarks(settings, reference)


def _training_source(options: PrepareOptions) -> str:
    name = options.source or ("rsna" if options.folder is None else "folder")
    names = training_sources()
    if name not in names:
        raise ConfigError(f'--source: "{name}" is not a source of training data. {nearest(name, names)}')
    if not takes_folder(name) and (options.folder or options.labels):
        raise ConfigError("--folder and --labels need --source folder or bids; RSNA has its own labels.")
    return name


def _earlier_subgroups(work: WorkFolder, options: PrepareOptions) -> tuple[str, ...]:
    """The subgroup columns of the existing store, which a later call keeps."""
    if options.fresh or not has_artifact(work.prepared):
        return ()
    known = read_manifest(work.prepared).inputs.get(_SUBGROUPS, "")
    return tuple(known.split(",")) if known else ()


def _check_settings(work: WorkFolder, settings: dict[str, object]) -> None:
    """Raises if a finished or unfinished store was made from other settings."""
    found = _earlier_settings(work)
    if found and (differences := list_differences(found, settings)):
        raise ArtifactError(
            f"{work.prepared}: made from other settings ({'; '.join(differences)}). "
            "Use the same settings, another --work, or start over: this command with --fresh (folds.csv is kept)."
        )


def _earlier_settings(work: WorkFolder) -> dict[str, Any]:
    """The settings of a finished or unfinished store; none without a store."""
    unfinished = partial_of(work.prepared) / SETTINGS_FILE
    if has_artifact(work.prepared):
        return read_manifest(work.prepared).settings
    return dict(json.loads(unfinished.read_text())) if unfinished.exists() else {}


def _is_old(before: Manifest, inputs: dict[str, str], listings: list[ListedSource]) -> bool:
    """True for a store of other input files, or of a version that did not yet write every table."""
    made = {name for item in listings for name in item.source.makes}
    return any(before.inputs.get(name) != digest for name, digest in inputs.items()) or not made <= before.files.keys()


def _refuse_to_drop(before: Manifest, listings: list[ListedSource]) -> None:
    """Refuses to update a store without an external set that it contains.

    Raises:
        ConfigError: one is not named now.
    """
    named = {name.removesuffix(_FILES) for name in before.inputs if name.endswith(_FILES)}
    for name in sorted(named - {item.source.name for item in listings}):
        labels = "" if name in OTHER_SERIES else f" --labels {name}=CSV"
        option = f"--{name} PATH" if name in SOURCES else f"--external {name}=PATH{labels}"
        raise ConfigError(
            f'prepare: the store contains the external set "{title_of(name)}", and input files have changed. Name it '
            f"again to keep it ({option}), or start over without it (--fresh)."
        )


def _kept_folds(work: WorkFolder, options: PrepareOptions) -> pd.DataFrame | None:
    """Imported folds or those of an earlier call; None to create new ones."""
    if options.folds_file is not None:
        return read_folds(options.folds_file)
    if options.new_folds:
        return None
    found = _kept_file(work, FOLDS_NAME)
    return None if found is None else read_folds(found)


def _kept_locks(work: WorkFolder) -> pd.DataFrame | None:
    """The locked patients of an earlier call; None if nothing was locked."""
    path = _kept_file(work, LOCKS_NAME)
    if path is None:
        return None
    try:
        return read_csv(path, dtype={"patient_id": "str", "is_locked": "bool"}, keep_default_na=False)[LOCKS]
    except (OSError, ValueError, KeyError) as error:
        raise FoldError(
            f"{path}: expected a CSV with the columns patient_id, is_locked (True or False): {error}"
        ) from error


def _kept_file(work: WorkFolder, name: str) -> Path | None:
    """A file of the finished store, else of an unfinished one; None if there is none."""
    places = [work.prepared / name, partial_of(work.prepared) / name]
    return next((path for path in places if path.exists()), None)


def read_folds(path: Path) -> pd.DataFrame:
    """patient_id and fold of every row of a CSV; a patient may be called NA.

    Raises:
        FoldError: not a CSV with these columns, or a fold that is not an integer.
    """
    expected = f"{path}: expected a CSV with the columns patient_id, fold (an integer)"
    try:
        table = read_csv(path, dtype={"patient_id": "str", "fold": "str"}, keep_default_na=False)[FOLDS]
    except (OSError, ValueError, KeyError) as error:
        raise FoldError(f"{expected}: {error}") from error
    # pandas would read 1e999 as the lowest integer.
    is_whole = table["fold"].str.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*")
    if not is_whole.all():
        row = int(np.flatnonzero(~is_whole)[0])
        raise FoldError(f"{expected}: found {table['fold'][row]!r} in row {row + 2}")
    return table.astype({"fold": "int64"})


def _list_sources(config: Config, options: PrepareOptions, training: str) -> list[ListedSource]:
    given = {
        "rsna": options.rsna or config.prepare.rsna,
        "cq500": options.cq500 or config.prepare.cq500,
        **({training: options.folder} if takes_folder(training) else {}),
    }
    modality = SOURCES[training].modality
    labels = {training: options.labels}
    wanted = {name: SOURCES[name] for name in (training, *external_sources()) if SOURCES[name].modality == modality}
    for item in options.external:
        wanted[item.name] = find_external_source(item.name, modality)
        given[item.name], labels[item.name] = item.root, item.labels
        if item.labels is None and item.name not in {*SOURCES, *OTHER_SERIES}:
            raise ConfigError(
                f'prepare: expected a label file for the external set "{item.name}", found none. Name it with '
                f"--labels {item.name}=CSV. For scans without labels there is `ichkit predict`."
            )
    listings = []
    for source in wanted.values():
        root = locate(source, given.get(source.name))
        if root is None:
            places = " or ".join(map(str, source.folders))
            logger.info("prepare: no %s at %s; continuing without it", source.name, places)
            continue
        files, refused = scan_files(root)
        listings.append(ListedSource(source, labels.get(source.name), root, files, source.find_images(files), refused))
    return listings


def _digest_inputs(
    listings: list[ListedSource], options: PrepareOptions, override: pd.DataFrame | None
) -> dict[str, str]:
    """Digests of the inputs: names and sizes of all files, and the content of their tables."""
    inputs = {"limit_studies": str(options.limit_studies or "all")}
    inputs |= {"accept_raw": str(options.accept_raw), "skip_undecodable": str(options.skip_undecodable)}
    for item in listings:
        inputs[f"{item.source.name}{_FILES}"] = digest_table(item.files[["relative", "num_bytes"]])
        inputs[f"{item.source.name}_tables"] = digest_tables(item.files, item.source.tables)
        if item.labels is not None and item.labels.is_file():
            name = "label_file" if item.source.role is Role.TRAINING else f"{item.source.name}_label_file"
            inputs[name] = _digest_labels(item.labels)
    inputs["series_override"] = "none" if override is None else digest_table(override)
    return inputs


def _digest_labels(path: Path) -> str:
    """The digest of a label file.

    Raises:
        DataError: the file is too large.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{path}: expected a label file of at most {MAX_FILE_BYTES // 1024**2} MB, found "
            f"{size / 1024**2:.0f} MB. Name the CSV with --labels."
        )
    return digest_file(path)[:16]
