"""Laws of the order of slices: positions and gaps of a made-up scanner against what its geometry says."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ichkit.imaging.dicom import ORIENTATION, POSITION
from ichkit.imaging.geometry import in_plane_turn
from ichkit.sources.plan import add_positions, order_slices

TILTS = st.floats(-30, 30).map(lambda degrees: round(degrees, 2))
STEPS = st.lists(st.integers(1, 100).map(lambda tenths: tenths / 10), min_size=1, max_size=30)
STARTS = st.tuples(*[st.integers(-500, 500)] * 3)


def scan(steps, tilt, spin, start, mirrored=False):
    """The headers of slices whose table moved along z by these steps (mm) under a gantry of this tilt, feet first."""
    row, column, _ = Rotation.from_euler("XZ", [tilt, spin], degrees=True).as_matrix().T
    orientation = [*row, *(-column if mirrored else column)]
    heights = np.cumsum([0.0, *steps])
    corners = np.array(start, float) + heights[:, None] * [0, 0, 1]
    frame = pd.DataFrame(np.tile(orientation, (len(heights), 1)), columns=ORIENTATION)
    frame[POSITION] = corners
    names = [f"{number:03d}" for number in range(len(heights))]
    return frame.assign(
        slice_id=names,
        study_id="s",
        series_id="1",
        series_uid="1",
        slab=range(len(names)),
        turn=in_plane_turn(orientation),
        rows=64,
        columns=48,
        spacing_row_mm=0.5,
        spacing_col_mm=0.4,
        instance_number=0,
        acquisition_number=0,
        frame=0,
    )


def order(frame):
    files, slices = order_slices(add_positions(frame))
    assert files["slice_id"].tolist() == slices["slice_id"].tolist()
    return slices


@given(STEPS, TILTS, st.sampled_from([0, 90, 180, 270, 7]), STARTS, st.booleans(), st.randoms(use_true_random=False))
def test_slices_stand_from_the_feet_up_by_the_steps_of_the_table_times_the_cosine_of_the_tilt(
    steps, tilt, spin, start, mirrored, random
):
    frame = scan(steps, tilt, spin, start, mirrored)
    shuffled = frame.sample(frac=1, random_state=random.randrange(2**32))
    slices = order(shuffled)
    assert slices["slice_id"].tolist() == frame["slice_id"].tolist()
    assert slices["slice_index"].tolist() == list(range(len(frame)))
    np.testing.assert_allclose(np.diff(slices["position_mm"]), np.array(steps) * np.cos(np.radians(tilt)), atol=2e-6)
    np.testing.assert_allclose(slices["tilt_degrees"], abs(tilt), atol=1e-4)


@given(STEPS, TILTS, STARTS, STARTS)
def test_another_place_of_the_table_moves_all_positions_alike(steps, tilt, start, elsewhere):
    here, there = (order(scan(steps, tilt, 0, place))["position_mm"].to_numpy() for place in (start, elsewhere))
    np.testing.assert_allclose(there - here, (there - here)[0], atol=3e-6)


@given(STEPS, STEPS, st.floats(5, 30), st.integers(0, 5))
def test_a_gantry_that_tilts_for_the_skull_base_alone_keeps_the_order_of_the_centres(base, vertex, tilt, apart):
    """The tilt turns about the middle of the slice, as a gantry does, and the table moves on in between."""
    low, high = scan(base, tilt, 0, (0, 0, 0)), scan(vertex, 0, 0, (0, 0, sum(base) + 1 + apart))
    middle = np.array([47 / 2 * 0.4, 63 / 2 * 0.5, 0])  # of an untilted slice, from its corner
    turned = low[ORIENTATION[:3]].to_numpy() * middle[0] + low[ORIENTATION[3:]].to_numpy() * middle[1]
    low[POSITION] = low[POSITION].to_numpy() + middle - turned
    high["slice_id"] = "v" + high["slice_id"]
    both = pd.concat([low, high], ignore_index=True).assign(slab=lambda rows: range(len(rows)))
    assert order(both)["slice_id"].tolist() == [*low["slice_id"], *high["slice_id"]]
