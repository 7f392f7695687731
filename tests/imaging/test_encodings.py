"""The encoding that reading found decides: pixels equal pydicom's whatever the meta group says or lacks."""

import io

import numpy as np
import pydicom
import pytest
from support.dicoms import make_dataset, read_header
from support.encodings import (
    big_endian,
    deflated,
    enhanced,
    head_pixels,
    item,
    to_bytes,
    with_meta_uid,
    without_meta,
)

from ichkit.imaging import dicom
from ichkit.imaging.dicom import UnreadableError
from ichkit.imaging.hounsfield import decode_stored, open_file
from ichkit.imaging.tags import walk_tags

PIXELS = head_pixels()


def decode(data):
    header = read_header(data)
    if header.syntax:
        return decode_stored(open_file(data, header), header), header
    return decode_stored(data[header.pixel_offset :], header), header


def explicit():
    return to_bytes(make_dataset(PIXELS))


def implicit():
    return to_bytes(make_dataset(PIXELS, implicit=True))


ENCODINGS = {
    "explicit": explicit,
    "implicit": implicit,
    "explicit, no UID": lambda: with_meta_uid(explicit(), None),
    "implicit, no UID": lambda: with_meta_uid(implicit(), None),
    "explicit, UID says implicit": lambda: with_meta_uid(explicit(), b"1.2.840.10008.1.2"),
    "implicit, UID says explicit": lambda: with_meta_uid(implicit(), b"1.2.840.10008.1.2.1"),
    "explicit, UID says JPEG": lambda: with_meta_uid(explicit(), b"1.2.840.10008.1.2.4.70"),
    "explicit, UID unknown": lambda: with_meta_uid(explicit(), b"1.2.3.4"),
    "explicit, no preamble, no mark": lambda: explicit()[132:],
    "explicit, bare": lambda: without_meta(explicit()),
    "implicit, bare": lambda: without_meta(implicit()),
    "deflated": lambda: deflated(explicit()),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_pixels_are_those_that_were_written_however_the_file_is_encoded(name):
    stored, header = decode(ENCODINGS[name]())
    np.testing.assert_array_equal(stored, PIXELS)
    assert (header.slice_uid, header.study_uid, header.position_z) == ("1.2.3.1", "1.2", 0.0)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEGLSLossless", "JPEG2000Lossless"])
@pytest.mark.parametrize("cut", ["none", "uid", "meta"])
def test_compressed_pixels_are_read_without_the_uid_where_their_own_marks_tell_how(syntax, cut):
    pixels = head_pixels(shape=(96, 64))
    dataset = make_dataset(pixels)
    dataset.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
    data = to_bytes(dataset)
    data = {"none": lambda d: d, "uid": lambda d: with_meta_uid(d, None), "meta": without_meta}[cut](data)
    np.testing.assert_array_equal(decode(data)[0], pixels)


def test_compressed_pixels_whose_marks_are_unknown_are_refused_without_the_uid():
    dataset = make_dataset(head_pixels(shape=(96, 64)))
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    data = with_meta_uid(to_bytes(dataset), None)
    mark = (2).to_bytes(4, "little") + (64).to_bytes(4, "little")
    assert data.count(mark) == 1
    with pytest.raises(UnreadableError, match="compressed pixels without a transfer syntax that names the compression"):
        decode(data.replace(mark, bytes(8)))


@pytest.mark.parametrize("declared", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessSV1", "RLELossless", None])
@pytest.mark.parametrize("written", ["JPEG2000Lossless", "JPEGLSLossless", "RLELossless"])
def test_compressed_pixels_are_read_as_what_they_are_under_the_uid_of_another_compression(written, declared):
    pixels = head_pixels(shape=(48, 64))
    dataset = make_dataset(pixels)
    dataset.compress(getattr(pydicom.uid, written), generate_instance_uid=False)
    uid = None if declared is None else getattr(pydicom.uid, declared).encode()
    stored, _ = decode(with_meta_uid(to_bytes(dataset), uid))
    np.testing.assert_array_equal(stored, pixels)


def test_big_endian_is_refused_by_its_name_whether_the_meta_group_says_so_or_not():
    dataset = make_dataset(PIXELS)
    marked = explicit()[: len(explicit()) - len(without_meta(explicit()))]
    for data in (big_endian(dataset), with_meta_uid(marked, b"1.2.840.10008.1.2.2") + big_endian(dataset)):
        with pytest.raises(UnreadableError, match="big-endian"):
            decode(data)


def test_pixels_of_another_byte_order_than_their_header_are_refused():
    with pytest.raises(UnreadableError, match="big-endian pixels of a private transfer syntax"):
        decode(with_meta_uid(implicit(), b"1.2.840.113619.5.2"))


@pytest.mark.parametrize("with_sequence", [False, True], ids=["plain", "read by pydicom"])
@pytest.mark.parametrize("is_implicit", [False, True], ids=["explicit", "implicit"])
def test_little_endian_data_under_the_big_endian_uid_are_read_as_what_they_are(is_implicit, with_sequence):
    dataset = make_dataset(PIXELS, implicit=is_implicit)
    if with_sequence:
        dataset.ReferencedImageSequence = [pydicom.Dataset()]
        dataset["ReferencedImageSequence"].is_undefined_length = True
    data = with_meta_uid(to_bytes(dataset), b"1.2.840.10008.1.2.2")
    assert (walk_tags(data) is None) == with_sequence
    stored, header = decode(data)
    np.testing.assert_array_equal(stored, PIXELS)
    assert header.position_z == 0.0


@pytest.mark.parametrize("make", [explicit, implicit])
def test_the_tags_of_an_ordinary_file_are_read_without_pydicom_as_it_reads_them(make):
    tags, dataset = walk_tags(make()), pydicom.dcmread(io.BytesIO(make()))
    assert tags is not None
    assert {"PixelSpacing", "ImagePositionPatient", "Rows", "RescaleSlope", "StudyInstanceUID"} <= tags.values.keys()
    for name, value in tags.values.items():
        other = dataset[name].value
        assert value == (list(other) if isinstance(other, pydicom.multival.MultiValue) else other), name


def test_a_deflated_bomb_is_refused_before_it_fills_memory(monkeypatch):
    monkeypatch.setattr("ichkit.imaging.dicom.MAX_FILE_BYTES", 100_000)
    data = deflated(to_bytes(make_dataset(np.zeros((512, 512), np.uint16))))
    with pytest.raises(UnreadableError, match="deflated data set is larger than"):
        decode(data)


def test_a_deflated_data_set_that_is_damaged_or_has_no_meta_group_is_refused():
    data = deflated(explicit())
    with pytest.raises(UnreadableError, match="deflated data set is damaged"):
        decode(data[: len(explicit()) - len(without_meta(explicit()))] + b"\xff" * 200)
    with pytest.raises(UnreadableError, match="deflated data set without a meta group"):
        decode(data[132:])


@pytest.mark.parametrize("length", [132, 140, 143, 144, 170])
def test_a_file_that_ends_inside_its_meta_group_is_refused_with_a_reason(length):
    assert explicit()[132:140] == b"\x02\0\0\0UL\x04\0"
    ((header, reason),) = dicom.read_slices(lambda wanted: explicit()[:length][:wanted], length)
    assert header is None
    assert reason.startswith(("header cannot be read", "no pixel data"))


def test_a_file_beyond_the_bound_is_refused_unread():
    def read_head(wanted):
        raise AssertionError("read")

    ((header, reason),) = dicom.read_slices(read_head, dicom.MAX_FILE_BYTES + 1)
    assert (header, reason) == (None, "file is larger than 256 MB")


def test_a_header_cut_inside_an_element_is_read_on_until_it_is_whole(monkeypatch):
    monkeypatch.setattr(dicom, "HEAD_BYTES", (600, 65_536, 2 * 1024**2))
    dataset = make_dataset(PIXELS)
    dataset.ReferencedImageSequence = [item(ReferencedSOPInstanceUID="1.2.3")] * 20  # which only pydicom reads
    data, asked = to_bytes(dataset), []

    def read_head(wanted):
        asked.append(wanted)
        return data[:wanted]

    ((header, reason),) = dicom.read_slices(read_head, len(data))
    assert (header.rows, reason) == (16, "")
    assert asked[:3] == [600, 600, 65_536]


@pytest.mark.parametrize("number", [0, -1, dicom.MAX_FRAMES + 1])
def test_an_enhanced_ct_of_no_frames_or_of_too_many_is_refused(number):
    dataset = enhanced([PIXELS], [(0, 0, 0)], [(1, -1024)])
    dataset.NumberOfFrames = number
    with pytest.raises(UnreadableError, match="invalid number of frames: expected 1 to 10000"):
        read_header(to_bytes(dataset))


def test_a_frame_whose_header_cannot_be_used_is_refused_and_the_others_are_read():
    dataset = enhanced([PIXELS, PIXELS + 1], [(0, 0, 0), (0, 0, 5)], [(0, -1024), (1, -1024)])
    data = to_bytes(dataset)
    first, second = dicom.read_slices(lambda wanted: data[:wanted], len(data))
    assert first == (None, "RescaleSlope is 0")
    assert (second[0].position_z, second[1]) == (5.0, "")
    np.testing.assert_array_equal(decode_stored(data[second[0].pixel_offset :], second[0]), PIXELS + 1)


def test_a_compressed_fragment_cut_off_at_the_end_of_the_file_names_no_compression():
    dataset = make_dataset(head_pixels(shape=(96, 64)))
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    data = with_meta_uid(to_bytes(dataset), None)
    begin = data.index(b"\xe0\x7f\x10\x00OB") + 12
    with pytest.raises(UnreadableError, match="compressed pixels without a transfer syntax"):
        decode(data[: begin + 4])


def test_a_file_whose_header_does_not_end_is_not_read_to_its_end(monkeypatch):
    """As a sparse file, or one that is nothing but elements: pydicom takes minutes for 250 MB of them."""
    monkeypatch.setattr(dicom, "HEAD_BYTES", (1024, 65_536, 2 * 1024**2))
    head, asked = explicit()[:500], []

    def read_head(wanted):
        asked.append(wanted)
        return (head + bytes(wanted))[:wanted]

    assert dicom.read_slices(read_head, 250 * 1024**2) == [(None, "no pixel data in its first 2 MB")]
    assert max(asked) == 2 * 1024**2


def test_a_header_of_nothing_but_items_is_refused_before_each_becomes_an_object(monkeypatch):
    monkeypatch.setattr(dicom, "_MAX_ITEMS", 1000)
    begin = explicit()[: explicit().index(b"\x28\0\x02\0US")]
    sequence = b"\x18\0\x12\0SQ\0\0\xff\xff\xff\xff" + 1001 * b"\xfe\xff\x00\xe0\0\0\0\0"
    with pytest.raises(UnreadableError, match="header has more than 1,000 items of sequences"):
        read_header(begin + sequence)


@pytest.mark.parametrize(
    "data", [b"\x08\x00" + bytes(500), b"\x02\x00\x00\x00" * 200, b"\x08\x00\x05\x00CS" + bytes(300)]
)
def test_what_only_begins_like_a_data_set_is_not_dicom(data):
    with pytest.raises(UnreadableError, match="not DICOM"):
        decode(data)


def set_raw(data, tag, old, new):
    """The value of an element exchanged for another of the same length."""
    at = data.index(tag)
    assert data.index(old, at) - at < 20
    return data[:at] + data[at:].replace(old, new, 1)


def test_a_decimal_comma_is_read_as_a_point():
    data = to_bytes(make_dataset(PIXELS, spacing=(0.25, 0.75), position=(-1.5, 2.5, 7.5)))
    data = set_raw(data, b"\x28\x00\x30\x00DS", b"0.25\\0.75", b"0,25\\0,75")
    data = set_raw(data, b"\x20\x00\x32\x00DS", b"-1.5\\2.5\\7.5", b"-1,5\\2,5\\7,5")
    _, header = decode(data)
    assert (header.spacing_row_mm, header.spacing_col_mm) == (0.25, 0.75)
    assert (header.position_x, header.position_y, header.position_z) == (-1.5, 2.5, 7.5)


ODD = {
    # GE exports, pydicom issue 828: a text VR in the place of DS.
    "spacing as LO": ({}, lambda d: d.replace(b"\x28\x00\x30\x00DS", b"\x28\x00\x30\x00LO"), None),
    # pydicom issue 173: a comma between the two numbers.
    "spacing of one text": ({}, lambda d: set_raw(d, b"\x28\x00\x30\x00DS", b"0.5\\0.5", b"0.5,0.5"), "PixelSpacing"),
    "rows as SS": ({}, lambda d: d.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00SS"), None),
    "rows as UN": ({}, lambda d: as_un(d, b"\x28\x00\x10\x00US"), None),
    # pydicom issue 1240: a decimal point in IS.
    "frames as a decimal": ({}, lambda d: d.replace(b"\x20\x00\x13\x00IS", b"\x20\x00\x13\x00DS"), None),
    "spacing nan": ({"PixelSpacing": ["nan", "0.5"]}, None, "PixelSpacing is not finite"),
    "spacing inf": ({"PixelSpacing": ["inf", "0.5"]}, None, "PixelSpacing is not finite"),
    "spacing zero": ({"PixelSpacing": [0, 0.5]}, None, "PixelSpacing is not between"),
    "spacing negative": ({"PixelSpacing": [-0.5, 0.5]}, None, "PixelSpacing is not between"),
    "spacing of one": ({"PixelSpacing": [0.5]}, None, "no PixelSpacing of 2 numbers"),
    "spacing empty": ({"PixelSpacing": None}, None, "no PixelSpacing of 2 numbers"),
    "slope nan": ({"RescaleSlope": "nan"}, None, "RescaleSlope is not finite"),
    "slope negative": ({"RescaleSlope": -1}, None, "RescaleSlope is negative"),
    "position far": (
        {"ImagePositionPatient": [0, 0, "1e30"]},
        None,
        "ImagePositionPatient is more than 100 m from the origin",
    ),
    # Longer than 16 characters: pydicom issue 1632 and many exports of Philips and of research software.
    "position long": (
        {"ImagePositionPatient": ["-112.0000000000000001", "-112", "5.000000000000000001"]},
        None,
        None,
    ),
    "bits 12 high 15": ({"BitsStored": 12, "HighBit": 15}, None, None),
    "rows zero": ({"Rows": 0}, None, "invalid size"),
    # Siemens and GE write a trailing padding element behind the pixels.
    "trailing padding": ({"DataSetTrailingPadding": b"\0" * 64}, None, None),
    "group lengths": ({}, lambda d: with_group_length(d), None),
    # dcm2niix issues with Philips: private sequences of undefined length in the head.
    "private sequence": ({}, lambda d: with_private_sequence(d), None),
    "photometric missing": ({"PhotometricInterpretation": None}, None, None),
}


def as_un(data, element):
    """An explicit element of 2 bytes under VR UN, as a gateway writes what its dictionary lacks."""
    at = data.index(element)
    value = data[at + 8 : at + 10]
    return data[:at] + element[:4] + b"UN\0\0\x02\0\0\0" + value + data[at + 10 :]


def with_group_length(data):
    """A retired (0028,0000) in front of group 28."""
    at = data.index(b"\x28\x00\x02\x00US")
    return data[:at] + b"\x28\x00\x00\x00UL\x04\x00\x80\x00\x00\x00" + data[at:]


def with_private_sequence(data):
    at = data.index(b"\x28\x00\x02\x00US")
    creator = b"\x21\x00\x10\x00LO\x08\x00PHILIPS "
    begin = b"\x21\x00\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return data[:at] + creator + begin + end + data[at:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_an_odd_header_is_read_or_refused_with_its_reason(name):
    tags, change, reason = ODD[name]
    data = to_bytes(make_dataset(PIXELS, **tags))
    data = data if change is None else change(data)
    if reason is not None:
        with pytest.raises(UnreadableError, match=reason):
            decode(data)
        return
    stored, header = decode(data)
    np.testing.assert_array_equal(stored, PIXELS)
    assert (header.rows, header.columns, header.spacing_row_mm) == (16, 12, 0.5)


def as_bytes(data, element):
    """An explicit element with a short length under VR OB, whose value pydicom leaves as bytes."""
    at = data.index(element)
    length = data[at + 6 : at + 8]
    return data[:at] + element[:4] + b"OB\0\0" + length + b"\0\0" + data[at + 8 :]


def test_numbers_that_are_stored_as_bytes_are_read_as_what_they_are():
    data = as_bytes(to_bytes(make_dataset(PIXELS, slope=2.5)), b"\x28\x00\x53\x10DS")
    assert decode(data)[1].slope == 2.5
    data = as_bytes(to_bytes(make_dataset(PIXELS, PixelPaddingValue=-2000)), b"\x28\x00\x20\x01SS")
    assert decode(data)[1].padding_value == 65536 - 2000


def test_a_number_stored_as_bytes_that_are_no_text_is_refused_by_its_name():
    data = as_bytes(to_bytes(make_dataset(PIXELS, slope=2.5)), b"\x28\x00\x53\x10DS")
    with pytest.raises(UnreadableError, match="RescaleSlope is not a number"):
        decode(data.replace(b"2.5 ", b"\xff\xfe\x00\x01", 1))


def test_a_modality_look_up_table_is_refused_by_its_name_and_an_empty_one_is_not():
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [256, 0, 16], "HU"
    item["LUTDescriptor"].VR = "US"
    item.LUTData = bytes(512)
    for implicit_vr in (False, True):
        data = to_bytes(make_dataset(PIXELS, implicit=implicit_vr, ModalityLUTSequence=[item]))
        with pytest.raises(UnreadableError, match="Modality LUT Sequence is not supported"):
            decode(data)
        np.testing.assert_array_equal(
            decode(to_bytes(make_dataset(PIXELS, implicit=implicit_vr, ModalityLUTSequence=[])))[0], PIXELS
        )
