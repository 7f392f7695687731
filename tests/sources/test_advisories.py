"""The kinds of fault that DICOM servers published advisories for in 2026, each as a file made to cause it here.

CVE-2026-5437 to 5445 are those of Orthanc up to 1.12.10; 5438 and 5440 are of its HTTP server, here a file does it.
"""

import gzip
import io
import re
import struct
import zipfile
import zlib

import nibabel
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


def dimensions_of_four_bytes(tmp_path):
    """Rows and Columns of 65,600 as UL in place of US, whose product does not fit into 32 bits."""
    data = bytes(write_slice(tmp_path / "a.dcm", STORED).read_bytes())
    for number in (0x10, 0x11):
        found = element(0x28, number, b"US", struct.pack("<H", 64))
        assert data.count(found) == 1
        data = data.replace(found, element(0x28, number, b"UL", struct.pack("<I", 65_600)))
    return data


def pixels_of_four_gigabytes(tmp_path):
    data = bytearray(write_slice(tmp_path / "a.dcm", STORED).read_bytes())
    at = data.index(b"\xe0\x7f\x10\x00OW") + 8
    struct.pack_into("<I", data, at, 0xFFFFFFF0)
    return bytes(data)


def palette_of_great_size(tmp_path):
    tags = {"PhotometricInterpretation": "PALETTE COLOR", "Rows": 65535, "Columns": 65535}
    return write_slice(tmp_path / "a.dcm", STORED, **tags).read_bytes()


def philips_compression(tmp_path):
    """Pixels in a private element, run lengths that end early, in place of PixelData."""
    data = write_slice(tmp_path / "a.dcm", STORED).read_bytes()
    name = element(0x07A1, 0x10, b"LO", b"ELSCINT1") + element(0x07A1, 0x1011, b"CS", b"PMSCT_RLE1")
    return data[: data.index(b"\xe0\x7f\x10\x00OW")] + name + element(0x07A1, 0x100A, b"OB", b"\xa5\xff\x00\xa5")


def pam_image(tmp_path):
    dataset = make_dataset(STORED)
    size = b"WIDTH 4294967295\nHEIGHT 4294967295\nDEPTH 4\nMAXVAL 65535\n"
    dataset.PixelData = encapsulate([b"P7\n" + size + b"TUPLTYPE RGB_ALPHA\nENDHDR\n" + bytes(64)])
    return save_compressed(dataset, "1.2.840.10008.1.2.4.50")


def size_of_a_zip_member(tmp_path):
    """A member of 9 KB that claims 4 GB, in both of its headers."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", write_slice(tmp_path / "a.dcm", STORED).read_bytes())
    data = bytearray(packed.getvalue())
    for at in (22, data.index(b"PK\x01\x02") + 24):
        struct.pack_into("<I", data, at, 0xFFFFFFFE)
    return bytes(data)


def gzip_bomb(tmp_path):
    """A volume of 8 x 8 x 4 voxels, and 4 GB of zeros behind it."""
    volume = nibabel.Nifti1Image(np.zeros((8, 8, 4), np.int16), np.diag([0.5, 0.5, 5, 1])).to_bytes()
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    begin = squeezer.compress(volume) + squeezer.flush(zlib.Z_FULL_FLUSH)
    zeros = squeezer.compress(bytes(1 << 24)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + begin + 256 * zeros + squeezer.flush() + bytes(8)


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
    "CVE-2026-5437: the meta group claims to be longer than the file": (
        meta_over_read,
        r"read|header cannot be read .*",
    ),
    "CVE-2026-5438: a gzipped volume without end": (gzip_bomb, r"read|NIfTI .*"),
    "CVE-2026-5439: a member of a zip claims 4 GB": (size_of_a_zip_member, r"zip member is larger than 256 MB"),
    "CVE-2026-5440: pixels claim 4 GB": (pixels_of_four_gigabytes, r"read|.*truncated.*"),
    "CVE-2026-5441: Philips compression that ends early": (philips_compression, r"no pixel data"),
    "CVE-2026-5442: rows and columns of four bytes": (dimensions_of_four_bytes, r"invalid .*"),
    "CVE-2026-5443: a palette, rows times columns overflow": (palette_of_great_size, r"colour image.*|invalid .*"),
    "CVE-2026-5444: a PAM image as a frame": (pam_image, r"pixels cannot be decompressed .*"),
    "an element claims to be longer than the file": (element_over_read, r"header cannot be read .*|no .*"),
    "a deflated data set without end": (deflate_bomb, r"deflated data set is larger than 256 MB"),
    "the same behind a long meta group": (hidden_deflate_bomb, r"deflated data set is larger than 256 MB|header .*"),
    "rows times columns times frames overflow": (dimension_overflow, r"invalid .*"),
    "CVE-2026-5445: indices into a palette that is too short": (palette_index, r"colour image.*"),
    "a codestream of another size than its header": (codestream_of_other_size, r"pixels cannot be decompressed .*"),
    "run lengths that point beyond their end": (run_length_beyond_its_end, r"pixels cannot be decompressed .*"),
    "an offset table that points beyond its end": (offset_table_beyond_its_end, r"pixels cannot be decompressed .*"),
    "sequences inside sequences without end": (endless_sequences, r"header cannot be read \(.*\)"),
}


FILE_NAMES = {gzip_bomb: "a.nii.gz", size_of_a_zip_member: "a.zip"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of every file, all read in one small process."""
    root = tmp_path_factory.mktemp("advisories")
    paths = []
    for number, (make, _) in enumerate(ADVISORIES.values()):
        folder = root / f"case{number}"
        folder.mkdir()
        (folder / FILE_NAMES.get(make, "a.dcm")).write_bytes(make(tmp_path_factory.mktemp("made")))
        paths.append(folder)
    found = in_a_small_process(read_all, paths, megabytes=MEGABYTES)
    return dict(zip(ADVISORIES, found, strict=True))


def read_all(paths):
    return [outcomes_of(path) for path in paths]


@pytest.mark.parametrize("what", ADVISORIES)
def test_a_file_that_brought_servers_down_is_a_reason_here(what, outcomes):
    (outcome,) = set(outcomes[what])  # of every slice
    assert re.fullmatch(ADVISORIES[what][1], outcome), outcome
