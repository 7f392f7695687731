"""Two models in one call: the first sees every study, the second those that the first calls negative."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support.commands import call
from support.dicoms import write_series, write_slice
from support.models import FOLD, make_model, seal
from support.simulated import TASK

from ichkit import write_phantom
from ichkit.core.config import load_config
from ichkit.core.errors import ConfigError
from ichkit.core.tasks import find_task
from ichkit.engine.inference import ModelCard, encode_weights
from ichkit.imaging.parts import PartSettings
from ichkit.stages.predict.gate import find_gate
from ichkit.validation.thresholds import F1_AIM
from ichkit.work.folder import WorkFolder

REGIONS = ("-c", "aspects2020-demo")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, kind="ischemia", difficulty="noise-free", studies=3, test_studies=0, size=64, workers=1)
    return folder / "scans"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of hemorrhage, and one of infarcts in regions, both with random weights."""
    folder = tmp_path_factory.mktemp("models")
    first = make_model(folder / "hemorrhage")
    config = load_config("aspects2020-demo", ("train.classes=[early, old]",))
    second = folder / "ischemia"
    (second / FOLD).mkdir(parents=True)
    card = ModelCard.of(config, 32, (-800, 2000), (), PartSettings.of(config.prepare.parts))
    torch.manual_seed(1)
    (second / FOLD / "model.safetensors").write_bytes(encode_weights(card.build()))
    (second / FOLD / "model.json").write_text(json.dumps(asdict(card)))
    seal(second, task="ischemia")
    return first, second


def predict(scans, models, out, *more):
    text = call("predict", scans, *REGIONS, "--gate", models[0], "--model", models[1], "--out", out, *more)
    return text, {path.stem: pd.read_csv(path) for path in out.glob("*.csv")}


def test_the_first_model_says_what_it_says_alone_and_the_second_what_it_says_of_the_studies_that_go_on(
    scans, models, tmp_path
):
    call("predict", scans, "--model", models[0], "--out", tmp_path / "first", "--no-page")
    call("predict", scans, *REGIONS, "--model", models[1], "--out", tmp_path / "second", "--no-page")
    alone = [pd.read_csv(tmp_path / name / "studies.csv") for name in ("first", "second")]
    between = float(np.sort(alone[0]["p_any"])[1])  # of three studies one is below, the others are not
    text, found = predict(scans, models, tmp_path / "both", "--gate-threshold", f"{between:.9f}")
    gate = found["gate"]
    pd.testing.assert_frame_equal(gate.drop(columns="goes_on"), alone[0])
    assert gate["goes_on"].tolist() == (alone[0]["p_any"] < between).tolist()
    assert gate["goes_on"].sum() == 1
    whole = alone[1]["study_id"].str.rpartition(":")[0]
    expected = alone[1][whole.isin(gate["study_id"][gate["goes_on"]])].reset_index(drop=True)
    pd.testing.assert_frame_equal(found["studies"], expected)
    assert len(found["studies"]) == 28
    score = found["region_scores"]
    aspects = expected[expected["study_id"].str.contains("-(?:C|L|IC|I|M[1-6])$")]
    hits = aspects["p_early"].ge(0.5).groupby(aspects["study_id"].str.extract(":(right|left)")[0].to_numpy()).sum()
    assert score[["right", "left"]].iloc[0].tolist() == [10 - hits["right"], 10 - hits["left"]]
    assert score["score"].tolist() == [10 - hits.max()]
    page = (tmp_path / "both" / "predictions.html").read_text()
    assert (
        page.index("Step 1: hemorrhage") < page.index("Step 2: score of regions") < page.index("Studies by probability")
    )
    assert "Step 1: probability of hemorrhage" in text
    assert not any(name in page for name in gate["study_id"])


@pytest.mark.parametrize(("threshold", "goes_on"), [("0", 0), ("1", 3)])
def test_all_studies_may_end_at_the_first_model_or_go_on(threshold, goes_on, scans, models, tmp_path):
    _, found = predict(scans, models, tmp_path / "out", "--gate-threshold", threshold)
    assert found["gate"]["goes_on"].sum() == goes_on
    assert len(found["studies"]) == 28 * goes_on
    assert ("region_scores" in found) == bool(goes_on)
    # A later call without a first model leaves no table of it behind.
    call("predict", scans, *REGIONS, "--model", models[1], "--out", tmp_path / "out", "--no-page")
    assert not (tmp_path / "out" / "gate.csv").exists()


@pytest.mark.parametrize("threshold", ["0", "1"])
def test_what_the_first_model_cannot_read_is_listed_once_whether_studies_end_or_go_on(threshold, models, tmp_path):
    for i in range(2):
        tags = {"study_uid": f"1.4.{i}", "series_uid": f"1.4.{i}.1", "patient_id": f"ID {i}"}
        write_series(tmp_path / "scans" / f"s{i}", 3, **tags)
        if i == 0:
            for z, path in enumerate(sorted((tmp_path / "scans" / "s0").iterdir())):  # no HU of a head: without air
                write_slice(path, slice_uid=f"1.4.0.1.{z}", position=(0, 0, 5 * z), **tags)
    asked = ("--gate", models[0], "--gate-threshold", threshold, "--model", models[0], "--out", tmp_path / "out")
    call("predict", tmp_path / "scans", *asked, "--no-page")
    assert pd.read_csv(tmp_path / "out" / "gate.csv")["study_id"].tolist() == ["1.4.1"]
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv", dtype="str")
    assert rejected["study_id"].tolist() == ["1.4.0"] * 3
    assert rejected["slice_id"].nunique() == 3


def test_labels_of_studies_that_all_end_at_the_first_model_give_no_scores_and_a_word(models, tmp_path):
    write_series(tmp_path / "scans", 3, study_uid="1.4", series_uid="1.4.1")
    (tmp_path / "labels.csv").write_text(f"study_id,{','.join(TASK.classes)}\n1.4,{','.join('0' * 6)}\n")
    asked = ("--gate", models[0], "--gate-threshold", "0", "--model", models[0], "--labels", tmp_path / "labels.csv")
    said = call("predict", tmp_path / "scans", *asked, "--out", tmp_path / "out")
    assert "no scores" in " ".join(said.split())
    assert not (tmp_path / "out" / "scores.csv").exists()
    assert len(pd.read_csv(tmp_path / "out" / "gate.csv")) == 1


@pytest.mark.slow
def test_every_region_has_dicom_outputs_of_its_own_that_name_it(scans, models, tmp_path):
    pytest.importorskip("highdicom")
    one = min(scans.rglob("*.dcm")).parent
    call("predict", one, *REGIONS, "--model", models[1], "--out", tmp_path / "out", "--no-page", "--dicom")
    studies = pd.read_csv(tmp_path / "out" / "studies.csv")["study_id"]
    found = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "dicom").rglob("*.dcm"))]
    assert len({each.SOPInstanceUID for each in found}) == len(found) > len(studies)
    for number, study_id in enumerate(studies, 1):
        report = pydicom.dcmread(tmp_path / "out" / "dicom" / f"study-{number}" / "report.dcm")
        texts = {str(one.value) for one in report.iterall() if one.keyword == "TextValue"}
        assert f"{study_id.rpartition(':')[2]}: early" in texts


def test_labels_of_regions_are_compared_with_their_regions(scans, models, tmp_path):
    path = scans / "regions.csv"
    words = (scans, *REGIONS, "--model", models[1], "--labels", path, "--no-page")
    call("predict", *words, "--set", "evaluate.num_draws=20", "--out", tmp_path)
    given = pd.read_csv(path)
    is_early = given["category"].map({name: one["early"] for name, one in find_task("ischemia").categories.items()})
    is_early.index = given["study_id"] + ":" + given["side"] + "-" + given["region"]
    found = pd.read_csv(tmp_path / "studies.csv").set_index("study_id")["p_early"]
    assert set(found.index) == set(is_early.index)
    scores = pd.read_csv(tmp_path / "scores.csv").query(
        "level == 'study' and metric == 'roc_auc' and subgroup == 'all'"
    )
    known = is_early.dropna().index
    expected = roc_auc_score(is_early[known], found[known])
    assert scores.set_index(["level", "class"]).loc[("study", "early"), "value"] == pytest.approx(expected)


def test_the_threshold_is_that_of_the_export_and_a_half_without_one(models, tmp_path):
    work = WorkFolder(tmp_path)
    assert find_gate(work, models[0], None).threshold == 0.5
    try:
        (models[0] / "thresholds.json").write_text(json.dumps({"slice": {}, "study": {F1_AIM: {"any": 0.25}}}))
        seal(models[0])
        assert find_gate(work, models[0], None).threshold == 0.25
        assert find_gate(work, models[0], 0.75).threshold == 0.75
    finally:
        (models[0] / "thresholds.json").unlink()
        seal(models[0])
    with pytest.raises(ConfigError, match="--gate: expected a folder written by `ichkit export`"):
        find_gate(work, tmp_path, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ("epidural", "subdural")}, "expected a model that predicts any, found one of epidural, subdural"),
        ({"parts": PartSettings("halves").to_json()}, "expected a model of whole studies, found one of parts (halves)"),
    ],
)
def test_a_first_model_that_says_nothing_of_a_whole_study_is_refused(change, words, scans, models, tmp_path):
    folder = make_model(tmp_path / "gate")
    path = folder / FOLD / "model.json"
    card = ModelCard(**(json.loads(path.read_text()) | change))
    path.write_text(json.dumps(asdict(card)))
    (folder / FOLD / "model.safetensors").write_bytes(encode_weights(card.build()))
    seal(folder)
    said = call("predict", scans, *REGIONS, "--gate", folder, "--model", models[1], "--out", tmp_path / "o", code=2)
    assert words in " ".join(said.split())


def test_a_threshold_without_a_first_model_is_refused(scans, models, tmp_path):
    words = ("predict", scans, *REGIONS, "--model", models[1], "--out", tmp_path / "out", "--gate-threshold", "0.5")
    assert "name it with --gate" in call(*words, code=2)
