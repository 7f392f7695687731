"""Where stored slices lie in the patient: the affine matrix of a volume, and a whole-picture origin."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ichkit.imaging.dicom import ORIENTATION, POSITION
from ichkit.imaging.geometry import FLIP_COLUMNS, FLIP_ROWS, TRANSPOSE
from ichkit.imaging.steps import Origin


def affine_of_slices(slices: Sequence[Mapping[Any, Any]]) -> np.ndarray:
    """(4, 4) float64 from (column, row, slice) of a stored volume to mm to the left, the back and the head (LPS).

    Uneven distances between slices are averaged, as NIfTI has one distance.

    Args:
        slices: of each slice from the feet to the head its row of the index: position, orientation, spacing, rows,
            columns and turn; spacing, rows and columns are those of the turned slice.

    Source: DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.

    Example:
        >>> plain = dict.fromkeys([*POSITION, *ORIENTATION], 0.0) | {"row_x": 1.0, "column_y": 1.0, "turn": 0}
        >>> plain |= {"rows": 4, "columns": 4, "spacing_row_mm": 0.5, "spacing_col_mm": 0.8}
        >>> affine_of_slices([plain, plain | {"position_z": 5.0}]).diagonal().tolist()
        [0.8, 0.5, 5.0, 1.0]
    """
    first, last = slices[0], slices[-1]
    along_columns, along_rows, corner = _axes(first)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = along_columns, along_rows, corner
    if len(slices) > 1:
        affine[:3, 2] = (_axes(last)[2] - corner) / (len(slices) - 1)
    else:
        normal = np.cross(along_columns, along_rows)
        affine[:3, 2] = normal / np.linalg.norm(normal)
    return affine


def whole_picture(slices: Sequence[Mapping[Any, Any]]) -> Origin:
    """The origin of a volume that shows the whole source picture, of the largest slice."""
    rows, columns = (max(int(one[name]) for one in slices) for name in ("rows", "columns"))
    spacing = (float(slices[0]["spacing_row_mm"]), float(slices[0]["spacing_col_mm"]))
    return Origin(rows, columns, *spacing, 0, 0, rows, columns, True)


def _axes(one: Mapping[Any, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The steps of a column and of a row, and the corner, of the turned slice, in mm (LPS)."""
    orientation = np.array([float(one[name]) for name in ORIENTATION])
    corner = np.array([float(one[name]) for name in POSITION])
    to_column, to_row = orientation[:3], orientation[3:]
    turn = int(one["turn"])
    if turn & TRANSPOSE:
        to_column, to_row = to_row, to_column
    along_columns, along_rows = to_column * float(one["spacing_col_mm"]), to_row * float(one["spacing_row_mm"])
    if turn & FLIP_ROWS:
        corner = corner + along_rows * (int(one["rows"]) - 1)
        along_rows = -along_rows
    if turn & FLIP_COLUMNS:
        corner = corner + along_columns * (int(one["columns"]) - 1)
        along_columns = -along_columns
    return along_columns, along_rows, corner
