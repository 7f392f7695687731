"""The parts of the phantom one by one: bytes, kernels against plain NumPy, plans, and what happens in a used folder."""

import hashlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.config import IGNORE
from pydicom.config import settings as pydicom_settings
from pydicom.datadict import tag_for_keyword
from scipy import ndimage

from ichkit import write_phantom
from ichkit.core.errors import DataError
from ichkit.phantom import render
from ichkit.phantom.bleeds import SUBTYPES, draw_bleeds
from ichkit.phantom.confounders import finish_slice
from ichkit.phantom.head import draw_head
from ichkit.phantom.headers import EXPLICIT_VR, IMPLICIT_VR, encode_file, encode_pixels
from ichkit.phantom.landmarks import CORONAL_SUTURE_MM, LAMBDOID_SUTURE_MM
from ichkit.phantom.lattice import LATTICE_CELLS, draw_lattice, look_up_noise
from ichkit.phantom.plan import plan_part
from ichkit.phantom.render import Grid, Pose, draw_slice, smooth
from ichkit.phantom.rsna import make_id
from ichkit.phantom.study import draw_scene, draw_stack, draw_visible, label_slices
from ichkit.work.places import MARK

# What a scanner of each format must have stored for -1000, -1, 0, 40 and 2000 HU, by hand from the header's meaning;
# for the two broken formats from the repair read backwards: HU = (stored + 1000) modulo 4096 - 1000.
STORED = {
    (16, 1, -1024): [24, 1023, 1024, 1064, 3024],
    (12, 0, -1024): [24, 1023, 1024, 1064, 3024],
    (12, 0, -1000): [0, 999, 1000, 1040, 3000],
    (16, 1, 0): [-1000, -1, 0, 40, 2000],
    (12, 1, 0): [-1000, -1, 0, 40, 2000],
    (12, 0, 0): [3096, 4095, 0, 40, 2000],
    (12, 0, 1): [3096, 4095, 0, 40, 2000],
}


@pytest.mark.parametrize("pixel_format", STORED)
def test_a_format_stores_the_values_worked_out_by_hand(pixel_format):
    hounsfield = np.array([[-1000, -1, 0, 40, 2000]], np.int16)
    data = encode_pixels(hounsfield, *pixel_format)
    assert np.frombuffer(data, "<i2" if pixel_format[1] else "<u2").tolist() == STORED[pixel_format]


def test_padding_replaces_what_lies_outside_the_circle():
    outside = np.array([[True, False]])
    data = encode_pixels(np.array([[-990, -990]], np.int16), 16, 1, -1024, outside)
    assert np.frombuffer(data, "<i2").tolist() == [-2000, 34]


@pytest.mark.parametrize("syntax", [EXPLICIT_VR, IMPLICIT_VR])
def test_pydicom_reads_back_every_element(syntax, tmp_path, monkeypatch):
    monkeypatch.setattr(pydicom_settings, "reading_validation_mode", IGNORE)
    elements = {
        "SOPInstanceUID": "ID_0f3a5b2c1",
        "StudyID": "",
        "Modality": "CT",
        "ImagePositionPatient": "-120.5\\3\\155.25",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 1,
        "Columns": 3,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "WindowCenter": "00036\\00036",
        "PixelData": np.array([1, 2, 4095], "<u2").tobytes(),
    }
    path = tmp_path / "one.dcm"
    path.write_bytes(encode_file(elements, syntax))
    file = pydicom.dcmread(path)
    assert [element.keyword for element in file] == sorted(elements, key=tag_for_keyword)
    assert file.file_meta.TransferSyntaxUID == syntax
    assert file.file_meta.FileMetaInformationGroupLength == len(path.read_bytes()) - 132 - 12 - len(body_of(path))
    assert file.SOPInstanceUID == "ID_0f3a5b2c1"
    assert file.ImagePositionPatient == [-120.5, 3, 155.25]
    assert file.WindowCenter == [36, 36]
    assert file.pixel_array.tolist() == [[1, 2, 4095]]


def body_of(path: Path) -> bytes:
    """The data set behind the file meta information, which begins with group 0008."""
    data = path.read_bytes()
    return data[data.index(b"\x08\x00\x18\x00") :]


def test_ids_never_collide_and_keep_no_order():
    ids = [make_id(3, 4, "slice", number) for number in range(16**4)]
    assert len(set(ids)) == 16**4
    ranks = np.argsort(np.argsort(ids[:2000]))
    assert abs(np.corrcoef(ranks, np.arange(2000))[0, 1]) < 0.1


def test_the_lattice_look_up_is_trilinear_and_periodic():
    lattice = draw_lattice(np.random.default_rng(0))
    points = np.random.default_rng(1).uniform(-100, 100, (200, 3))
    plain = ndimage.map_coordinates(lattice, (points % LATTICE_CELLS).T, order=1, mode="grid-wrap")
    assert np.allclose([look_up_noise(lattice, *point) for point in points], plain, atol=1e-5)
    assert abs(lattice.mean()) < 1e-5
    assert abs(lattice.std() - 1) < 1e-5


def test_smooth_is_the_binomial_filter():
    image = np.random.default_rng(0).normal(size=(9, 11)).astype(np.float32)
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = image.copy()
    expected[1:-1, 1:-1] = ndimage.convolve(image, kernel)[1:-1, 1:-1]
    assert np.allclose(smooth(image), expected, atol=1e-6)


def make_scene(seed: int, *subtypes: str):
    generator = np.random.default_rng(seed)
    return generator, draw_scene(generator, draw_head(generator), subtypes)


def test_one_sample_a_pixel_is_the_mean_over_the_thickness():
    """The 2 x 2 pattern of depths, filtered, against four full slices at those depths."""
    generator, scene = make_scene(2, "intraparenchymal")
    grid = draw_stack(generator, scene.pose, (256, 256), np.array([75.0]), 5.0, 12.0).grids[0]
    parts = (scene.head, scene.pose, scene.lattice, scene.bleeds)
    fast = draw_slice(grid, 5.0, (256, 256), *parts).hounsfield
    slow = np.zeros_like(fast)
    for share in (-3 / 8, -1 / 8, 1 / 8, 3 / 8):
        moved = grid._replace(y=grid.y + 5 * share * grid.tilt_sin, z=grid.z + 5 * share * grid.tilt_cos)
        slow += draw_slice(moved, 0.0, (256, 256), *parts).hounsfield / 4
    brain = ndimage.binary_erosion((slow > 0) & (slow < 100), iterations=6)  # bone would drown the differences
    assert brain.sum() > 5000
    alone = draw_slice(grid, 0.0, (256, 256), *parts).hounsfield
    errors = [np.abs(ndimage.uniform_filter(image - slow, 6)[brain]).mean() for image in (fast, alone)]
    assert errors[0] < 0.3
    assert errors[1] > 1.5 * errors[0]


def test_a_tilted_gantry_sees_the_same_head():
    """The centre of a bleed lies at one place of the patient, whatever the tilt, by the positions in the headers."""
    generator, scene = make_scene(4, "intraparenchymal")
    centres = []
    for tilt in (0.0, 18.0):
        stack = draw_stack(generator, scene.pose, (128, 128), np.arange(0, 150, 3.0), 3.0, tilt)
        points = []
        for grid in stack.grids:
            bits = draw_slice(grid, 3.0, (128, 128), scene.head, scene.pose, scene.lattice, scene.bleeds).bits
            i, j = np.nonzero(bits)
            down = grid.spacing * i
            points.append(
                np.column_stack(
                    [grid.x + grid.spacing * j, grid.y + down * grid.tilt_cos, grid.z - down * grid.tilt_sin]
                )
            )
        centres.append(np.concatenate(points).mean(0))
    assert np.allclose(centres[0], centres[1], atol=1.5)


def test_each_subtype_bleeds_where_its_anatomy_says():
    """Against the healthy twin: hyperdense in the mask, and in a place of its own."""
    for subtype in SUBTYPES:
        generator, scene = make_scene(7, subtype)
        stack = draw_stack(generator, scene.pose, (96, 96), np.arange(0, 150, 5.0), 5.0, 0.0)
        scene, slices = draw_visible(generator, scene, stack, (subtype,))
        labels = label_slices(slices)
        assert labels[:, SUBTYPES.index(subtype)].sum() >= 2
        others = [k for k in range(5) if SUBTYPES[k] != subtype]
        assert labels[:, others].sum() == 0
        healthy = [
            draw_slice(grid, 5.0, (96, 96), scene.head, scene.pose, scene.lattice, scene.bleeds[:0])
            for grid in stack.grids
        ]
        before = np.concatenate([h.hounsfield[s.bits > 0] for h, s in zip(healthy, slices, strict=True)])
        after = np.concatenate([s.hounsfield[s.bits > 0] for s in slices])
        assert np.median(after) > np.median(before) + 10
        if subtype in ("subarachnoid", "intraventricular"):
            assert np.median(before) < 28  # fluid, or fluid that shares its voxel with brain
        else:
            assert np.median(before) > 25


def test_an_epidural_bleed_stays_between_the_sutures():
    for seed in range(5):
        bleeds = draw_bleeds(np.random.default_rng(seed), ("epidural",))
        _, scene = make_scene(seed, "epidural")
        pose = Pose(np.eye(3), np.zeros(3))
        head = scene.head._replace(width=68.0, length=84.0, height=74.0)
        for z in np.arange(-20.0, 60.0, 10.0):
            grid = Grid(-100.0, -100.0, z, 200 / 128, 1.0, 0.0)
            bits = draw_slice(grid, 0.0, (128, 128), head, pose, scene.lattice, bleeds).bits
            y = grid.y + grid.spacing * np.nonzero(bits)[0]
            assert ((y > CORONAL_SUTURE_MM - 2) & (y < LAMBDOID_SUTURE_MM + 2)).all()


def test_noise_has_the_deviation_it_was_given():
    generator, scene = make_scene(2)
    scan = replace(scene.scan, spot_rate=0.0, motion_rate=0.0, metal=None, petrous_hu=0.0, cupping_hu=0.0, noise_hu=4.0)
    flat = np.full((256, 256), 30.0, np.float32)
    grid = Grid(-120.0, -120.0, scene.pose.centre_mm[2], 0.9, 1.0, 0.0)
    image = finish_slice(generator, flat, grid, scene.pose, scan).astype(np.float64)
    assert abs(image[1:-1, 1:-1].std() - 4.0) < 0.15
    neighbours = np.corrcoef(image[1:-1, 1:-2].ravel(), image[1:-1, 2:-1].ravel())[0, 1]
    assert 0.5 < neighbours < 0.8  # the binomial filter gives 2/3


@pytest.mark.parametrize("part", ["train", "test", "cq500"])
@pytest.mark.parametrize("count", [15, 20, 60])
def test_a_plan_gives_every_class_three_patients(part, count, caplog):
    for seed in range(20):
        plans = plan_part(part, count, seed)
        assert [plan.index for plan in plans] == list(range(count))
        for subtype in SUBTYPES:
            assert len({plan.patient for plan in plans if subtype in plan.subtypes}) >= 3
        assert abs(np.mean([bool(plan.subtypes) for plan in plans]) - 0.4) < 0.04
    assert not caplog.records


def test_a_small_plan_warns_and_gives_what_it_can(caplog):
    with caplog.at_level(logging.WARNING, logger="ichkit"):
        plans = plan_part("train", 5, 0)
    assert "5 studies in train are too few for 3 positives of every class; each class gets 2." in caplog.text
    assert {name for plan in plans for name in plan.subtypes} == set(SUBTYPES)


def test_scanners_that_pad_see_fewer_sick_people():
    plans = plan_part("train", 2000, 0)
    rates = {flag: np.mean([bool(plan.subtypes) for plan in plans if plan.is_padded is flag]) for flag in (True, False)}
    assert rates[True] < 0.65 * rates[False]
    assert 0.3 < np.mean([plan.is_padded for plan in plans]) < 0.4


SMALL = {"studies": 2, "test_studies": 1, "cq500_studies": 1, "size": 64}


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("small") / "out"
    write_phantom(root, **SMALL, workers=1)
    return root


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(small, tmp_path):
    write_phantom(tmp_path / "again", **SMALL, workers=2)
    assert digests(tmp_path / "again") == digests(small)


def test_another_seed_gives_other_heads(small, tmp_path):
    write_phantom(tmp_path / "other", **SMALL, seed=1, workers=1)
    shared = set(digests(small).values()) & set(digests(tmp_path / "other").values())
    assert not shared


def test_a_finished_phantom_is_left_alone(small, caplog):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    with caplog.at_level(logging.INFO, logger="ichkit"):
        write_phantom(small, **SMALL)
    assert "is up to date; nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused(small):
    with pytest.raises(DataError, match=r"made from other settings: seed is 0, requested 5\. Choose another folder"):
        write_phantom(small, **SMALL, seed=5)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"expected a new or empty folder or an earlier phantom, found thesis\.tex"):
        write_phantom(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_real_data_in_the_place_of_a_phantom_are_refused(tmp_path):
    (tmp_path / "rsna" / "stage_2_train").mkdir(parents=True)
    with pytest.raises(DataError, match="found rsna in"):
        write_phantom(tmp_path, **SMALL)


def test_an_interrupted_phantom_begins_again_and_keeps_what_was_finished(small, tmp_path):
    out = tmp_path / "out"
    write_phantom(out, **SMALL, workers=1)
    (out / "cq500").rename(out / "cq500.partial")
    (out / "cq500.partial" / "phantom.json").unlink()
    (out / "cq500.partial" / "left over").write_text("half")
    (out / "cq500.partial" / MARK).touch()
    kept = (out / "rsna" / "phantom.json").stat().st_mtime_ns
    write_phantom(out, **SMALL, workers=1)
    assert digests(out) == digests(small)
    assert (out / "rsna" / "phantom.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": 32}, "size of at least 64, found 32"),
        ({"studies": 0}, "--studies of at least 1, found 0"),
        ({"cq500_studies": -1}, "--cq500-studies of at least 0, found -1"),
    ],
)
def test_impossible_counts_are_refused(wrong, words, tmp_path):
    with pytest.raises(DataError, match=words):
        write_phantom(tmp_path / "out", **{**SMALL, **wrong})
    assert not (tmp_path / "out").exists()


def test_parts_without_studies_are_empty_or_absent(tmp_path):
    write_phantom(tmp_path / "out", studies=1, test_studies=0, cq500_studies=0, size=64, workers=1)
    assert not (tmp_path / "out" / "cq500").exists()
    assert (tmp_path / "out" / "rsna" / "stage_2_sample_submission.csv").read_text() == "ID,Label\n"


def test_phantom_json_says_what_it_is(small):
    for name in ("rsna", "cq500"):
        facts = json.loads((small / name / "phantom.json").read_text())
        assert facts["kind"] == "phantom"
        assert facts["settings"]["seed"] == 0


def test_kernels_older_than_the_code_they_call_are_forgotten(tmp_path, monkeypatch):
    class Stats:
        cache_path = str(tmp_path)

    class Kernel:
        stats = Stats()

    for name, age in (("old.nbi", 1), ("new.nbi", 4_000_000_000)):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (age, age))
    monkeypatch.setattr(render, "_rasterise", Kernel())
    render.forget_stale_kernels.__wrapped__()
    assert [path.name for path in tmp_path.iterdir()] == ["new.nbi"]
