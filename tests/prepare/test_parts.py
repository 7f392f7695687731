"""`prepare.parts`: what a store of parts holds, its labels, its folds, and that training and `predict` cut alike."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from support.commands import call, do, phantom_options
from support.dicoms import write_series

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, DataError
from ichkit.core.tasks import find_task
from ichkit.imaging.parts import PartSettings, cut_parts, part_id, whole_id
from ichkit.imaging.steps import restore
from ichkit.imaging.store import Prepared
from ichkit.sources.labels import read_folder_labels
from ichkit.stages.prepare import run as prepare
from ichkit.stages.train import run as train
from ichkit.validation.coherence import make_coherent
from ichkit.work.artifacts import find_damage, read_manifest, read_table
from ichkit.work.folder import WorkFolder

TASK = find_task("hemorrhage")
CLASSES = list(TASK.classes)


def with_parts(config, kind, **values):
    parts = config.prepare.parts.model_copy(update={"kind": kind, **values})
    return config.model_copy(update={"prepare": config.prepare.model_copy(update={"parts": parts})})


@pytest.fixture(scope="module")
def halves(phantom_root, tiny_config, tmp_path_factory):
    """The phantom's store, in hemispheres; never written to."""
    work = WorkFolder(tmp_path_factory.mktemp("halves"))
    do(prepare, with_parts(tiny_config, "hemispheres"), work, phantom_options(phantom_root))
    return work


def test_a_part_is_a_study_of_its_patient_with_the_labels_of_its_slices(halves, prepared_once):
    whole, parts = Prepared.open(prepared_once.prepared, TASK), Prepared.open(halves.prepared, TASK)
    assert find_damage(halves.prepared, read_manifest(halves.prepared)) == []
    assert parts.parts == PartSettings("hemispheres")
    assert len(parts.slices) == 2 * len(whole.slices)
    assert not parts.slices["slice_id"].duplicated().any()
    ours, origins = parts.slices.set_index("slice_id"), parts.origins
    for side in ("left", "right"):
        own = ours.loc[[part_id(name, side) for name in whole.slices["slice_id"]]].reset_index(drop=True)
        assert set(own["study_part"]) == {side}
        assert own["study_id"].map(whole_id).tolist() == whole.slices["study_id"].tolist()
        same = ["patient_id", "split", "slice_index", "num_slices", "position_mm", *CLASSES, "fold"]
        pd.testing.assert_frame_equal(own[same], whole.slices[same])
    studies = parts.studies.assign(study_id=parts.studies["study_id"].map(whole_id)).drop_duplicates()
    pd.testing.assert_frame_equal(studies.reset_index(drop=True), whole.studies)
    study_id, of_study = next(iter(whole.slices.groupby("study_id")))
    volume = whole.read_volume(of_study["volume"].iloc[0])
    spacing = tuple(of_study[["spacing_row_mm", "spacing_col_mm"]].iloc[0])
    for cut in cut_parts(parts.parts, volume, spacing, of_study["position_mm"].to_numpy()):
        relative = ours.loc[ours["study_id"] == part_id(study_id, cut.name), "volume"].iloc[0]
        stored = parts.read_volume(relative)
        np.testing.assert_array_equal(stored, cut.take(volume, -800))
        box = np.s_[:, cut.box.top : cut.box.top + cut.box.height, cut.box.left : cut.box.left + cut.box.width]
        np.testing.assert_array_equal(restore(stored, origins[relative], -800)[box], volume[box])


def test_an_interrupted_store_of_parts_goes_on_and_another_cut_is_refused(halves, phantom_root, tiny_config, tmp_path):
    work = WorkFolder(tmp_path / "work")
    shutil.copytree(halves.prepared, work.prepared)
    config = with_parts(tiny_config, "hemispheres")
    before = {name: item.sha256 for name, item in read_manifest(work.prepared).files.items()}
    options = phantom_options(phantom_root)
    do(prepare, config, work, phantom_options(phantom_root, limit_studies=3))
    do(prepare, config, work, options)
    after = {name: item.sha256 for name, item in read_manifest(work.prepared).files.items()}
    volumes = {name for name in before if name.startswith("volumes")}
    assert volumes
    assert {name: after.get(name) for name in volumes} == {name: before[name] for name in volumes}
    with pytest.raises(ArtifactError, match="parts"):
        prepare.plan(tiny_config, work, options)


def test_labels_may_be_those_of_parts(tmp_path, tiny_config):
    root, path = tmp_path / "scans", tmp_path / "labels.csv"
    for i in range(6):
        write_series(root / f"{i}", 4, study_uid=f"1.2.{i}", series_uid=f"1.3.{i}", patient_id=f"P{i}")
    rows = [
        {"study_id": f"1.2.{i}", "side": side, **dict.fromkeys(CLASSES, int(side == "left" and i % 2))}
        for i in range(6)
        for side in (("left", "right") if i else ("left",))
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    work = WorkFolder(tmp_path / "work")
    config = with_parts(tiny_config, "hemispheres")
    do(prepare, config, work, prepare.PrepareOptions(source="folder", folder=root, labels=path, accept_raw=True))
    slices = Prepared.open(work.prepared, TASK).slices
    found = slices.groupby("study_id")["any"].agg(["min", "max"])
    expected = {f"{row['study_id']}:{row['side']}": row["any"] for row in rows}
    assert found["min"].to_dict() == found["max"].to_dict() == expected
    assert slices.groupby("patient_id")["fold"].nunique().eq(1).all()


def test_part_columns_name_parts_only_where_studies_are_cut(tmp_path):
    path = tmp_path / "labels.csv"
    head = ",".join(CLASSES)
    path.write_text(f"study_id,side,region,{head}\ns,left,M1,0,0,0,0,0,0\ns,left,M2,0,0,0,0,1,1\n")
    labels, key = read_folder_labels(path, TASK, by_part=True)
    assert (key, labels[key].tolist(), labels["any"].tolist()) == ("study_id", ["s:left-M1", "s:left-M2"], [0, 1])
    with pytest.raises(DataError, match="different labels"):
        read_folder_labels(path, TASK)
    path.write_text(f"study_id,side,region,{head}\ns,left,,0,0,0,0,0,0\n")
    with pytest.raises(DataError, match="expected side and region in every row, found none, in row 2"):
        read_folder_labels(path, TASK, by_part=True)


def test_predict_cuts_new_studies_as_those_it_was_trained_on(halves, phantom_root, tmp_path):
    """`predict` on a CQ500 study gives the rows that training wrote of it, and its page shows them."""
    work = WorkFolder(tmp_path / "work")
    shutil.copytree(halves.prepared, work.prepared)
    changes = ("prepare.size=null", "prepare.parts=hemispheres", "train.image_size=32", "train.epochs=1")
    changes += ("train.threads=1", "train.workers=0", "train.batch_blocks=4", "train.backbone=test_resnet")
    do(train, load_config("demo", changes), work, run_name="halves", folds=[0])
    card = json.loads((work.fold("halves", 0) / "model.json").read_text())
    assert card["parts"] == {"kind": "hemispheres"}
    known = read_table(work.fold("halves", 0) / "cq500.parquet")
    study = sorted(path for path in (phantom_root / "cq500").iterdir() if path.is_dir())[0]
    call("predict", study, "--model", work.runs / "halves", "--out", tmp_path / "out")
    found = pd.read_csv(tmp_path / "out" / "slices.csv")
    assert found["study_id"].map(lambda name: name.rpartition(":")[2]).isin(["left", "right"]).all()
    own = known[known["slice_id"].isin(found["slice_id"])]
    assert len(own) == len(found) > 0
    both = own.merge(found, on="slice_id")
    trained, predicted = (both[[f"{name}_{end}" for name in TASK.probability_columns]].to_numpy() for end in "xy")
    np.testing.assert_allclose(make_coherent(trained, TASK), predicted, atol=2e-6)
    assert len(pd.read_csv(tmp_path / "out" / "studies.csv")) == 2
    assert (tmp_path / "out" / "predictions.html").is_file()
