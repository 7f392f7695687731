"""The kinds of fault that DICOM servers published advisories for in 2026, each as a file made to cause it here."""

import io
import re
import struct
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from support.dicoms import make_dataset, write_slice
from support.limits import in_a_small_process, outcomes_of

STORED = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
MEGABYTES = 900
DEFLATED = b"1.2.840.10008.1.2.1.99"


def element(group, number, vr, value):
    if vr in (b"OB", b"OW", b"UN", b"SQ"):
        return struct.pack("<HH2sHI", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def meta(*elements, claimed=None):
    body = b"".join(elements)
    return (
        bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(body) if claimed is None else claimed)) + body
    )


def data_set(tmp_path, **tags):
    """The bytes behind the meta group of an ordinary slice."""
    data = write_slice(tmp_path / "ordinary.dcm", STORED, **tags).read_bytes()
    return data[144 + struct.unpack_from("<I", data, 140)[0] :]


def meta_over_read(tmp_path):
    syntax = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1\0")
    return meta(syntax, claimed=0xFFFFFFF0) + data_set(tmp_path)


def element_over_read(tmp_path):
    data = bytearray(write_slice(tmp_path / "a.dcm", STORED).read_bytes())
    at = data.index(b"\x28\x00\x30\x00DS") + 6
    struct.pack_into("<H", data, at, 0xFFF0)
    return bytes(data)


def deflate_bomb(tmp_path, hidden=0):
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    private = element(9, 0x1001, b"UN", bytes(300_000_000))
    packed = squeezer.compress(private) + squeezer.compress(private) + squeezer.flush()
    filler = [element(2, 0x102, b"OB", b"x" * hidden)] if hidden else []
    return meta(*filler, element(2, 0x10, b"UI", DEFLATED + b"")) + packed


def hidden_deflate_bomb(tmp_path):
    return deflate_bomb(tmp_path, hidden=5_000)


def dimension_overflow(tmp_path):
    with pydicom.config.disable_value_validation():
        dataset = make_dataset(STORED)
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 65535, 65535, 2**31 - 1
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def palette_index(tmp_path):
    tags = {"PhotometricInterpretation": "PALETTE COLOR", "RedPaletteColorLookupTableDescriptor": [1, 0, 16]}
    return write_slice(tmp_path / "a.dcm", STORED, **tags).read_bytes()


def codestream_of_other_size(tmp_path):
    """JPEG 2000 whose own header claims 60,000 x 60,000."""
    dataset = make_dataset(STORED)
    siz = struct.pack(">HHHIIIIIIIIH", 0xFF51, 41, 0, 60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0, 1) + b"\x0f\x01\x01"
    cod = b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x01\x04\x04\x00\x01"
    qcd = b"\xff\x5c\x00\x07\x40\x40\x48\x48\x50"
    tile = b"\xff\x90\x00\x0a\x00\x00\x00\x00\x00\x0e\x00\x01\xff\x93"
    dataset.PixelData = encapsulate([b"\xff\x4f" + siz + cod + qcd + tile + b"\xff\xd9"])
    return save_compressed(dataset, "1.2.840.10008.1.2.4.90")


def run_length_beyond_its_end(tmp_path):
    dataset = make_dataset(STORED)
    dataset.PixelData = encapsulate([struct.pack("<16I", 2, 64, 0xFFFFFF00, *[0] * 13) + b"\x7f" * 100])
    return save_compressed(dataset, "1.2.840.10008.1.2.5")


def offset_table_beyond_its_end(tmp_path):
    dataset = make_dataset(STORED)
    frame = b"\xff" * 64
    table = struct.pack("<HHI4I", 0xFFFE, 0xE000, 16, 0xFFFFFFFF, 0x7FFFFFFF, 1, 0)
    dataset.PixelData = table + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFE) + frame
    return save_compressed(dataset, "1.2.840.10008.1.2.5")


def save_compressed(dataset, syntax):
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def endless_sequences(tmp_path):
    data = write_slice(tmp_path / "a.dcm", STORED).read_bytes()
    at = data.index(b"\x10\x00\x20\x00LO")
    begin = struct.pack("<HH2sHIHHI", 8, 0x1032, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    return data[:at] + begin * 50_000 + data[at:]


ADVISORIES = {
    "the meta group claims to be longer than the file": (meta_over_read, r"read|header cannot be read .*"),
    "an element claims to be longer than the file": (element_over_read, r"header cannot be read .*|no .*"),
    "a deflated data set without end": (deflate_bomb, r"deflated data set is larger than 256 MB"),
    "the same behind a long meta group": (hidden_deflate_bomb, r"deflated data set is larger than 256 MB|header .*"),
    "rows times columns times frames overflow": (dimension_overflow, r"invalid .*"),
    "indices into a palette that is too short": (palette_index, r"colour image.*"),
    "a codestream of another size than its header": (codestream_of_other_size, r"pixels cannot be decompressed .*"),
    "run lengths that point beyond their end": (run_length_beyond_its_end, r"pixels cannot be decompressed .*"),
    "an offset table that points beyond its end": (offset_table_beyond_its_end, r"pixels cannot be decompressed .*"),
    "sequences inside sequences without end": (endless_sequences, r"header cannot be read \(.*\)"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of every file, all read in one small process."""
    root = tmp_path_factory.mktemp("advisories")
    paths = []
    for number, (make, _) in enumerate(ADVISORIES.values()):
        folder = root / f"case{number}"
        folder.mkdir()
        (folder / "a.dcm").write_bytes(make(tmp_path_factory.mktemp("made")))
        paths.append(folder)
    found = in_a_small_process(read_all, paths, megabytes=MEGABYTES)
    return dict(zip(ADVISORIES, found, strict=True))


def read_all(paths):
    return [outcomes_of(path) for path in paths]


@pytest.mark.parametrize("what", ADVISORIES)
def test_a_file_that_brought_servers_down_is_a_reason_here(what, outcomes):
    (outcome,) = outcomes[what]
    assert re.fullmatch(ADVISORIES[what][1], outcome), outcome
