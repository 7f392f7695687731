"""Headers and Hounsfield units, against values worked out by hand."""

import dataclasses
import io

import numpy as np
import pydicom
import pytest
from pydicom.pixels.decoders.base import get_decoder
from support.dicoms import make_dataset, read_header, write_slice

from ichkit.imaging.dicom import UnreadableError, read_slices
from ichkit.imaging.hounsfield import (
    decode_stored,
    fill_hounsfield,
    has_broken_intercept,
    has_decoder,
    is_tissue_padding,
)

HULL = (-800, 2000)


def read(path):
    data = path.read_bytes()
    return read_header(data), data


def hounsfield(path, repair=True):
    header, data = read(path)
    stored = decode_stored(data[header.pixel_offset :], header)
    is_broken = has_broken_intercept(header.bits_stored, header.pixel_representation, header.intercept)
    values = np.empty(stored.shape, np.int16)
    is_padded, _ = fill_hounsfield(stored, header, values, repair=repair and is_broken, hull_hu=HULL)
    return values, is_padded


# (BitsStored, PixelRepresentation, RescaleIntercept), stored bit pattern, HU worked out by hand.
FORMATS = [
    ((16, 1, -1024), 1064, 40),
    ((16, 1, -1024), 65536 - 2000, -800),  # -2000 of padding is -3024 HU, clipped to the hull
    ((16, 1, -1024), 4000, 2000),  # 2976 HU, clipped
    ((12, 0, -1024), 1089, 65),
    ((12, 0, -1000), 1040, 40),
    ((16, 1, 0), 40, 40),
    ((16, 1, 0), 65536 - 30, -30),
    ((12, 1, 0), 40, 40),
    ((12, 1, 0), 4096 - 30, -30),  # two's complement in 12 bits
    # The broken intercepts: 40 HU was 1040 with intercept -1000; the file holds 1040 - 1000 = 40.
    ((12, 0, 0), 40, 40),
    ((12, 0, 0), 4096 - 100, -100),  # -100 HU: 900 - 1000 wrapped to 3996
    ((12, 0, 1), 60, 60),
    ((12, 0, 1), 4096 - 500, -500),
]


@pytest.mark.parametrize(("pixel_format", "stored", "expected"), FORMATS)
@pytest.mark.parametrize("implicit", [False, True])
def test_every_pixel_format_gives_the_hounsfield_value_worked_out_by_hand(
    tmp_path, pixel_format, stored, expected, implicit
):
    bits, signed, intercept = pixel_format
    pixels = np.full((4, 6), stored, np.uint16)
    path = write_slice(
        tmp_path / "a.dcm", pixels, bits_stored=bits, signed=signed, intercept=intercept, implicit=implicit
    )
    values, _ = hounsfield(path)
    assert values.dtype == np.int16
    assert values.shape == (4, 6)
    assert (values == expected).all()


@pytest.mark.parametrize(
    ("intercept", "stored", "expected", "is_padded"),
    [
        (-1024, 65536 - 2000, -800, True),  # the padding of a scanner, copied without its sign
        (-1024, 65536 - 100, -800, False),  # -1124 HU: noise in air
        (0, 65536 - 700, -700, False),
        (0, 65536 - 30, -30, False),
        (-10240, 40950, 2000, False),  # the extended scale for metal
    ],
)
def test_a_sign_that_a_program_lost_is_restored_where_no_ct_has_such_a_value(
    tmp_path, intercept, stored, expected, is_padded
):
    path = write_slice(tmp_path / "a.dcm", np.full((4, 6), stored, np.uint16), signed=0, intercept=intercept)
    values, padded = hounsfield(path)
    assert (values == expected).all()
    assert padded == is_padded


def test_a_broken_intercept_is_left_alone_outside_rsna(tmp_path):
    path = write_slice(tmp_path / "a.dcm", np.full((4, 4), 3996, np.uint16), bits_stored=12, signed=0, intercept=0)
    values, _ = hounsfield(path, repair=False)
    assert (values == 2000).all()  # 3996 HU, clipped


def test_hounsfield_agrees_with_pydicom_and_numpy_on_every_stored_value(tmp_path):
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for signed in (0, 1):
        path = write_slice(tmp_path / "a.dcm", stored, bits_stored=12, signed=signed, intercept=-24, slope=0.5)
        reference = make_dataset(stored, bits_stored=12, signed=signed).pixel_array.astype(np.int64)
        if signed:
            reference = np.where(stored >= 2048, stored.astype(np.int64) - 4096, stored)
        expected = np.clip(np.rint(reference * 0.5 - 24), *HULL)
        np.testing.assert_array_equal(hounsfield(path, repair=False)[0], expected)


def test_padding_is_noticed_before_it_is_clipped_away(tmp_path):
    pixels = np.full((4, 4), 1064, np.uint16)
    assert not hounsfield(write_slice(tmp_path / "a.dcm", pixels))[1]
    pixels[0, 0] = 65536 - 2000
    assert hounsfield(write_slice(tmp_path / "b.dcm", pixels))[1]


@pytest.mark.parametrize(
    ("signed", "value", "is_tissue"),
    [
        (1, 65536 - 500, False),  # the darkest tissue is above -500 HU
        (1, 65536 - 499, True),
        (1, 3071, True),
        (1, 3072, False),
        (0, 65536 - 499, False),  # 65,037 HU: no sign
    ],
)
def test_a_padding_value_is_one_of_tissue_by_its_signed_hounsfield_value(tmp_path, signed, value, is_tissue):
    path = write_slice(tmp_path / "a.dcm", bits_stored=16, signed=signed, intercept=0)
    header = dataclasses.replace(read(path)[0], padding_value=value)
    assert is_tissue_padding(header) == is_tissue


def test_a_header_is_found_behind_a_private_tag_longer_than_the_first_read(tmp_path):
    path = write_slice(tmp_path / "a.dcm", ImageComments="x" * 9000, DerivationDescription="y" * 9000)
    header, data = read(path)
    assert len(data) > 16_384
    assert (decode_stored(data[header.pixel_offset :], header) == 1064).all()


def test_nothing_but_the_allow_list_is_kept(tmp_path):
    planted = {"PatientName": "PLANTED^NAME", "StudyDate": "20200202", "InstitutionName": "PLANTED CLINIC"}
    header, _ = read(write_slice(tmp_path / "a.dcm", **planted))
    kept = " ".join(map(str, dataclasses.astuple(header)))
    assert "PLANTED" not in kept.upper()
    assert "20200202" not in kept


BAD_HEADERS = [
    ({"Modality": "MR"}, "not CT"),
    ({"SamplesPerPixel": 3}, "colour image"),
    ({"BitsAllocated": 8}, "expected 16 bits allocated"),
    ({"RescaleSlope": 0}, "RescaleSlope is 0"),
    ({"Rows": 60000}, "invalid size"),
    ({"Rows": 9}, "pixel data shorter than Rows x Columns"),
    ({"ImagePositionPatient": None}, "no ImagePositionPatient"),
    ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "spans no plane"),
    ({"PixelSpacing": [0, 0]}, "PixelSpacing is not between"),
    ({"PixelSpacing": [100, 0.5]}, "PixelSpacing is not between"),
    ({"PixelSpacing": [0.5, 100]}, "PixelSpacing is not between"),
    ({"NumberOfFrames": 4}, "multi-frame"),
    ({"BitsStored": 0}, "expected 16 bits allocated"),
]


@pytest.mark.parametrize(("tags", "reason"), BAD_HEADERS)
def test_a_header_that_cannot_be_used_is_refused_with_its_reason(tmp_path, tags, reason):
    with pytest.raises(UnreadableError, match=reason):
        read(write_slice(tmp_path / "a.dcm", **tags))


def test_empty_and_foreign_files_are_refused_with_their_reason(tmp_path):
    for data, reason in ((b"", "empty file"), (b"hello" * 100, "not DICOM"), (b"\0" * 128 + b"DICM", "no")):
        with pytest.raises(UnreadableError, match=reason):
            read_header(data)


def test_a_truncated_file_keeps_what_its_header_says(tmp_path):
    data = write_slice(tmp_path / "a.dcm", position=(0, 0, 7.5)).read_bytes()[:-10]
    ((header, reason),) = read_slices(lambda length: data[:length], len(data))
    assert reason.startswith("truncated")
    assert header.position_z == 7.5


def test_a_series_name_in_utf8_that_does_not_say_so_is_read_as_it_was_written(tmp_path):
    path = write_slice(tmp_path / "a.dcm", SpecificCharacterSet="ISO_IR 192", SeriesDescription="Голова с контрастом")
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"ISO_IR 100"))
    assert "голова с контрастом" in read(path)[0].kind
    latin = write_slice(tmp_path / "b.dcm", SpecificCharacterSet="ISO_IR 100", SeriesDescription="Schädel KM")
    assert "schädel km" in read(latin)[0].kind


def test_modality_in_lower_case_is_ct(tmp_path):
    assert read(write_slice(tmp_path / "a.dcm", Modality="ct"))[0].rows > 0


def test_pixels_of_another_shape_than_the_header_are_refused():
    """As of a JPEG whose own frame is smaller than Rows and Columns."""
    dataset = make_dataset(np.full((8, 8), 1064, np.uint16))
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    header = read_header(buffer.getvalue())
    with pytest.raises(UnreadableError, match="decompressed pixels do not fit Rows and Columns"):
        decode_stored(buffer.getvalue(), dataclasses.replace(header, rows=4, columns=16))


def test_pixels_that_end_too_early_are_refused_when_they_are_decoded(tmp_path):
    """As of a file that was cut after its header was read."""
    header, data = read(write_slice(tmp_path / "a.dcm"))
    with pytest.raises(UnreadableError, match="truncated: the pixels end too early"):
        decode_stored(data[header.pixel_offset : -2], header)


@pytest.mark.parametrize(
    ("syntax", "expected"),
    [
        ("", True),
        (str(pydicom.uid.RLELossless), True),
        (str(pydicom.uid.MPEG2MPML), True),  # no package decodes it, so that none can be recommended
    ],
)
def test_a_decoder_is_only_missed_where_a_package_would_bring_one(syntax, expected):
    assert has_decoder(syntax) == expected


def test_a_missing_decoder_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    dataset = make_dataset(np.full((96, 64), 1064, np.uint16))
    dataset.compress(pydicom.uid.JPEG2000Lossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    header, data = read(tmp_path / "a.dcm")
    assert (decode_stored(data, header) == 1064).all()
    decoder = get_decoder(pydicom.uid.JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    assert not has_decoder(header.syntax)
    with pytest.raises(UnreadableError, match=r"no decoder for JPEG 2000 .*; pip install 'ichkit\[dicom\]'"):
        decode_stored(data, header)


@pytest.mark.parametrize(
    ("signed", "limit", "expected"),
    [
        (1, -1, [True, False, False]),
        (1, 65536 - 1990, [True, True, False]),
        (0, -1, [True, False, False]),
    ],
)
def test_a_padding_that_bits_stored_cannot_hold_is_found_in_all_sixteen_bits(tmp_path, signed, limit, expected):
    """12 bits hold -2048 to 2047 with a sign: the padding of -3000 stands in all 16 bits of a pixel."""
    stored = np.array([[65536 - 3000, 65536 - 2990, 40]], np.uint16)
    limit = limit if limit < 0 else 65536 - 2980
    header = read(write_slice(tmp_path / "a.dcm", stored, bits_stored=12, signed=signed, intercept=0))[0]
    header = dataclasses.replace(header, padding_value=65536 - 3000, padding_limit=limit)
    values = np.empty(stored.shape, np.int16)
    is_padded, _ = fill_hounsfield(stored, header, values, repair=False, hull_hu=(-800, 2000))
    assert is_padded
    assert (values[0] == -800).tolist() == expected
    assert values[0, 2] == 40
