"""Initial weights from an export of other data, and the digests by which shared patients are refused."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from support.commands import do
from support.pixels import make_pixel_work
from support.training import config

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.stages.predict import export
from ichkit.stages.train import run as train
from ichkit.stages.train.other_data import read_other_model
from ichkit.work import patients
from ichkit.work.artifacts import ArtifactWriter, read_manifest
from ichkit.work.patients import decode_patients, digest_patients

STRANGER = pd.DataFrame({"patient_id": ["somebody"], "study_id": ["something"]})
FROZEN = 5
"""All stages of the network of the tests."""


def export_run(work, run, out):
    export.run(export.plan(load_config("default"), work, export.ExportOptions(run, out)))
    return out


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """An export of a network of other patients."""
    work = make_pixel_work(tmp_path_factory.mktemp("other"), seed=1)
    do(train, config("train.epochs=1", "train.ema_decay=null"), work, run_name="other", folds=[0])
    return export_run(work, "other", tmp_path_factory.mktemp("export") / "other")


def as_phase(folder, frozen=0):
    return f"train.phases=[{{weights: 'model:{folder}', frozen_stages: {frozen}, epochs: 1}}]"


def test_a_run_starts_from_the_network_of_other_data_and_frozen_stages_keep_its_bytes(other, tmp_path):
    work = make_pixel_work(tmp_path, seed=2)
    rewrite_patients(other, STRANGER)  # two simulated folders have patients of the same names
    do(train, config(as_phase(other, FROZEN)), work, run_name="second", folds=[0])
    theirs = load_file(next(other.glob("runs/other/fold0/*.safetensors")))
    ours = load_file(work.fold("second", 0) / "model.safetensors")
    head = {name for name in ours if ours[name].shape[:1] == (6,)}
    assert head
    for name in set(ours) - head:
        assert torch.equal(ours[name], theirs[name]), name
    assert any(not torch.equal(ours[name], theirs[name]) for name in head)
    # What the first model had learnt from goes with the second.
    again = export_run(work, "second", tmp_path / "again")
    assert decode_patients(again / patients.PATIENTS_NAME) > decode_patients(other / patients.PATIENTS_NAME)


def rewrite_patients(folder, slices):
    """Puts other digests into an export."""
    manifest = read_manifest(folder)
    writer = ArtifactWriter(folder, "export")
    for name in manifest.files:
        if name != patients.PATIENTS_NAME:
            writer.write_bytes(name, (folder / name).read_bytes())
    writer.write_bytes(patients.PATIENTS_NAME, patients.encode_patients(digest_patients(slices)))
    writer.commit(settings=manifest.settings, inputs=manifest.inputs, facts=manifest.facts)


@pytest.mark.parametrize("split", ["train", "test", "cq500"])
def test_a_model_is_refused_where_one_patient_or_one_study_of_it_is_prepared(split, other, tmp_path):
    work = make_pixel_work(tmp_path, seed=2)
    one = Prepared.open(work.prepared, find_task("hemorrhage")).split(split).head(1)
    for shared in (one.assign(study_id="else"), one.assign(patient_id="else")):
        rewrite_patients(other, pd.concat([STRANGER, shared]))
        with pytest.raises(ArtifactError, match="has learnt from 1 patients or studies that are in"):
            do(train, config(as_phase(other)), work, run_name="refused", folds=[0])


def test_an_export_that_does_not_say_whom_it_learnt_from_or_is_none_is_refused(other, tmp_path):
    work = make_pixel_work(tmp_path, seed=2)
    prepared = Prepared.open(work.prepared, find_task("hemorrhage"))
    with pytest.raises(ConfigError, match="expected a folder written by `ichkit export`"):
        read_other_model(f"model:{tmp_path}", prepared)
    manifest = read_manifest(other)
    silent = tmp_path / "silent"
    writer = ArtifactWriter(silent, "export")
    for name in manifest.files:
        if name != patients.PATIENTS_NAME:
            writer.write_bytes(name, (other / name).read_bytes())
    writer.commit(settings=manifest.settings, inputs=manifest.inputs, facts=manifest.facts)
    with pytest.raises(ArtifactError, match="does not say whose scans"):
        read_other_model(f"model:{silent}", prepared)


def test_an_export_names_patients_and_studies_by_digest_alone(tmp_path):
    work = make_pixel_work(tmp_path, seed=3)
    do(train, config("train.epochs=1"), work, run_name="one", folds=[0])
    folder = export_run(work, "one", tmp_path / "out")
    slices = pd.read_parquet(work.prepared / "slices.parquet")
    learnt = slices[slices.split == "train"]
    found = decode_patients(folder / patients.PATIENTS_NAME)
    assert len(found) == learnt.patient_id.nunique() + learnt.study_id.nunique()
    text = (folder / patients.PATIENTS_NAME).read_text()
    assert not any(name in text for name in {*learnt.patient_id, *learnt.study_id})
    parts = learnt.assign(study_id=learnt.study_id + ":left-M1")
    assert digest_patients(parts) == sorted(found)
