"""Stored values to the HU of a study: padding, raw values, orientation, Enhanced CT, NIfTI, missing decoders."""

import gzip

import numpy as np
import pydicom
import pytest
from support.dicoms import make_dataset, write_slice
from support.encodings import HULL, decode_folder, enhanced, head_pixels, item, to_bytes

from ichkit.core.errors import DataError
from ichkit.imaging import nifti
from ichkit.sources.files import scan_files
from ichkit.sources.index import check_decoders, read_index, refuse_raw

AIR = HULL[0]


def index_of(root):
    return read_index(scan_files(root)[0], None)


def one_study(root, **options):
    (study,) = decode_folder(root, **options)
    return study


# PixelRepresentation, BitsStored, stored patterns, tags, VR, expected HU with intercept -1024, slope 1.
PADDING = {
    "unsigned, beyond any tissue": (0, 16, [63536, 1064], {"PixelPaddingValue": 63536}, "US", [AIR, 40]),
    "signed, -2000": (1, 16, [63536, 1064], {"PixelPaddingValue": -2000}, "SS", [AIR, 40]),
    "signed, written as US": (1, 16, [63536, 1064], {"PixelPaddingValue": 63536}, "US", [AIR, 40]),
    "unsigned, written as SS": (0, 16, [63536, 1064], {"PixelPaddingValue": -2000}, "SS", [AIR, 40]),
    "a tissue's value": (0, 12, [1064, 1065], {"PixelPaddingValue": 1064}, "US", [AIR, 41]),
    "a range": (
        0,
        16,
        [3000, 2999, 3005, 3006],
        {"PixelPaddingValue": 3005, "PixelPaddingRangeLimit": 3000},
        "US",
        [AIR, 1975, AIR, 1982],
    ),
    "a signed range over zero": (
        1,
        16,
        [65535, 0, 2, 65530],
        {"PixelPaddingValue": -2, "PixelPaddingRangeLimit": 1},
        "SS",
        [AIR, AIR, -1022, -1030],
    ),
    "bits beyond those stored": (0, 12, [63536, 2096], {"PixelPaddingValue": 63536}, "US", [AIR, 1072]),
    "12 bits, two's complement": (1, 12, [2096, 40], {"PixelPaddingValue": -2000}, "SS", [AIR, -984]),
}


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("name", PADDING)
def test_padding_is_air_and_is_said(tmp_path, name, implicit):
    signed, bits, stored, tags, vr, expected = PADDING[name]
    pixels = np.resize(np.array(stored, np.uint16), (4, len(stored)))
    dataset = make_dataset(pixels, signed=signed, bits_stored=bits, implicit=implicit)
    for tag, value in tags.items():
        dataset.add_new(tag, vr, value)
    (tmp_path / "a.dcm").write_bytes(to_bytes(dataset))
    study = one_study(tmp_path)
    assert study.padded == [True]
    assert study.volume[0, 0].tolist() == [max(value, AIR) for value in expected]


@pytest.mark.parametrize("limit", [{}, {"PixelPaddingRangeLimit": 1020}])
def test_padding_that_is_a_value_of_tissue_is_air_only_in_a_slice_that_has_it_in_a_corner(tmp_path, caplog, limit):
    pixels = np.full((4, 4), 1064, np.uint16)
    pixels[1:3, 1:3] = 1024
    pixels[0, 0] = 24
    write_slice(tmp_path / "a.dcm", pixels, PixelPaddingValue=1024, position=(0, 0, 0), slice_uid="1.1", **limit)
    pixels[0, 3] = 1024
    write_slice(tmp_path / "b.dcm", pixels, PixelPaddingValue=1024, position=(0, 0, 5), slice_uid="1.2", **limit)
    study = one_study(tmp_path)
    assert study.padded == [False, True]
    assert study.volume[:, 1, 1].tolist() == [0, AIR]
    assert "PixelPaddingValue of 2 files is a value of tissue" in caplog.text


def test_a_padding_value_that_no_pixel_has_pads_nothing(tmp_path):
    write_slice(tmp_path / "a.dcm", np.full((4, 4), 1064, np.uint16), PixelPaddingValue=-2000)
    study = one_study(tmp_path)
    assert study.padded == [False]
    assert (study.volume == 40).all()


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"RescaleIntercept": None, "RescaleSlope": None}, "no RescaleIntercept and no RescaleSlope: Hounsfield units"),
        ({"RescaleIntercept": None}, "no RescaleIntercept: Hounsfield units are unknown"),
        ({"RescaleType": "US"}, "RescaleType is US, expected HU"),
        ({"RescaleType": "OD"}, "RescaleType is OD, expected HU"),
        ({"RescaleType": "PLANTED^NAME"}, "RescaleType is another unit, expected HU"),
        ({"RescaleType": "HU"}, ""),
        ({"RescaleType": ""}, ""),
    ],
)
def test_values_that_may_not_be_hounsfield_are_refused_and_can_be_insisted_on(tmp_path, tags, reason):
    write_slice(tmp_path / "a.dcm", head_pixels(), **tags)
    insisted = index_of(tmp_path)
    assert insisted["reason"].to_list() == [""]
    (found,) = refuse_raw(insisted)["reason"]
    assert found.startswith(reason)
    assert found.endswith("(accepted with --accept-raw)") == bool(reason)


NO_HEADS = {
    "the intercept is lost": (lambda pixels: pixels, 0, "the darkest pixel of the series is 24, expected below -100"),
    "blank": (lambda pixels: np.full_like(pixels, 1064), -1024, "all pixels of the series lie within 0 HU"),
    "subtracted twice": (lambda pixels: pixels // 2, -1300, "nothing but air"),
    "padding alone": (lambda pixels: np.full_like(pixels, 0), -2000, "nothing but padding"),
}


@pytest.mark.parametrize("name", NO_HEADS)
def test_values_of_no_head_are_refused_for_the_whole_series_and_can_be_insisted_on(tmp_path, name):
    change, intercept, reason = NO_HEADS[name]
    for i in range(3):
        pixels = change(np.clip(head_pixels(i), 24, 1600))
        write_slice(tmp_path / f"{i}.dcm", pixels, slice_uid=f"1.{i}", position=(0, 0, 5 * i), intercept=intercept)
    if name == "the intercept is lost":
        pixels[0, 0] = 24
        write_slice(tmp_path / "2.dcm", pixels, slice_uid="1.2", position=(0, 0, 10), intercept=intercept)
    refused = one_study(tmp_path, judges_hu=True)
    assert refused.kept == []
    assert len(refused.volume) == 0
    assert [at for at, *_ in refused.failures] == [0, 1, 2]
    assert all(reason in why for *_, why in refused.failures)
    assert one_study(tmp_path).kept == [0, 1, 2]


def test_a_blank_slice_of_a_head_is_kept(tmp_path):
    write_slice(tmp_path / "a.dcm", head_pixels(), slice_uid="1.1")
    write_slice(tmp_path / "b.dcm", np.full((16, 12), 24, np.uint16), slice_uid="1.2", position=(0, 0, 5))
    assert one_study(tmp_path, judges_hu=True).kept == [0, 1]


# Row and column cosines, and what a plain (LPS) picture must be done to so that it is stored that way.
STORED = {
    "plain": ([1, 0, 0, 0, 1, 0], lambda a: a),
    "rows to the front": ([1, 0, 0, 0, -1, 0], lambda a: a[::-1]),
    "columns to the right": ([-1, 0, 0, 0, 1, 0], lambda a: a[:, ::-1]),
    "prone": ([-1, 0, 0, 0, -1, 0], lambda a: a[::-1, ::-1]),
    "rows and columns exchanged": ([0, 1, 0, 1, 0, 0], lambda a: a.T),
    "a quarter turn": ([0, 1, 0, -1, 0, 0], lambda a: a[:, ::-1].T),
    "the other quarter": ([0, -1, 0, 1, 0, 0], lambda a: a[::-1].T),
    "turned by 20 degrees": ([0.9397, 0.342, 0, -0.342, 0.9397, 0], lambda a: a),
    "prone, gantry tilted": ([-1, 0, 0, 0, -0.9397, 0.342], lambda a: a[::-1, ::-1]),
}


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("size", [None, 32])
def test_every_orientation_of_one_head_gives_the_array_of_the_plain_one(tmp_path, name, size):
    orientation, store = STORED[name]
    plain = head_pixels(1, (16, 12))
    turned = store(plain)
    spacing = (0.5, 0.8) if turned.shape == plain.shape else (0.8, 0.5)
    path = write_slice(tmp_path / "a.dcm", turned, orientation=tuple(orientation), spacing=spacing)
    (header,) = index_of(tmp_path).itertuples()
    assert (header.rows, header.columns, header.spacing_row_mm, header.spacing_col_mm) == (16, 12, 0.5, 0.8)
    study = one_study(tmp_path)
    np.testing.assert_array_equal(study.volume[0], plain.astype(int) - 1024)
    assert path.exists()


def test_a_coronal_image_is_left_as_it_is(tmp_path):
    write_slice(tmp_path / "a.dcm", head_pixels(1), orientation=(-1, 0, 0, 0, 0, -1))
    assert index_of(tmp_path)["turn"].to_list() == [0]


def frames_of_enhanced(num=5):
    frames = [head_pixels(i) for i in range(num)]
    positions = [(0, 0, 5.0 * ((i * 2) % num)) for i in range(num)]
    return frames, positions, [(1 + i / 10, -1024 - i) for i in range(num)]


@pytest.mark.parametrize("syntax", [None, "RLELossless", "JPEGLSLossless"])
def test_every_frame_of_an_enhanced_ct_is_a_slice_with_its_own_place_and_rescale(tmp_path, syntax):
    frames, positions, rescales = frames_of_enhanced()
    dataset = enhanced(frames, positions, rescales)
    if syntax:
        dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
    (tmp_path / "enhanced.dcm").write_bytes(to_bytes(dataset))
    index = index_of(tmp_path)
    assert index["reason"].to_list() == [""] * 5
    assert index["slice_uid"].to_list() == [f"1.2.9.{i + 1}" for i in range(5)]
    assert index["position_z"].to_list() == [place[2] for place in positions]
    study = one_study(tmp_path)
    assert study.failures == []
    for row, frame in enumerate(np.argsort([place[2] for place in positions])):
        slope, intercept = rescales[frame]
        expected = np.clip(np.rint(frames[frame].astype(int) * slope + intercept), *HULL)
        np.testing.assert_array_equal(study.volume[row], expected)
    assert index_again(tmp_path, index)["slice_uid"].to_list() == index["slice_uid"].to_list()


def index_again(root, index):
    return read_index(scan_files(root)[0], index)


def test_a_cut_enhanced_ct_keeps_its_whole_frames(tmp_path):
    data = to_bytes(enhanced(*frames_of_enhanced()))
    (tmp_path / "enhanced.dcm").write_bytes(data[: -2 * 16 * 12 - 2])
    index = index_of(tmp_path)
    assert index["reason"].to_list() == ["", "", "", *["truncated: the pixels end too early"] * 2]


@pytest.mark.parametrize(
    ("uses", "expected"),
    [((), "contrast"), (("YES", "YES"), "contrast"), (("NO", "NO"), "")],
    ids=["not said", "given", "not given"],
)
def test_contrast_medium_of_an_enhanced_ct_is_known_from_its_sequences(tmp_path, uses, expected):
    dataset = enhanced(*frames_of_enhanced(2))
    dataset.ContrastBolusAgentSequence = [item(CodeMeaning="Iohexol")]
    for group, use in zip(dataset.PerFrameFunctionalGroupsSequence, uses, strict=False):
        group.ContrastBolusUsageSequence = [item(ContrastBolusAgentAdministered=use)]
    (tmp_path / "enhanced.dcm").write_bytes(to_bytes(dataset))
    assert index_of(tmp_path)["kind"].to_list() == [expected] * 2


def test_the_region_and_the_type_of_a_frame_of_an_enhanced_ct_are_known(tmp_path):
    dataset = enhanced(*frames_of_enhanced(3))
    chest, head, scout = dataset.PerFrameFunctionalGroupsSequence
    for group, region in ((chest, "Chest"), (head, "Head")):
        group.FrameAnatomySequence = [item(AnatomicRegionSequence=[item(CodeMeaning=region)])]
    scout.CTImageFrameTypeSequence = [item(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"])]
    (tmp_path / "enhanced.dcm").write_bytes(to_bytes(dataset))
    assert index_of(tmp_path)["kind"].to_list() == ["another body part", "", "localizer"]


def test_frames_without_functional_groups_are_refused(tmp_path):
    dataset = enhanced(*frames_of_enhanced())
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:3]
    (tmp_path / "enhanced.dcm").write_bytes(to_bytes(dataset))
    assert index_of(tmp_path)["reason"].to_list() == ["Enhanced CT: 5 frames, functional groups of 3"]


nibabel = pytest.importorskip("nibabel")


def volume_hu():
    """(L, P, S) int16 HU of a head with different sides, every voxel its own."""
    return np.random.default_rng(3).integers(-1000, 1500, (12, 16, 5)).astype(np.int16)


@pytest.mark.parametrize(
    ("sform", "qform", "reason"),
    [
        ([-0.5, -0.5, 5], [0.5, -0.5, 5], "NIfTI: sform and qform name different axes: left and right are unknown"),
        ([-0.5, -0.5, 5], [-0.5, -0.5, -5], "NIfTI: sform and qform name different axes: left and right are unknown"),
        ([-0.5, -0.5, 5], [-0.51, -0.51, 5], ""),
        ([-5e-4, -5e-4, 5e-3], None, "NIfTI: voxel size is not between 0.05 and 100 mm; are the units metres?"),
    ],
)
def test_a_nifti_whose_geometry_may_be_read_in_two_ways_is_refused(tmp_path, sform, qform, reason):
    image = nibabel.Nifti1Image(volume_hu(), np.diag([*sform, 1]))
    if qform is not None:
        image.set_qform(np.diag([*qform, 1]), 1)
    nibabel.save(image, tmp_path / "head.nii")
    assert set(index_of(tmp_path)["reason"]) == {reason}


AXES = ["LPS", "RAS", "LAS", "RPI", "PSL", "ASR"]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_of_any_axis_order_gives_the_array_of_the_plain_dicom(tmp_path, axes, suffix):
    hounsfield = volume_hu()
    affine = np.diag([-0.8, -0.5, 5.0, 1.0])  # L, P, S in NIfTI's right, front, head
    affine[:3, 3] = (40, 30, -20)
    image = nibabel.Nifti1Image(hounsfield, affine, dtype=np.int16)
    ornt = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("LPS"), nibabel.orientations.axcodes2ornt(axes)
    )
    nibabel.save(image.as_reoriented(ornt), tmp_path / f"head{suffix}")
    index = index_of(tmp_path)
    assert index["slice_uid"].to_list() == [f"head.{i + 1}" for i in range(5)]
    assert set(index["study_uid"]) == {"head"}
    assert index[["rows", "columns", "spacing_row_mm", "spacing_col_mm"]].iloc[0].to_list() == [16, 12, 0.5, 0.8]
    np.testing.assert_allclose(index["position_z"], -20 + 5 * np.arange(5))
    np.testing.assert_allclose(index[["position_x", "position_y"]].iloc[0], [-40, -30])
    study = one_study(tmp_path)
    np.testing.assert_array_equal(study.volume, np.clip(hounsfield.transpose(2, 1, 0), *HULL))


def test_a_nifti_of_scaled_floats_is_rounded_and_what_is_not_finite_is_air(tmp_path):
    values = volume_hu().astype(np.float32) + 0.25
    values[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 5.0, 1.0])), tmp_path / "head.nii.gz")
    study = one_study(tmp_path)
    assert study.volume[0, 0, 0] == AIR
    assert study.padded == [True, False, False, False, False]
    np.testing.assert_array_equal(study.volume[1:], np.clip(volume_hu().transpose(2, 1, 0)[1:], *HULL))


def test_volumes_of_one_name_in_two_folders_are_two_studies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        nibabel.save(nibabel.Nifti1Image(volume_hu(), np.diag([-1.0, -1.0, 5.0, 1.0])), tmp_path / name / "ct.nii")
    assert sorted(set(index_of(tmp_path)["study_uid"])) == ["a/ct", "b/ct"]


def write_nifti(path, shape=(8, 8, 3), dtype=np.int16, **header):
    image = nibabel.Nifti1Image(np.zeros(shape, dtype), np.diag([-1.0, -1.0, 5.0, 1.0]))
    for name, value in header.items():
        image.header[name] = value
    data = image.to_bytes()
    path.write_bytes(data)
    return data


def test_a_nifti_that_cannot_be_used_is_refused_with_its_reason(tmp_path, monkeypatch):
    good = write_nifti(tmp_path / "good.nii")
    (tmp_path / "text.nii").write_bytes(b"hello" * 100)
    (tmp_path / "empty.nii").write_bytes(b"")
    (tmp_path / "cut.nii").write_bytes(good[:200])
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(good)[:30])
    write_nifti(tmp_path / "moving.nii", (8, 8, 3, 4))
    write_nifti(tmp_path / "colour.nii", (8, 8, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    header = bytearray(good)
    header[252:256] = bytes(4)  # qform_code, sform_code
    (tmp_path / "nowhere.nii").write_bytes(header)
    header = bytearray(good)
    header[42:48] = np.array([32000, 32000, 3], "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(header)
    index = index_of(tmp_path).drop_duplicates("relative").set_index("relative")["reason"]
    assert index["good.nii"] == ""
    assert index["text.nii"] == index["empty.nii"] == "not NIfTI"
    assert index["cut.nii"].startswith("NIfTI cannot be read")
    assert index["cut.nii.gz"].startswith(("NIfTI cannot be read", "not NIfTI"))
    assert index["moving.nii"] == "NIfTI: expected one volume of three dimensions"
    assert index["colour.nii"] == "NIfTI: colour or complex values, expected numbers"
    assert index["nowhere.nii"] == "NIfTI without sform and qform: left and right are unknown"
    assert index["huge.nii"] == "NIfTI: invalid size"
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    assert set(index_of(tmp_path)["reason"]) == {"NIfTI needs nibabel; pip install 'ichkit[nifti]'"}


def test_a_cut_nifti_loses_its_slices_with_a_reason(tmp_path):
    data = write_nifti(tmp_path / "head.nii")
    (tmp_path / "head.nii").write_bytes(data[:-200])
    study = one_study(tmp_path)
    assert study.kept == []
    assert all(why.startswith("NIfTI cannot be read") for *_, why in study.failures)


def test_a_packed_nifti_is_not_unpacked_beyond_its_bound(tmp_path, monkeypatch):
    data = write_nifti(tmp_path / "head.nii", (64, 64, 8))
    (tmp_path / "head.nii").write_bytes(b"")
    monkeypatch.setattr(nifti, "MAX_BYTES", len(data))
    (tmp_path / "head.nii").unlink()
    (tmp_path / "head.nii.gz").write_bytes(gzip.compress(data + bytes(1_000_000)))
    assert {why for *_, why in one_study(tmp_path).failures} == {"NIfTI is larger than 0 MB"}


@pytest.fixture
def without_jpeg_ls(tmp_path, monkeypatch):
    """Three plain slices and two of JPEG-LS, whose decoder is not installed."""
    for i in range(5):
        dataset = make_dataset(head_pixels(i), slice_uid=f"1.{i}", position=(0, 0, 5 * i))
        if i > 2:
            dataset.compress(pydicom.uid.JPEGLSLossless, generate_instance_uid=False)
        (tmp_path / f"{i}.dcm").write_bytes(to_bytes(dataset))
    monkeypatch.setattr(pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless), "_available", {})
    return tmp_path


def test_a_missing_decoder_stops_before_the_work_with_the_extra_to_install(without_jpeg_ls):
    index = index_of(without_jpeg_ls)
    expected = r"2 of 5: no decoder for JPEG-LS .*; pip install 'ichkit\[dicom\]'.*--skip-undecodable"
    with pytest.raises(DataError, match=expected):
        check_decoders(index, skip=False)
    reasons = check_decoders(index, skip=True)["reason"]
    assert reasons[:3].to_list() == [""] * 3
    assert all("no decoder for JPEG-LS" in why for why in reasons[3:])
