"""The contract of every step, and the way back to the source picture."""

import numpy as np
import pytest
from support.heads import draw_hard_head

from ichkit.core.errors import ConfigError
from ichkit.imaging.head_box import Box
from ichkit.imaging.resample import fit_to_square
from ichkit.imaging.steps import STEPS, Origin, Step, find_step, restore, run_steps


@pytest.fixture(scope="module")
def head():
    return draw_hard_head(np.random.default_rng(0), ("off_centre", "table"), size=128, fov_mm=400)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_gives_the_part_of_the_volume_that_it_names_and_changes_nothing_it_was_given(name, head):
    before = head.volume.copy()
    volume, box = STEPS[name].function(head.volume, head.spacing_mm)
    np.testing.assert_array_equal(head.volume, before)
    np.testing.assert_array_equal(volume, box.cut(before))
    assert volume.dtype == np.int16
    assert volume.shape[1:] == (box.height, box.width) < before.shape[1:]
    air = np.full((2, 40, 30), -800, np.int16)
    volume, box = STEPS[name].function(air, (1.0, 1.0))
    assert box is None
    np.testing.assert_array_equal(volume, air)


def test_steps_follow_each_other_and_the_origin_is_that_of_the_source(monkeypatch):
    def cut_ends(volume, _spacing):
        box = Box(2, 3, volume.shape[1] - 4, volume.shape[2] - 5)
        return box.cut(volume), box

    def find_nothing(volume, _spacing):
        return volume, None

    for name, function in (("ends", cut_ends), ("nothing", find_nothing)):
        monkeypatch.setitem(STEPS, name, Step(name, function, "A test.", "here"))
    source = np.arange(2 * 20 * 30, dtype=np.int16).reshape(2, 20, 30)
    volume, origin = run_steps(("ends", "ends"), source, (0.5, 0.25))
    assert origin == Origin(20, 30, 0.5, 0.25, 4, 6, 12, 20, True)
    np.testing.assert_array_equal(volume, source[:, 4:16, 6:26])
    assert max(origin.height * 0.5, origin.width * 0.25) == 6.0
    _, origin = run_steps(("ends", "nothing"), source, (0.5, 0.25))
    assert not origin.is_found
    assert run_steps((), source, (1.0, 1.0))[1] == Origin(20, 30, 1.0, 1.0, 0, 0, 20, 30, True)


def test_an_unknown_step_is_refused_with_the_setting_that_named_it():
    with pytest.raises(ConfigError, match=r'prepare.crop: unknown "heed".*head'):
        find_step("heed")


def test_a_stored_slice_goes_back_to_its_place():
    source = np.random.default_rng(0).integers(-800, 2000, (3, 20, 30)).astype(np.int16)
    origin = Origin(20, 30, 1.0, 1.0, 5, 7, 9, 11, True)
    placed = restore(source[:, 5:14, 7:18], origin, -1000)
    np.testing.assert_array_equal(placed[:, 5:14, 7:18], source[:, 5:14, 7:18])
    outside = np.ones((20, 30), bool)
    outside[5:14, 7:18] = False
    assert (placed[:, outside] == -1000).all()


@pytest.mark.parametrize("size", [32, 64, 200])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 1.0), (1.2, 0.7)])
def test_a_resized_slice_goes_back_to_its_place_too(size, spacing):
    """A spot of 8 pixels stands where it stood, to half a pixel, also where pixels are not square."""
    y, x = np.mgrid[:120, :140]
    source = (1000 * np.exp(-((y - 60.5) ** 2 + (x - 83.25) ** 2) / 60)).astype(np.int16)
    origin = Origin(120, 140, *spacing, 20, 40, 70, 80, True)
    stored = fit_to_square(source[20:90, 40:120], *spacing, size, 0)
    placed = restore(stored[None].astype(np.float32), origin, 0.0)[0]
    weights = placed / placed.sum()
    assert (weights * y).sum() == pytest.approx(60.5, abs=0.5)
    assert (weights * x).sum() == pytest.approx(83.25, abs=0.5)
    assert placed.shape == source.shape
    assert not placed[:20].any()


def test_a_whole_picture_goes_back_as_it_is_and_a_mirrored_one_is_turned_back():
    source = np.random.default_rng(0).integers(-800, 2000, (2, 4, 6)).astype(np.int16)
    np.testing.assert_array_equal(restore(source, None, -1000), source)
    mirrored = Origin(4, 6, 1.0, 1.0, 0, 0, 4, 6, True, True)
    np.testing.assert_array_equal(restore(source[..., ::-1], mirrored, -1000), source)
