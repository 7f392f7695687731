"""`prepare.header_facts`: one row per stored study, only of the facts that were named, and nothing else anywhere."""

import pandas as pd
import pytest
from support.commands import do
from support.dicoms import write_series
from support.simulated import TASK

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.imaging.store import Prepared
from ichkit.stages.prepare import run as prepare
from ichkit.stages.report import run as report
from ichkit.stages.report.population import make_population
from ichkit.work.folder import WorkFolder

SMALL = ("prepare.workers=1", "prepare.num_folds=2")
NAMED = "prepare.header_facts=[manufacturer, age, kvp]"
PEOPLE = [
    ("SIEMENS", "034Y", "F", 120),
    ("Philips", "071Y", "M", 140),
    ("SIEMENS", "078Y", "F", 120),
    ("", "", "M", 120),
]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Four studies of a folder with facts in their headers, and labels."""
    root = tmp_path_factory.mktemp("facts")
    for i, (maker, age, sex, kvp) in enumerate(PEOPLE):
        tags = {"Manufacturer": maker, "PatientAge": age, "PatientSex": sex, "KVP": kvp, "PatientName": f"PERSON^{i}"}
        uids = {"study_uid": f"1.3.{i}", "series_uid": f"1.3.{i}.1", "patient_id": f"PERSON {i}"}
        write_series(root / "scans" / f"s{i}", 4, **uids, **tags)
    labels = pd.DataFrame({"study_id": [f"1.3.{i}" for i in range(4)]})
    labels[list(TASK.subtypes)] = [[i % 2] * len(TASK.subtypes) for i in range(4)]
    labels.to_csv(root / "labels.csv", index=False)
    return root


def options(scans, **more):
    return prepare.PrepareOptions(folder=scans / "scans", labels=scans / "labels.csv", **more)


@pytest.fixture(scope="module")
def work(scans):
    work = WorkFolder(scans / "work")
    do(prepare, load_config("default", (*SMALL, NAMED)), work, options(scans))
    return work


def test_the_named_facts_stand_in_a_table_of_their_own(work):
    facts = Prepared.open(work.prepared, TASK).header_facts().set_index("study_id")
    assert list(facts.columns) == ["dataset", "age", "kvp", "manufacturer"]
    found = facts.loc[[f"1.3.{i}" for i in range(4)]]
    assert found.manufacturer.tolist()[:3] == ["siemens", "philips", "siemens"]
    assert found.age.tolist()[:3] == ["30-39", "70-79", "70-79"]
    assert found[["manufacturer", "age"]].iloc[3].isna().all()
    assert found.kvp.tolist() == [120, 140, 120, 120]


def test_nothing_else_of_a_header_is_anywhere_in_the_store(work):
    for path in work.prepared.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"PERSON" not in data
            assert b"078Y" not in data
            assert path.suffix != ".parquet" or b"female" not in data


def test_without_the_option_there_is_no_such_table(scans, tmp_path):
    work = WorkFolder(tmp_path / "work")
    do(prepare, load_config("default", SMALL), work, options(scans))
    assert not (work.prepared / "header_facts.parquet").exists()
    assert Prepared.open(work.prepared, TASK).header_facts().empty


def test_an_unknown_fact_is_refused_and_other_facts_are_other_settings(scans, work):
    with pytest.raises(ConfigError, match=r'prepare.header_facts: unknown "name"'):
        prepare.plan(load_config("default", (*SMALL, "prepare.header_facts=[name]")), work, options(scans))
    with pytest.raises(ArtifactError, match="made from other settings"):
        prepare.plan(load_config("default", (*SMALL, "prepare.header_facts=[sex]")), work, options(scans))


def test_table_1_shows_them_by_partition(work):
    config = load_config("default", (*SMALL, NAMED))
    given = report.collect(report.plan(config, work, report.ReportOptions(work.root / "submissions")))
    table = make_population(given).blocks[0]
    rows = {row[0].text: (row[1].text, row[1].small) for row in table.lines}
    assert rows["manufacturer: siemens"] == ("2", "50.0%")
    assert rows["manufacturer: unknown"] == ("1", "25.0%")
    assert rows["age, years: 70-79"] == ("2", "50.0%")
    assert list(rows).index("age, years: 30-39") < list(rows).index("age, years: 70-79")
    assert rows["tube voltage, kV"][0] == "120.0"
