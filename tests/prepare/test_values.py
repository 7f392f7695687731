"""`prepare` on scans whose values must be insisted on, whose decoder is missing, or that are NIfTI."""

import numpy as np
import pandas as pd
import pydicom
import pytest
from support.commands import do
from support.dicoms import make_dataset
from support.encodings import head_pixels, to_bytes

from ichkit.core.errors import DataError
from ichkit.core.tasks import find_task
from ichkit.imaging.store import open_volume
from ichkit.stages.prepare import run as prepare
from ichkit.work.folder import WorkFolder

TASK = find_task("hemorrhage")


def write_studies(root, num_studies=6, edit=None):
    """Studies of four slices, each of a patient of its own; `edit` may change the data set of study i."""
    for i in range(num_studies):
        for k in range(4):
            dataset = make_dataset(
                head_pixels(10 * i + k),
                slice_uid=f"1.2.{i}.1.{k}",
                series_uid=f"1.2.{i}.1",
                study_uid=f"1.2.{i}",
                patient_id=f"P{i}",
                position=(0, 0, 5.0 * k),
            )
            if edit is not None:
                edit(i, dataset)
            (root / f"{i}").mkdir(parents=True, exist_ok=True)
            (root / f"{i}" / f"{k}.dcm").write_bytes(to_bytes(dataset))
    return root


def write_labels(path, ids):
    table = pd.DataFrame({"study_id": ids})
    for column, name in enumerate(TASK.subtypes):
        table[name] = [int((i + column) % 3 == 0) for i in range(len(ids))]
    table.to_csv(path, index=False)
    return path


@pytest.fixture
def prepare_here(tmp_path, tiny_config, monkeypatch):
    """`prepare` of the folder `scans` with labels for these studies: the work folder's rejected and kept slices."""
    monkeypatch.chdir(tmp_path)

    def call(ids, **options):
        labels = write_labels(tmp_path / "labels.csv", ids)
        asked = prepare.PrepareOptions(source="folder", folder=tmp_path / "scans", labels=labels, **options)
        work = WorkFolder(tmp_path / "work")
        do(prepare, tiny_config, work, asked)
        return pd.read_parquet(work.prepared / "slices.parquet"), pd.read_csv(work.prepared / "rejected.csv"), work

    return call


IDS = [f"1.2.{i}" for i in range(6)]


def test_raw_values_are_rejected_with_the_reason_until_they_are_insisted_on(tmp_path, prepare_here):
    def spoil(i, dataset):
        if i == 1:
            del dataset.RescaleIntercept
        if i == 2:
            dataset.RescaleIntercept = 0  # stored values of 24 and more: no air anywhere

    write_studies(tmp_path / "scans", edit=spoil)
    slices, rejected, _ = prepare_here(IDS)
    assert sorted(set(slices["study_id"])) == ["1.2.0", "1.2.3", "1.2.4", "1.2.5"]
    reasons = rejected.groupby("study_id")["reason"].agg(lambda why: " or ".join(sorted(set(why))))
    assert reasons["1.2.1"] == "no RescaleIntercept: Hounsfield units are unknown (accepted with --accept-raw)"
    assert reasons["1.2.2"].startswith("not HU of a head: the darkest pixel of the series is")
    assert reasons["1.2.2"].endswith("(accepted with --accept-raw)")
    assert len(rejected) == 8
    slices, rejected, work = prepare_here(IDS, accept_raw=True)
    assert sorted(set(slices["study_id"])) == IDS
    assert rejected.empty
    row = slices[slices["study_id"] == "1.2.2"].iloc[0]
    volume = open_volume(work.prepared / row["volume"])[0]
    np.testing.assert_array_equal(volume, np.clip(head_pixels(20).astype(int), -800, 2000))


def test_a_missing_decoder_stops_prepare_before_a_volume_is_written(tmp_path, prepare_here, monkeypatch):
    def compress(i, dataset):
        if i > 3:
            dataset.compress(pydicom.uid.JPEGLSLossless, generate_instance_uid=False)

    write_studies(tmp_path / "scans", edit=compress)
    monkeypatch.setattr(pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless), "_available", {})
    with pytest.raises(DataError, match=r"8 of 24: no decoder for JPEG-LS .*ichkit\[dicom\].*--skip-undecodable"):
        prepare_here(IDS)
    assert not list(tmp_path.glob("work/**/*.b2nd"))
    slices, rejected, _ = prepare_here(IDS, skip_undecodable=True)
    assert sorted(set(slices["study_id"])) == IDS[:4]
    assert sorted(set(rejected["study_id"])) == IDS[4:]
    assert rejected["reason"].str.startswith("no decoder for JPEG-LS").all()


def test_nifti_volumes_are_labelled_by_their_file_names(tmp_path, prepare_here):
    nibabel = pytest.importorskip("nibabel")
    (tmp_path / "scans").mkdir()
    volumes = {}
    for i in range(6):
        volumes[f"case{i}"] = np.random.default_rng(i).integers(-800, 1500, (12, 16, 4)).astype(np.int16)
        image = nibabel.Nifti1Image(volumes[f"case{i}"], np.diag([-0.8, -0.5, 5.0, 1.0]))
        nibabel.save(image, tmp_path / "scans" / f"case{i}.nii.gz")
    slices, rejected, work = prepare_here([*(f"case{i}" for i in range(5)), "case5.nii.gz"])
    assert rejected.empty
    assert sorted(set(slices["study_id"])) == sorted(volumes)
    assert slices["patient_id"].nunique() == 6
    assert not slices["patient_id"].str.contains("case").any()
    for study_id, rows in slices.groupby("study_id"):
        assert rows["slice_index"].to_list() == [0, 1, 2, 3]
        stored = open_volume(work.prepared / rows["volume"].iloc[0])[:]
        np.testing.assert_array_equal(stored, volumes[study_id].transpose(2, 1, 0))
    positive = slices[slices["slice_id"] == "case3.1"][list(TASK.classes)].iloc[0]
    assert positive[["epidural", "any"]].to_list() == [1, 1]
