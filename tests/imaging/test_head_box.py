"""The box of the head on phantom heads, whose brain is known to the pixel, and on volumes without a head."""

import numpy as np
import pytest
from support.heads import TROUBLES, draw_hard_head

from ichkit.imaging.head_box import MARGIN_MM, Box, _mean_of_blocks, find_head_box, otsu


def draw_ball(size=80, centre=(40, 40), skull=22, scalp=25):
    """(6, size, size) HU: brain in a shell of bone and scalp; with pixels of 4 mm there is no coarser grid."""
    y, x = np.mgrid[:size, :size]
    far = np.hypot(y - centre[0], x - centre[1])
    return np.repeat(np.select([far < skull - 2, far < skull, far < scalp], [30, 1000, -60], -1000)[None], 6, 0).astype(
        np.int16
    )


@pytest.mark.parametrize("trouble", TROUBLES)
def test_no_brain_is_outside_the_box_and_the_box_is_square_and_in_the_picture(trouble):
    for number in range(3):
        head = draw_hard_head(np.random.default_rng([number, *trouble.encode()]), (trouble,), size=112)
        box = find_head_box(head.volume, head.spacing_mm)
        assert box is not None
        assert box.cut(head.brain).sum() == head.brain.sum() > 0
        rows, columns = head.volume.shape[1:]
        assert 0 <= box.top <= box.top + box.height <= rows
        assert 0 <= box.left <= box.left + box.width <= columns
        assert box.height == box.width or box.height == rows


@pytest.mark.parametrize("things", [(), ("table",), ("tubes",), ("frame",), ("off_centre", "table"), ("raw", "tubes")])
def test_what_lies_around_a_small_head_is_left_out(things):
    head = draw_hard_head(np.random.default_rng(4), things, size=160, fov_mm=420)
    box = find_head_box(head.volume, head.spacing_mm)
    # A skull of up to 8 mm and a scalp of up to 19 mm around the brain, the margin, and the coarse grid.
    brain = head.brain.any(0)
    extent = max(np.ptp(np.flatnonzero(brain.any(axis))) + 1 for axis in (0, 1))
    assert box.height * head.spacing_mm[0] < extent * head.spacing_mm[0] + 2 * (8 + 19 + MARGIN_MM + 3)
    assert box.height < 0.65 * 160


def test_a_cushion_that_touches_the_head_counts_no_further_than_20_mm_beyond_the_bone():
    volume = draw_ball()
    volume[:, 64:, 20:60] = 0
    # The bone ends at row 61, the scalp on the other sides at 16 and 64; 20 mm are 5 rows.
    assert find_head_box(volume, (4.0, 4.0)) == Box(top=14, left=13, height=54, width=54)


def test_a_thin_plate_that_touches_the_head_is_left_out():
    volume = draw_ball()
    volume[:, 65, 2:78] = 200
    box, bare = find_head_box(volume, (4.0, 4.0)), find_head_box(draw_ball(), (4.0, 4.0))
    assert (
        0 <= box.height - bare.height <= 1
    )  # where the plate touches the scalp it is as thick as the scalp and itself


def test_a_head_that_is_moved_gives_the_same_picture_at_the_place_it_was_moved_to():
    first, moved = draw_ball(), draw_ball(centre=(40 - 8, 40 + 9))
    one, other = (find_head_box(volume, (4.0, 4.0)) for volume in (first, moved))
    assert (other.top - one.top, other.left - one.left) == (-8, 9)
    np.testing.assert_array_equal(one.cut(first), other.cut(moved))


def test_the_box_is_the_ball_and_its_margin():
    box = find_head_box(draw_ball(), (4.0, 4.0))
    # 49 pixels from -24 to 24 around the centre, 6 mm on each side in pixels of 4 mm.
    assert box == Box(top=14, left=14, height=52, width=52)


def test_the_order_of_slices_and_empty_ends_do_not_matter():
    volume = draw_ball()
    empty = np.full((3, 80, 80), -1000, np.int16)
    expected = find_head_box(volume, (4.0, 4.0))
    assert find_head_box(np.concatenate([empty, volume[::-1], empty]), (4.0, 4.0)) == expected
    assert find_head_box(np.concatenate([volume[:2], empty, volume[2:]]), (4.0, 4.0)) == expected
    assert find_head_box(volume[:1], (4.0, 4.0)) == expected


def test_pixels_that_are_not_square_give_a_box_that_is_square_in_mm():
    stretched = np.repeat(draw_ball(), 2, axis=1)
    box, plain = find_head_box(stretched, (2.0, 4.0)), find_head_box(draw_ball(), (4.0, 4.0))
    assert abs(box.height * 2.0 - box.width * 4.0) <= 4
    assert (box.left, box.width) == (plain.left, plain.width)


def test_series_of_one_study_that_were_scanned_at_two_places_share_one_box():
    low, high = draw_ball(size=120, centre=(30, 30)), draw_ball(size=120, centre=(80, 70))
    both = np.concatenate([low, high])
    box, is_head = find_head_box(both, (4.0, 4.0)), both > -900
    assert box.cut(is_head).sum() == is_head.sum()
    assert box == Box(top=4, left=0, height=102, width=102)


@pytest.mark.parametrize(
    "volume",
    [
        np.full((4, 64, 64), -1000, np.int16),
        np.full((1, 64, 64), 40, np.int16),
        np.random.default_rng(0).normal(-1000, 20, (4, 64, 64)).astype(np.int16),
        np.where(draw_ball() > 500, 30, draw_ball()),
        np.zeros((1, 1, 1), np.int16),
    ],
    ids=["air", "tissue alone", "noise", "no bone", "one pixel"],
)
def test_where_there_is_no_head_none_is_found(volume):
    assert find_head_box(volume, (2.0, 2.0)) is None


@pytest.mark.parametrize("steps", [(1, 1), (4, 4), (3, 5)])
def test_the_means_of_blocks_are_those_of_numpy_also_at_the_edges(steps):
    volume = np.random.default_rng(0).integers(-2000, 3000, (2, 13, 22)).astype(np.int16)
    found = _mean_of_blocks(volume, *steps)
    clipped = np.clip(volume, -1000, 1500).astype(np.int64)
    for s, i, j in np.ndindex(*found.shape):
        block = clipped[s, i * steps[0] : (i + 1) * steps[0], j * steps[1] : (j + 1) * steps[1]]
        assert found[s, i, j] == block.sum() // block.size
    assert found.shape == (2, -(-13 // steps[0]), -(-22 // steps[1]))


def test_the_threshold_is_the_one_of_the_definition():
    values = np.random.default_rng(0).choice([3, 5, 9, 40, 44, 47], 200)

    def between(level):
        low, high = values[values <= level], values[values > level]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    levels = np.unique(values)[:-1]
    assert otsu(values) == max(levels, key=between)
