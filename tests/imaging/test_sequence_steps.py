"""The steps of several sequences: known fields, movements and planes come back; mirrored heads mirror the result."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from ichkit.core.config import SequencesConfig
from ichkit.core.errors import ConfigError, DataError
from ichkit.imaging import nifti
from ichkit.imaging.registration import correct_field, find_rigid, import_simpleitk
from ichkit.imaging.sequence_steps import SEQUENCE_STEPS, plane_transform, run_sequence_steps
from ichkit.imaging.sequences import Image, Sequences, SequenceSettings, grid_affine, sample, to_volume

pytest.importorskip("SimpleITK")
SHAPE, SPACING = (30, 44, 38), (6.0, 5.0, 5.0)


def settings(*steps, **values):
    names = values.pop("names", ("one", "two"))
    return SequenceSettings.of(SequencesConfig(names=names, slices=16, rows=44, columns=36, steps=steps, **values))


@pytest.fixture(scope="module")
def head():
    """(S, H, W) of a head on a centred grid: an ellipsoid with folds, symmetric but for a spot at the left."""
    axes = [np.arange(n) - (n - 1) / 2 for n in SHAPE]
    z, y, x = (axis * size for axis, size in zip(np.meshgrid(*axes, indexing="ij"), SPACING, strict=True))
    inside = (x / 66) ** 2 + (y / 84) ** 2 + (z / 70) ** 2 < 1
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    noise = ndimage.gaussian_filter(noise + noise[..., ::-1], 1.2)
    values = inside * (1 + 1.5 * noise / noise.std() * 0.2)
    values[(x - 35) ** 2 + (y + 10) ** 2 + (z - 15) ** 2 < 300] *= 1.5
    values[((np.abs(x) - 8) / 6) ** 2 + (y / 30) ** 2 + (z / 15) ** 2 < 1] *= 0.3
    return np.clip(values, 0, None).astype(np.float32)


def image_of(values, turn=None):
    """An image whose scanner coordinates are those of the grid after a movement of the head."""
    affine = grid_affine(SHAPE, SPACING)
    return Image(values, affine if turn is None else turn @ affine)


@pytest.mark.parametrize("name", SEQUENCE_STEPS)
def test_every_row_of_the_steps_keeps_its_contract(name):
    row = SEQUENCE_STEPS[name]
    assert row.name == name
    assert row.description.endswith(".")
    assert row.source
    assert callable(row.function)


def test_a_known_field_is_divided_out(head):
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    field = np.exp(0.35 * x - 0.25 * y + 0.15 * z * x)
    brain = ndimage.binary_fill_holes(head > 0.5)
    corrected = correct_field(image_of((brain * field).astype(np.float32)))
    inside = ndimage.binary_erosion(brain, iterations=2)
    left = corrected.values[inside]
    before = field[inside]
    assert left.std() / left.mean() < 0.5 * before.std() / before.mean()


def test_a_known_movement_between_two_sequences_is_found_within_a_millimetre(head):
    moved = plane_transform(np.array([0.9, -0.6, 0.8]))
    moved[1:3, 3] = [-3.0, 2.5]
    other = sample(image_of(2.5 - 1.2 * head * (head > 0)), np.linalg.inv(moved), SHAPE, SPACING)
    found = find_rigid(head, other, SPACING)
    corners = np.array([[x, y, z, 1] for x in (-50, 50) for y in (-60, 60) for z in (-50, 50)]).T
    assert np.linalg.norm(((found - moved) @ corners)[:3], axis=0).max() < 2.0
    assert np.linalg.norm((found - moved)[:3, 3]) < 1.0


def test_mirroring_both_images_mirrors_the_movement(head):
    mirror = np.diag([-1.0, 1, 1, 1])
    other = sample(image_of(head), np.linalg.inv(plane_transform(np.array([0.5, 0.4, 0.6]))), SHAPE, SPACING)
    one, two = find_rigid(head, other, SPACING), find_rigid(head[..., ::-1], other[..., ::-1], SPACING)
    np.testing.assert_allclose(mirror @ one @ mirror, two, atol=1e-9)
    np.testing.assert_array_equal(find_rigid(head, other, SPACING), one)


def test_the_midsagittal_plane_of_a_turned_head_becomes_the_middle_of_the_grid(head):
    truth = plane_transform(np.array([1.1, -0.8, 1.5]))
    study = Sequences.start((image_of(head, truth), image_of(head, truth)))
    aligned = run_sequence_steps(study, settings("strip", "midline"))
    # The way from the grid to the head: a turn about the axis from left to right and shifts in the plane are free.
    to_head = np.linalg.inv(truth) @ aligned.frames[0]
    assert abs(to_head[0, 3]) < 1.5
    assert abs(to_head[0, 1]) < np.sin(np.deg2rad(1.2))
    assert abs(to_head[0, 2]) < np.sin(np.deg2rad(1.2))
    before = run_sequence_steps(study, settings("strip"))
    assert abs((np.linalg.inv(truth) @ before.frames[0])[0, 1]) > np.sin(np.deg2rad(3))


def test_a_mirrored_head_gives_the_mirrored_volume(head):
    truth = plane_transform(np.array([0.7, 0.5, -0.9]))
    mirror = np.diag([-1.0, 1, 1, 1])
    way = settings("strip", "midline")
    volumes = []
    for turn in (truth, mirror @ truth):
        study = Sequences.start((image_of(head, turn), image_of(1.2 * head, turn)))
        volumes.append(to_volume(run_sequence_steps(study, way), way)[0].astype(int))
    assert np.abs(volumes[0] - volumes[1][..., ::-1]).max() <= 3
    assert np.abs(volumes[0] - volumes[1]).max() > 300  # the spot is on one side


def test_a_sequence_that_moved_is_brought_back_onto_the_reference(head):
    moved = np.eye(4)
    moved[:3, 3] = [3.0, -4.0, 3.0]
    study = Sequences.start((image_of(head), image_of(2 * head, moved)))
    way = settings("register", "strip")
    apart, _ = to_volume(run_sequence_steps(study, settings("strip")), settings("strip"))
    volume, _ = to_volume(run_sequence_steps(study, way), way)

    def unlike(pair):
        return np.abs(pair[:, 0].astype(int) - pair[:, 1]).mean()

    assert unlike(volume) < 0.35 * unlike(apart)


def test_a_mask_of_a_file_is_taken_before_the_threshold(head):
    half = (head > 0).astype(np.float32)
    half[..., : SHAPE[2] // 2] = 0
    study = Sequences.start((image_of(head), image_of(head)), image_of(half))
    done = run_sequence_steps(study, settings("strip"))
    assert done.strips
    np.testing.assert_array_equal(done.mask.values, half)


def test_a_command_of_the_user_makes_the_mask_and_a_failing_one_is_named(head, tmp_path):
    script = tmp_path / "strip.py"
    script.write_text(
        "import sys, numpy as np\nfrom pathlib import Path\nfrom ichkit.imaging import nifti\n"
        "values, affine = nifti.read_image(Path(sys.argv[1]).read_bytes())\n"
        "Path(sys.argv[2]).write_bytes(nifti.encode_image((values > 0.9).astype(np.float32), affine))\n"
    )
    study = Sequences.start((image_of(head), image_of(head)))
    command = f"{sys.executable} {script} {{input}} {{mask}}"
    done = run_sequence_steps(study, settings("strip", strip_command=command))
    np.testing.assert_array_equal(done.mask.values, head > 0.9)
    with pytest.raises(DataError, match=r"prepare.sequences.strip_command failed \(CalledProcessError\)"):
        run_sequence_steps(study, settings("strip", strip_command="false {input} {mask}"))


def test_a_turned_head_comes_back_onto_its_template(head, tmp_path):
    path = tmp_path / "atlas.nii.gz"
    path.write_bytes(nifti.encode_image(head, grid_affine(SHAPE, SPACING)))
    truth = plane_transform(np.array([1.0, -0.5, 1.0]))
    truth[1:3, 3] = [5.0, -4.0]
    study = Sequences.start((image_of(head, truth), image_of(head, truth)))
    way = settings("template", "strip", template=path)
    to_head = np.linalg.inv(truth) @ run_sequence_steps(study, way).frames[0]
    corners = np.array([[x, y, z, 1] for x in (-50, 50) for y in (-60, 60) for z in (-50, 50)]).T
    assert np.linalg.norm(((to_head - np.eye(4)) @ corners)[:3], axis=0).max() < 4.0


def test_an_unknown_step_is_refused_with_the_nearest_name(head):
    study = Sequences.start((image_of(head), image_of(head)))
    with pytest.raises(ConfigError, match=r'prepare.sequences.steps.*"midlin".*midline'):
        run_sequence_steps(study, replace(settings("strip"), steps=("midlin",)))


def test_the_bias_field_step_corrects_every_sequence_of_a_study(head):
    brighter = head * np.linspace(0.7, 1.3, SHAPE[2], dtype=np.float32)
    study = Sequences.start((image_of(head), image_of(brighter)))
    done = run_sequence_steps(study, settings("bias-field"))
    for before, after in zip(study.images, done.images, strict=True):
        np.testing.assert_array_equal(after.values, correct_field(before).values)


def test_a_study_without_anything_in_it_keeps_its_values_under_the_field_and_has_no_brain():
    empty = image_of(np.zeros(SHAPE, np.float32))
    assert correct_field(empty) is empty
    with pytest.raises(DataError, match="no brain was found"):
        run_sequence_steps(Sequences.start((empty, empty)), settings("strip"))


def test_the_histogram_step_only_asks_for_matching(head):
    study = Sequences.start((image_of(head), image_of(head)))
    assert run_sequence_steps(study, settings("histogram")).matches
    assert not run_sequence_steps(study, settings()).matches


def test_sequences_that_cannot_be_registered_are_a_data_error_without_the_library_s_own_text(head):
    flat = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(DataError, match="the registration of its sequences failed$"):
        find_rigid(head, flat, SPACING)


def test_a_missing_simpleitk_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(DataError, match=r"registration needs SimpleITK; pip install 'ichkit\[mr\]'"):
        import_simpleitk()
