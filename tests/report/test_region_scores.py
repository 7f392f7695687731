"""The score of regions in the report: by hand for three patients, and where there is none."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score
from support.reports import CONFIG

from ichkit.core.tasks import find_task
from ichkit.imaging.parts import UNCUT, PartSettings
from ichkit.imaging.regions import ASPECTS, REGIONS
from ichkit.show.blocks import Missing
from ichkit.stages.report import region_scores
from ichkit.validation.score_agreement import measure_agreement
from ichkit.validation.tallies import ScoredRows

TASK = find_task("ischemia")
NAMES = [region.name for region in REGIONS if region.group == ASPECTS]
# Regions of the left side, of 10, with an early sign by the labels, and by the networks.
PATIENTS = {"a": (0, 1), "b": (4, 4), "c": (6, 3), "d": (0, 0)}


def make_report(monkeypatch, *, classes=("early",), parts=None, unknown=()):
    """Four patients in two folds: probabilities of .9 for what the networks find, .1 for the rest."""
    rows = []
    for number, (patient, (true, found)) in enumerate(PATIENTS.items()):
        for side in ("right", "left"):
            for place, name in enumerate(NAMES):
                label = float(side == "left" and place < true)
                label = np.nan if (patient, side, name) in unknown else label
                p = 0.9 if side == "left" and place < found else 0.1
                rows.append((f"{patient}1:{side}-{name}", patient, number % 2, label, p))
    table = pd.DataFrame(rows, columns=["study_id", "patient_id", "fold", "label", "p"])
    c, shape = TASK.classes.index("early"), (len(table), len(TASK.classes))
    labels, probabilities = np.full(shape, np.nan), np.full(shape, 0.5)
    labels[:, c], probabilities[:, c] = table["label"], table["p"]
    place = {"dataset": "folder", "split": "train", "fold": -1}
    scored = SimpleNamespace(
        facts=table,
        studies=ScoredRows(place, probabilities, labels, pd.factorize(table["patient_id"])[0]),
        part_of_study=table["fold"].to_numpy(),
        first_of_study=np.arange(len(table)),
    )
    monkeypatch.setattr(region_scores, "read_out_of_fold", lambda *_: scored)
    source = SimpleNamespace(name="demo", scope=SimpleNamespace(classes=classes))
    prepared = SimpleNamespace(parts=PartSettings("aspects", regions=REGIONS) if parts is None else parts)
    return SimpleNamespace(task=TASK, prepared=prepared, shown=[source], config=CONFIG)


def values_of(section):
    table = section.blocks[-1]
    return {str(row[0]): (getattr(row[1], "text", row[1]), row[2]) for row in table.rows}


def test_scores_of_networks_and_labels_are_those_counted_by_hand(monkeypatch):
    section = region_scores.make_region_scores(make_report(monkeypatch))
    # By the labels 10, 6, 4, 10; by the networks 9, 6, 7, 10.
    assert values_of(section) == {
        "median score, networks": ("8", "4"),
        "median score, labels": ("8", "4"),
        "mean absolute difference": ("1.000", "4"),
        "mean difference": ("0.500", "4"),
        "share of equal scores": ("0.500", "4"),
        "share within one point": ("0.750", "4"),
        "kappa, quadratic weights": ("0.737", "4"),  # 1 - 2.5 / 9.5
        "sensitivity, scores of 7 or less": ("1.000", "2"),
        "specificity, scores of 7 or less": ("1.000", "2"),
    }
    (chart,) = section.blocks[1].charts
    assert "9 for 10: 1" in chart.svg
    assert "7 for 4: 1" in chart.svg


def test_regions_of_unknown_label_take_no_point_off_the_score_of_the_networks(monkeypatch):
    unknown = {("a", "left", NAMES[0]), ("c", "left", NAMES[0])}
    values = values_of(region_scores.make_region_scores(make_report(monkeypatch, unknown=unknown)))
    # By the labels 10, 6, 5, 10; by the networks 10, 6, 8, 10.
    assert values["mean absolute difference"] == ("0.750", "4")
    assert values["share of equal scores"] == ("0.750", "4")


def test_there_is_no_section_without_regions_and_a_hint_without_a_source_of_the_class(monkeypatch):
    assert region_scores.make_region_scores(make_report(monkeypatch, parts=UNCUT)) is None
    (missing,) = region_scores.make_region_scores(make_report(monkeypatch, classes=("old",))).blocks
    assert isinstance(missing, Missing)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn_and_its_interval_holds_it(seed):
    rng = np.random.default_rng(seed)
    theirs = rng.integers(2, 11, 60)
    ours = np.clip(theirs + rng.integers(-2, 3, 60), 0, 10)
    found = {
        one.name: one
        for one in measure_agreement(ours, theirs, np.arange(60) // 2, cut=7, num_draws=200, level=0.95, seed=0)
    }
    kappa = found["kappa, quadratic weights"]
    assert kappa.value == pytest.approx(cohen_kappa_score(ours, theirs, weights="quadratic", labels=list(range(11))))
    assert kappa.low < kappa.value < kappa.high
    assert found["mean difference"].value == pytest.approx((ours - theirs).mean())
    assert found["sensitivity, scores of 7 or less"].value == pytest.approx((ours[theirs <= 7] <= 7).mean())


def test_what_cannot_be_measured_is_not_a_number():
    same = np.full(5, 10)
    found = {
        one.name: one.value
        for one in measure_agreement(same, same, np.arange(5), cut=7, num_draws=64, level=0.95, seed=0)
    }
    assert np.isnan(found["kappa, quadratic weights"])
    assert np.isnan(found["sensitivity, scores of 7 or less"])
    assert found["specificity, scores of 7 or less"] == 1
