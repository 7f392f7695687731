"""Table 1 against the tables of the store: counts, shares, medians and quartiles of every partition and fold."""

import numpy as np
import pytest
from support.commands import do, phantom_options
from support.reports import CONFIG, make_report_work
from support.simulated import TASK

from ichkit.show.words import tables_of
from ichkit.stages.prepare import run as prepare
from ichkit.stages.report import run as report
from ichkit.stages.report.population import describe_studies, list_folds, list_partitions, make_population
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder


def collect(work, config=CONFIG):
    return report.collect(report.plan(config, work, report.ReportOptions(work.root / "submissions")))


@pytest.fixture(scope="module")
def stored(phantom_root, tiny_config, tmp_path_factory):
    work = WorkFolder(tmp_path_factory.mktemp("population") / "work")
    do(prepare, tiny_config, work, phantom_options(phantom_root, lock=0.25))
    return collect(work, tiny_config)


@pytest.fixture(scope="module")
def tables(stored):
    """Title to (headings, row name to cells)."""
    found = {}
    for table in tables_of(make_population(stored)):
        found[table.title] = table.columns, {row[0].text: row[1:] for row in table.lines}
    return found


def test_every_partition_has_its_counts(stored, tables):
    columns, rows = tables["Table 1: patients and scans by partition"]
    assert columns == ("", "training", "test", "CQ500", "locked")
    slices = read_table(stored.prepared.folder / "slices.parquet")
    is_own = [slices.split == "train", slices.split == "test", slices.dataset == "cq500", slices.dataset == "locked"]
    for number, part in enumerate(slices[own] for own in is_own):
        shown = [rows[name][number].text for name in ("patients", "studies", "slices")]
        assert shown == [f"{part.patient_id.nunique()}", f"{part.study_id.nunique()}", f"{len(part):,}"]


def test_positives_are_those_of_the_studies_with_a_known_label(stored, tables):
    _, rows = tables["Table 1: patients and scans by partition"]
    studies = read_table(stored.prepared.folder / "studies.parquet")
    for name in TASK.classes:
        training, test, cq500, locked = rows[f"{name}, studies"]
        assert (test.text, test.small) == ("-", "unknown")
        for cell, own in ((training, studies.split == "train"), (cq500, studies.dataset == "cq500")):
            assert cell.text == f"{studies[own][name].sum()}"
            assert cell.small.split(",")[0] == f"{studies[own][name].astype(float).mean():.1%}"
        assert int(training.text) + int(locked.text) == studies[studies.dataset.isin(["rsna", "locked"])][name].sum()


def test_medians_and_quartiles_are_of_studies_not_of_slices(stored, tables):
    _, rows = tables["Table 1: patients and scans by partition"]
    slices = read_table(stored.prepared.folder / "slices.parquet")
    spacings = {  # study by study, the plain way
        study: (len(own), np.nanmedian(own.gap_mm.astype(float)), np.ptp(own.position_mm))
        for study, own in slices[slices.split == "train"].groupby("study_id")
    }
    for row, name, digits in ((0, "slices per study", 0), (1, "slice gap, mm", 2), (2, "coverage, mm", 0)):
        low, middle, high = np.percentile([values[row] for values in spacings.values()], (25, 50, 75))
        cell = rows[name][0]
        assert cell.text == f"{middle:.{digits}f}"
        assert cell.small == f"{low:.{digits}f} to {high:.{digits}f}"


def test_folds_sum_to_the_training_data(stored, tables):
    columns, rows = tables["Training data by fold"]
    assert columns == ("", "fold 0", "fold 1", "fold 2")
    _, whole = tables["Table 1: patients and scans by partition"]
    for name in ("patients", "studies", "slices", *(f"{name}, studies" for name in TASK.classes)):
        assert sum(int(cell.text.replace(",", "")) for cell in rows[name]) == int(whole[name][0].text.replace(",", ""))


def test_only_other_partitions_have_a_difference_to_training(tables):
    _, rows = tables["Table 1: patients and scans by partition"]
    assert all(cells[2].small.split(", ")[-1].startswith("d ") for name, cells in rows.items() if "gap" in name)
    assert not any("d " in cells[0].small for cells in rows.values())
    _, of_folds = tables["Training data by fold"]
    assert not any("d " in cell.small for cells in of_folds.values() for cell in cells)


def test_a_store_without_an_external_set_has_two_columns_and_unknown_labels_are_counted(tmp_path):
    work = make_report_work(tmp_path / "work", folds=(), cq500_studies=0, is_stacked=False)
    given = collect(work)
    studies = describe_studies(given.prepared)
    assert [one.name for one in list_partitions(given.prepared, studies)] == ["training", "test"]
    assert len(list_folds(given.prepared, studies)) == 2
    given.prepared.studies.loc[given.prepared.studies.split == "train", "any"] = None
    table, _ = tables_of(make_population(given))
    (row,) = (row for row in table.lines if row[0].text == "any, studies")
    assert row[1].small == "unknown"


def test_facts_of_headers_that_were_not_kept_are_named_with_the_option_that_keeps_them(stored):
    (missing,) = (block for block in make_population(stored).blocks if block.kind == "missing")
    assert "prepare.header_facts" in missing.command
