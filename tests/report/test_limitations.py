"""Limitations are found where they are and only there; the intended use is told in the words of the task."""

import dataclasses

import pytest
from support.reports import CONFIG, make_report_work
from support.simulated import TASK

from ichkit.core.tasks import TASKS
from ichkit.stages.report import run as report
from ichkit.stages.report.limitations import find_limitations, make_limitations, say_use
from ichkit.stages.scores.book import STUDIES


def collect(work):
    return report.collect(report.plan(CONFIG, work, report.ReportOptions(work.root / "submissions")))


def with_store(given, data=None, **changed):
    facts = {**given.prepared.manifest.facts, **changed.pop("facts", {})}
    manifest = dataclasses.replace(given.prepared.manifest, facts=facts)
    prepared = dataclasses.replace(given.prepared, manifest=manifest, **changed)
    return dataclasses.replace(given, prepared=prepared, data=data or given.data)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Few patients, one of two folds, missing studies."""
    work = make_report_work(tmp_path_factory.mktemp("small") / "work", folds=(0,), cq500_missing=2, is_stacked=False)
    return collect(work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """More patients, every fold, a stack."""
    return collect(make_report_work(tmp_path_factory.mktemp("whole") / "work", num_patients=120))


def test_what_a_small_work_folder_lacks_is_listed_with_its_figures(small):
    found = dict(find_limitations(small))
    patients = small.prepared.split("train").patient_id.nunique()
    assert found["few patients"] == f"{patients} patients in the training data"
    assert found["folds not trained"] == "1: scores cover 1 of 2 folds"
    assert found["missing studies of CQ500"] == "2 studies with labels have no usable images"
    assert "synthetic scans" in found
    assert "gains not confirmed on locked patients" in found
    assert "choice among models" not in found
    score = small.scores.find(small.best, "roc_auc", "epidural", STUDIES)
    assert f"epidural ({score.n_positive})" in found["few positive studies"]


def test_what_is_there_is_not_listed_as_missing(whole):
    found = dict(find_limitations(whole))
    assert found["choice among models"].startswith("the best of 3 ")
    for absent in ("few patients", "folds not trained", "missing studies of CQ500", "no external test", "weak labels"):
        assert absent not in found
    assert "synthetic scans" not in dict(find_limitations(with_store(whole, data="rsna")))


def test_without_an_external_set_that_is_said(small):
    studies = small.prepared.studies
    found = dict(find_limitations(with_store(small, studies=studies[studies.dataset != "cq500"])))
    assert "no external test" in found
    assert not [name for name in found if "CQ500" in name and "looks" not in name]


def test_padding_is_named_where_it_separates_positives(whole):
    slices = whole.prepared.slices.copy()
    slices["padded"] = slices["any"].eq(1).fillna(False).astype(bool)
    assert "padding marks a group of scanners" in dict(find_limitations(with_store(whole, slices=slices)))
    slices["padded"] = slices.slice_index % 2 == 0
    assert "padding marks a group of scanners" not in dict(find_limitations(with_store(whole, slices=slices)))


def test_labels_copied_from_studies_are_weak(whole):
    found = dict(find_limitations(with_store(whole, facts={"rsna": {"labels": "study"}})))
    assert found["weak labels"].startswith("rsna")


def test_the_intended_use_is_research_in_the_words_of_the_task(whole):
    task = dataclasses.replace(TASKS["subtypes"], finding="fracture", title="Skull fracture")
    text = " ".join(say_use(with_store(whole, task=task)))
    assert text.startswith("Intended use: research on methods that detect fracture")
    assert "Not for diagnosis" in text
    assert "hemorrhage" not in text
    assert TASK.finding in " ".join(say_use(whole))


def test_the_section_leaves_room_for_the_authors(whole):
    table = make_limitations(whole).blocks[0]
    assert table.lines[-1][0].text == "further limitations"
    assert table.lines[-1][1].tone == "warn"
