"""Regions of the brain in the millimetres of a reference head, as a table that a user can replace."""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from ichkit.core.csv_tables import read_csv
from ichkit.core.errors import DataError

HALF_AXES_MM = (68.0, 84.0, 74.0)
"""Half axes of the inside of the reference skull: to the left, to the back, to the vertex."""
ASPECTS = "aspects"


@dataclass(frozen=True)
class Region:
    """An upright cylinder of elliptic section in each half of the reference head.

    Lengths are reference millimetres from the centre of the brain: x to the side, y to the back, z to the vertex.

    Attributes:
        name: letters, digits and "_"; with the side it names a part, such as left-M1.
        x, y: centre of the ellipse.
        rx, ry: its half axes.
        low, high: the heights between which it lies.
        group: which regions form a score together; a score of 10 starts from the regions of "aspects".
    """

    name: str
    x: float
    y: float
    rx: float
    ry: float
    low: float
    high: float
    group: str = ASPECTS


REGIONS = (
    Region("C", 13, -24, 6, 9, 4, 19),
    Region("L", 26, -5, 8, 17, -3, 12),
    Region("IC", 17, 1, 5, 16, -1, 14),
    Region("I", 38, -5, 6, 20, -3, 12),
    Region("M1", 43, -40, 15, 15, -3, 12),
    Region("M2", 54, -6, 11, 18, -3, 12),
    Region("M3", 47, 33, 15, 17, -3, 12),
    Region("M4", 36, -38, 16, 17, 25, 40),
    Region("M5", 45, -3, 15, 18, 25, 40),
    Region("M6", 39, 34, 16, 17, 25, 40),
    Region("ACA1", 10, -60, 9, 15, -3, 12, "anterior"),
    Region("ACA2", 9, -48, 9, 19, 25, 40, "anterior"),
    Region("PCA1", 18, 62, 14, 14, -3, 12, "posterior"),
    Region("PCA2", 15, 56, 14, 15, 25, 40, "posterior"),
)
"""Ten regions of ASPECTS on each side, and two levels each of the anterior and the posterior cerebral artery.

Source: the regions of Barber et al., Lancet 2000, at the levels of the basal ganglia and above them; places and sizes
are chosen here for the reference head of the phantom. The paper names 14 regions and lists none.
"""


def read_regions(path: Path) -> tuple[Region, ...]:
    """The regions of a CSV with the columns name, x, y, rx, ry, low, high and, if wanted, group.

    Raises:
        DataError: not such a table, a name twice or of other characters, or a size that is not positive.
    """
    names = [one.name for one in fields(Region)]
    try:
        table = read_csv(path, dtype={"name": "str", "group": "str"})
        table = table.assign(group=table["group"]) if "group" in table else table.assign(group=ASPECTS)
        return make_regions(table[names].itertuples(index=False, name=None))
    except (OSError, ValueError, TypeError, KeyError, pd.errors.ParserError) as error:
        raise DataError(
            f"{path}: expected a table of regions with the columns {', '.join(names)}, each name once, sizes above 0 "
            f"({type(error).__name__}: {error}). docs/recipes/aspects2020.md has the table that ships."
        ) from error


def make_regions(rows: Iterable[Iterable[Any]]) -> tuple[Region, ...]:
    """Regions from the values of their fields, as a model card or a table has them.

    Raises:
        ValueError: a value is not as `Region` says, or a name is there twice.
        TypeError: other fields.
    """
    regions = []
    for row in rows:
        name, x, y, rx, ry, low, high, group = row
        region = Region(str(name), float(x), float(y), float(rx), float(ry), float(low), float(high), str(group))
        if not (region.name.replace("_", "").isalnum() and region.name.isascii() and len(region.name) <= 32):
            raise ValueError(f"region {region.name[:32]!r}: expected a name of letters, digits and _")
        if not all(map(math.isfinite, (region.x, region.y, region.rx, region.ry, region.low, region.high))):
            raise ValueError(f"region {region.name}: expected finite numbers")
        if not (region.rx > 0 and region.ry > 0 and region.high > region.low):
            raise ValueError(f"region {region.name}: expected rx and ry above 0, and high above low")
        regions.append(region)
    if not regions or len({region.name for region in regions}) < len(regions):
        raise ValueError("expected one or more regions, each name once")
    return tuple(regions)


def as_rows(regions: Iterable[Region]) -> list[list[Any]]:
    """The regions as JSON values, for `make_regions`."""
    return [list(astuple(region)) for region in regions]
