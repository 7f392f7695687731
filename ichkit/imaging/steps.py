"""Preparation steps: operations on the volume of a study before it is stored, and their inverse for images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from ichkit.core.rows import find_row
from ichkit.imaging.head_box import Box, find_head_box
from ichkit.imaging.resample import fitted_shape


@dataclass(frozen=True)
class Step:
    """A row of `STEPS`.

    Attributes:
        name: key in the table.
        function: from a volume, (S, H, W) int16 HU, and its spacing in mm between rows and between columns, to the
            volume that is stored and the box of the given picture that it shows; None in place of the box where the
            step did not find what it looks for and gives the volume back as it is.
        description: one sentence.
        source: its origin.
    """

    name: str
    function: Callable[[np.ndarray, tuple[float, float]], tuple[np.ndarray, Box | None]]
    description: str
    source: str


@dataclass(frozen=True)
class Origin:
    """The position of a stored volume in the source image; a row of `crops.parquet`.

    Attributes:
        rows, columns: of the source picture; of the largest where the slices of a study differ.
        spacing_row_mm, spacing_col_mm: of the source picture.
        top, left, height, width: the part that is stored, in pixels of the source picture.
        is_found: False where a step did not find what it looks for; the whole picture is stored.
        is_mirrored: the columns of what is stored run the other way.
    """

    rows: int
    columns: int
    spacing_row_mm: float
    spacing_col_mm: float
    top: int
    left: int
    height: int
    width: int
    is_found: bool
    is_mirrored: bool = False

    def cut(self, box: Box, *, is_found: bool = True, is_mirrored: bool = False) -> "Origin":
        """The origin of a part of this volume."""
        place = {"top": self.top + box.top, "left": self.left + box.left, "height": box.height, "width": box.width}
        return replace(self, **place, is_found=self.is_found and is_found, is_mirrored=is_mirrored)

    def to_json(self) -> dict[str, Any]:
        """Its fields, `is_mirrored` only if true, so that stores of whole studies stay byte-identical."""
        return {name: value for name, value in vars(self).items() if name != "is_mirrored" or value}


def run_steps(
    names: Sequence[str], volume_hu: np.ndarray, spacing_mm: tuple[float, float]
) -> tuple[np.ndarray, Origin]:
    """The volume after all steps in order, and its position in the source image.

    Args:
        names: rows of `STEPS`.
        volume_hu: (S, H, W) int16 HU, or (S, M, H, W) without steps.
        spacing_mm: between rows and between columns.

    Raises:
        ConfigError: no such step.
    """
    rows, columns = volume_hu.shape[-2:]
    top = left = 0
    is_found = True
    for name in names:
        volume_hu, box = find_step(name).function(volume_hu, spacing_mm)
        is_found &= box is not None
        top, left = top + (box.top if box else 0), left + (box.left if box else 0)
    height, width = volume_hu.shape[-2:]
    return volume_hu, Origin(rows, columns, *spacing_mm, top, left, height, width, is_found)


def find_step(name: str) -> Step:
    """The row of that name.

    Raises:
        ConfigError: no such row.
    """
    return find_row(STEPS, name, "prepare.crop")


def restore(images: np.ndarray, origin: Origin | None, fill: float) -> np.ndarray:
    """Images or maps of stored slices at their position in the source image.

    Args:
        images: (..., h, w) int16 or float32; h and w are those of the stored volume, with or without `prepare.size`.
        origin: None for a store without steps, whose images are returned as they are.
        fill: the value outside the stored part.

    Returns:
        (..., rows, columns), of the same dtype.
    """
    if origin is None:
        return images
    part = (origin.height, origin.width)
    placed = np.full((*images.shape[:-2], origin.rows, origin.columns), fill, images.dtype)
    if origin.is_mirrored:
        images = images[..., ::-1]
    for index in np.ndindex(images.shape[:-2]):
        image, whole = images[index], placed[index]
        if image.shape != part:
            height, width = fitted_shape(*part, origin.spacing_row_mm, origin.spacing_col_mm, image.shape[0])
            top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
            shrinks = part[0] <= height and part[1] <= width
            how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image[top : top + height, left : left + width], part[::-1], interpolation=how)
        whole[origin.top : origin.top + part[0], origin.left : origin.left + part[1]] = image
    return placed


def _crop_head(volume_hu: np.ndarray, spacing_mm: tuple[float, float]) -> tuple[np.ndarray, Box | None]:
    box = find_head_box(volume_hu, spacing_mm)
    return (volume_hu if box is None else box.cut(volume_hu)), box


STEPS = {
    "head": Step(
        name="head",
        function=_crop_head,
        description="Keeps the square around the head, the same in every slice: no table, no headrest, little air.",
        source="black edges cropped by the best single model on RSNA 2019 (Shang 2022); the box is chosen here",
    ),
}
