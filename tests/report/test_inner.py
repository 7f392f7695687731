"""Decisions at the thresholds of validation patients, and those of readers beside."""

import numpy as np
import pandas as pd
import pytest
from support.reports import CONFIG, Page, make_report_work
from support.simulated import TASK

from ichkit.imaging.store import Prepared
from ichkit.show import page
from ichkit.stages.report import run as report
from ichkit.stages.report.inner import make_inner
from ichkit.stages.scores.score_source import read_out_of_fold
from ichkit.work.artifacts import ArtifactWriter, read_manifest
from ichkit.work.folder import THRESHOLDS_NAME

THRESHOLDS = {0: 0.2, 1: 0.6}


def add_table(folder, name, table):
    """Adds a table to a finished artifact."""
    old = read_manifest(folder)
    writer = ArtifactWriter(folder, old.kind)
    for own in old.files:
        writer.write_bytes(own, (folder / own).read_bytes())
    writer.write_bytes(name, table.to_csv(index=False).encode())
    writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


def collect(root, work):
    return report.collect(report.plan(CONFIG, work, report.ReportOptions(root / "submissions")))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A run with thresholds: any of 0.2 and 0.6, epidural of one fold alone; and a stack without."""
    root = tmp_path_factory.mktemp("inner")
    work = make_report_work(root / "work")
    for fold, threshold in THRESHOLDS.items():
        values = [np.nan if name == "epidural" and fold else threshold for name in TASK.classes]
        table = pd.DataFrame({"class": TASK.classes, "threshold": values, "n": 5, "n_positive": 2})
        add_table(work.fold("a", fold), THRESHOLDS_NAME, table)
    studies = Prepared.open(work.prepared, TASK).split("train").groupby("study_id")["any"].max()
    readers = {1: studies, 2: 1 - studies, 3: studies}
    reads = pd.concat(
        pd.DataFrame({"study_id": studies.index, "reader": number}).assign(
            **{**dict.fromkeys(TASK.classes, np.nan), "any": read.to_numpy()}
        )
        for number, read in readers.items()
    )
    add_table(work.prepared, "rsna_reads.csv", reads)
    return collect(root, work)


@pytest.fixture(scope="module")
def tables(given):
    values = {"task": TASK, "data": "phantom", "notice": "", "made": "", "inputs": ""}
    return Page(page.render("ichkit.stages.report", "report.html.j2", sections=[make_inner(given)], **values)).tables


def test_each_fold_is_decided_at_its_own_threshold(given, tables):
    rows = tables["a, studies out of fold"]
    shown = {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}
    source = next(one for one in given.sources if one.name == "a")
    scored = read_out_of_fold(source, given.prepared, given.config)
    fold = scored.facts.fold.to_numpy(int)[scored.first_of_study]
    at = np.array([THRESHOLDS[number] for number in fold])
    c = TASK.headline_index
    is_yes, truth = scored.studies.probabilities[:, c] >= at, scored.studies.labels[:, c] == 1
    expected = {
        "sensitivity": is_yes[truth].mean(),
        "specificity": (~is_yes[~truth]).mean(),
        "accuracy": (is_yes == truth).mean(),
    }
    assert 0 < expected["sensitivity"] < 1 or 0 < expected["specificity"] < 1
    for name, value in expected.items():
        assert shown["any"][name].startswith(f"{value:.4f}"), name
    assert shown["any"]["threshold"].startswith("0.400")
    assert shown["epidural"]["sensitivity"] == "-"


def test_readers_stand_beside_with_their_majority(tables):
    rows = tables["Readers of rsna"]
    found = {(row[0], row[1]): dict(zip(rows[0][2:], row[2:], strict=True)) for row in rows[1:]}
    assert set(found) == {("any", reader) for reader in ("reader 1", "reader 2", "reader 3", "majority of readers")}
    assert found["any", "reader 1"]["accuracy"].startswith("1.0000")
    assert found["any", "reader 2"]["accuracy"].startswith("0.0000")
    assert found["any", "majority of readers"]["sensitivity"].startswith("1.0000")


def test_without_validation_patients_there_is_no_section(tmp_path):
    assert make_inner(collect(tmp_path, make_report_work(tmp_path / "work"))) is None
