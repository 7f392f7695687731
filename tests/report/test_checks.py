"""Read this first: every verdict follows from what is wrong with data, folds, predictions or classes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.reports import CONFIG, make_report_work

from ichkit.stages.report import checks
from ichkit.stages.report import run as report
from ichkit.validation.recalibration import measure_calibration
from ichkit.work.artifacts import FileDigest


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("checks")
    work = make_report_work(root / "work", cq500_missing=2)
    return report.collect(report.plan(CONFIG, work, report.ReportOptions(root / "submissions")))


def verdicts(given):
    (listed,) = checks.make_first(given).blocks
    return {check.what: (check.verdict, check.found) for check in listed.checks}


def with_slices(given, slices):
    return replace(given, prepared=replace(given.prepared, slices=slices))


def with_digests(given, digests):
    files = {name: FileDigest(sha256, 1) for name, sha256 in digests.items()}
    manifest = replace(given.prepared.manifest, files={**given.prepared.manifest.files, **files})
    return replace(given, prepared=replace(given.prepared, manifest=manifest))


def test_data_of_phantoms_warn_and_other_data_pass(given):
    assert verdicts(given)["Data"][0] == "warn"
    assert verdicts(replace(given, data="rsna"))["Data"][0] == "pass"
    assert verdicts(replace(given, data="rsna transductive"))["Data"][0] == "warn"


def test_a_patient_in_two_folds_fails_and_a_fold_without_positives_warns(given):
    slices = given.prepared.slices
    found = verdicts(given)["Folds"]
    patient = slices.patient_id[slices.fold == 0].iloc[0]
    split = slices.copy()
    split.loc[split.index[split.patient_id == patient][0], "fold"] = 1
    before = replace(with_slices(given, split), book=None)  # tables of other folds are refused before
    assert verdicts(before)["Folds"] == ("fail", "patients with slices in more than one fold: 1")
    bare = slices.copy()
    bare.loc[bare.fold == 1, "epidural"] = 0
    verdict, text = verdicts(with_slices(given, bare))["Folds"]
    assert verdict == "warn"
    assert "epidural (fold 1)" in text
    assert "epidural (fold 1)" not in found[1]


def test_a_training_scan_that_is_also_in_another_fold_or_set_fails(given):
    slices = given.prepared.slices
    volumes = {name: slices.volume[mask].iloc[0] for name, mask in {
        "fold 0": slices.fold == 0, "fold 1": slices.fold == 1, "outside": slices.split == "external",
    }.items()}  # fmt: skip
    other = slices.volume[(slices.fold == 0) & (slices.volume != volumes["fold 0"])].iloc[0]
    distinct = {path: f"digest {i}" for i, path in enumerate(slices.volume.unique())}
    assert verdicts(with_digests(given, distinct))["Leak canary: scans"][0] == "pass"
    for twin in ("fold 1", "outside"):
        shared = {**distinct, volumes[twin]: distinct[volumes["fold 0"]]}
        assert verdicts(with_digests(given, shared))["Leak canary: scans"][0] == "fail"
    within = {**distinct, other: distinct[volumes["fold 0"]]}  # copies within a fold leak nothing
    assert verdicts(with_digests(given, within))["Leak canary: scans"][0] == "pass"
    assert verdicts(given)["Leak canary: scans"][0] == "warn"  # this store has no digests of volumes


def test_predictions_by_the_models_of_another_fold_fail(given):
    assert verdicts(given)["Leak canary: predictions"][0] == "pass"
    other = replace(given)
    facts = given.scored.facts
    other.__dict__["scored"] = replace(given.scored, facts=facts.assign(fold=1 - facts.fold))
    assert verdicts(other)["Leak canary: predictions"][0] == "fail"


def test_the_gain_of_the_second_stage_is_confirmed_or_lost_on_locked_patients(given, monkeypatch):
    verdict, text = verdicts(given)["Leak canary: second stage"]
    assert verdict == "warn"
    assert "ichkit prepare --lock" in text
    row = {"source": given.second.name, "oof_gain": 0.02, "locked_gain": 0.019, "difference": -0.001}
    for high, expected in ((0.004, "pass"), (-0.0005, "fail")):
        table = pd.DataFrame([{**row, "difference_low": -0.006, "difference_high": high}])
        monkeypatch.setattr(checks, "read_proof", lambda *_, table=table: table)
        assert verdicts(given)["Leak canary: second stage"][0] == expected


def test_calibration_is_that_of_the_headline_class_by_slice(given):
    rows, c = given.scored.slices, given.task.headline_index
    found = measure_calibration(
        rows.probabilities[:, c], rows.labels[:, c], rows.members, num_draws=5, level=0.95, seed=0
    )
    is_good = found.slope.low <= 1 <= found.slope.high and found.intercept.low <= 0 <= found.intercept.high
    verdict, text = verdicts(given)["Calibration of any"]
    assert verdict == ("pass" if is_good else "warn")
    assert f"slope {found.slope.value:.2f}" in text
    extreme = replace(given)
    logits = 4 * np.log(rows.probabilities / (1 - rows.probabilities))
    slices = replace(rows, probabilities=1 / (1 + np.exp(-logits)))
    extreme.__dict__["scored"] = replace(given.scored, slices=slices)
    assert verdicts(extreme)["Calibration of any"][0] == "warn"


def test_small_classes_are_named_with_their_positive_studies(given, monkeypatch):
    verdict, text = verdicts(given)["Small classes"]
    assert verdict == "warn"
    positive = given.scored.studies.labels[:, 0] == 1
    assert f"epidural ({positive.sum()})" in text
    monkeypatch.setattr(checks, "FEW_POSITIVES", 2)
    assert verdicts(given)["Small classes"][0] == "pass"
    monkeypatch.setattr(checks, "count_studies", lambda *_: (0, 9))
    assert verdicts(given)["Small classes"][0] == "fail"


def test_before_training_the_data_and_folds_are_checked_alone(given):
    found = verdicts(replace(given, book=None))
    assert set(found) == {"Data", "Files", "Folds", "Leak canary: scans", "Small classes"}
