"""What adversarial validation compares of each study: facts of its scan, and what a network makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.logits import to_logits
from ichkit.core.progress import Meter
from ichkit.core.roles import OUT_OF_FOLD, TEST
from ichkit.core.seeding import make_generator
from ichkit.imaging.header_facts import HEADER_FACTS
from ichkit.imaging.slice_statistics import STATISTICS, measure_slice
from ichkit.imaging.store import FACTS_NAME, Prepared, open_volume, read_rows
from ichkit.stacking.embeddings import embeddings_name, open_embeddings
from ichkit.work.artifacts import check_digests, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import BRAIN_SHARE, PROBABILITY_CLIP, TILT, check_predictions

TRAIN = "train"
FACTS, DESCRIPTORS, EMBEDDINGS = "facts", "descriptors", "embeddings"
KEYS = ["set", "study_id", "patient_id"]


@dataclass(frozen=True)
class ScanFact:
    """A row of `SCAN_FACTS`.

    Attributes:
        name: its column.
        title: as tables show it, with its unit.
        digits: decimals; None for a category.
    """

    name: str
    title: str
    digits: int | None


_LISTED = (
    ScanFact("num_slices", "slices per study", 0),
    ScanFact("gap_mm", "slice gap, mm", 2),
    ScanFact("gap_spread_mm", "largest minus smallest gap, mm", 2),
    ScanFact("coverage_mm", "coverage, mm", 0),
    ScanFact("num_series", "series per study", 0),
    ScanFact("rows", "matrix rows", 0),
    ScanFact("spacing_mm", "pixel spacing, mm", 3),
    ScanFact("field_mm", "field of view, mm", 0),
    ScanFact("pixel_format", "pixel format", None),
    ScanFact("hu_repaired", "share of slices with a repaired intercept", 2),
    ScanFact("padded", "share of slices padded outside the scan circle", 2),
    ScanFact(TILT, "tilt, degrees", 1),
    ScanFact(BRAIN_SHARE, "share of pixels from 0 to 80 HU", 3),
    ScanFact("noise_hu", "noise of soft tissue, HU", 2),
    ScanFact("soft_tissue_hu", "median of soft tissue, HU", 1),
    ScanFact("air_share", "share of air", 3),
    ScanFact("bone_share", "share of bone", 3),
    ScanFact("thickness", "nominal thickness, mm", 2),
    ScanFact("kvp", "tube voltage, kV", 0),
    ScanFact("kernel", "kernel", None),
    ScanFact("manufacturer", "manufacturer", None),
    ScanFact("age", "age, years", None),
    ScanFact("sex", "sex", None),
)
SCAN_FACTS = {fact.name: fact for fact in _LISTED}
"""The last six are facts of headers, compared where `prepare.header_facts` kept them."""


def list_sets(prepared: Prepared) -> tuple[str, ...]:
    """The sets with slices: train, test, and the external ones, locked patients among them."""
    names = (TRAIN, TEST, *prepared.external_sets())
    return tuple(name for name in names if len(prepared.split(name)))


def pick_slices(prepared: Prepared, name: str, num_patients: int, seed: int, fold: int | None = None) -> pd.DataFrame:
    """The slices of at most so many patients of a set, the same ones in every call.

    Args:
        fold: of the training data, only the patients of this fold.
    """
    slices = prepared.split(name)
    if name == TRAIN and fold is not None:
        slices = slices[slices.fold == fold]
    patients = np.sort(slices.patient_id.unique())
    chosen = patients[make_generator(seed, "adversarial", name).permutation(len(patients))[:num_patients]]
    return slices[slices.patient_id.isin(chosen)].reset_index(drop=True)


def describe_scans(prepared: Prepared, picked: Mapping[str, pd.DataFrame], num_slices: int) -> pd.DataFrame:
    """One row per study: `KEYS`, then a column of `SCAN_FACTS` for everything that is known.

    Args:
        picked: set to its slices, from `pick_slices`.
        num_slices: slices per study, evenly spaced, whose Hounsfield values are measured.
    """
    rows = pd.concat([own.assign(set=name) for name, own in picked.items()], ignore_index=True)
    rows = rows.assign(
        spacing_mm=(rows.spacing_row_mm + rows.spacing_col_mm) / 2, field_mm=rows.rows * rows.spacing_row_mm
    )
    if FACTS_NAME in prepared.manifest.files:
        rows = rows.merge(prepared.slice_facts(), on=["dataset", "slice_id"], how="left")
    grouped = rows.groupby(["set", "study_id"], sort=True)
    medians = [name for name in ("gap_mm", "spacing_mm", "field_mm", "rows", TILT, BRAIN_SHARE) if name in rows]
    table = grouped[["patient_id", "dataset", "pixel_format", "volume"]].first()
    table = table.join(grouped[medians].median()).join(grouped[["hu_repaired", "padded"]].mean())
    table["num_slices"] = grouped.size()
    table["num_series"] = grouped.series_id.nunique()
    table["gap_spread_mm"] = grouped.gap_mm.max() - grouped.gap_mm.min()
    table["coverage_mm"] = grouped.position_mm.max() - grouped.position_mm.min()
    table = table.reset_index()
    if not prepared.sequences:  # values of MR have no unit
        table[list(STATISTICS)] = _measure_volumes(prepared, table.volume.tolist(), num_slices)
    header = prepared.header_facts()
    header = header[["dataset", "study_id", *(name for name in HEADER_FACTS if name in header)]]
    table = table.merge(header, on=["dataset", "study_id"], how="left")
    return table[[*KEYS, *(name for name in SCAN_FACTS if name in table)]]


def describe_predictions(
    work: WorkFolder, prepared: Prepared, run: str, fold: int, picked: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """One row per study by one network: `KEYS`, then the mean and the highest logit of each class over its slices.

    Args:
        picked: set to its slices; the training data are those of the network's held-out fold, so that it was trained
            on none of the studies.

    Raises:
        ArtifactError: a table is damaged.
        ContractError: a table has other slices than prepared.
    """
    task, parts = prepared.task, []
    for name, own in picked.items():
        table = _read_predictions(work, prepared, run, fold, name).set_index("slice_id").loc[own.slice_id]
        p = np.clip(table[task.probability_columns].to_numpy(np.float64), *PROBABILITY_CLIP)
        logits = pd.DataFrame(to_logits(p), columns=list(task.classes)).dropna(axis=1, how="all")
        grouped = logits.groupby(own.study_id.to_numpy(), sort=True)
        mean, highest = grouped.mean().add_prefix("mean logit, "), grouped.max().add_prefix("highest logit, ")
        parts.append(_with_keys(mean.join(highest), own, name))
    return pd.concat(parts, ignore_index=True)


def describe_embeddings(
    work: WorkFolder, prepared: Prepared, run: str, fold: int, picked: Mapping[str, pd.DataFrame]
) -> pd.DataFrame | None:
    """One row per study by one network: `KEYS`, then its mean embedding; None if the network kept none.

    Raises:
        ArtifactError: a file is damaged.
        ContractError: a table has other slices than prepared.
    """
    folder, parts = work.fold(run, fold), []
    manifest = read_manifest(folder)
    files = [embeddings_name(table_of(name)) for name in picked]
    if not set(files) <= set(manifest.files):
        return None
    check_digests(folder, manifest, files)
    for (name, own), file in zip(picked.items(), files, strict=True):
        table = _read_predictions(work, prepared, run, fold, name)
        rows = pd.Series(np.arange(len(table)), index=table.slice_id).loc[own.slice_id].to_numpy()
        features = open_embeddings(folder / file, len(table))
        means = {
            study: np.asarray(features[rows[places]], np.float32).mean(0, dtype=np.float64)
            for study, places in own.groupby("study_id", sort=True).indices.items()
        }
        values = pd.DataFrame.from_dict(means, orient="index")
        parts.append(_with_keys(values.add_prefix("embedding "), own, name))
    return pd.concat(parts, ignore_index=True)


def table_of(name: str) -> str:
    """The predictions table of a set: "oof" for the training data, else its name."""
    return OUT_OF_FOLD if name == TRAIN else name


def title_of_feature(name: str) -> str:
    """A feature as tables show it."""
    return SCAN_FACTS[name].title if name in SCAN_FACTS else name


def _read_predictions(work: WorkFolder, prepared: Prepared, run: str, fold: int, name: str) -> pd.DataFrame:
    """The predictions of a set by one network."""
    path = work.fold(run, fold) / f"{table_of(name)}.parquet"
    table = read_table(path, read_manifest(path.parent).sha256_of(path.name))
    slices = prepared.split(name)
    own = slices[slices.fold == fold] if name == TRAIN else slices
    check_predictions(table, prepared.task, str(path), own[["slice_id"]])
    return table


def _with_keys(values: pd.DataFrame, slices: pd.DataFrame, name: str) -> pd.DataFrame:
    """The values, whose index is study_id, with `KEYS`."""
    patients = slices.drop_duplicates("study_id").set_index("study_id").patient_id
    keys = pd.DataFrame({"set": name, "study_id": values.index, "patient_id": patients.loc[values.index].to_numpy()})
    return pd.concat([keys, values.reset_index(drop=True)], axis=1)


def _measure_volumes(prepared: Prepared, volumes: list[str], num_slices: int) -> np.ndarray:
    """(N, 4) float64: the medians of `measure_slice` over evenly spaced slices of each volume."""
    measured = np.full((len(volumes), len(STATISTICS)), np.nan)
    with Meter("adversarial", len(volumes), "studies") as meter:
        for row, relative in enumerate(volumes):
            path = prepared.folder / relative
            volume = open_volume(path)
            places = np.unique(np.linspace(0, len(volume) - 1, num_slices).round().astype(int))
            found = np.array([measure_slice(read_rows(path, volume, i, i + 1)[0]) for i in places])
            known = ~np.isnan(found).all(0)
            measured[row, known] = np.nanmedian(found[:, known], axis=0)
            meter.advance()
    return measured
