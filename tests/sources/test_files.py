"""Files below a root: what may not be read, other archives, and zips made to harm, each refused with its reason."""

import io
import multiprocessing
import os
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from support.dicoms import write_series, write_slice
from support.users import NOBODY, world_folder

from ichkit.core.errors import DataError
from ichkit.imaging.dicom import UnreadableError
from ichkit.sources import files as source_files
from ichkit.sources.files import FILE_COLUMNS, digest_tables, file_refs, scan_files
from ichkit.sources.index import read_headers

CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def reasons_of(root):
    files, refused = scan_files(root)
    return files["relative"].to_list(), dict(refused[["relative", "reason"]].to_numpy().tolist())


def scan_as_nobody(root, answers):
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        answers.put(reasons_of(root))
    except DataError as error:
        answers.put(str(error))


def as_nobody(root):
    """What another user than root sees, to whom permissions apply."""
    if sys.platform != "linux" or os.getuid() != 0:
        pytest.skip("needs root")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=scan_as_nobody, args=(root, answers))
    process.start()
    answer = answers.get(timeout=30)
    process.join()
    return answer


@pytest.fixture
def reachable():
    folder = world_folder()
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_may_not_be_read_is_a_row_and_the_rest_goes_on(reachable):
    write_series(reachable / "good", 2)
    for name, mode in (("closed", 0o000), ("listed", 0o744)):
        write_slice(reachable / name / "a.dcm")
        (reachable / name).chmod(mode)
    names, refused = as_nobody(reachable)
    assert sorted(names) == ["good/0000_0.dcm", "good/0007_1.dcm"]
    assert refused == {
        "closed": "folder cannot be read",
        "listed/a.dcm": "cannot be read (PermissionError)",
    }


def test_a_root_that_may_not_be_read_is_one_message(reachable):
    (reachable / "closed").mkdir(mode=0o000)
    assert "expected a folder that can be read at" in as_nobody(reachable / "closed")


def test_a_link_to_nowhere_is_named(tmp_path):
    write_slice(tmp_path / "a.dcm")
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "annex" / "missing")
    assert reasons_of(tmp_path) == (["a.dcm"], {"gone.dcm": "broken link"})


@pytest.mark.parametrize(
    ("name", "kind"), [("a.dcm.gz", "gzip"), ("b.TGZ", "tar"), ("c.tar", "tar"), ("d.7z", "7-Zip"), ("e.rar", "RAR")]
)
def test_an_archive_of_another_kind_says_what_to_do_wherever_it_lies(tmp_path, name, kind):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / name).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr(name, b"x")
    expected = {name: f"{kind} archive: unpack it first (only zip is read)"}
    assert reasons_of(tmp_path / "tree") == ([], expected)
    assert reasons_of(tmp_path / "packed.zip") == ([], expected)


def test_only_the_tables_that_are_asked_for_are_opened_and_none_beyond_the_bound(tmp_path):
    (tmp_path / "reads.csv").write_bytes(b"a,b\n1,2\n")
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(3 * 1024**3)
    files, _ = scan_files(tmp_path)
    expected = "492d5ea496056f1a"
    assert digest_tables(files, (r"(?:^|/)reads\.csv$",)) == expected
    assert digest_tables(files, ()) == "e3b0c44298fc1c14"  # SHA-256 of nothing
    with pytest.raises(DataError, match="huge.csv: expected a table of this data set: file is larger than 256 MB"):
        digest_tables(files, (r"\.csv$",))


def packed(path, data, method=zipfile.ZIP_DEFLATED, name="a.dcm"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, data)
    return path


def change(path, mark, offset, layout, value):
    """Overwrites one field behind the first (or last, where central) record with that mark."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, data.index(mark) + offset, value)
    path.write_bytes(data)
    return path


@pytest.fixture
def slice_bytes(tmp_path):
    stored = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    return write_slice(tmp_path / "plain.dcm", stored).read_bytes()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_bit_that_flipped_inside_a_member_is_found_whatever_part_is_read(tmp_path, slice_bytes, method):
    path = packed(tmp_path / "a.zip", slice_bytes, method)
    (ref,) = file_refs(scan_files(path)[0])
    assert ref.read(200, 1000) == slice_bytes[200:1200]
    data = bytearray(path.read_bytes())
    data[1500] ^= 1  # in the pixels of the stored one
    path.write_bytes(data)
    for place in ((0, None), (200, 1000), (len(slice_bytes) - 10, 10)):
        with pytest.raises(UnreadableError, match=r"damaged zip member|another length|cannot be read \(error\)"):
            ref.read(*place)
    if method == zipfile.ZIP_STORED:
        with pytest.raises(UnreadableError, match="damaged zip member \\(CRC differs\\)"):
            ref.read()


@pytest.mark.parametrize("claimed", [100, 5_000_000, 200 * 1024**2])
def test_a_size_that_lies_is_found_and_never_believed(tmp_path, slice_bytes, claimed):
    path = change(packed(tmp_path / "a.zip", slice_bytes), CENTRAL, 24, "<I", claimed)
    files, refused = scan_files(path)
    if claimed > 16 * 1024**2:  # below that, no ratio is refused: a blank slice may be as small
        assert refused["reason"].to_list() == ["zip member is compressed more than 1000 to 1"]
        return
    (ref,) = file_refs(files)
    with pytest.raises(UnreadableError, match="another length than its zip states"):
        ref.read()
    ((_, reason),) = read_headers([ref])
    assert bool(reason) == (claimed == 100)  # of a longer one the header is whole, and the pixels are refused above


def test_members_that_share_their_bytes_are_refused_together(tmp_path):
    path = packed(tmp_path / "a.zip", bytes(2_000_000))
    data = path.read_bytes()
    start, end = data.index(CENTRAL), data.index(b"PK\x05\x06")
    entry, num = data[start:end], 500
    tail = bytearray(data[end:])
    struct.pack_into("<HHII", tail, 8, num, num, num * len(entry), start)
    entries = b"".join(entry.replace(b"a.dcm", f"{i:05d}".encode()) for i in range(num))
    path.write_bytes(data[:start] + entries + bytes(tail))
    assert len(zipfile.ZipFile(path).namelist()) == num
    assert reasons_of(path) == ([], {"a.zip": "zip members overlap"})


def test_encrypted_members_names_that_stand_twice_and_zips_in_zips_are_refused(tmp_path, slice_bytes):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.dcm", slice_bytes)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("twice.dcm", slice_bytes)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("twice.dcm", slice_bytes)
        archive.writestr("inner.zip", inner.getvalue())
    names, refused = reasons_of(path)
    assert names == ["twice.dcm"]
    assert refused == {
        "twice.dcm": "zip holds this name twice",
        "inner.zip": "zip inside a zip: unpack the outer one first",
    }
    locked = change(packed(tmp_path / "b.zip", slice_bytes), CENTRAL, 8, "<H", 1)
    assert reasons_of(locked) == ([], {"a.dcm": "zip member is encrypted"})


def test_a_member_at_the_very_ratio_is_read_and_one_above_it_is_not(tmp_path):
    blank = write_slice(tmp_path / "blank.dcm", np.zeros((2048, 2048), np.uint16)).read_bytes()
    good = packed(tmp_path / "good.zip", blank)
    assert len(blank) / good.stat().st_size > 500
    (ref,) = file_refs(scan_files(good)[0])
    assert zlib.crc32(ref.read()) == zlib.crc32(blank)
    bomb = packed(tmp_path / "bomb.zip", bytes(100_000_000))
    assert reasons_of(bomb) == ([], {"a.dcm": "zip member is compressed more than 1000 to 1"})


def test_a_member_that_lies_outside_its_zip_is_refused(tmp_path, slice_bytes):
    """One at -1 would be taken for a plain file, one beyond what a file can hold overflows."""
    beyond = change(packed(tmp_path / "a.zip", slice_bytes), CENTRAL, 42, "<I", 0xFFFFFFF0)
    assert reasons_of(beyond) == ([], {"a.dcm": "zip member lies outside its zip"})
    before = packed(tmp_path / "b.zip", slice_bytes)
    data = bytearray(before.read_bytes())
    # The end record claims that the directory begins one byte later than it does.
    at = data.index(b"PK\x05\x06") + 16
    struct.pack_into("<I", data, at, struct.unpack_from("<I", data, at)[0] + 1)
    before.write_bytes(data)
    names, refused = reasons_of(before)
    assert names == []
    assert list(refused.values()) in (["zip member lies outside its zip"], ["zip cannot be read (BadZipFile)"])


def test_every_column_of_a_reference_is_kept(tmp_path, slice_bytes):
    files, _ = scan_files(packed(tmp_path / "a.zip", slice_bytes))
    assert files.columns.to_list() == FILE_COLUMNS
    assert files["zip_crc"].to_list() == [zlib.crc32(slice_bytes)]
    assert Path(files["container"][0]) == tmp_path / "a.zip"


def read_all(path):
    """What reading the member gives, whole and in parts."""
    found = []
    (ref,) = file_refs(scan_files(path)[0])
    for place in ((), (0, 300), (0, 70_000), (1_000, 500)):
        try:
            found.append(ref.read(*place))
        except UnreadableError as error:
            found.append(str(error))
    return found


def test_a_zip_gives_the_same_bytes_and_reasons_with_the_fast_library_as_with_zlib(tmp_path, slice_bytes, monkeypatch):
    fast = pytest.importorskip("isal.isal_zlib", reason="needs isal (extra zip)")
    assert source_files.fast_zlib is fast
    intact = packed(tmp_path / "a.zip", slice_bytes)
    written, generator, cases = intact.read_bytes(), np.random.default_rng(0), [intact]
    start, end = 35, written.index(CENTRAL)
    for number in range(60):
        changed = bytearray(written)
        changed[generator.integers(start, end)] ^= 1 << generator.integers(8)
        cases.append(tmp_path / f"{number}.zip")
        cases[-1].write_bytes(changed)
    with_fast = [read_all(path) for path in cases]
    monkeypatch.setattr(source_files, "fast_zlib", zlib)
    assert with_fast == [read_all(path) for path in cases]
    assert with_fast[0][0] == slice_bytes
    assert {found[0] for found in with_fast[1:]} >= {"damaged zip member", "damaged zip member (CRC differs)"}
