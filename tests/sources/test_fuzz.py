"""Hostile input: mutated files and zips end as read or as rejected with a reason; nothing crashes, hangs or swells."""

import io
import multiprocessing
import os
import random
import resource
import signal
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from support.dicoms import make_dataset, read_header, write_series, write_slice

from ichkit.core.errors import DataError
from ichkit.imaging import dicom
from ichkit.imaging.dicom import STORED_COLUMNS, StoredPixels, UnreadableError
from ichkit.sources.files import file_refs, scan_files
from ichkit.sources.folder import plan_folder
from ichkit.sources.index import read_headers, read_index
from ichkit.sources.plan import StudyTasks, order_slices
from ichkit.sources.study import PixelSettings, StudyTask, decode_study

HULL = (-800, 2000)
SECONDS_PER_CASE = 5
MEMORY_BYTES = 1_000_000_000
NUM_SEEDS = 40  # files that mutations begin with


def make_seeds(folder):
    """Ordinary files of every kind the phantom and real data have, as bytes."""
    rng = np.random.default_rng(0)
    seeds = []
    for i in range(NUM_SEEDS):
        stored = rng.integers(0, 4096, (16, 12), dtype=np.uint16)
        tags = {"bits_stored": (16, 12)[i % 2], "signed": i // 2 % 2, "implicit": bool(i // 4 % 2)}
        extra = {"SeriesDescription": "CT PLAIN", "WindowCenter": ["00036", "00080"]} if i % 3 else {}
        if i % 5 == 0:
            item = Dataset()
            item.CodeValue = "T-A0100"
            extra["ProcedureCodeSequence"] = Sequence([item])
        path = write_slice(
            folder / f"{i}.dcm", stored, slice_uid=f"1.2.3.{i}", position=(0, 0, i * 5.0), **tags, **extra
        )
        data = path.read_bytes()
        if i % 7 == 0:
            dataset = pydicom.dcmread(io.BytesIO(data))
            dataset.compress(pydicom.uid.RLELossless)
            buffer = io.BytesIO()
            dataset.save_as(buffer)
            data = buffer.getvalue()
        seeds.append(data)
    return seeds


def mutate(rng, data):
    """One to four changes: cut, flip, insert, repeat, swap, overwrite lengths and tags."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        # Most of what decides is in the header.
        at = rng.randrange(min(len(data), 1_200)) if rng.random() < 0.8 else rng.randrange(len(data))
        kind = rng.randrange(8)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 40)))
        elif kind == 3:
            end = min(len(data), at + rng.randint(1, 200))
            data[at:at] = data[at:end]
        elif kind == 4:
            end, other = at + rng.randint(1, 64), rng.randrange(len(data))
            piece = data[at:end]
            data[at:end] = data[other : other + len(piece)]
        elif kind == 5:
            data[at : at + 4] = struct.pack("<I", rng.choice([0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0, 1, 65_535]))
        elif kind == 6:
            data[at : at + 2] = struct.pack("<H", rng.choice([0xFFFF, 0x8000, 0, 1, 4097]))
        else:
            del data[at : at + rng.randint(1, 40)]
    return bytes(data)


def read_slow(data):
    """The header as pydicom alone sees it, or the reason why there is none."""
    keep, dicom._read_ordinary = dicom._read_ordinary, lambda *_: None
    try:
        return read_header(data)
    except UnreadableError as error:
        return str(error)
    finally:
        dicom._read_ordinary = keep


def run_case(data, path):
    """What becomes of one file, as `prepare` would treat it."""
    path.write_bytes(data)
    (ref,) = file_refs(scan_files(path)[0])
    ((header, reason),) = read_headers([ref])
    assert (header is not None) or reason
    if reason:
        return reason
    # Whatever the fast reader takes, pydicom reads alike.
    slow = read_slow(data)
    assert not isinstance(slow, str), slow
    for name in dicom.HEADER_COLUMNS:
        assert name == "kind" or getattr(slow, name) == getattr(header, name), name
    stored = StoredPixels(*(getattr(header, name) for name in STORED_COLUMNS))
    study = decode_study(StudyTask("ab12", (((ref, stored),),), PixelSettings(False, HULL, None)))
    assert len(study.kept) + len(study.failures) == 1
    if study.kept:
        assert study.volume.dtype == np.int16
        assert study.volume.min() >= HULL[0]
        assert study.volume.max() <= HULL[1]
        return "read"
    return study.failures[0][2]


def fuzz_files(folder, first, count):
    outcomes = {}
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    seeds = make_seeds(folder / "seeds")
    for case in range(first, first + count):
        rng = random.Random(case)
        with within_limits():
            outcome = run_case(mutate(rng, rng.choice(seeds)), folder / "case.dcm")
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def fuzz_zips(folder, first, count):
    outcomes = {}
    seeds = make_seeds(folder / "seeds")
    for case in range(first, first + count):
        rng = random.Random(case)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for i in range(3):
                archive.writestr(f"a/{i}.dcm", rng.choice(seeds))
        data = bytearray(buffer.getvalue())
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            if rng.random() < 0.1:
                del data[rng.randrange(len(data)) :]
                data += b"\0"
        path = folder / "case.zip"
        path.write_bytes(data)
        with within_limits():
            files, refused = scan_files(path)
            found = [reason or "read" for _, reason in read_headers(file_refs(files))]
        assert len(found) + len(refused) > 0 or len(files) == 0
        for outcome in [*found, *refused["reason"]]:
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


class within_limits:  # noqa: N801
    """An alarm that ends a case that hangs."""

    def __enter__(self):
        signal.signal(signal.SIGALRM, self.over)
        signal.alarm(SECONDS_PER_CASE)

    def __exit__(self, *_):
        signal.alarm(0)

    @staticmethod
    def over(*_):
        raise TimeoutError(f"a case took more than {SECONDS_PER_CASE} s")


def in_a_small_process(function, *args):
    """A function's result from a process of its own whose memory is capped."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(1, cap_memory, (Path(folder),)) as pool:
        return pool.apply(function, args)


def cap_memory(folder):
    # Libraries load on first use, and some reserve room for every core: that is theirs, and is taken before the cap.
    (case,) = write_series(folder / "first", 1)
    assert run_case(case.read_bytes(), folder / "first.dcm") == "read"
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    # Of data, not of address space, which libraries reserve freely.
    limit = int(data.split()[1]) * 1024 + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def test_mutated_files_are_read_or_rejected_with_a_reason(tmp_path):
    outcomes = in_a_small_process(fuzz_files, tmp_path, 0, 150)
    assert sum(outcomes.values()) == 150
    assert outcomes["read"] > 10
    assert len(outcomes) > 8, outcomes


def test_mutated_zips_are_read_or_rejected_with_a_reason(tmp_path):
    outcomes = in_a_small_process(fuzz_zips, tmp_path, 0, 50)
    assert outcomes["read"] > 10
    assert len(outcomes) > 4, outcomes


@pytest.mark.slow
def test_thousands_of_mutated_files_and_zips(tmp_path):
    files = in_a_small_process(fuzz_files, tmp_path, 1_000, 4_000)
    zips = in_a_small_process(fuzz_zips, tmp_path, 1_000, 1_000)
    assert sum(files.values()) == 4_000
    assert len(files) > 15
    assert len(zips) > 8


def test_the_fast_reader_and_pydicom_agree_on_every_ordinary_file(tmp_path):
    used = 0
    for data in make_seeds(tmp_path):
        slow = read_slow(data)
        used += dicom._read_ordinary(data, len(data)) == slow
        assert read_header(data) == slow
    assert used == NUM_SEEDS - len(range(0, NUM_SEEDS, 7)) - 0  # all but the compressed ones


ODD = {
    "a name in another character set": {"SpecificCharacterSet": "ISO_IR 192", "PatientID": "Jürgen"},
    "several values where one is usual": {"RescaleIntercept": [-1024, 0]},
    "blanks around a number": {"RescaleSlope": " 1 "},
    "an empty text": {"PatientID": ""},
    "blanks inside a text of several": {"PatientID": "A \\B"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ODD)
def test_the_fast_reader_leaves_odd_files_to_pydicom_or_reads_them_alike(tmp_path, what):
    data = write_slice(tmp_path / "a.dcm", **ODD[what]).read_bytes()
    assert read_header(data) == read_slow(data)


def write_absurd(path, **tags):
    with pydicom.config.disable_value_validation():
        make_dataset(np.full((8, 8), 1064, np.uint16), **tags).save_as(path, enforce_file_format=True)
    return path


def nest(data, depth):
    """A file with sequences inside sequences, of undefined length; pydicom's own writer would never end."""
    at = data.index(b"\x10\x00\x20\x00LO")
    begin = struct.pack("<HH2sHIHHI", 8, 0x1032, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return data[:at] + begin * depth + end * depth + data[at:]


def hostile_tree(root):
    """Files and zips made to harm; what is good among them is named good."""
    write_series(root / "good", 3)
    write_absurd(root / "rows.dcm", Rows=65_535, Columns=65_535)
    write_absurd(root / "none.dcm", Rows=0)
    for depth in (50, 20_000):
        data = write_absurd(root / f"deep{depth}.dcm", slice_uid=f"1.2.3.{depth}", position=(0, 0, depth)).read_bytes()
        (root / f"deep{depth}.dcm").write_bytes(nest(data, depth))
    data = bytearray(write_absurd(root / "length.dcm", slice_uid="1.9.2").read_bytes())
    at = data.index(b"\x10\x00\x20\x00LO") + 6
    data[at : at + 2] = b"\xff\xff"
    (root / "length.dcm").write_bytes(data)
    deflated = write_absurd(root / "deflated.dcm", slice_uid="1.9.3").read_bytes()
    (root / "deflated.dcm").write_bytes(deflated.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20]))
    (root / "loop").symlink_to(root)
    (root / "gone.dcm").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.dcm")
    with zipfile.ZipFile(root / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.dcm", bytes(40_000_000))
        archive.writestr("../outside.dcm", b"x")
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("nested.zip", b"PK\x03\x04" + bytes(40))
    with (root / "huge.dcm").open("wb") as file:
        file.truncate(3 * 1024**3)  # sparse: takes no room
    (root / "not.zip").write_bytes(b"PK\x03\x04nothing")
    return root


def read_tree(root):
    files, refused = scan_files(root)
    index = read_index(files, None)
    plan = plan_folder(index, b"salt")
    tasks = StudyTasks(order_slices(plan.files)[0], PixelSettings(False, HULL, None))
    studies = [decode_study(task) for task in tasks]
    reasons = dict(zip(index["relative"], index["reason"], strict=True))
    return reasons, dict(refused.to_numpy().tolist()), sum(len(study.kept) for study in studies)


@pytest.mark.filterwarnings("ignore")
def test_a_tree_made_to_harm_gives_its_good_slices_and_a_reason_for_each_other_file(tmp_path):
    root = hostile_tree(tmp_path / "tree")
    reasons, refused, num_slices = in_a_small_process(read_tree, root)
    assert num_slices == 4
    assert reasons["deflated.dcm"] == ""  # plain pixels under a wrong syntax, at the place of a good slice
    assert all(reason == "" for name, reason in reasons.items() if name.startswith("good/"))
    assert "invalid size" in reasons["rows.dcm"]
    assert "invalid size" in reasons["none.dcm"]
    assert "larger than 256 MB" in reasons["huge.dcm"]
    assert reasons["length.dcm"] != ""
    assert reasons["deep50.dcm"] == ""
    assert reasons["deep20000.dcm"] == "header cannot be read (RecursionError)"
    assert refused["bomb.zip/nested.zip"] == "zip inside a zip: unpack the outer one first"
    assert refused["gone.dcm"] == "broken link"
    assert refused["bomb.zip/bomb.dcm"] == "zip member is compressed more than 1000 to 1"
    assert refused["bomb.zip/../outside.dcm"] == "zip member's path leaves the zip"
    assert refused["bomb.zip/link.dcm"] == "zip member is a link"
    assert refused["not.zip"].startswith("zip cannot be read")
    assert not any(name.startswith(("pipe", "gone")) for name in reasons)


def test_one_absurd_slice_does_not_swell_the_volume_of_its_study(tmp_path, monkeypatch):
    monkeypatch.setattr("ichkit.sources.study.MAX_VOLUME_BYTES", 40_000)
    paths = write_series(tmp_path, 4)
    write_slice(tmp_path / "x.dcm", np.full((200, 200), 1064, np.uint16), slice_uid="1.2.3.99", position=(0, 0, 99))
    files, _ = scan_files(tmp_path)
    plan = plan_folder(read_index(files, None), b"salt")
    study = decode_study(StudyTasks(order_slices(plan.files)[0], PixelSettings(False, HULL, None))[0])
    assert study.volume.shape == (4, 8, 8)
    assert len(paths) == len(study.kept)
    assert study.failures == [(4, 0, "its study would take more than 0 GB")]


def test_a_name_that_is_not_unicode_is_refused_and_not_a_crash(tmp_path):
    write_series(tmp_path, 2)
    name = os.fsencode(tmp_path) + b"/bad\xff.dcm"
    Path(os.fsdecode(name)).write_bytes(b"x")
    files, refused = scan_files(tmp_path)
    assert len(files) == 2
    assert refused["reason"].to_list() == ["file name is not UTF-8"]
    with pytest.raises(DataError):
        scan_files(tmp_path / "nowhere")
