"""Where a stored slice lies in the patient, by the equation of the standard, however the slice was turned."""

import numpy as np
import pytest

from ichkit.imaging.dicom import ORIENTATION, POSITION
from ichkit.imaging.geometry import FLIP_COLUMNS, FLIP_ROWS, TRANSPOSE, in_plane_turn, turn_pixels
from ichkit.imaging.patient_space import affine_of_slices, whole_picture
from ichkit.imaging.steps import Origin

TILT = np.radians(15)
ORIENTATIONS = {
    0: (1, 0, 0, 0, 1, 0),
    FLIP_ROWS | FLIP_COLUMNS: (-1, 0, 0, 0, -1, 0),
    FLIP_COLUMNS: (-1, 0, 0, 0, 1, 0),
    TRANSPOSE: (0, 1, 0, 1, 0, 0),
    TRANSPOSE | FLIP_ROWS: (0, -1, 0, 1, 0, 0),
    TRANSPOSE | FLIP_COLUMNS: (0, 1, 0, -1, 0, 0),
}
STORED_ROWS, STORED_COLUMNS, STORED_SPACING = 5, 7, (0.5, 0.8)


def slice_at(turn, z, orientation):
    """The row of an index: rows, columns and spacing are those of the turned slice."""
    sides, spacing = (STORED_ROWS, STORED_COLUMNS), STORED_SPACING
    if turn & TRANSPOSE:
        sides, spacing = sides[::-1], spacing[::-1]
    facts = {"rows": sides[0], "columns": sides[1], "spacing_row_mm": spacing[0], "spacing_col_mm": spacing[1]}
    place = dict(zip(POSITION, (-3.0, 4.0, z), strict=True))
    return {**facts, **place, **dict(zip(ORIENTATION, orientation, strict=True)), "turn": turn}


@pytest.mark.parametrize("turn", ORIENTATIONS)
def test_every_pixel_lies_where_equation_c_7_6_2_1_1_puts_it(turn):
    orientation = ORIENTATIONS[turn]
    assert in_plane_turn(orientation) == turn
    affine = affine_of_slices([slice_at(turn, 10.0, orientation), slice_at(turn, 20.0, orientation)])
    down, across = np.mgrid[:STORED_ROWS, :STORED_COLUMNS]
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    corner = np.array([-3.0, 4.0, 10.0])
    stored = corner[:, None, None] + row[:, None, None] * across * 0.8 + column[:, None, None] * down * 0.5
    turned = np.stack([turn_pixels(axis, turn) for axis in stored])
    y, x = np.mgrid[: turned.shape[1], : turned.shape[2]]
    found = np.einsum("ij,jyx->iyx", affine, np.stack([x, y, np.zeros_like(x), np.ones_like(x)]))[:3]
    np.testing.assert_allclose(found, turned, atol=1e-12)
    np.testing.assert_allclose(affine[:3, 2], [0, 0, 10])


def test_uneven_distances_are_averaged_and_a_single_slice_is_one_millimetre_thick_along_its_normal():
    slices = [slice_at(0, z, ORIENTATIONS[0]) for z in (0.0, 5.0, 20.0)]
    assert affine_of_slices(slices)[:3, 2].tolist() == [0, 0, 10]
    tilted = (1, 0, 0, 0, np.cos(TILT), -np.sin(TILT))
    single = affine_of_slices([slice_at(0, 0.0, tilted)])
    np.testing.assert_allclose(single[:3, 2], [0, np.sin(TILT), np.cos(TILT)], atol=1e-12)


def test_a_whole_picture_has_the_sides_of_the_largest_slice():
    slices = [slice_at(0, 0.0, ORIENTATIONS[0]), {**slice_at(0, 5.0, ORIENTATIONS[0]), "rows": 9, "columns": 6}]
    assert whole_picture(slices) == Origin(9, 7, 0.5, 0.8, 0, 0, 9, 7, True)
