"""The design of the study in the words of its task, and the fields that only authors can fill in."""

import dataclasses

import pytest
from support.reports import CONFIG, make_report_work

from ichkit.core.tasks import TASKS
from ichkit.show.table import BLANK
from ichkit.stages.report import run as report
from ichkit.stages.report.design import AUTHOR_FIELDS, make_design, propose_title, say_kind


def collect(work):
    return report.collect(report.plan(CONFIG, work, report.ReportOptions(work.root / "submissions")))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return collect(make_report_work(tmp_path_factory.mktemp("design") / "work", folds=(), is_stacked=False))


def with_facts(given, task=None, **facts):
    """The same data as if prepared for another task or from other scans."""
    manifest = dataclasses.replace(given.prepared.manifest, facts={**given.prepared.manifest.facts, **facts})
    prepared = dataclasses.replace(given.prepared, manifest=manifest, task=task or given.task)
    return dataclasses.replace(given, prepared=prepared)


def rows_of(section, title):
    (table,) = (table for table in section.blocks if table.title == title)
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.lines}


def test_the_title_names_technology_task_and_validation(given):
    assert propose_title(given) == (
        "Intracranial hemorrhage on head CT by deep learning: development and cross-validation, external test on CQ500"
    )
    assert say_kind(given).startswith("Retrospective")
    alone = collect_without_external(given)
    assert "external" not in propose_title(alone) + say_kind(alone)


def collect_without_external(given):
    studies = given.prepared.studies
    prepared = dataclasses.replace(given.prepared, studies=studies[studies.dataset != "cq500"])
    return dataclasses.replace(given, prepared=prepared)


def test_another_task_speaks_its_own_words(given):
    fracture = dataclasses.replace(
        TASKS["subtypes"],
        name="fracture",
        classes=("skull",),
        weights=(1.0,),
        finding="fracture",
        title="Skull fracture",
    )
    section = make_design(with_facts(given, task=fracture))
    words = " ".join(cell.text for table in section.blocks for row in table.lines for cell in row).lower()
    assert "skull fracture by deep learning" in words
    assert "1 class for each slice and each study: skull." in words
    for foreign in ("bleed", "hemorrhage on", "epidural", "subtypes"):
        assert foreign not in words


def test_data_sources_carry_use_licence_and_place_and_phantoms_say_so(given):
    phantom = rows_of(make_design(given), "Data sources")
    assert "synthetic" in phantom["rsna"][0]
    assert phantom["rsna"][2:] == ["-", "-"]
    real = rows_of(make_design(with_facts(given, data="rsna")), "Data sources")
    assert real["CQ500"][2] == "CC BY-NC-SA 4.0"
    assert real["rsna"][3] == "www.kaggle.com/c/rsna-intracranial-hemorrhage-detection/data"
    assert real["CQ500"][1] == "external test (20 studies)"
    studies = given.prepared.studies
    counts = studies[studies.dataset == "rsna"].split.value_counts()
    assert f"training and cross-validation ({counts['train']} studies)" in real["rsna"][1]


def test_scans_of_a_user_have_terms_that_only_authors_know(given):
    studies = given.prepared.studies
    own = studies.assign(dataset=studies.dataset.str.replace("rsna", "folder"))
    prepared = dataclasses.replace(with_facts(given, data="folder").prepared, studies=own)
    rows = rows_of(make_design(dataclasses.replace(given, prepared=prepared)), "Data sources")
    assert rows["folder"][2:] == [BLANK, BLANK]


def test_every_field_of_the_authors_is_left_open_with_a_mark(given):
    fields = rows_of(make_design(given), "For the authors")
    assert set(fields) == set(AUTHOR_FIELDS)
    assert {"abstract", "background", "hypotheses", "registration", "protocol", "funding", "ethics"} <= set(fields)
    assert all(cells[-1] == BLANK for cells in fields.values())
