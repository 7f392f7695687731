"""Subgroups of the data: the tables `SLICE_PARTITIONS` and `STUDY_PARTITIONS`."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

ALL = "all"
_GAP_EDGES_MM = (2.0, 3.5, 4.5)
_GAP_NAMES = ("<2", "2-3.5", "3.5-4.5", ">=4.5")


@dataclass(frozen=True)
class Partition:
    """A partition of rows into subgroups.

    Attributes:
        name: the part before the `=` in the `subgroup` of `scores.parquet`.
        part: table to the name of each row's part; missing if a row is in none.
    """

    name: str
    part: Callable[[pd.DataFrame], pd.Series]
    description: str
    source: str


def find_subgroups(table: pd.DataFrame, partitions: dict[str, Partition]) -> dict[str, np.ndarray]:
    """`<partition>=<part>` to the (N,) bool rows in it, for every part of every partition.

    Args:
        table: for `SLICE_PARTITIONS` rows of `slices.parquet`, sorted by study_id and slice_index; for
            `STUDY_PARTITIONS` the columns gap_mm (the median of the study) and batch (missing if unknown).
        partitions: one of these tables.
    """
    groups = {}
    for partition in partitions.values():
        part = partition.part(table)
        for value in sorted(part.dropna().unique(), key=_by_number):
            groups[f"{partition.name}={value}"] = (part == value).to_numpy(bool, na_value=False)
    return groups


def _by_number(part: str) -> tuple[float, str]:
    """Sorts parts such as "<2", "2-3.5" and ">=4.5" by number, others after them by name."""
    found = re.search(r"\d+(\.\d+)?", part)
    number = float(found[0]) if found else np.inf
    return (np.nextafter(number, -np.inf) if part.startswith("<") else number), part


def gap_of_slices(slices: pd.DataFrame) -> pd.Series:
    """The gap to the next slice in mm; of the last slice of a series, the gap below it; missing for a single slice."""
    return slices.groupby(["study_id", "series_id"], sort=False).gap_mm.ffill()


def _third(slices: pd.DataFrame) -> pd.Series:
    names = np.array(["lower third", "middle third", "upper third"])
    relative = (slices.slice_index.to_numpy() + 0.5) / slices.num_slices.to_numpy()
    return pd.Series(names[np.minimum((3 * relative).astype(int), 2)], index=slices.index)


def _edge(slices: pd.DataFrame) -> pd.Series:
    is_edge = (slices.slice_index == 0) | (slices.slice_index == slices.num_slices - 1)
    return pd.Series("first or last", index=slices.index, dtype="str").where(is_edge)


def _gap_part(gap_mm: pd.Series) -> pd.Series:
    """The name of the bin of each gap; bins include their lower edge, missing gaps stay missing."""
    codes = np.digitize(gap_mm.to_numpy(np.float64), _GAP_EDGES_MM)
    return pd.Series(np.array(_GAP_NAMES)[codes], index=gap_mm.index, dtype="str").where(gap_mm.notna())


SLICE_PARTITIONS = {
    "padded": Partition(
        name="padded",
        part=lambda slices: slices.padded.map({True: "yes", False: "no"}),
        description="Padding values outside the scan circle, by a group of scanners with fewer positives.",
        source="RSNA 2019, about a third of the images",
    ),
    "position": Partition(
        name="position",
        part=_third,
        description="Thirds of the study from the feet end.",
        source="chosen here, because quintiles would have too few positives of rare classes",
    ),
    "edge": Partition(
        name="edge",
        part=_edge,
        description="The first and the last slice of a study, with neighbours on one side only.",
        source="RSNA 2019: positive 0.84 % of the time",
    ),
    "pixel_format": Partition(
        name="pixel_format",
        part=lambda slices: slices.pixel_format,
        description="BitsStored, PixelRepresentation, RescaleIntercept.",
        source="RSNA 2019: seven formats",
    ),
    "gap_mm": Partition(
        name="gap_mm",
        part=lambda slices: _gap_part(gap_of_slices(slices)),
        description="Distance to the next slice.",
        source="RSNA 2019: above 4.5 mm for 86 %, 2 to 3.5 mm for 9 %",
    ),
}
STUDY_PARTITIONS = {
    "batch": Partition(
        name="batch",
        part=lambda studies: studies.batch,
        description="B1 and B2 of CQ500, which were collected differently.",
        source="reads.csv, column Category: 214 and 277 of 491 studies",
    ),
    "gap_mm": Partition(
        name="gap_mm",
        part=lambda studies: _gap_part(studies.gap_mm),
        description="Median distance between slices.",
        source="the bins of the RSNA slices",
    ),
}
