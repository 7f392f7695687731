"""`predict --dicom`: heat maps in the space of the scan, and DICOM that independent validators accept."""

import builtins
import gzip
import shutil
import subprocess
import warnings

import numpy as np
import pandas as pd
import pydicom
import pytest
from support.commands import call
from support.dicoms import write_series
from support.models import make_model
from support.simulated import TASK

from ichkit.imaging.geometry import in_plane_turn, turn_pixels
from ichkit.imaging.patient_space import affine_of_slices
from ichkit.stages.predict.dicom_out import make_triage
from ichkit.stages.predict.outcome import Prediction
from ichkit.stages.predict.study_heat import LEAST_PROBABILITY

pytest.importorskip("highdicom")
nibabel = pytest.importorskip("nibabel")
SMALL = ("--no-page", "--set", "prepare.workers=1")
AXIAL = [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), (0, 1, 0, 1, 0, 0), (0, -1, 0, -1, 0, 0), (-1, 0, 0, 0, -1, 0)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three studies and a model with random weights."""
    root = tmp_path_factory.mktemp("dicom")
    for i in range(3):
        tags = {"study_uid": f"1.4.{i}", "series_uid": f"1.4.{i}.1", "patient_id": f"ANON {i}"}
        write_series(root / "scans" / f"s{i}", 4 + i, **tags, PatientName=f"Anon^{i}", orientation=AXIAL[2 * (i % 2)])
    make_model(root / "model")
    return root


def predict(place, out, *words, code=0):
    asked = ("predict", place / "scans", "--model", place / "model", "--out", out, "--work", out.parent / "w")
    return call(*asked, *SMALL, *words, code=code)


@pytest.fixture(scope="module")
def made(place):
    out = place / "out"
    printed = predict(place, out, "--dicom")
    assert "heat maps, key slices and structured reports are in" in " ".join(printed.split())
    return out


def test_every_study_has_its_files_and_the_triage_list_begins_with_the_most_probable(made):
    studies = pd.read_csv(made / "studies.csv")
    for number in (1, 2, 3):
        names = sorted(path.name for path in (made / "dicom" / f"study-{number}").iterdir())
        assert names == ["heat.nii.gz", "key-1.dcm", "key-2.dcm", "key-3.dcm", "report.dcm"]
    triage = pd.read_csv(made / "dicom" / "triage.csv")
    assert triage["p_any"].is_monotonic_decreasing
    assert triage["rank"].tolist() == [1, 2, 3]
    assert triage["study_id"].tolist() == studies["study_id"].iloc[triage["study"] - 1].tolist()
    slices = pd.read_csv(made / "slices.csv").set_index(["study_id", "slice_index"])
    keys = slices.loc[list(zip(triage["study_id"], triage["key_slice_index"], strict=True)), "p_any"]
    assert keys.tolist() == slices.groupby("study_id")["p_any"].max()[triage["study_id"]].tolist()


def read(path):
    return pydicom.dcmread(path)


def test_dicom_outputs_belong_to_the_study_of_their_source_and_invent_nobody(made):
    for number in (1, 2, 3):
        for path in sorted((made / "dicom" / f"study-{number}").glob("*.dcm")):
            found = read(path)
            assert found.StudyInstanceUID == f"1.4.{number - 1}"
            assert (found.PatientID, str(found.PatientName)) == (f"ANON {number - 1}", f"Anon^{number - 1}")
            assert found.PatientBirthDate == ""
            assert found.SeriesInstanceUID.startswith("2.25.")
            assert found.SOPInstanceUID.startswith("2.25.")
    uids = [read(path).SOPInstanceUID for path in made.rglob("*.dcm")]
    assert len(set(uids)) == len(uids) == 12
    for name in ("slices.csv", "studies.csv", "predictions.json", "dicom/triage.csv"):
        assert "ANON" not in (made / name).read_text()


def test_the_report_has_the_probability_of_every_class_and_the_key_slices(made):
    report = read(made / "dicom" / "study-1" / "report.dcm")
    assert report.Modality == "SR"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    numbers = [item for item in walk(report) if item.get("ValueType") == "NUM"]
    studies = pd.read_csv(made / "studies.csv")
    expected = studies[TASK.probability_columns].iloc[0].to_numpy()
    np.testing.assert_allclose(
        [float(one.MeasuredValueSequence[0].NumericValue) for one in numbers], expected, atol=1e-6
    )
    assert {one.ConceptNameCodeSequence[0].CodeValue for one in numbers} == {"122157"}
    referenced = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in walk(report)
        if item.get("ValueType") == "IMAGE"
    }
    keys = pd.read_csv(made / "slices.csv").query("study_id == '1.4.0'").nlargest(3, "p_any")["slice_id"]
    assert referenced == set(keys)


def walk(item):
    for child in item.get("ContentSequence", ()):
        yield child
        yield from walk(child)


def test_the_key_slice_of_a_small_scan_has_room_for_its_text_and_heat_that_is_seen(made):
    for path in made.rglob("key-*.dcm"):
        picture = read(path).pixel_array.astype(int)  # of 8 x 8 pixels
        slices, text = picture[:512], picture[512:]
        assert picture.shape[1] == 512
        assert len(text) >= 2 * 16
        assert text.max() > 200
        if len(text) == 3 * 16 + 6:  # with a heat map
            assert np.ptp(slices, axis=2).max() > 40


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="needs dsrdump of dcmtk (Debian: dcmtk)")
def test_dcmtk_reads_every_report(made):
    for path in made.rglob("report.dcm"):
        done = subprocess.run(["dsrdump", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "E: " not in done.stderr
        assert done.stdout.count('<contains NUM:(,,"Probability")') == len(TASK.classes)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian: dicom3tools)")
def test_dciodvfy_finds_no_error_in_any_output(made):
    for path in made.rglob("*.dcm"):
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert "Error" not in said, said
        assert ("SCImage" in said) or ("Comprehensive3DSR" in said)


def test_heat_lies_where_the_scan_lies_and_is_zero_where_nothing_is_probable(made):
    slices = pd.read_csv(made / "slices.csv")
    for number in (1, 2, 3):
        image = nibabel.load(made / "dicom" / f"study-{number}" / "heat.nii.gz")
        heat = image.get_fdata()
        own = slices[slices["study_id"] == f"1.4.{number - 1}"].sort_values("slice_index")
        assert heat.shape == (8, 8, len(own))
        # Slices 5 mm apart from z = 0; the first axis runs to the left, the second to the back, of 0.5 mm.
        np.testing.assert_allclose(image.affine[:3, 2], (0, 0, 5))
        np.testing.assert_allclose(np.abs(np.diag(image.affine)[:2]), 0.5)
        assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
        subtypes = own[[f"p_{name}" for name in TASK.subtypes]].max(axis=1).to_numpy()
        highest = heat.max(axis=(0, 1))
        is_hot = own["p_any"].to_numpy() >= LEAST_PROBABILITY
        assert (highest[~is_hot] == 0).all()
        assert (highest <= subtypes + 1e-6).all()
        assert is_hot.any()
        assert highest[is_hot].max() > 0
        assert gzip.decompress((made / "dicom" / f"study-{number}" / "heat.nii.gz").read_bytes())


@pytest.mark.parametrize("orientation", AXIAL)
def test_a_voxel_of_the_turned_slice_has_the_place_of_its_stored_pixel(orientation):
    rows, columns, spacing = 5, 7, (0.5, 0.8)
    row_axis, column_axis = np.array(orientation[:3], float), np.array(orientation[3:], float)
    corner = np.array([-30.0, 12.0, 40.0])
    turn = in_plane_turn(orientation)
    numbers = turn_pixels(np.arange(rows * columns).reshape(rows, columns), turn)
    is_transposed = numbers.shape != (rows, columns)
    own = spacing[::-1] if is_transposed else spacing
    one = dict(zip(["position_x", "position_y", "position_z"], corner, strict=True))
    names = ["row_x", "row_y", "row_z", "column_x", "column_y", "column_z"]
    one |= dict(zip(names, orientation, strict=True))
    one |= {"rows": numbers.shape[0], "columns": numbers.shape[1], "turn": turn}
    one |= {"spacing_row_mm": own[0], "spacing_col_mm": own[1]}
    affine = affine_of_slices([one, {**one, "position_z": corner[2] + 4}])
    for r, c in [(0, 0), (2, 3), (4, 6)]:
        # DICOM PS3.3 C.7.6.2.1.1: down a column by the spacing between rows, along a row by that between columns.
        expected = corner + column_axis * spacing[0] * r + row_axis * spacing[1] * c
        at_row, at_column = np.argwhere(numbers == r * columns + c)[0]
        np.testing.assert_allclose((affine @ [at_column, at_row, 0, 1])[:3], expected)
    np.testing.assert_allclose(affine[:3, 2], (0, 0, 4))


def test_uids_are_those_of_the_predictions_and_another_model_of_that_name_has_others(place, made, tmp_path):
    def uids(out, *words):
        call("predict", place / "scans", "--out", out, "--work", tmp_path / "w", *SMALL, *words)
        files = {path.relative_to(out): read(path) for path in out.rglob("*.dcm")}
        return {name: (file.SOPInstanceUID, file.SeriesInstanceUID) for name, file in files.items()}

    first = {path.relative_to(made): read(path).SOPInstanceUID for path in made.rglob("*.dcm")}
    again = uids(tmp_path / "again", "--model", place / "model", "--dicom")
    assert {name: own[0] for name, own in again.items()} == first
    make_model(tmp_path / "model", seed=7)
    other = uids(tmp_path / "other", "--model", tmp_path / "model", "--dicom")
    assert len(other) == len(again) == 12
    assert not {uid for own in other.values() for uid in own} & {uid for own in again.values() for uid in own}


def test_two_patients_who_share_a_study_uid_have_reports_of_their_own(place, tmp_path):
    for i in range(2):
        tags = {"study_uid": "1.9", "series_uid": f"1.9.{i}", "patient_id": f"ANON {i}"}
        write_series(tmp_path / "scans" / f"s{i}", 3, **tags)
    asked = ("predict", tmp_path / "scans", "--model", place / "model", "--out", tmp_path / "out", "--dicom")
    call(*asked, *SMALL, "--work", tmp_path / "w")
    reports = [read(path) for path in (tmp_path / "out").rglob("report.dcm")]
    assert {report.PatientID for report in reports} == {"ANON 0", "ANON 1"}
    assert len({report.SOPInstanceUID for report in reports}) == len({one.SeriesInstanceUID for one in reports}) == 2


def test_nifti_scans_have_heat_maps_and_no_dicom(place, tmp_path):
    volume = np.random.default_rng(0).integers(0, 80, (16, 16, 4)).astype(np.int16)
    volume[:2] = -1000
    (tmp_path / "scans").mkdir()
    affine = np.diag([-0.5, -0.5, 5.0, 1.0])
    affine[:3, 3] = (10, 20, -30)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "scans" / "case.nii.gz")
    asked = ("predict", tmp_path / "scans", "--model", place / "model", "--out", tmp_path / "out", "--dicom")
    printed = call(*asked, *SMALL, "--work", tmp_path / "w")
    assert "1 study without DICOM outputs" in printed
    assert "heat maps alone (heat.nii.gz) are in" in " ".join(printed.split())
    assert [path.name for path in (tmp_path / "out" / "dicom" / "study-1").iterdir()] == ["heat.nii.gz"]
    heat = nibabel.load(tmp_path / "out" / "dicom" / "study-1" / "heat.nii.gz")
    np.testing.assert_allclose(heat.affine, affine, atol=1e-5)
    assert heat.shape == volume.shape


def test_no_value_of_a_header_that_is_no_uid_is_said_and_numbers_are_those_of_the_table(place, tmp_path, monkeypatch):
    for i in range(3):
        tags = {"study_uid": f"ID_{i}", "series_uid": f"ID_series{i}", "patient_id": f"ANON {i}"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_series(tmp_path / "scans" / f"s{i}", 4 + i, **tags)
    for path in (tmp_path / "scans" / "s1").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PixelData = np.full((dataset.Rows, dataset.Columns), 3000, np.uint16).tobytes()  # no HU of a head
        dataset.save_as(path)
    asked = ("predict", tmp_path / "scans", "--model", place / "model", "--out", tmp_path / "out", "--dicom", *SMALL)
    # Headers are read in other processes, so that this one has the mode of pydicom.
    monkeypatch.setattr(pydicom.config.settings, "_reading_validation_mode", pydicom.config.WARN)
    asked += ("--set", "prepare.workers=2")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        printed = call(*asked, "--work", tmp_path / "w")
    assert [str(one.message) for one in heard if "ID_" in str(one.message)] == []
    assert "ID_0" not in printed
    # The study that could not be read has no row; a number among those found says so.
    assert "3 studies, e.g. study 1 of 3 found: fallback" in printed
    assert "study 3" not in printed
    assert pd.read_csv(tmp_path / "out" / "studies.csv")["num_slices"].tolist() == [4, 6]


def test_a_later_call_replaces_its_own_files_and_no_others(place, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    predict(place, out)
    assert not list(out.rglob("*.dcm"))
    predict(place, out, "--dicom")
    (out / "dicom" / "notes.txt").write_text("mine")
    assert "dicom/notes.txt" in predict(place, out, "--dicom", code=2)
    assert (out / "dicom" / "notes.txt").read_text() == "mine"


def test_a_missing_package_is_named_before_anything_is_read(place, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "highdicom":
            raise ImportError(name, name=name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    printed = predict(place, tmp_path / "out", "--dicom", code=2)
    assert "highdicom is not installed. Run pip install 'ichkit[dicom-out]'" in printed


def test_the_triage_list_begins_with_the_most_probable_study_whatever_its_number():
    studies = pd.DataFrame({"study_id": ["a", "b", "c"], "num_slices": 2})
    slices = pd.DataFrame({"study_id": ["a", "a", "b", "b", "c", "c"], "slice_index": [0, 1] * 3})
    slices["slice_id"] = slices["study_id"] + slices["slice_index"].astype("str")
    for name in TASK.probability_columns:
        studies[name] = [0.2, 0.9, 0.5]
        slices[name] = [0.2, 0.1, 0.3, 0.9, 0.5, 0.4]
    table = make_triage(Prediction(slices, studies, studies, studies, None), TASK)
    assert table["study_id"].tolist() == ["b", "c", "a"]
    assert table["study"].tolist() == [2, 3, 1]
    assert table["key_slice_index"].tolist() == [1, 0, 0]
