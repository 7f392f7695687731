"""Files under one id: copies, of which the readable one counts, and slices whose id an anonymiser overwrote."""

import numpy as np
import pydicom
from support.dicoms import make_dataset, write_series, write_slice
from support.indexes import plan_of, slices_of

from ichkit.sources.plan import order_slices


def test_slices_that_share_an_id_but_not_a_place_are_all_kept_with_a_warning(tmp_path, caplog):
    for i in range(20):
        write_slice(tmp_path / f"{i:02d}.dcm", np.full((8, 8), 1000 + i, np.uint16), position=(0, 0, 5.0 * i))
    with caplog.at_level("WARNING", logger="ichkit"):
        slices = slices_of(tmp_path)
    assert slices["position_mm"].to_list() == [5.0 * i for i in range(20)]
    assert slices["slice_id"].to_list() == [f"1.2.3.1#{i + 1}" for i in range(20)]
    assert "20 files share their SOPInstanceUID" in caplog.text


def test_one_id_in_two_studies_names_two_slices(tmp_path):
    for study in ("1.2", "1.9"):
        write_slice(tmp_path / f"{study}.dcm", study_uid=study, series_uid=f"{study}.1")
    plan = plan_of(tmp_path)
    assert sorted(plan.files["slice_id"]) == ["1.2.3.1#1", "1.2.3.1#2"]
    assert plan.rejected.empty


def test_one_study_uid_of_two_patients_is_two_studies_and_both_heads_are_read(tmp_path, caplog):
    for patient in ("A", "B"):
        write_series(tmp_path / patient, 20, patient_id=patient)
    with caplog.at_level("WARNING", logger="ichkit"):
        plan = plan_of(tmp_path)
    assert plan.files["study_id"].value_counts().to_dict() == {"1.2#1": 20, "1.2#2": 20}
    assert plan.files["patient_id"].nunique() == 2
    assert plan.rejected.empty
    assert "1 StudyInstanceUIDs are shared by several PatientIDs" in caplog.text


def test_files_without_a_patient_id_do_not_split_the_study_of_the_one_patient_named(tmp_path):
    for number, path in enumerate(write_series(tmp_path, 20)):
        if number % 3 == 0:
            dataset = pydicom.dcmread(path)
            dataset.PatientID = ""
            dataset.save_as(path)
    assert plan_of(tmp_path).files["study_id"].value_counts().to_dict() == {"1.2": 20}


def test_copies_of_a_file_count_once_whatever_else_their_headers_say(tmp_path):
    write_series(tmp_path / "a", 20)
    write_series(tmp_path / "b", 20)
    # The same image after another program wrote its header again.
    write_series(tmp_path / "c", 20, PatientComments="anonymised")
    plan = plan_of(tmp_path)
    assert len(plan.files) == 20
    assert plan.rejected["reason"].value_counts().to_dict() == {"duplicate of another file": 40}


def test_of_two_copies_the_readable_one_counts(tmp_path):
    stored = np.random.default_rng(0).integers(900, 1200, (64, 64)).astype(np.uint16)
    dataset = make_dataset(stored)
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    whole = (tmp_path / "b.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(whole[: len(whole) - 3000])
    plan = plan_of(tmp_path)
    assert plan.files["relative"].to_list() == ["b.dcm"]
    assert len(plan.rejected) == 1
    assert plan.rejected["reason"].iloc[0] != "duplicate of another file"


def test_other_pixels_at_the_same_place_under_the_same_id_are_no_copy(tmp_path):
    write_series(tmp_path / "a", 20)
    write_slice(tmp_path / "other.dcm", np.full((8, 8), 1500, np.uint16), slice_uid="1.2.3.5", position=(0, 0, 20.0))
    plan = plan_of(tmp_path)
    assert len(order_slices(plan.files)[1]) == 20
    assert plan.rejected["reason"].to_list() == ["another acquisition of its series covers the same positions"]


def test_without_study_and_series_ids_two_patients_are_two_studies(tmp_path):
    empty = {"study_uid": "", "series_uid": ""}
    for patient, shift in (("A", 0.0), ("B", 2.0)):
        for i in range(20):
            write_slice(
                tmp_path / f"{patient}{i}.dcm",
                np.full((8, 8), 1000 + i, np.uint16),
                slice_uid=f"1.2.{patient == 'B'}.{i}".replace("True", "1").replace("False", "0"),
                position=(0, 0, 5.0 * i + shift),
                patient_id=patient,
                **empty,
            )
    plan = plan_of(tmp_path)
    slices = order_slices(plan.files)[1]
    assert slices["study_id"].nunique() == slices["patient_id"].nunique() == 2
    assert (slices.groupby("study_id")["patient_id"].nunique() == 1).all()
    assert slices.groupby("study_id").size().to_list() == [20, 20]
    assert "" not in set(slices["study_id"]) | set(slices["series_id"])


def test_without_any_id_a_file_is_refused_for_it(tmp_path):
    write_slice(tmp_path / "a.dcm", study_uid="", patient_id="")
    plan = plan_of(tmp_path)
    assert plan.files.empty
    assert plan.rejected["reason"].to_list() == ["no StudyInstanceUID and no PatientID: studies cannot be told apart"]


def test_blanks_and_zero_bytes_around_an_id_do_not_make_another_patient(tmp_path):
    for i, name in enumerate(("P1", " P1", "P1 ", "P1\0")):
        write_series(tmp_path / str(i), 3, study_uid=f"1.{i}", series_uid=f"1.{i}.1", patient_id=name)
    files = plan_of(tmp_path).files
    assert files["study_id"].nunique() == 4
    assert files["patient_id"].nunique() == 1
