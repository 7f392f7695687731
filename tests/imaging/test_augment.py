import numpy as np
import pytest

from ichkit.core.train_config import AugmentConfig
from ichkit.imaging.augment import Augmenter
from ichkit.imaging.windows import TABLE_HIGH_HU, TABLE_LOW_HU

OFF = AugmentConfig(
    crop_probability=0,
    horizontal_flip_probability=0,
    rotation_probability=0,
    distortion_probability=0,
    noise_probability=0,
)
SIZE = 32


@pytest.fixture(scope="module")
def default():
    return Augmenter(AugmentConfig(), SIZE)


@pytest.fixture(scope="module")
def slices_hu():
    return np.random.default_rng(0).integers(-800, 2000, (7, 40, 40)).astype(np.int16)


def test_the_same_seed_gives_the_same_slices_and_another_seed_others(default, slices_hu):
    first = default.warp(slices_hu, 5)
    other = default.warp(slices_hu, 6)
    assert first.shape == (7, SIZE, SIZE)
    np.testing.assert_array_equal(Augmenter(AugmentConfig(), SIZE).warp(slices_hu, 5), first)
    assert (first != other).mean() > 0.5


def test_slices_warped_together_share_their_geometry(default, slices_hu):
    for seed in range(8):
        warped = default.warp(np.repeat(slices_hu[:1], 7, 0), seed)
        np.testing.assert_array_equal(warped, np.repeat(warped[:1], 7, 0))
        np.testing.assert_array_equal(default.warp(slices_hu[:1], seed)[0], warped[0])


def test_slices_warped_together_come_out_as_they_do_alone(default, slices_hu):
    for seed in range(8):
        alone = np.concatenate([default.warp(slices_hu[i : i + 1], seed) for i in range(7)])
        np.testing.assert_array_equal(default.warp(slices_hu, seed), alone)


def test_with_everything_off_every_hounsfield_unit_comes_back():
    everything = np.arange(TABLE_LOW_HU, TABLE_HIGH_HU + 1, dtype=np.int16).reshape(1, 64, 64)
    np.testing.assert_array_equal(Augmenter(OFF, 64).warp(everything, 0), everything)


def test_a_flip_is_a_flip(slices_hu):
    config = OFF.model_copy(update={"horizontal_flip_probability": 1.0})
    np.testing.assert_array_equal(Augmenter(config, 40).warp(slices_hu, 0), slices_hu[:, :, ::-1])


def test_what_comes_in_from_outside_is_air():
    config = OFF.model_copy(update={"rotation_probability": 1.0, "rotation_degrees": 45.0, "shift_fraction": 0.3})
    warped = np.concatenate([Augmenter(config, 40).warp(np.full((1, 40, 40), 50, np.int16), seed) for seed in range(8)])
    assert set(np.unique(warped[:, [0, -1]][:, :, [0, -1]])) <= {TABLE_LOW_HU, 50}
    assert (warped == TABLE_LOW_HU).any()
    assert (warped == 50).any()


def test_noise_is_another_in_every_slice_and_the_same_for_the_same_seed():
    config = OFF.model_copy(update={"noise_probability": 1.0, "noise_hu": (3.0, 3.0)})
    flat = np.full((7, SIZE, SIZE), 40, np.int16)
    noisy = Augmenter(config, SIZE).add_noise(flat, 3)
    for position in range(1, 7):
        assert (noisy[position] != noisy[0]).mean() > 0.5
    np.testing.assert_array_equal(Augmenter(config, SIZE).add_noise(flat, 3), noisy)
    assert (Augmenter(config, SIZE).add_noise(flat, 4) != noisy).mean() > 0.5
    assert noisy.std() == pytest.approx(3, rel=0.05)
    assert noisy.mean() == pytest.approx(40, abs=0.2)


def test_without_noise_the_slices_are_left_alone(slices_hu):
    assert Augmenter(OFF, SIZE).add_noise(slices_hu, 0) is slices_hu


def test_noise_is_drawn_as_often_as_it_is_asked_for(slices_hu):
    augmenter = Augmenter(OFF.model_copy(update={"noise_probability": 0.3}), SIZE)
    drawn = [augmenter.add_noise(slices_hu, seed) is not slices_hu for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.07)  # three standard deviations
