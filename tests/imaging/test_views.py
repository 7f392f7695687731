import numpy as np
import pytest

from ichkit.core.train_config import AugmentConfig
from ichkit.imaging.augment import Augmenter
from ichkit.imaging.views import TTA_SETS, View
from ichkit.imaging.windows import TABLE_LOW_HU

SIZE = 40
OFF = dict.fromkeys(("crop", "horizontal_flip", "rotation", "distortion", "noise"), 0.0)


@pytest.fixture(scope="module")
def slices_hu():
    return np.random.default_rng(0).integers(-800, 2000, (3, SIZE, SIZE)).astype(np.int16)


def test_the_plain_view_is_the_volume_itself(slices_hu):
    assert View().show(slices_hu) is slices_hu


def test_a_flip_is_that_of_the_array(slices_hu):
    np.testing.assert_array_equal(View(is_flipped=True).show(slices_hu), slices_hu[:, :, ::-1])


@pytest.mark.parametrize(("down", "right"), [(4, 0), (-4, 0), (0, 6), (0, -6), (3, -5)])
def test_a_shift_by_whole_pixels_moves_them_and_brings_in_air(slices_hu, down, right):
    wanted = np.full_like(slices_hu, TABLE_LOW_HU)
    for y in range(SIZE):
        for x in range(SIZE):
            if 0 <= y - down < SIZE and 0 <= x - right < SIZE:
                wanted[:, y, x] = slices_hu[:, y - down, x - right]
    np.testing.assert_array_equal(View(down=down / SIZE, right=right / SIZE).show(slices_hu), wanted)


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (180.0, 2), (-90.0, -1)])
def test_a_rotation_by_right_angles_is_that_of_the_array(slices_hu, degrees, turns):
    np.testing.assert_array_equal(View(degrees=degrees).show(slices_hu), np.rot90(slices_hu, turns, (1, 2)))


@pytest.mark.parametrize(("zoom", "degrees"), [(1.1, 0.0), (0.9, 0.0), (1.0, 10.0), (1.12, -10.0)])
def test_a_view_shows_what_the_training_shows_at_the_same_zoom_and_angle(slices_hu, zoom, degrees):
    augment = AugmentConfig(
        **{f"{name}_probability": 0.0 for name in OFF} | {"rotation_probability": 1.0, "shift_fraction": 0.0},
        scale=(zoom, zoom),
        rotation_degrees=0.0,
    )
    augmenter = Augmenter(augment, SIZE)
    (affine,) = (step for step in augmenter._geometry.transforms if type(step).__name__ == "Affine")
    affine.rotate = (degrees, degrees)
    np.testing.assert_array_equal(View(zoom=zoom, degrees=degrees).show(slices_hu), augmenter.warp(slices_hu, 0))


@pytest.mark.parametrize("name", TTA_SETS)
def test_each_set_has_distinct_moderate_views_and_shows_the_whole_middle(name):
    row = TTA_SETS[name]
    assert row.name == name
    assert len(set(row.views)) == len(row.views)
    assert row.description.endswith(".")
    assert row.source
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    head = np.where(np.hypot(y, x) <= 0.38 * SIZE, 50, TABLE_LOW_HU).astype(np.int16)[None]
    for view in row.views:
        shown = view.show(head)
        assert shown.dtype == head.dtype
        assert shown.flags.c_contiguous
        # No part of a head that fills three quarters of the image is cut off: air stays around it.
        assert (np.concatenate([shown[0, [0, -1]], shown[0, :, [0, -1]]]) == TABLE_LOW_HU).all()
        assert (shown == 50).sum() == pytest.approx(view.zoom**2 * (head == 50).sum(), rel=0.12)


@pytest.mark.parametrize("name", TTA_SETS)
def test_each_set_moves_as_far_to_one_side_as_to_the_other(name):
    for moved in ("right", "down", "degrees"):
        assert sum(getattr(view, moved) for view in TTA_SETS[name].views) == pytest.approx(0)


@pytest.mark.parametrize("name", ["rotate", "hflip", "shift"])
def test_every_sequence_of_a_volume_is_shown_in_the_same_view(name):
    several = np.random.default_rng(2).integers(0, 3000, (3, 2, SIZE, SIZE)).astype(np.int16)
    for view in TTA_SETS[name].views:
        shown = view.show(several)
        for number in range(2):
            # OpenCV interpolates an image of four channels more coarsely than one of two.
            np.testing.assert_allclose(shown[:, number], view.show(several[:, number]), rtol=0, atol=100)
