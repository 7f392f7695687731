"""The reference standard: words of each data source, what only its owner knows, and counts of unknown labels."""

import dataclasses

import pandas as pd
import pytest
from support.reports import CONFIG, make_report_work
from support.simulated import TASK

from ichkit.show.table import BLANK
from ichkit.sources.table import SOURCES
from ichkit.stages.report import run as report
from ichkit.stages.report.design import make_design
from ichkit.stages.report.reference import make_reference


def collect(work):
    return report.collect(report.plan(CONFIG, work, report.ReportOptions(work.root / "submissions")))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return collect(make_report_work(tmp_path_factory.mktemp("reference") / "work", folds=(), is_stacked=False))


def with_facts(given, **facts):
    manifest = dataclasses.replace(given.prepared.manifest, facts={**given.prepared.manifest.facts, **facts})
    return dataclasses.replace(given, prepared=dataclasses.replace(given.prepared, manifest=manifest))


def rows_of(given, title):
    (table,) = (block for block in make_reference(given).blocks if block.kind == "table" and block.title == title)
    return {row[0].text: row[1:] for row in table.lines}


def test_public_data_are_labelled_as_their_source_says_and_the_rest_is_left_open(given):
    real = with_facts(given, data="rsna")
    rows = rows_of(real, "Reference standard of CQ500")
    assert rows["labelled by"][0].text == SOURCES["cq500"].reference
    assert "2 of the 3 readers" in rows["positive if"][0].text
    assert rows["annotation tool"][0].text == BLANK
    assert rows["rationale"][0].text == BLANK
    assert rows_of(real, "Reference standard of rsna")["annotation tool"][0].text == "the web platform of MD.ai"


def test_phantoms_have_no_reader_and_say_why_their_labels_are_known(given):
    rows = rows_of(given, "Reference standard of rsna")
    assert rows["labelled by"][0].text.startswith("no reader")
    assert "because" in rows["rationale"][0].text
    assert BLANK not in {cells[0].text for cells in rows.values()}


def test_own_scans_beside_a_phantom_are_not_called_synthetic(given):
    own = with_facts(given, rsna={"is_phantom": True}, cq500={"is_phantom": False})
    assert rows_of(own, "Reference standard of CQ500")["labelled by"][0].text == SOURCES["cq500"].reference
    assert rows_of(own, "Reference standard of rsna")["labelled by"][0].text.startswith("no reader")
    (described,) = (table for table in make_design(own).blocks if table.title == "Data sources")
    texts = {row[0].text: row[1].text for row in described.lines}
    assert "synthetic" in texts["rsna"]
    assert texts["CQ500"] == SOURCES["cq500"].description


def test_labels_per_study_are_said_to_be_weak_where_they_are_copied(given):
    weak = with_facts(given, data="rsna", rsna={"labels": "study"})
    assert "weak labels" in rows_of(weak, "Reference standard of rsna")["positive if"][0].text
    assert "weak" not in rows_of(weak, "Reference standard of CQ500")["positive if"][0].text


def test_known_and_unknown_labels_are_counted(given):
    slices = given.prepared.slices.copy()
    train = slices.index[slices.split == "train"]
    slices.loc[train[:5], "subdural"] = pd.NA
    changed = dataclasses.replace(given, prepared=dataclasses.replace(given.prepared, slices=slices))
    rows = rows_of(changed, "Positive labels, and unknown ones")
    own = slices[slices.split == "train"]
    at = 1 + TASK.classes.index("subdural")
    cell = rows["rsna train, slices"][at]
    assert (cell.text, cell.small) == (f"{int(own.subdural.sum()):,}", "5 unknown")
    assert rows["rsna train, slices"][0].text == f"{len(own):,}"
    assert {cell.small for cell in rows["rsna test, slices"][1:]} == {"unknown"}
    assert rows["CQ500 external, studies"][at].small == ""
