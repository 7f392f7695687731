"""Names planted in every tag, file and folder reach no output, log, cache or message, whatever goes wrong."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from support.commands import call
from support.dicoms import write_series, write_slice
from support.models import make_model

import ichkit

PACKAGE = Path(ichkit.__file__).parent
"""With what numba keeps beside the modules."""
WORD = "XPLANTX"
TEXTS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT")
# What decides whether a file is read at all keeps its value.
KEPT = {"PatientID", "PhotometricInterpretation", "RescaleType"}
LABELS = "study_id,epidural,intraparenchymal,intraventricular,subarachnoid,subdural,any"


def plant(path, group_limit=0x0050):
    """Every text tag of the standard's common groups, dates, private tags, and the preamble hold the word."""
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(path)
        for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
            if 0x0008 <= tag >> 16 < group_limit and not retired and keyword and keyword not in KEPT:
                if vr in TEXTS:
                    setattr(dataset, keyword, f"{WORD}^{vr}")
                elif vr in ("DA", "DT", "TM"):
                    setattr(dataset, keyword, f"{WORD}1950")
        dataset.PatientID = f"{path.parent.name}-ID"
        dataset.private_block(0x0009, f"{WORD} CREATOR", create=True).add_new(1, "LO", f"{WORD} VALUE")
        dataset.preamble = f"{WORD} PREAMBLE".encode().ljust(128, b"\0")
        dataset.save_as(path)


def plant_names(root):
    """Good series, and one file for each way of going wrong, all under planted names."""
    for study in range(2):
        tags = {"series_uid": f"1.2.{study}.1", "study_uid": f"1.2.{study}"}
        for path in write_series(root / f"{WORD}^FOLDER{study}", 3, **tags):
            plant(path)
            path.rename(path.with_name(f"{WORD}_{path.name}"))
    good = min(root.rglob("*.dcm")).read_bytes()
    bad = root / f"{WORD}^BAD"
    bad.mkdir()
    (bad / f"{WORD}_short.dcm").write_bytes(good[:-20])
    (bad / f"{WORD}_head.dcm").write_bytes(good[:600])
    (bad / f"{WORD}_text.dcm").write_text(f"{WORD} is no DICOM")
    (bad / f"{WORD}_empty.dcm").write_bytes(b"")
    (bad / f"{WORD}.dcm.gz").write_bytes(b"x")
    (bad / f"{WORD}_gone.dcm").symlink_to(f"/nowhere/{WORD}")
    (bad / f"{WORD}_damaged.zip").write_bytes(f"PK\x03\x04{WORD}".encode())
    Path(os.fsdecode(os.fsencode(bad) + f"/{WORD}\xff.dcm".encode("latin-1"))).write_bytes(b"x")
    with zipfile.ZipFile(bad / f"{WORD}.zip", "w") as archive:
        archive.writestr(f"../{WORD}_out.dcm", good)
        archive.writestr(f"{WORD}_inner.zip", b"PK")
        archive.writestr(f"{WORD}_copy.dcm", good)
    for number, tags in enumerate([{"Modality": "MR"}, {"Rows": 9999}, {"BodyPartExamined": f"{WORD}1"}]):
        plant(write_slice(bad / f"{WORD}_tags{number}.dcm", slice_uid=f"1.9.{number}", **tags))
    return root


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Scans under planted names and a model; the path of the root itself holds no name."""
    root = tmp_path_factory.mktemp("names")
    make_model(root / "model")
    (root / "scans").mkdir()
    plant_names(root / "scans")
    return root


def run(root, *words):
    """A command in a process of its own, where warnings of libraries are printed as users see them."""
    own = {
        "PYTHONPATH": str(Path(ichkit.__file__).parents[1]),
        "PYTHONWARNINGS": "always",
        "HOME": str(root),
        "MPLCONFIGDIR": str(root / "matplotlib"),
    }
    command = [sys.executable, "-m", "ichkit", *map(str, words), "--debug", "--set", "prepare.workers=2"]
    return subprocess.run(command, cwd=root, env=os.environ | own, capture_output=True, text=True, check=False)


def check_silence(root, done, *folders):
    """Neither what was printed nor any file below the folders, their names included, holds the word."""
    for text in (done.stdout, done.stderr):
        at = text.upper().find(WORD)
        assert at < 0, text[max(at - 200, 0) : at + 200]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert WORD not in path.name.upper()
        assert WORD.encode() not in path.read_bytes().upper(), path


def test_predict_says_and_keeps_no_name(planted):
    out = planted / "out"
    done = run(planted, "predict", planted / "scans", "--model", planted / "model", "--out", out, "--work", "work")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((out / "rejected.csv").read_text().splitlines()) > 12
    assert "file name is not UTF-8" in (out / "rejected.csv").read_text()
    check_silence(planted, done, out, PACKAGE)


@pytest.mark.slow
def test_prepare_says_and_keeps_no_name(planted):
    labels = planted / "labels.csv"
    labels.write_text(f"{LABELS}\n1.2.0,0,0,0,0,1,1\n1.2.1,0,0,0,0,0,0\n")
    words = ["prepare", "-c", "demo", "--folder", planted / "scans", "--labels", labels, "--work", planted / "work"]
    done = run(planted, *words, "--set", "prepare.num_folds=2", "--set", "prepare.size=null", "--accept-raw")
    assert done.returncode == 0, done.stderr[-3000:]
    check_silence(planted, done, planted / "work", PACKAGE)


@pytest.mark.parametrize(
    "content",
    [
        f"1.2.3,{WORD}^NAME,1950-01-01,0,0,0,0\n1.2.4,{WORD}^OTHER,1951-01-01,1,0,0,0\n",
        f"{LABELS}\n1.2.0,0,0,0,0,{WORD},1\n",
        f"{LABELS}\n{WORD},0,0,0,0,1,1\n{WORD},0,0,0,0,0,0\n",
        f"{LABELS}\n1.2.0,0,0,0,0,1,1,{WORD},{WORD}\n",
        f"{WORD}\n",
    ],
)
def test_a_label_file_of_another_form_is_refused_without_its_cells(planted, content):
    labels = planted / "wrong.csv"
    labels.write_text(content)
    words = ["prepare", "--folder", planted / "scans", "--labels", labels, "--work", planted / "other"]
    assert WORD not in call(*words, "--set", "prepare.workers=1", code=2).upper()
