"""The plan of `prepare`: sources, settings and folds that were found, and what the work will take."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ichkit.core.config import Config
from ichkit.core.csv_tables import read_csv
from ichkit.core.errors import ArtifactError, ConfigError, DataError, FoldError, nearest
from ichkit.core.progress import format_seconds, logger
from ichkit.core.roles import Role
from ichkit.engine.parallel import count_cores
from ichkit.imaging.dicom import MAX_FILE_BYTES
from ichkit.show.plan import Plan, format_bytes, nearest_folder
from ichkit.sources.external import ExternalSet, find_external_source
from ichkit.sources.files import digest_tables, scan_files
from ichkit.sources.series import read_override
from ichkit.sources.table import SOURCES, DataSource, external_sources, locate, training_sources
from ichkit.work.artifacts import Manifest, digest_file, digest_table, has_artifact, list_differences, read_manifest
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import Look, look_at
from ichkit.work.places import partial_of
from ichkit.work.schemas import FOLDS

SETTINGS_FILE = "settings.json"
_FILES = "_files"
_BYTES_PER_PIXEL = 0.51
"""Of a compressed volume: 132 kB for a slice of 512 x 512, the noisiest of four real sets."""
_SECONDS_PER_PIXEL = 1.0e-8
"""Of one core, header included: 2.6 ms for a slice of 512 x 512 (`benchmarks/results/prepare.json`)."""


@dataclass(frozen=True)
class PrepareOptions:
    """What one call of `prepare` may ask for.

    Attributes:
        source: where training data come from, one of `training_sources`; None for rsna, or folder where one is named.
        rsna, cq500, folder: roots; None looks where `sources.table.locate` says.
        labels: the label file of the folder.
        external: external sets beside those of `SOURCES`.
        series_override: CSV of series chosen by hand (study_id, series).
        limit_studies: the first so many studies of each split, by id.
        fresh: forget what was prepared, except `folds.csv`.
        new_folds: deal the folds anew.
        folds_file: import folds from this CSV (patient_id, fold).
        strict: stop at the first file that cannot be read.
        accept_raw: take slices although their values may not be Hounsfield units.
        skip_undecodable: leave out images whose decoder is not installed, instead of stopping before the work.
        backend: "processes" or "ray"; None takes the config's.
    """

    source: str | None = None
    rsna: Path | None = None
    cq500: Path | None = None
    folder: Path | None = None
    labels: Path | None = None
    external: tuple[ExternalSet, ...] = ()
    series_override: Path | None = None
    limit_studies: int | None = None
    fresh: bool = False
    new_folds: bool = False
    folds_file: Path | None = None
    strict: bool = False
    accept_raw: bool = False
    skip_undecodable: bool = False
    backend: str | None = None


@dataclass(frozen=True)
class ListedSource:
    """A source found on this machine: its files, the images among them, and the label file named for it."""

    source: DataSource
    labels: Path | None
    root: Path
    files: pd.DataFrame
    images: pd.DataFrame
    refused: pd.DataFrame


@dataclass(frozen=True)
class Needs:
    """What the work will take, from the files alone: no header was read.

    Attributes:
        num_files, num_bytes: of the images.
        disk_bytes: the most that the store takes.
        workers: processes.
        seconds: of all of them, where the disk is fast enough.
    """

    num_files: int
    num_bytes: int
    disk_bytes: float
    workers: int
    seconds: float

    @classmethod
    def of(cls, listings: list[ListedSource], config: Config) -> "Needs":
        """The needs of these sources."""
        num_files = sum(len(item.images) for item in listings)
        num_bytes = sum(int(item.images["num_bytes"].sum()) for item in listings)
        # Two bytes a stored pixel; headers are short.
        read_pixels = num_bytes / 2
        written_pixels = num_files * config.prepare.size**2 if config.prepare.size else read_pixels
        workers = config.prepare.workers or count_cores()
        seconds = read_pixels * _SECONDS_PER_PIXEL / workers
        return cls(num_files, num_bytes, written_pixels * _BYTES_PER_PIXEL, workers, seconds)

    def say(self, work: WorkFolder) -> None:
        """Files, the disk they will take at most beside what is free, and about how long it will take."""
        free = shutil.disk_usage(nearest_folder(work.root)).free
        logger.info(
            "prepare: %d files, %.2f GB, on %d processes; at most %.2f GB of disk, %.2f GB free",
            self.num_files,
            self.num_bytes / 1e9,
            self.workers,
            self.disk_bytes / 1e9,
            free / 1e9,
        )
        logger.info(
            "prepare: about %s where the disk reads %.0f MB/s",
            format_seconds(self.seconds),
            self.num_bytes / 1e6 / max(self.seconds, 1e-9),
        )
        if self.disk_bytes > free:
            logger.warning("prepare: the disk may be too small; what is finished stays valid if it fills up")


@dataclass(frozen=True)
class PreparePlan(Plan):
    """What a call of `prepare` starts from; no header was read.

    Attributes:
        source: where training data come from.
        settings: what decides the bytes of the store.
        folds: imported or kept; None where they are to be dealt.
        override: series chosen by hand.
        listings: the sources that are there.
        inputs: digests that tell whether there is anything to do.
        standing: the manifest of a store that is up to date; None where there is work.
        is_update: a store stands, and the files are others now.
    """

    config: Config
    work: WorkFolder
    options: PrepareOptions
    source: str
    settings: dict[str, Any]
    folds: pd.DataFrame | None
    override: pd.DataFrame | None
    listings: list[ListedSource]
    inputs: dict[str, str]
    standing: Manifest | None
    is_update: bool
    seen: Look

    @property
    def needs(self) -> Needs:
        """What the work will take."""
        return Needs.of(self.listings, self.config)

    @property
    def steps(self) -> tuple[str, ...]:
        """The sources, the folds, and what becomes of the store that is there."""
        if self.standing is not None:
            return ("prepare: up to date, nothing to do",)
        steps = [
            f"{item.source.name}: {len(item.images)} files of {item.root}, "
            f"{format_bytes(item.images['num_bytes'].sum())}"
            for item in self.listings
        ]
        if self.options.limit_studies is not None:
            limit = self.options.limit_studies
            steps.append(f"only {limit} studies of each split: less disk and time than is said here")
        if self.folds is None:
            steps.append(f"deals the patients into {self.config.prepare.num_folds} folds")
        else:
            steps.append(f"keeps the folds of {len(self.folds)} patients; new ones are dealt beside them")
        if self.is_update:
            steps.append("the files have changed: what is prepared already is taken over")
        elif self.options.fresh and self.work.prepared.exists():
            steps.append(f"removes {self.work.prepared} first (--fresh)")
        return tuple(steps)

    @property
    def writes(self) -> tuple[Path, ...]:
        """The store."""
        return () if self.standing is not None else (self.work.prepared,)

    @property
    def num_bytes(self) -> float:
        """The most that the store takes."""
        return self.needs.disk_bytes

    @property
    def seconds(self) -> float:
        """Of all processes, where the disk is fast enough."""
        return self.needs.seconds

    @property
    def basis(self) -> str:
        """How many processes."""
        return f"on {self.needs.workers} processes, where the disk keeps up"


def plan(config: Config, work: WorkFolder, options: PrepareOptions | None = None) -> PreparePlan:
    """Lists the files, refuses what does not fit, and says whether there is anything to do; writes nothing.

    Raises:
        DataError: no data at a place that was named, or none at all.
        ConfigError: options that exclude each other.
        ArtifactError: what is there was made from other settings.
        FoldError: a file of folds that is none.
    """
    options, seen = options or PrepareOptions(), look_at(work.prepared)
    source = _training_source(options)
    settings: dict[str, Any] = {
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
    is_update = has_artifact(work.prepared) and not options.fresh and not asks_folds
    standing = read_manifest(work.prepared) if is_update else None
    if standing is not None and any(standing.inputs.get(name) != digest for name, digest in inputs.items()):
        _refuse_to_drop(standing, listings)
        standing = None
    return PreparePlan(
        config, work, options, source, settings, folds, override, listings, inputs, standing, is_update, seen
    )


def _training_source(options: PrepareOptions) -> str:
    name = options.source or ("rsna" if options.folder is None else "folder")
    names = training_sources()
    if name not in names:
        raise ConfigError(f'--source: "{name}" is no source of training data. {nearest(name, names)}')
    if name != "folder" and (options.folder or options.labels):
        raise ConfigError("--folder and --labels belong to --source folder; RSNA brings its own labels.")
    return name


def _check_settings(work: WorkFolder, settings: dict[str, object]) -> None:
    """Refuses to go on with work made from other settings."""
    unfinished = partial_of(work.prepared) / SETTINGS_FILE
    if has_artifact(work.prepared):
        found = read_manifest(work.prepared).settings
    elif unfinished.exists():
        found = json.loads(unfinished.read_text())
    else:
        return
    if differences := list_differences(found, settings):
        raise ArtifactError(
            f"{work.prepared}: made from other settings ({'; '.join(differences)}). "
            "Use the same settings, another --work, or start over with `ichkit prepare --fresh` (folds.csv is kept)."
        )


def _refuse_to_drop(standing: Manifest, listings: list[ListedSource]) -> None:
    """Refuses to make a store again without an external set that was named for it.

    Raises:
        ConfigError: one is not named now.
    """
    named = {name.removesuffix(_FILES) for name in standing.inputs if name.endswith(_FILES)} - SOURCES.keys()
    for name in sorted(named - {item.source.name for item in listings}):
        raise ConfigError(
            f'prepare: the external set "{name}" is prepared, and other files have changed. Name it again, so that it '
            f"stays (--external {name}=PATH --labels {name}=CSV), or start over without it (--fresh)."
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
        return read_csv(path, dtype={"patient_id": "str", "fold": "int64"})[FOLDS]
    except (OSError, ValueError, KeyError) as error:
        raise FoldError(f"{path}: expected a CSV with columns patient_id, fold (a whole number): {error}") from error


def _list_sources(config: Config, options: PrepareOptions, training: str) -> list[ListedSource]:
    given = {
        "rsna": options.rsna or config.prepare.rsna,
        "cq500": options.cq500 or config.prepare.cq500,
        "folder": options.folder,
    }
    labels = {training: options.labels}
    wanted = {name: SOURCES[name] for name in (training, *external_sources())}
    for item in options.external:
        wanted[item.name] = find_external_source(item.name)
        given[item.name], labels[item.name] = item.root, item.labels
        if item.labels is None and item.name not in SOURCES:
            raise ConfigError(
                f'prepare: expected a label file for the external set "{item.name}", found none. Name it with '
                f"--labels {item.name}=CSV. For scans without labels there is `ichkit predict`."
            )
    listings = []
    for source in wanted.values():
        root = locate(source, given.get(source.name))
        if root is None:
            places = " or ".join(map(str, source.folders))
            logger.info("prepare: no %s at %s; going on without it", source.name, places)
            continue
        files, refused = scan_files(root)
        listings.append(ListedSource(source, labels.get(source.name), root, files, source.find_images(files), refused))
    return listings


def _digest_inputs(
    listings: list[ListedSource], options: PrepareOptions, override: pd.DataFrame | None
) -> dict[str, str]:
    """What tells whether there is anything to do: names and sizes of all files, and the content of their tables."""
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
    """What tells whether a label file has changed.

    Raises:
        DataError: too large to be one.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"{path}: expected a label file of at most {MAX_FILE_BYTES // 1024**2} MB, found "
            f"{size / 1024**2:.0f} MB. Name the CSV with --labels."
        )
    return digest_file(path)[:16]
