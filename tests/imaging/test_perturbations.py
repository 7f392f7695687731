"""Perturbations by what they must do to pixels whose values are known."""

import numpy as np
import pytest

from ichkit.imaging.perturbations import PERTURBATIONS, Given

LOW, HIGH = -800, 2000


def make_given(num_slices=5, side=40, value=30):
    volume = np.full((num_slices, side, side), value, np.int16)
    volume[:, :4] = LOW
    return Given(volume, 5.0 * np.arange(num_slices), LOW, HIGH)


def apply(name, given, seed=0):
    return PERTURBATIONS[name].apply(given, np.random.default_rng(seed))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_leaves_the_given_study_the_range_and_the_shape_of_its_slices_as_they_are(name):
    given = make_given()
    before = given.volume.copy()
    found = apply(name, given)
    np.testing.assert_array_equal(given.volume, before)
    assert found.volume.dtype == np.int16
    assert found.volume.shape[1:] == before.shape[1:]
    assert LOW <= found.volume.min() <= found.volume.max() <= HIGH
    assert len(found.positions_mm) == len(found.volume)
    assert found.of_slice.max() == len(found.volume) - 1
    np.testing.assert_array_equal(apply(name, given).volume, found.volume)


def test_noise_has_the_deviation_of_the_dose_and_none_in_the_air():
    given = make_given(num_slices=8, side=80)
    for name, deviation in (("dose_half", 4.0), ("dose_quarter", 4 * np.sqrt(3))):
        added = apply(name, given).volume.astype(float) - given.volume
        assert (added[:, :4] == 0).all()
        assert added[:, 4:].std() == pytest.approx(deviation, rel=0.02)
        assert added[:, 4:].mean() == pytest.approx(0, abs=0.1)
    assert not np.array_equal(apply("dose_half", given, seed=1).volume, apply("dose_half", given, seed=2).volume)


@pytest.mark.parametrize(
    ("name", "shift"), [("hu_minus_10", -10), ("hu_minus_5", -5), ("hu_plus_5", 5), ("hu_plus_10", 10)]
)
def test_a_shift_of_hounsfield_units_is_added_and_stays_in_the_range(name, shift):
    found = apply(name, make_given()).volume
    assert (found[:, 4:] == 30 + shift).all()
    assert (found[:, :4] == max(LOW, LOW + shift)).all()
    assert (apply(name, make_given(value=HIGH)).volume[:, 4:] == min(HIGH, HIGH + shift)).all()


def test_a_moved_study_is_where_it_was_moved_to_with_air_at_the_border():
    given = make_given()
    moved = apply("shift", given).volume
    np.testing.assert_array_equal(moved[:, 2:, 2:], given.volume[:, :-2, :-2])
    assert (moved[:, :2] == LOW).all()
    assert (moved[:, :, :2] == LOW).all()
    marked = Given(np.full((1, 41, 41), LOW, np.int16), np.zeros(1), LOW, HIGH)
    marked.volume[0, 18:23, 34:39] = 1000  # 16 columns to the right of the middle
    y, x = (places.mean() for places in np.nonzero(apply("rotation", marked).volume[0] > 100))
    angle = np.degrees(np.arctan2(20 - y, x - 20))
    assert angle == pytest.approx(10, abs=1)


def test_coarser_studies_say_which_row_shows_each_slice():
    given = Given(
        np.arange(5, dtype=np.int16)[:, None, None] * 10 * np.ones((1, 2, 2), np.int16), 5.0 * np.arange(5), LOW, HIGH
    )
    every = apply("every_second", given)
    assert every.volume[:, 0, 0].tolist() == [0, 20, 40]
    assert every.positions_mm.tolist() == [0, 10, 20]
    assert every.of_slice.tolist() == [0, -1, 1, -1, 2]
    slabs = apply("slabs_of_2", given)
    assert slabs.volume[:, 0, 0].tolist() == [5, 25, 40]
    assert slabs.positions_mm.tolist() == [2.5, 12.5, 20]
    assert slabs.of_slice.tolist() == [0, 0, 1, 1, 2]
