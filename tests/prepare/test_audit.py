"""The audit against the tables it was made from, and the page for what a browser needs."""

import base64
import json
import re

import cv2
import numpy as np
import pandas as pd
import pytest

from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.stages.prepare.audit import EXPECTED_OF_RSNA_2019, make_audit
from ichkit.stages.prepare.audit_charts import draw_histogram
from ichkit.stages.prepare.audit_checks import find_checks

TASK = find_task("hemorrhage")


@pytest.fixture(scope="module")
def store(prepared_once):
    return Prepared.open(prepared_once.prepared, TASK)


@pytest.fixture(scope="module")
def audit(store):
    return json.loads((store.folder / "audit.json").read_text())


@pytest.fixture(scope="module")
def page(store):
    return (store.folder / "audit.html").read_text()


def with_facts(store):
    return store.slices.merge(store.slice_facts(), on=["slice_id", "dataset"])


def test_its_counts_are_those_of_the_tables(store, audit):
    counts = {row["what"]: row["found"] for row in audit["counts"]}
    train = store.split("train")
    assert counts["training slices"] == len(train)
    assert counts["training patients"] == len(store.folds)
    assert counts["slices with a repaired intercept"] == len(audit["repaired"]) == store.slices["hu_repaired"].sum()
    assert sum(row["slices"] for row in audit["splits"]) == len(store.slices)
    assert audit["rejected"] == store.rejected()["reason"].value_counts().to_dict()
    assert sum(bar["count"] for bar in audit["slices_per_study"]) == len(store.studies)
    assert sum(bar["count"] for bar in audit["geometry"]["gap_mm"]) == store.slices["gap_mm"].notna().sum()
    assert sum(sum(v for k, v in row.items() if k != "value") for row in audit["pixel_formats"]) == len(store.slices)


def test_prevalence_per_fold_is_worked_out_from_the_labels(store, audit):
    train = store.split("train")
    assert [row["fold"] for row in audit["folds"]] == store.fold_numbers
    for row in audit["folds"]:
        own = train[train["fold"] == row["fold"]]
        assert row["patients"] == own["patient_id"].nunique()
        for name in TASK.classes:
            assert row["prevalence"][name] == pytest.approx(own[name].mean())


def test_ties_padding_and_tilt_are_found(store, audit):
    slices = with_facts(store)
    tied = sum(
        (group["position_mm"].value_counts() > 1).mul(group["position_mm"].value_counts()).sum()
        for _, group in slices.groupby(["dataset", "study_id", "series_id"])
    )
    assert audit["geometry"]["tied_slices"] == tied > 0
    train = slices[slices["split"] == "train"]
    assert audit["padding"]["share"] == pytest.approx(train["padded"].mean())
    assert audit["padding"]["positive_rate_with"] == pytest.approx(train["any"][train["padded"]].mean())
    bars = {bar["from"]: bar["count"] for bar in audit["geometry"]["tilt_degrees"]}
    assert bars[0.0] == (slices["tilt_degrees"] < 1).sum()
    assert sum(bars.values()) == len(slices)


def test_labels_that_contradict_each_other_are_listed(store):
    slices = with_facts(store)
    train = slices.index[slices["split"] == "train"]
    slices.loc[train[0], "any"] = 1 - max(slices.loc[train[0], list(TASK.subtypes)])
    facts = dict(store.manifest.facts)
    made = make_audit(slices, store.studies, store.rejected(), facts, TASK)
    assert made["labels"]["any_differs_from_subtypes"] == [slices.loc[train[0], "slice_id"]]


def test_expected_counts_stand_beside_real_data_alone(store, audit):
    assert all(row["expected"] is None for row in audit["counts"])
    real = make_audit(
        with_facts(store), store.studies, store.rejected(), {**store.manifest.facts, "data": "rsna"}, TASK
    )
    assert {row["what"]: row["expected"] for row in real["counts"]} == EXPECTED_OF_RSNA_2019


def test_the_contact_sheet_shows_slices_through_the_three_windows(page):
    encoded = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page).group(1)
    sheet = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape == (4 * 3 * 96, 10 * 96)
    brain, subdural, bone = (sheet[row * 96 : (row + 1) * 96, 4 * 96 : 5 * 96].astype(float) for row in range(3))
    # Bone is white in the narrow windows and grey in the wide one.
    assert (brain > 230).mean() > 0.03 > (bone > 230).mean()
    assert np.abs(brain - subdural).mean() > 2


def test_the_page_needs_nothing_from_elsewhere_and_says_what_the_data_are(page, audit):
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # a picture may spell four letters
    assert "http" not in words.replace("http-equiv", "")
    assert "synthetic phantoms" in page
    assert "<svg" in page
    for reason in audit["rejected"]:
        assert reason in page
    assert re.findall(r"<(script|link)\b", page) == ["script"]


def test_an_audit_names_the_external_sets_there_are(store):
    made = make_audit(with_facts(store), store.studies, pd.DataFrame(columns=["reason"]), store.manifest.facts, TASK)
    assert list(made["external"]) == ["cq500"]
    assert made["external"]["cq500"]["prepared"] == len(store.split("cq500")["study_id"].unique())


def test_an_audit_of_training_slices_alone_has_no_external_set(store):
    train = with_facts(store)
    train = train[train["split"] == "train"]
    facts = {key: value for key, value in store.manifest.facts.items() if key != "cq500"}
    studies = store.studies[store.studies["split"] == "train"]
    made = make_audit(train, studies, pd.DataFrame(columns=["reason"]), facts, TASK)
    assert made["external"] == {}
    assert made["rejected"] == {}


def test_what_is_read_first_follows_from_the_audit(audit):
    def verdicts(**changes):
        return {check.what: check.verdict for check in find_checks({**audit, **changes}, TASK)}

    found = verdicts()
    assert found["Data"] == "warn"
    assert found["Labels"] == "pass"
    assert verdicts(data="rsna")["Data"] == "pass"
    labels = {**audit["labels"], "any_differs_from_subtypes": ["a"]}
    assert verdicts(labels=labels)["Labels"] == "fail"
    assert "Counts" not in found
    row = {"what": "training slices", "found": 1, "expected": 1}
    assert verdicts(counts=[row])["Counts"] == "pass"
    assert verdicts(counts=[{**row, "found": 2}])["Counts"] == "fail"
    assert verdicts(rejected={"x": 10_000})["Files"] == "warn"
    assert verdicts(rejected={})["Files"] == "pass"
    many = dict.fromkeys(TASK.classes, 30)
    assert verdicts(positive_studies=many)["Small classes"] == "pass"
    assert verdicts(positive_studies={**many, "any": 29})["Small classes"] == "warn"
    fold = {**audit["folds"][0], "prevalence": dict.fromkeys(TASK.classes, 0.1)}
    assert verdicts(folds=[fold])["Folds"] == "pass"
    assert verdicts(folds=[{**fold, "prevalence": {"any": 0.0}}])["Folds"] == "warn"
    padding = {"share": 0.3, "positive_rate_with": 0.1, "positive_rate_without": 0.14}
    assert verdicts(padding=padding)["Shortcut: padding"] == "pass"
    assert verdicts(padding={**padding, "positive_rate_without": 0.16})["Shortcut: padding"] == "warn"


def test_positive_studies_are_those_of_the_training_data(store, audit):
    train = store.studies[store.studies["split"] == "train"]
    assert audit["positive_studies"] == {name: int(train[name].sum()) for name in TASK.classes}


def test_bars_stand_from_the_lower_to_the_upper_end_of_their_bins():
    bins = [{"from": 0.0, "to": 2.0, "count": 3}, {"from": 2.0, "to": 7.0, "count": 1}]
    figure = draw_histogram([*bins, {"from": 7.0, "to": None, "count": 4}], "gap (mm)", "slices")
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in figure.axes[0].patches]
    assert bars == [(0, 2, 3), (2, 5, 1), (7, 5, 4)]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("gap (mm)", "slices")
