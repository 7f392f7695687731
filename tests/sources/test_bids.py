"""BIDS trees: what each file is by its name, which studies are complete, and how their images are read."""

import json

import numpy as np
import pandas as pd
import pytest

from ichkit.core.config import SequencesConfig
from ichkit.core.errors import ConfigError, DataError
from ichkit.core.tasks import find_task
from ichkit.imaging import nifti
from ichkit.imaging.dicom import UnreadableError
from ichkit.imaging.sequences import SequenceSettings
from ichkit.sources.bids import image_files, plan_bids, plan_sequences, read_readers
from ichkit.sources.files import file_refs, scan_files
from ichkit.sources.index import MR, read_index
from ichkit.sources.plan import Found, StudyTasks, order_slices
from ichkit.sources.sequence_files import MASK, name_parts, read_sequences, roles_to_use, with_landmarks
from ichkit.sources.study import PixelSettings, decode_study

pytest.importorskip("nibabel")
TASK = find_task("onset")
AFFINE = np.array([[4.0, 0, 0, -30], [0, 4.0, 0, -30], [0, 0, 8.0, -20], [0, 0, 0, 1]])


def settings(**values):
    given = {"names": ("dwi", "b0", "flair"), "slices": 5, "rows": 12, "columns": 10, "steps": ("strip",), **values}
    return SequenceSettings.of(SequencesConfig(**given))


def blob(value=100.0, shape=(6, 16, 16)):
    values = np.zeros(shape, np.float32)
    values[1:5, 4:12, 3:13] = value
    values[2, 6, 6] = 1.5 * value
    return values


def put(root, name, values=None, side=None, affine=AFFINE):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nifti.encode_image(blob() if values is None else values, affine))
    if side is not None:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(side))


def plan(root, way=None, **found):
    files, _ = scan_files(root)
    images = image_files(files)
    index = read_index(images, None, modality=MR)
    given = Found(files, images, index, TASK, salt=b"salt", by_part=True, sequences=way or settings(), **found)
    return plan_bids(given) if (root / "labels.csv").exists() or "labels" in found else plan_sequences(given)


def reasons(made):
    return sorted(made.rejected["reason"])


def test_a_study_is_named_by_subject_and_session_and_a_sequence_by_its_suffix():
    assert name_parts("a/sub-07_acq-trace_dwi.nii.gz") == ("sub-07", "sub-07", "dwi")
    assert name_parts("sub-07_ses-b_T2w.nii") == ("sub-07", "sub-07_ses-b", "t2w")
    assert name_parts("sub-07_space-x_desc-brain_mask.nii.gz")[2] == MASK
    assert name_parts("sub-07_lesion_mask.nii.gz")[2] != MASK
    assert name_parts("scan.nii.gz") == ("", "", "")


def test_b0_follows_from_dwi_and_adc_where_it_is_missing():
    assert roles_to_use(("dwi", "b0"), {"dwi", "b0", "adc"}) == {"dwi", "b0"}
    assert roles_to_use(("dwi", "b0"), {"dwi", "adc", MASK}) == {"dwi", "adc", MASK}
    assert roles_to_use(("dwi", "b0"), {"dwi"}) is None


def test_only_complete_studies_are_used_and_every_other_file_has_a_reason(tmp_path):
    for name in ("dwi", "b0", "FLAIR"):
        put(tmp_path, f"sub-1/sub-1_{name}.nii.gz")
        put(tmp_path, f"sub-2/ses-1/sub-2_ses-1_{name}.nii.gz")
    put(tmp_path, "sub-1/sub-1_run-2_dwi.nii.gz")
    put(tmp_path, "sub-1/sub-1_T1w.nii.gz")
    put(tmp_path, "sub-3/sub-3_dwi.nii.gz")
    put(tmp_path, "scan.nii.gz")
    put(tmp_path, "sub-2/ses-1/sub-2_ses-1_ct.nii.gz", side={"Modality": "CT"})
    made = plan(tmp_path)
    assert sorted(made.files["study_id"].unique()) == ["sub-1", "sub-2_ses-1"]
    assert made.files.groupby("study_id").size().tolist() == [15, 15]  # five slices of three files
    assert reasons(made) == [
        "another file of its study is its dwi",
        "its study has no b0 and no flair",
        "not MR",
        "not a BIDS name such as sub-01_dwi.nii.gz",
        "not one of the sequences dwi, b0, flair",
    ]
    assert not made.files["patient_id"].str.contains("sub").any()
    assert not made.rejected["file"].str.contains("sub").any()


def test_sessions_of_one_subject_are_studies_of_one_patient(tmp_path):
    for session in ("1", "2"):
        for name in ("dwi", "b0", "flair"):
            put(tmp_path, f"sub-1_ses-{session}_{name}.nii.gz")
    made = plan(tmp_path)
    assert made.files["study_id"].nunique() == 2
    assert len(set(made.files["patient_id"])) == 1


def test_the_slices_of_the_plan_are_those_of_the_grid_and_decoding_fills_them(tmp_path):
    for name in ("dwi", "b0", "flair"):
        put(tmp_path, f"sub-1_{name}.nii.gz")
    way = settings(field_mm=(60, 72, 60))
    files, slices = order_slices(plan(tmp_path, way).files)
    assert slices["position_mm"].tolist() == [0, 12, 24, 36, 48]
    assert slices["slice_id"].tolist() == [f"sub-1.{number}" for number in range(1, 6)]
    tasks = StudyTasks(files, PixelSettings(False, (-800, 3000), None, sequences=way))
    study = decode_study(tasks[0])
    assert study.failures == []
    assert study.volume.shape == (5, 3, 12, 10)
    assert np.median(study.volume[study.volume > 0]) == 1000
    assert 1050 < study.volume.max() < 1500  # the spot, averaged with its surroundings
    assert study.volume[:, 0].tolist() == study.volume[:, 2].tolist()


def test_a_damaged_sequence_takes_its_study_with_it_and_no_other(tmp_path):
    for subject in ("sub-1", "sub-2"):
        for name in ("dwi", "b0", "flair"):
            put(tmp_path, f"{subject}_{name}.nii.gz")
    path = tmp_path / "sub-1_flair.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    files, _ = order_slices(plan(tmp_path).files)
    tasks = StudyTasks(files, PixelSettings(False, (-800, 3000), None, sequences=settings()))
    lost, read = (decode_study(tasks[number]) for number in range(2))
    assert lost.kept == []
    assert len(lost.failures) == 15
    assert all("NIfTI cannot be read" in why for *_, why in lost.failures)
    assert len(read.kept) == 5


@pytest.mark.parametrize(("unit", "b_value"), [(1.0, 800.0), (1e-3, 800.0), (1e3, None)])
def test_b0_is_the_signal_without_the_loss_by_diffusion(tmp_path, unit, b_value):
    adc, signal = blob(0.8), blob(300.0)
    weighted = signal * np.exp(-(b_value or 1000) / 1000 * adc)
    put(tmp_path, "sub-1_dwi.nii.gz", weighted.astype(np.float32), side={"DiffusionBValue": b_value})
    put(tmp_path, "sub-1_adc.nii.gz", (adc * unit).astype(np.float32))
    refs = file_refs(image_files(scan_files(tmp_path)[0]))
    study = read_sequences(refs, settings(names=("b0", "dwi")))
    np.testing.assert_allclose(study.images[0].values, signal, rtol=1e-4)
    np.testing.assert_allclose(study.images[1].values, weighted, rtol=1e-5)


def test_an_adc_map_of_another_grid_is_refused(tmp_path):
    put(tmp_path, "sub-1_dwi.nii.gz")
    put(tmp_path, "sub-1_adc.nii.gz", affine=AFFINE + np.diag([1.0, 0, 0, 0]))
    refs = file_refs(image_files(scan_files(tmp_path)[0]))
    with pytest.raises(UnreadableError, match="not on the grid"):
        read_sequences(refs, settings(names=("b0", "dwi")))


def test_labels_of_the_root_are_taken_by_side_and_studies_without_any_left_out(tmp_path):
    for subject in ("sub-1", "sub-2"):
        for name in ("dwi", "b0", "flair"):
            put(tmp_path, f"{subject}_{name}.nii.gz")
    labels = pd.DataFrame({"study_id": ["sub-1"] * 2, "side": ["left", "right"], "tss45": [1, ""], "tss3": [0, ""]})
    labels.assign(stroke=[1, 0]).to_csv(tmp_path / "labels.csv", index=False)
    made = plan(tmp_path)
    assert made.files["study_id"].unique().tolist() == ["sub-1"]
    assert set(made.files["split"]) == {"train"}
    assert made.labels["study_id"].tolist() == ["sub-1:left", "sub-1:right"]
    assert made.labels["tss45"].isna().tolist() == [False, True]
    assert set(made.rejected["reason"]) == {"no label in the label file"}


def test_what_readers_said_of_a_part_becomes_a_table_with_empty_columns_for_what_they_were_not_asked(tmp_path):
    path = tmp_path / "readers.csv"
    path.write_text("study_id,side,reader,tss45\nsub-1,left,1,1\nsub-1,left,2,0\n")
    table = read_readers(path, TASK)
    assert table["study_id"].tolist() == ["sub-1:left"] * 2
    assert table["tss45"].tolist() == [1, 0]
    assert table[["tss3", "stroke"]].isna().all(axis=None)
    path.write_text("study_id,reader,tss45\nsub-1,1,2\n")
    with pytest.raises(DataError, match="expected 0 or 1 in tss45"):
        read_readers(path, TASK)
    path.write_text("study_id,tss45\nsub-1,1\n")
    with pytest.raises(DataError, match="expected study_id, reader and one or more of tss45, tss3, stroke"):
        read_readers(path, TASK)


def test_a_tree_without_labels_and_a_config_without_sequences_are_refused(tmp_path):
    put(tmp_path, "sub-1_dwi.nii.gz")
    files, _ = scan_files(tmp_path)
    index = read_index(image_files(files), None, modality=MR)
    with pytest.raises(DataError, match="bids: expected a label file"):
        plan_bids(Found(files, files, index, TASK, sequences=settings()))
    with pytest.raises(ConfigError, match="a BIDS tree needs the names of its sequences"):
        plan_sequences(Found(files, files, index, TASK))


def test_landmarks_are_those_of_the_reference_study_with_its_median_at_1000(tmp_path):
    for name in ("dwi", "b0", "flair"):
        put(tmp_path, f"sub-9/sub-9_{name}.nii.gz", blob(40.0))
    made = with_landmarks(settings(field_mm=(60, 72, 60)), tmp_path / "sub-9")
    assert len(made.landmarks) == 3
    assert made.landmarks[0][2] == 1000
    with pytest.raises(DataError, match="expected the folder of one study with dwi, b0, flair, found 0"):
        with_landmarks(settings(), tmp_path / "sub-8")
