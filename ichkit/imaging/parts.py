"""Parts: the sub-studies that a study is cut into, their position in its image, and whether they are mirrored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ichkit.core.config import PartsConfig
from ichkit.core.rows import find_row
from ichkit.imaging.head_box import Box, find_head_box
from ichkit.imaging.head_frame import HeadFrame, find_head_frame
from ichkit.imaging.regions import REGIONS, Region, as_rows, make_regions, read_regions

WHOLE = "whole"
SIDES = ("right", "left")
"""Of the patient. Columns of a stored picture run to the patient's left, so the right side has the lower ones."""
_SEPARATOR = ":"
_MOST_SLICES = 3


@dataclass(frozen=True)
class PartSettings:
    """How studies are cut: a row of `PARTS` and its parameters.

    Attributes:
        kind: row of `PARTS`.
        slices: for "middle", how many.
        regions: for "aspects".
    """

    kind: str = WHOLE
    slices: int = 0
    regions: tuple[Region, ...] = ()

    @classmethod
    def of(cls, config: PartsConfig) -> "PartSettings":
        """The settings of a config, with the regions of its file.

        Raises:
            ConfigError: no such row.
            DataError: the file of regions cannot be used.
        """
        row = find_part(config.kind)
        regions = REGIONS if config.regions is None else read_regions(config.regions)
        return cls(row.name, config.slices if row.has_count else 0, regions if row.has_regions else ())

    @classmethod
    def from_json(cls, raw: dict[str, Any] | None) -> "PartSettings":
        """The settings from the value of `to_json`; whole studies for None or {}.

        Raises:
            ConfigError: no such row.
            ValueError, TypeError: other fields.
        """
        if not raw:
            return cls()
        row = find_part(str(raw.get("kind")))
        regions = make_regions(raw["regions"]) if row.has_regions else ()
        slices = raw.get("slices", 0)
        if type(slices) is not int or slices < int(row.has_count):
            raise ValueError("slices must be a number above 0")
        return cls(row.name, slices, regions)

    def to_json(self) -> dict[str, Any]:
        """JSON values; empty for whole studies, so that their stores and model cards stay unchanged."""
        if self.kind == WHOLE:
            return {}
        counts = {"slices": self.slices} if self.slices else {}
        return {"kind": self.kind, **counts, **({"regions": as_rows(self.regions)} if self.regions else {})}


UNCUT = PartSettings()
"""Those of whole studies."""


@dataclass(frozen=True)
class Cut:
    """One part of a volume.

    Attributes:
        name: without the study.
        rows: ascending positions of its slices.
        box: what it shows of each slice.
        is_mirrored: its columns run to the patient's right.
        outside: (height, width) bool, what of the box does not belong to it; None if all does.
        is_found: False where its place could not be found from the pixels.
    """

    name: str
    rows: tuple[int, ...]
    box: Box
    is_mirrored: bool = False
    outside: np.ndarray | None = None
    is_found: bool = True

    def take(self, volume: np.ndarray, fill: int) -> np.ndarray:
        """The part of an (S, ..., H, W) volume, a copy; pixels outside the part are `fill`."""
        box = self.box
        rows: Any = list(self.rows)
        if self.rows == tuple(range(len(volume))):  # a view, where no slice is left out
            rows = slice(None)
        taken = volume[rows][..., box.top : box.top + box.height, box.left : box.left + box.width]
        if self.outside is not None:
            taken = np.where(self.outside, np.asarray(fill, volume.dtype), taken)
        return np.ascontiguousarray(taken[..., ::-1] if self.is_mirrored else taken)


@dataclass(frozen=True)
class Part:
    """A row of `PARTS`.

    Attributes:
        name: key in the table.
        function: from a volume (S, H, W) of values as of HU, its spacing in mm between rows and between columns, the
            positions of its slices in mm (S,), and the settings, to its parts.
        description: one sentence.
        source: its origin.
        has_count, has_regions: whether `slices` and `regions` of the settings matter.
    """

    name: str
    function: Callable[[np.ndarray, tuple[float, float], np.ndarray, PartSettings], list[Cut]]
    description: str
    source: str
    has_count: bool = False
    has_regions: bool = False


def find_part(name: str) -> Part:
    """The row of that name.

    Raises:
        ConfigError: no such row.
    """
    return find_row(PARTS, name, "prepare.parts")


def cut_parts(
    settings: PartSettings, volume: np.ndarray, spacing_mm: tuple[float, float], positions_mm: np.ndarray
) -> list[Cut]:
    """The parts of a volume.

    Args:
        volume: (S, H, W), or (S, M, H, W) of which the first of M sequences shows where the parts are.
        positions_mm: (S,) along the axis of the body, ascending to the vertex; NaN if unknown.
    """
    shown = volume if volume.ndim == 3 else volume[:, 0]
    return find_part(settings.kind).function(shown, spacing_mm, positions_mm, settings)


def part_id(whole: str, part: str) -> str:
    """The id of a part of a study or slice; the id itself for a whole one.

    Example:
        >>> part_id("ID_1", "left"), part_id("ID_1", "")
        ('ID_1:left', 'ID_1')
    """
    return f"{whole}{_SEPARATOR}{part}" if part else whole


def whole_id(name: str) -> str:
    """The id of the study or slice that this id is a part of.

    Example:
        >>> whole_id("ID_1:left-M1")
        'ID_1'
    """
    return name.rpartition(_SEPARATOR)[0] or name


def _everything(volume: np.ndarray) -> Box:
    return Box(0, 0, *volume.shape[-2:])


def _cut_nothing(
    volume: np.ndarray, _spacing: tuple[float, float], _positions: np.ndarray, _: PartSettings
) -> list[Cut]:
    return [Cut("", tuple(range(len(volume))), _everything(volume))]


def _cut_middle(
    volume: np.ndarray, _spacing: tuple[float, float], _positions: np.ndarray, settings: PartSettings
) -> list[Cut]:
    """The first `slices` slices above the middle one; of a study with fewer above it, its last ones."""
    first = min(len(volume) // 2 + 1, max(len(volume) - settings.slices, 0))
    rows = range(first, min(first + settings.slices, len(volume)))
    return [Cut("middle", tuple(rows), _everything(volume))]


def _cut_hemispheres(
    volume: np.ndarray, spacing_mm: tuple[float, float], _positions: np.ndarray, _: PartSettings
) -> list[Cut]:
    """Both halves of the box around the head, of the same size; the left one is mirrored."""
    columns = volume.shape[2]
    # The mirrored volume is looked at too, so that mirroring a person exchanges the halves to the pixel.
    one, two = find_head_box(volume, spacing_mm), find_head_box(np.ascontiguousarray(volume[..., ::-1]), spacing_mm)
    is_found = one is not None and two is not None
    if one is None or two is None:
        one = two = _everything(volume)
    top, bottom = min(one.top, two.top), max(one.top + one.height, two.top + two.height)
    # The plane in quarters of a pixel from the left edge: the mean of the centres of both boxes.
    plane = (2 * one.left + one.width) + (2 * columns - 2 * two.left - two.width)
    end, start = -(-plane // 4), plane // 4  # a column that the plane cuts belongs to both
    width = min(end, columns - start, max(1, -(-(one.width + two.width) // 4)))
    boxes = (Box(top, end - width, bottom - top, width), Box(top, start, bottom - top, width))
    rows = tuple(range(len(volume)))
    return [
        Cut(side, rows, box, is_mirrored=side == "left", is_found=is_found)
        for side, box in zip(SIDES, boxes, strict=True)
    ]


def _cut_halves(
    volume: np.ndarray, _spacing: tuple[float, float], _positions: np.ndarray, _: PartSettings
) -> list[Cut]:
    """Both halves of the picture, of the same size; a middle column belongs to both; the left one is mirrored."""
    _, height, columns = volume.shape
    width = -(-columns // 2)
    rows = tuple(range(len(volume)))
    boxes = (Box(0, 0, height, width), Box(0, columns - width, height, width))
    return [Cut(side, rows, box, is_mirrored=side == "left") for side, box in zip(SIDES, boxes, strict=True)]


def _cut_regions(
    volume: np.ndarray, spacing_mm: tuple[float, float], positions_mm: np.ndarray, settings: PartSettings
) -> list[Cut]:
    """Every region of the settings on both sides, those of the left side mirrored."""
    frame = find_head_frame(volume, spacing_mm, positions_mm)
    cuts = []
    for side in SIDES:
        for region in settings.regions:
            rows = _rows_of(region, frame)
            box, outside = _place(region, 1 if side == "left" else -1, frame, volume.shape[1:])
            cuts.append(Cut(f"{side}-{region.name}", rows, box, side == "left", outside, frame.is_found))
    return cuts


def _rows_of(region: Region, frame: HeadFrame) -> tuple[int, ...]:
    """Up to three slices that follow each other, those in the region, or the nearest one if none is."""
    heights = frame.heights
    middle = (region.low + region.high) / 2
    inside = np.flatnonzero((heights >= region.low) & (heights < region.high))
    if not len(inside):
        inside = np.array([np.abs(heights - middle).argmin()])
    while len(inside) > _MOST_SLICES:
        ends = np.abs(heights[inside[[0, -1]]] - middle)
        inside = inside[1:] if ends[0] > ends[1] else inside[:-1]
    return tuple(inside.tolist())


def _place(region: Region, sign: int, frame: HeadFrame, shape: tuple[int, int]) -> tuple[Box, np.ndarray]:
    """The box around the ellipse of a region, at least one pixel of the image, and the mask outside the ellipse."""
    angles = np.linspace(0, 2 * np.pi, 65)
    edge = (sign * (region.x + region.rx * np.cos(angles)), region.y + region.ry * np.sin(angles))
    rows, columns = frame.to_picture(*edge)
    found = []
    for values, limit in zip((rows, columns), shape, strict=True):
        first = min(max(int(np.floor(values.min())), 0), limit - 1)
        found.append((first, max(min(int(np.ceil(values.max())) + 1, limit), first + 1)))
    (top, bottom), (left, right) = found
    x, y = frame.to_reference(*np.mgrid[top:bottom, left:right].astype(np.float64))
    is_outside = ((x - sign * region.x) / region.rx) ** 2 + ((y - region.y) / region.ry) ** 2 > 1
    return Box(top, left, bottom - top, right - left), is_outside


PARTS = {
    WHOLE: Part(
        name=WHOLE,
        function=_cut_nothing,
        description="The study as it is.",
        source="MIDL 2020, section 2.1",
    ),
    "middle": Part(
        name="middle",
        function=_cut_middle,
        description="Some slices above the middle slice of the study.",
        source="Alqnatri, bachelor thesis, FIIT STU Bratislava 2021, section 6.3: five",
        has_count=True,
    ),
    "hemispheres": Part(
        name="hemispheres",
        function=_cut_hemispheres,
        description="Both halves of the head, left and right of the patient, the left one mirrored to look like it.",
        source="Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2",
    ),
    "halves": Part(
        name="halves",
        function=_cut_halves,
        description="Both halves of a picture whose middle column a step has brought to the midsagittal plane.",
        source="Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2.3",
    ),
    "aspects": Part(
        name="aspects",
        function=_cut_regions,
        description="Each region of a table on each side, up to three slices of it, the left ones mirrored.",
        source="Jung and Whangbo, Journal of Internet Technology 2020, section 2.3",
        has_regions=True,
    ),
}
