"""Subgroups of the data: the tables `SLICE_PARTITIONS` and `STUDY_PARTITIONS`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd

ALL = "all"
MOST_PARTS = 12
FEW = 10
"""A group with fewer positive or fewer negative rows is marked as small."""
_OWN = "A column of the label file, or a fact of the headers."
_GAP_EDGES_MM = (2.0, 3.5, 4.5)
_NUMBER = re.compile(r"(?<!\d)-?\d+(?:\.\d+)?")  # a dash after a digit is that of a range
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


def own_partitions(facts: pd.DataFrame) -> dict[str, Partition]:
    """A partition for every fact of the studies, for tables with the columns dataset and study_id.

    Args:
        facts: dataset, study_id, and a column of texts or numbers each.

    Example:
        >>> studies = pd.DataFrame({"dataset": "site", "study_id": ["a", "b", "c"], "kvp": [100.0, 120.0, None]})
        >>> sorted(find_subgroups(studies, own_partitions(studies)))
        ['kvp=100', 'kvp=120']
    """
    keys = pd.MultiIndex.from_frame(facts[["dataset", "study_id"]])
    made = {}
    for name in facts.columns.drop(["dataset", "study_id"]):
        parts = pd.Series(name_parts(facts[name]).to_numpy(), keys)
        made[str(name)] = Partition(str(name), partial(_look_up, parts), _OWN, "the label file or the headers")
    return made


def _look_up(parts: pd.Series, table: pd.DataFrame) -> pd.Series:
    keys = pd.MultiIndex.from_frame(table[["dataset", "study_id"]])
    return pd.Series(parts.reindex(keys).to_numpy(), table.index, dtype="str")


def name_parts(values: pd.Series) -> pd.Series:
    """The part of each value; missing values are in none.

    Numbers of more than `MOST_PARTS` values are cut at their quartiles; of more texts the rarest are "other".

    Example:
        >>> name_parts(pd.Series([5.0, 0.625, None])).to_list()
        ['5', '0.625', nan]
        >>> sorted(set(name_parts(pd.Series(range(100)))))
        ['24.8-49.5', '49.5-74.2', '<24.8', '>=74.2']
    """
    known = values.notna()
    numbers = pd.to_numeric(values[known], errors="coerce")
    if len(numbers) and numbers.notna().all():
        if numbers.nunique() <= MOST_PARTS:
            names = numbers.map(lambda number: f"{number:g}")
        else:
            edges = np.unique(numbers.quantile([0.25, 0.5, 0.75]))
            shown = [f"{edge:.3g}" for edge in edges]
            bins = [f"<{shown[0]}", *map("-".join, pairwise(shown)), f">={shown[-1]}"]
            names = pd.Series(np.array(bins)[np.digitize(numbers, edges)], numbers.index)
    else:
        names = values[known].astype("str")
        if names.nunique() > MOST_PARTS:
            counts = names.value_counts().rename_axis("name").reset_index(name="count")
            counts = counts.sort_values(["count", "name"], ascending=[False, True])
            names = names.where(names.isin(counts["name"].head(MOST_PARTS - 1)), "other")
    return names.reindex(values.index).astype("str")


def _by_number(part: str) -> tuple[tuple[float, ...], str]:
    """Sorts parts such as "<2", "2-3.5", ">=4.5" and "12,0,-1024" by their numbers, others after them by name."""
    numbers = [float(number) for number in _NUMBER.findall(part)] or [np.inf]
    if part.startswith("<"):
        numbers[0] = np.nextafter(numbers[0], -np.inf)
    return tuple(numbers), part


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
