import albumentations
import cv2
import numpy as np
import pytest

from ichkit.core.config import load_config
from ichkit.core.errors import ConfigError
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
    noisy = Augmenter(config, SIZE).change_values(flat, 3)
    for position in range(1, 7):
        assert (noisy[position] != noisy[0]).mean() > 0.5
    np.testing.assert_array_equal(Augmenter(config, SIZE).change_values(flat, 3), noisy)
    assert (Augmenter(config, SIZE).change_values(flat, 4) != noisy).mean() > 0.5
    assert noisy.std() == pytest.approx(3, rel=0.05)
    assert noisy.mean() == pytest.approx(40, abs=0.2)


def test_without_noise_the_slices_are_left_alone(slices_hu):
    assert Augmenter(OFF, SIZE).change_values(slices_hu, 0) is slices_hu


def test_noise_is_drawn_as_often_as_it_is_asked_for(slices_hu):
    augmenter = Augmenter(OFF.model_copy(update={"noise_probability": 0.3}), SIZE)
    drawn = [augmenter.change_values(slices_hu, seed) is not slices_hu for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.07)  # three standard deviations


def test_a_transposition_is_that_of_the_array(slices_hu):
    warped = augmenter_of(40, transpose_probability=1.0).warp(slices_hu, 0)
    np.testing.assert_array_equal(warped, slices_hu.transpose(0, 2, 1))


def augmenter_of(size, **changes):
    return Augmenter(OFF.model_copy(update=changes), size)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25])
def test_a_scale_magnifies_about_the_centre_and_fills_with_air(factor):
    augmenter = augmenter_of(
        65, scale=(factor, factor), rotation_probability=1.0, rotation_degrees=0.0, shift_fraction=0.0
    )
    y, x = np.mgrid[:65, :65]
    disc = np.where(np.hypot(y - 32, x - 32) <= 16, 1000, 50).astype(np.int16)[None]
    warped = augmenter.warp(disc, 0)[0]
    area = (np.clip(warped, 50, 1000).astype(float) - 50).sum() / 950
    assert area == pytest.approx(factor**2 * (disc == 1000).sum(), rel=0.02)
    # 65 pixels of tissue become 65 x factor, and air lies around them.
    assert (warped[32] > TABLE_LOW_HU + 100).sum() == pytest.approx(min(65, 65 * factor), abs=1)
    assert (warped == TABLE_LOW_HU).any() == (factor < 1)


def test_a_scale_range_is_drawn_evenly_and_keeps_proportions():
    augmenter = augmenter_of(65, scale=(0.8, 1.2), rotation_probability=1.0, rotation_degrees=0.0, shift_fraction=0.0)
    y, x = np.mgrid[:65, :65]
    square = np.where((abs(y - 32) <= 10) & (abs(x - 32) <= 10), 1000, 50).astype(np.int16)[None]
    sides = []
    for seed in range(200):
        warped = augmenter.warp(square, seed)[0].astype(float).clip(50, 1000)
        rows, columns = ((line - 50).sum() / 950 for line in (warped[:, 32], warped[32]))
        assert rows == pytest.approx(columns, abs=0.01)
        sides.append(rows / 21)
    assert np.mean(sides) == pytest.approx(1, abs=0.03)
    assert 0.79 <= min(sides) < 0.85
    assert 1.15 < max(sides) <= 1.21


def test_a_shift_adds_the_same_whole_number_of_hounsfield_units_everywhere(slices_hu):
    augmenter = augmenter_of(40, shift_hu=12, intensity_probability=1.0)
    shifts = set()
    for seed in range(400):
        difference = augmenter.change_values(slices_hu, seed) - slices_hu
        assert len(np.unique(difference)) == 1
        shifts.add(int(difference[0, 0, 0]))
    assert shifts == set(range(-12, 13))


def test_contrast_multiplies_hounsfield_units_and_leaves_water(slices_hu):
    slices_hu = slices_hu.copy()
    slices_hu[:, 0] = 0
    for seed, factor in enumerate((0.8, 1.0, 1.2)):
        changed = augmenter_of(40, contrast=(factor, factor), intensity_probability=1.0).change_values(slices_hu, seed)
        np.testing.assert_array_equal(changed, np.rint(slices_hu * np.float64(factor)).astype(np.int16))
        assert (changed[:, 0] == 0).all()


def test_intensity_is_changed_as_often_as_it_is_asked_for(slices_hu):
    augmenter = augmenter_of(SIZE, contrast=(1.1, 1.2), intensity_probability=0.3)
    drawn = [augmenter.change_values(slices_hu, seed) is not slices_hu for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.07)  # three standard deviations


def test_coarse_dropout_fills_rectangles_of_the_asked_number_and_size_with_air():
    augmenter = augmenter_of(60, dropout_holes=(2, 2), dropout_size=(0.1, 0.1), dropout_probability=1.0)
    areas = []
    for seed in range(20):
        warped = augmenter.warp(np.full((5, 60, 60), 50, np.int16), seed)
        np.testing.assert_array_equal(warped, np.repeat(warped[:1], 5, 0))
        assert set(np.unique(warped)) == {TABLE_LOW_HU, 50}
        areas.append((warped[0] == TABLE_LOW_HU).sum())
    assert max(areas) == 72  # two squares of 6 x 6, which may overlap
    assert np.mean(areas) > 65


def test_a_range_upside_down_and_a_crop_beyond_the_slice_are_refused():
    for change, key in (("scale=[1.2, 0.8]", "scale"), ("crop_scale=[0.7, 1.4]", "crop_scale")):
        with pytest.raises(ConfigError, match=rf"train\.augment\.{key}"):
            load_config("default", (f"train.augment.{change}",))


@pytest.mark.parametrize("name", ["default", "resnet50-midl", "demo"])
def test_what_was_added_later_changes_nothing_where_it_is_off(name, slices_hu):
    """The augmentation of 0.1.0, written out from the library's own parts."""
    config = load_config(name).train.augment
    fill = {"interpolation": cv2.INTER_LINEAR, "border_mode": cv2.BORDER_CONSTANT, "fill": 0}
    area = {"interpolation": cv2.INTER_LINEAR, "area_for_downscale": "image"}
    steps = [
        albumentations.RandomResizedCrop(
            (SIZE, SIZE), config.crop_scale, (0.8, 1.25), p=config.crop_probability, **area
        ),
        albumentations.Resize(SIZE, SIZE, p=1.0, **area),
        albumentations.HorizontalFlip(p=config.horizontal_flip_probability),
        albumentations.Affine(
            rotate=(-config.rotation_degrees, config.rotation_degrees),
            translate_percent=(-config.shift_fraction, config.shift_fraction),
            p=config.rotation_probability,
            **fill,
        ),
    ]
    if config.distortion_probability:
        limit = (-config.distortion_limit, config.distortion_limit)
        steps.append(albumentations.GridDistortion(5, limit, p=config.distortion_probability, **fill))
    plain, augmenter = albumentations.Compose(steps), Augmenter(config, SIZE)
    for seed in range(40):
        plain.set_random_seed(seed)
        image = (slices_hu[:4] - np.int16(TABLE_LOW_HU)).view(np.uint16).transpose(1, 2, 0)
        wanted = plain(image=np.ascontiguousarray(image))["image"].view(np.int16) + np.int16(TABLE_LOW_HU)
        np.testing.assert_array_equal(augmenter.warp(slices_hu[:4], seed), wanted.transpose(2, 0, 1))
        generator = np.random.default_rng(seed)
        wanted = slices_hu
        if generator.random() < config.noise_probability:
            cv2.setRNGSeed(int(generator.integers(2**31)))
            noise = np.empty((len(slices_hu) * 40, 40), np.int16)
            cv2.randn(noise, np.zeros(1), np.array([generator.uniform(*config.noise_hu)]))
            wanted = slices_hu + noise.reshape(slices_hu.shape)
        np.testing.assert_array_equal(augmenter.change_values(slices_hu, seed), wanted)


def test_the_sequences_of_a_slice_are_warped_together_and_as_they_are_alone(default):
    several = np.random.default_rng(1).integers(0, 3000, (3, 2, 40, 40)).astype(np.int16)
    warped = default.warp(several, 5)
    assert warped.shape == (3, 2, SIZE, SIZE)
    for number in range(2):
        # OpenCV interpolates an image of four channels more coarsely than one of two.
        np.testing.assert_allclose(warped[:, number], default.warp(several[:, number], 5), rtol=0, atol=100)
