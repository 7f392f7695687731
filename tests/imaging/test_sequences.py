"""Several sequences of one study: sampling on a common grid, the stored scale, and settings that a model carries."""

from dataclasses import replace

import numpy as np
import pytest

from ichkit.core.config import SequencesConfig
from ichkit.core.errors import ConfigError, DataError
from ichkit.imaging.sequences import (
    PERCENTILES,
    SEQUENCE_TOP,
    TYPICAL,
    Image,
    Sequences,
    SequenceSettings,
    grid_affine,
    place,
    sample,
    to_volume,
)

SHAPE, SPACING = (6, 20, 16), (5.0, 2.0, 2.0)


def settings(**changes):
    config = SequencesConfig(names=("one", "two"), slices=6, rows=20, columns=16, field_mm=(30, 40, 32), steps=())
    return replace(SequenceSettings.of(config), **changes)


def scene(factor=7.0, lesion=3.0):
    """A brain of value `factor` with a bright spot of `lesion` times that, as two images on the grid itself."""
    brain = np.zeros(SHAPE, np.float32)
    brain[1:5, 4:16, 3:13] = 1
    values = factor * brain
    values[2, 6:9, 5:8] *= lesion
    mask = Image(brain, grid_affine(SHAPE, SPACING))
    images = (Image(values + 0.5 * (brain == 0), mask.affine), Image(2 * values, mask.affine))
    return replace(Sequences.start(images, mask), strips=True, is_placed=True)


def test_an_image_on_its_own_grid_is_sampled_as_it_is_and_moves_with_its_frame():
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    image = Image(values, grid_affine(SHAPE, SPACING))
    np.testing.assert_allclose(sample(image, np.eye(4), SHAPE, SPACING), values, atol=1e-6)
    moved = np.eye(4)
    moved[:3, 3] = [4.0, -2.0, 5.0]  # two columns, one row back, one slice up
    shown = sample(image, moved, SHAPE, SPACING)
    np.testing.assert_allclose(shown[:-1, 1:, :-2], values[1:, :-1, 2:], atol=1e-6)
    assert (shown[-1] == 0).all()


def test_a_coarser_grid_averages_instead_of_skipping_pixels():
    values = np.zeros((4, 64, 64), np.float32)
    values[:, ::2] = 1.0  # every second row: sampled plainly it would be all ones or all zeros
    image = Image(values, grid_affine((4, 64, 64), (1.0, 1.0, 1.0)))
    shown = sample(image, np.eye(4), (4, 16, 16), (1.0, 4.0, 4.0))
    assert abs(shown[:, 4:12, 4:12] - 0.5).max() < 0.1


def test_the_median_of_the_brain_is_stored_as_1000_and_nothing_outside():
    volume, share = to_volume(scene(), settings())
    assert volume.shape == (6, 2, 20, 16)
    assert volume.dtype == np.int16
    brain = volume[1:5, :, 4:16, 3:13]
    assert np.median(brain) == TYPICAL
    assert brain.max() == 3 * TYPICAL == SEQUENCE_TOP
    assert volume.sum() == brain.sum()
    np.testing.assert_allclose(share, [0, *[120 / 320] * 4, 0])


def test_without_stripping_what_is_outside_stays():
    volume, _ = to_volume(replace(scene(), strips=False), settings())
    assert volume[0, 0, 0, 0] == round(0.5 / 7 * TYPICAL)


def test_a_matched_histogram_has_the_landmarks_and_a_lesion_beyond_them_stays_brighter():
    generator = np.random.default_rng(1)
    study = scene(lesion=1.0)
    inside = study.mask.values > 0
    values = np.where(inside, generator.gamma(20, 5, SHAPE), 0).astype(np.float32)
    values[2, 8, 8] = 3 * values.max()
    study = replace(study, images=(Image(values, study.mask.affine), Image(values, study.mask.affine)), matches=True)
    wanted = (600.0, 850.0, 1000.0, 1150.0, 1500.0)
    volume, _ = to_volume(study, settings(landmarks=(wanted, wanted)))
    found = np.percentile(volume[:, 0][inside], PERCENTILES)
    np.testing.assert_allclose(found, wanted, atol=15)
    assert volume[2, 0, 8, 8] > 1.4 * np.percentile(volume[:, 0][inside], 99)


def test_a_sequence_without_brightness_is_refused_by_its_name():
    study = scene()
    dark = Image(np.zeros(SHAPE, np.float32), study.mask.affine)
    with pytest.raises(DataError, match="two has no brightness in the brain"):
        to_volume(replace(study, images=(study.images[0], dark)), settings())


def test_a_head_is_placed_by_the_box_of_its_brain():
    study = scene()
    affine = study.mask.affine.copy()
    affine[:3, 3] += [11.0, -7.0, 30.0]
    moved = Sequences.start(tuple(Image(one.values, affine) for one in study.images), Image(study.mask.values, affine))
    placed = replace(place(moved, moved.mask), strips=True, is_placed=True)
    first, _ = to_volume(replace(place(study, study.mask), is_placed=True), settings())
    second, _ = to_volume(placed, settings())
    np.testing.assert_array_equal(first, second)


def test_settings_come_back_from_json_without_paths(tmp_path):
    template = tmp_path / "atlas.nii"
    template.write_bytes(b"atlas")
    config = SequencesConfig(names=("dwi", "flair"), reference="flair", steps=("template",), template=template)
    made = replace(SequenceSettings.of(config), landmarks=((1.0,) * 5, (2.0,) * 5))
    raw = made.to_json()
    assert str(tmp_path) not in str(raw)
    read = SequenceSettings.from_json(raw)
    assert read == replace(made, template="")
    assert read.with_files(config) == made
    assert SequenceSettings.from_json({}) is None


def test_a_model_of_another_template_or_command_is_refused(tmp_path):
    ours, other = tmp_path / "ours.nii", tmp_path / "other.nii"
    ours.write_bytes(b"ours")
    other.write_bytes(b"other")
    config = SequencesConfig(names=("dwi",), steps=("template",), template=ours)
    raw = SequenceSettings.of(config).to_json()
    with pytest.raises(ConfigError, match="registered to a template with the digest"):
        SequenceSettings.from_json(raw).with_files(SequencesConfig(names=("dwi",), template=other))
    stripped = SequenceSettings.from_json({**settings().to_json(), "command": "rm {input}"})
    with pytest.raises(ConfigError, match="stripped by the command `rm {input}`, found none"):
        stripped.with_files(SequencesConfig())


@pytest.mark.parametrize(
    "change",
    [
        {"reference": 2},
        {"shape": [0, 10, 10]},
        {"shape": [10, 10, 10_000]},
        {"field_mm": [0, 1, 1]},
        {"landmarks": [[1, 2, 3, 4, 5]]},
        {"landmarks": [[1], [2]]},
        {"template": "/etc/passwd"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_settings_that_no_store_has_are_refused(change):
    with pytest.raises(ValueError, match="sequences"):
        SequenceSettings.from_json({**settings().to_json(), **change})


def test_a_reference_that_is_no_sequence_and_a_template_without_its_step_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='the reference "t1"'):
        SequenceSettings.of(SequencesConfig(names=("dwi",), reference="t1"))
    with pytest.raises(ConfigError, match="the step template needs a NIfTI file"):
        SequenceSettings.of(SequencesConfig(names=("dwi",), steps=("template",)))
    with pytest.raises(ConfigError, match="distinct names"):
        SequenceSettings.of(SequencesConfig(names=("dwi", "dwi")))


def test_a_template_that_cannot_be_read_is_named(tmp_path):
    config = SequencesConfig(names=("dwi",), steps=("template",), template=tmp_path / "missing.nii")
    with pytest.raises(DataError, match=r"missing.nii: expected a NIfTI file, it cannot be read \(FileNotFoundError\)"):
        SequenceSettings.of(config)
