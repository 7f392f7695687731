"""Laws of slice geometry, tried on drawn orientations: what turning, moving or reordering slices may not change."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ichkit.imaging.geometry import in_plane_turn, is_axial, slab_groups, slice_normals, turn_pixels

ANGLES = st.floats(-180, 180).map(lambda degrees: round(degrees, 3))
TILTS = st.floats(-40, 40).map(lambda degrees: round(degrees, 3))
EIGHTHS = st.integers(1, 400).map(lambda eighths: eighths / 8)  # exact in binary, so that moving a scan rounds nothing


def orientation_of(rotation, mirrored=False):
    """(6,) cosines of rows and columns; mirrored ones run the other way along the column."""
    row, column, _ = rotation.as_matrix().T
    return np.concatenate([row, -column if mirrored else column])


@given(ANGLES, TILTS, TILTS, st.booleans())
def test_turned_pixels_run_to_the_left_and_to_the_back_however_the_slice_was_stored(spin, pitch, roll, mirrored):
    orientation = orientation_of(Rotation.from_euler("ZXY", [spin, pitch / 2, roll / 2], degrees=True), mirrored)
    down, across = np.mgrid[0:4, 0:5]
    left, back = (across * orientation[axis] + down * orientation[3 + axis] for axis in (0, 1))
    turn = in_plane_turn(orientation.tolist())
    assert (np.diff(turn_pixels(left, turn), axis=1) > 0).all()
    assert (np.diff(turn_pixels(back, turn), axis=0) > 0).all()


@given(ANGLES, ANGLES, ANGLES, st.booleans())
def test_a_normal_is_a_unit_vector_across_the_slice_that_never_points_to_the_feet(first, second, third, mirrored):
    rotation = Rotation.from_euler("ZXZ", [first, second, third], degrees=True)
    orientation = orientation_of(rotation, mirrored)
    (normal,) = slice_normals(orientation[None])
    assert normal[2] >= 0
    np.testing.assert_allclose(np.linalg.norm(normal), 1)
    np.testing.assert_allclose([orientation[:3] @ normal, orientation[3:] @ normal], 0, atol=1e-9)
    # The same slice stored from its other corners, or rows for columns, has the same normal.
    stored_otherwise = np.stack(
        [np.concatenate([s * orientation[:3], t * orientation[3:]]) for s in (1, -1) for t in (1, -1)]
        + [np.concatenate([orientation[3:], orientation[:3]])]
    )
    np.testing.assert_allclose(slice_normals(stored_otherwise), np.broadcast_to(normal, (5, 3)), atol=1e-9)


@given(ANGLES, st.floats(0, 90), ANGLES)
def test_a_slice_is_axial_up_to_45_degrees_of_tilt_in_any_direction(spin, tilt, turned):
    orientation = orientation_of(Rotation.from_euler("ZXZ", [spin, tilt, turned], degrees=True))
    if abs(tilt - 45) > 1e-6:
        assert is_axial(orientation[None]).tolist() == [tilt < 45]


@given(st.lists(EIGHTHS, max_size=40), st.sampled_from([2.5, 5.0, 7.5]), EIGHTHS)
def test_slabs_follow_each_other_hold_at_most_their_thickness_and_do_not_depend_on_the_table(gaps, thickness, moved):
    positions = np.cumsum([0.0, *gaps])
    groups = slab_groups(positions, thickness)
    assert groups[0] == 0
    assert set(np.diff(groups).tolist()) <= {0, 1}
    for number in range(groups[-1] + 1):
        inside = positions[groups == number]
        # The last one may have taken in a thin one behind it, however far that is.
        assert np.ptp(inside) < thickness or number == groups[-1]
    np.testing.assert_array_equal(slab_groups(positions + moved, thickness), groups)


def test_no_slices_are_no_slabs_and_a_thin_last_slab_joins_the_one_before_it():
    assert slab_groups(np.empty(0), 5.0).tolist() == []
    assert slab_groups(np.arange(9) * 1.25, 5.0).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert slab_groups(np.arange(10) * 1.25, 5.0).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
