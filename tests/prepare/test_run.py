"""From DICOM to the store: the tables against the files, and every way of running it again."""

import json
import shutil
from dataclasses import replace

import blosc2
import numpy as np
import pandas as pd
import pydicom
import pytest
from support.commands import do, phantom_options
from support.jobs import count_studies

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, DataError, FoldError, Stopped
from ichkit.core.progress import StopFlag
from ichkit.core.tasks import find_task
from ichkit.imaging.hounsfield import has_broken_intercept
from ichkit.imaging.store import Prepared
from ichkit.sources import decode
from ichkit.stages.prepare import run as prepare
from ichkit.validation.folds import check_folds
from ichkit.work.artifacts import find_damage, has_artifact, read_manifest
from ichkit.work.folder import WorkFolder
from ichkit.work.schemas import KEY, slices_dtypes, studies_dtypes

TASK = find_task("hemorrhage")


def store(work):
    return Prepared.open(work.prepared, TASK)


def digests(work):
    return {name: item.sha256 for name, item in read_manifest(work.prepared).files.items()}


def slow_hounsfield(path):
    """HU of one file by pydicom and NumPy, with the repair of FACTS written out."""
    with pydicom.config.disable_value_validation():
        data = pydicom.dcmread(path)
        stored = data.pixel_array.astype(np.int64)
    intercept = float(data.RescaleIntercept)
    if data.BitsStored == 12 and data.PixelRepresentation == 0 and intercept > -100:
        stored = stored + 1000
        stored = np.where(stored >= 4096, stored - 4096, stored)
        intercept = -1000.0
    return np.clip(stored * float(data.RescaleSlope) + intercept, -800, 2000)


@pytest.mark.filterwarnings("ignore:.*value.*:UserWarning")
def test_every_row_of_every_volume_is_the_file_it_names(prepared_once, phantom_root):
    prepared = store(prepared_once)
    paths = {path.stem: path for path in (phantom_root / "rsna").rglob("*.dcm")}
    rows = prepared.slices[prepared.slices["dataset"] == "rsna"]
    formats = set()
    for volume, study in rows.groupby("volume"):
        held = prepared.read_volume(volume)
        assert len(held) == len(study)
        for row in study.itertuples():
            np.testing.assert_array_equal(held[row.slice_index], slow_hounsfield(paths[row.slice_id]))
        formats |= set(study["pixel_format"])
    repaired = rows[rows["hu_repaired"]]["pixel_format"].unique()
    assert all(has_broken_intercept(*map(float, text.split(","))) for text in repaired)
    assert len(formats) >= 3


def test_the_tables_have_the_columns_and_order_of_the_contract(prepared_once):
    prepared = store(prepared_once)
    slices, studies = prepared.slices, prepared.studies
    assert list(slices.columns) == list(slices_dtypes(TASK))
    assert list(studies.columns) == list(studies_dtypes(TASK))
    assert not slices.duplicated(["dataset", *KEY]).any()
    for _, study in slices.groupby(["dataset", "study_id"]):
        assert study["slice_index"].to_list() == list(range(len(study)))
        assert (study["num_slices"] == len(study)).all()
        assert study["series_id"].is_monotonic_increasing
        for _, series in study.groupby("series_id"):
            assert series["position_mm"].is_monotonic_increasing
            np.testing.assert_allclose(series["gap_mm"].to_numpy()[:-1], np.diff(series["position_mm"]), atol=1e-5)
            assert np.isnan(series["gap_mm"].iloc[-1])
    train = slices["split"] == "train"
    assert slices["fold"][train].notna().all()
    assert slices["fold"][~train].isna().all()
    labelled = slices[list(TASK.classes)].notna().all(axis=1)
    assert (labelled == train).all()
    check_folds(slices)


def test_study_labels_are_the_maximum_over_slices_and_for_cq500_the_readers_majority(prepared_once, phantom_root):
    prepared = store(prepared_once)
    train = prepared.split("train").groupby("study_id")[list(TASK.classes)].max()
    held = prepared.studies[prepared.studies["split"] == "train"].set_index("study_id")[list(TASK.classes)]
    pd.testing.assert_frame_equal(train, held.loc[train.index], check_dtype=False)
    reads = pd.read_csv(phantom_root / "cq500" / "reads.csv").set_index("name")
    external = prepared.studies[prepared.studies["dataset"] == "cq500"].set_index("study_id")
    majority = (reads[["R1:ICH", "R2:ICH", "R3:ICH"]].sum(axis=1) >= 2).astype(int)
    assert (external["any"].astype(int) == majority.loc[external.index]).all()


def test_truncated_files_are_rejected_with_what_their_header_says(prepared_once):
    rejected = store(prepared_once).rejected()
    short = rejected[rejected["reason"].str.startswith("truncated")]
    assert set(short["split"]) == {"train", "test"}
    assert short["position_mm"].notna().all()
    assert short["study_id"].str.startswith("ID_").all()
    assert not set(short["slice_id"]) & set(store(prepared_once).slices["slice_id"])


def test_a_second_run_does_nothing(prepared_work, phantom_root, tiny_config, monkeypatch):
    before = digests(prepared_work)
    created = read_manifest(prepared_work.prepared).created_utc
    monkeypatch.setattr(decode, "store_study", None)
    manifest = do(prepare, tiny_config, prepared_work, phantom_options(phantom_root))
    assert manifest.created_utc == created
    assert digests(prepared_work) == before
    assert find_damage(prepared_work.prepared, manifest) == []


def test_two_processes_give_the_bytes_of_one(prepared_once, phantom_root, tmp_path):
    config = load_config("demo", ("prepare.num_folds=3", "prepare.workers=2", "prepare.size=null"))
    do(prepare, config, WorkFolder(tmp_path), phantom_options(phantom_root))
    assert digests(WorkFolder(tmp_path)) == digests(prepared_once)


def test_a_fast_store_has_the_pixels_and_tables_of_the_compact_one(
    prepared_once, phantom_root, tiny_config, tmp_path, caplog
):
    work = WorkFolder(tmp_path)
    options = replace(phantom_options(phantom_root), store="fast")
    do(prepare, tiny_config, work, options)
    fast, compact = store(work), store(prepared_once)
    pd.testing.assert_frame_equal(fast.slices, compact.slices)
    volumes = [str(volume) for volume in fast.slices["volume"].unique()]
    for volume in volumes:
        np.testing.assert_array_equal(fast.read_volume(volume), compact.read_volume(volume))
    codecs = {blosc2.open(str(work.prepared / volume), mode="r").schunk.cparams.codec for volume in volumes}
    assert codecs == {blosc2.Codec.LZ4}
    assert fast.manifest.settings == compact.manifest.settings
    with caplog.at_level("INFO"):
        do(prepare, tiny_config, work, options)
    assert "up to date" in caplog.text
    assert "--fresh writes all with --store fast" in caplog.text


@pytest.mark.parametrize("after", [1, 5])
def test_a_stopped_run_goes_on_and_gives_the_same_bytes(
    prepared_once, phantom_root, tiny_config, tmp_path, monkeypatch, after
):
    work, calls, original = WorkFolder(tmp_path), [], StopFlag.check

    def stop_after(flag, saved):
        calls.append(saved)
        if len([text for text in calls if "studies are finished" in text]) == after:
            flag.set()
        original(flag, saved)

    monkeypatch.setattr(StopFlag, "check", stop_after)
    with pytest.raises(Stopped, match=f"{after} of 28 studies are finished. Run the same command again"):
        do(prepare, tiny_config, work, phantom_options(phantom_root))
    assert not work.prepared.exists()
    monkeypatch.undo()
    done = count_studies(monkeypatch)
    do(prepare, tiny_config, work, phantom_options(phantom_root))
    assert len(done) == 28 - after
    assert digests(work) == digests(prepared_once)


def test_new_files_are_taken_up_and_move_no_patient(phantom_root, tiny_config, tmp_path, monkeypatch):
    root = tmp_path / "part"
    shutil.copytree(phantom_root, root)
    work = WorkFolder(tmp_path / "work")
    do(prepare, tiny_config, work, phantom_options(root, limit_studies=9))
    first = store(work)
    assert first.split("train")["study_id"].nunique() == 9
    done = count_studies(monkeypatch)
    do(prepare, tiny_config, work, phantom_options(root))
    second = store(work)
    assert second.split("train")["study_id"].nunique() == 16
    assert len(done) == 16 - 9
    both = first.folds.merge(second.folds, on="patient_id", suffixes=("_first", "_second"))
    assert len(both) == len(first.folds)
    assert (both["fold_first"] == both["fold_second"]).all()
    shared = first.slices["volume"].isin(second.slices["volume"])
    assert shared.all()


def test_other_settings_are_refused_with_the_difference_and_fresh_keeps_the_folds(
    prepared_work, phantom_root, tiny_config
):
    other = tiny_config.model_copy(update={"prepare": tiny_config.prepare.model_copy(update={"size": 32})})
    with pytest.raises(ArtifactError, match=r"other settings \(size: None, now 32\).*--fresh"):
        do(prepare, other, prepared_work, phantom_options(phantom_root))
    with pytest.raises(DataError, match="found nothing"):
        do(prepare, other, prepared_work, phantom_options(phantom_root / "nowhere", fresh=True))
    assert has_artifact(prepared_work.prepared)  # a wrong path costs nothing
    folds = (prepared_work.prepared / "folds.csv").read_bytes()
    reseeded = other.model_copy(update={"seed": 77})
    do(prepare, reseeded, prepared_work, phantom_options(phantom_root, fresh=True))
    assert (prepared_work.prepared / "folds.csv").read_bytes() == folds
    assert store(prepared_work).read_volume(store(prepared_work).slices["volume"].iloc[0]).shape[1:] == (32, 32)
    do(prepare, reseeded, prepared_work, phantom_options(phantom_root, new_folds=True))
    assert (prepared_work.prepared / "folds.csv").read_bytes() != folds


def test_imported_folds_are_used_as_they_are(prepared_work, phantom_root, tiny_config, tmp_path):
    folds = store(prepared_work).folds.assign(fold=lambda table: (table["fold"] + 1) % 3)
    folds.to_csv(tmp_path / "mine.csv", index=False)
    do(prepare, tiny_config, prepared_work, phantom_options(phantom_root, folds_file=tmp_path / "mine.csv"))
    pd.testing.assert_frame_equal(store(prepared_work).folds, folds)
    (tmp_path / "bad.csv").write_text("patient,part\na,1\n")
    with pytest.raises(FoldError, match="expected a CSV with the columns patient_id, fold"):
        do(prepare, tiny_config, prepared_work, phantom_options(phantom_root, folds_file=tmp_path / "bad.csv"))


def test_missing_data_say_where_they_were_looked_for(phantom_root, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ICHKIT_RSNA", raising=False)
    with pytest.raises(DataError, match="no data at data/rsna.*--rsna PATH or ICHKIT_RSNA.*ichkit phantom"):
        do(prepare, tiny_config, WorkFolder(tmp_path / "work"))
    options = phantom_options(phantom_root, cq500=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a zip file at .*nowhere \(--cq500\), found nothing"):
        do(prepare, tiny_config, WorkFolder(tmp_path / "work"), options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image folder among 0 files. Expected stage_2_train.csv"):
        do(prepare, tiny_config, WorkFolder(tmp_path / "work"), prepare.PrepareOptions(rsna=tmp_path / "empty"))


def test_strict_stops_at_the_first_rejected_file(phantom_root, tiny_config, tmp_path):
    with pytest.raises(DataError, match=r"cannot be used: truncated.*\(--strict\)"):
        do(prepare, tiny_config, WorkFolder(tmp_path), phantom_options(phantom_root, strict=True))


def test_a_damaged_manifest_and_a_flipped_byte_are_found(prepared_work):
    manifest = read_manifest(prepared_work.prepared)
    volume = next(prepared_work.prepared.glob("volumes/*/*"))
    data = bytearray(volume.read_bytes())
    data[len(data) // 2] ^= 1
    volume.write_bytes(data)
    (damage,) = find_damage(prepared_work.prepared, manifest)
    assert damage.endswith(f"{volume.name}: changed since it was written (SHA-256 differs)")
    path = prepared_work.prepared / "manifest.json"
    path.write_text(json.dumps({"kind": "prepared"}))
    with pytest.raises(ArtifactError, match="not a manifest"):
        read_manifest(prepared_work.prepared)
