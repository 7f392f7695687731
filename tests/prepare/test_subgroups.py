"""`prepare --subgroup`: columns of label files, by study, of the sets that have them; nothing that may name anybody."""

import pandas as pd
import pytest
from support.commands import call, do, phantom_options
from support.dicoms import write_series
from support.simulated import TASK

from ichkit.core.errors import ConfigError, DataError
from ichkit.imaging.store import Prepared
from ichkit.sources.external import ExternalSet
from ichkit.stages.prepare import run as prepare
from ichkit.work.folder import WorkFolder

HOSPITALS = ["North", "South", "", "North"]
SEVERITY = [1.5, 12, 3, 40]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Four studies of three slices; one label file per study, one per slice."""
    root = tmp_path_factory.mktemp("site")
    rows = []
    for i in range(4):
        uids = {"study_uid": f"1.3.{i}", "series_uid": f"1.3.{i}.1", "patient_id": f"PERSON {i}"}
        write_series(root / "scans" / f"s{i}", 3, **uids)
        labels = dict.fromkeys(TASK.subtypes, i % 2)
        rows.append({"study_id": f"1.3.{i}", **labels, "Hospital": HOSPITALS[i], "severity": SEVERITY[i]})
    studies = pd.DataFrame(rows).assign(born="1949-03-02", reader=[f"reader {i}" for i in range(4)])
    studies.to_csv(root / "studies.csv", index=False)
    slices = studies.loc[studies.index.repeat(3)].reset_index(drop=True)
    slices["slice_id"] = [f"{row.study_id}.1.{i % 3 + 1}" for i, row in enumerate(slices.itertuples())]
    # One study is said to be of two hospitals.
    slices.loc[0, "Hospital"] = "South"
    slices.drop(columns="study_id").to_csv(root / "slices.csv", index=False)
    return root


def prepared_with(site, phantom_root, tiny_config, tmp_path, labels, **options):
    work = WorkFolder(tmp_path / "work")
    external = (ExternalSet("site", site / "scans", site / labels),)
    do(prepare, tiny_config, work, phantom_options(phantom_root, external=external, **options))
    return Prepared.open(work.prepared, TASK)


def of_site(store):
    groups = store.study_groups()
    assert set(groups["dataset"]) == {"rsna", "cq500", "site"}
    assert groups[groups["dataset"] != "site"].drop(columns=["dataset", "study_id"]).isna().all(axis=None)
    return groups[groups["dataset"] == "site"].set_index("study_id").drop(columns="dataset")


def test_named_columns_are_kept_by_study_and_no_other(site, phantom_root, tiny_config, tmp_path):
    store = prepared_with(site, phantom_root, tiny_config, tmp_path, "studies.csv", subgroups=("hospital,severity",))
    found = of_site(store)
    assert list(found.columns) == ["hospital", "severity"]
    assert found["hospital"].fillna("-").to_list() == ["North", "South", "-", "North"]
    assert found["severity"].to_list() == ["1.5", "12.0", "3.0", "40.0"]
    for path in store.folder.rglob("*"):
        assert not path.is_file() or b"1949-03-02" not in path.read_bytes()  # four digits alone a digest may spell
    # A later call without the option keeps them.
    options = phantom_options(phantom_root, external=(ExternalSet("site", site / "scans", site / "studies.csv"),))
    assert prepare.plan(tiny_config, WorkFolder(tmp_path / "work"), options).subgroups == ("hospital", "severity")
    assert prepare.plan(tiny_config, WorkFolder(tmp_path / "work"), options).current is not None


def test_a_study_whose_slices_differ_is_of_several(site, phantom_root, tiny_config, tmp_path):
    store = prepared_with(site, phantom_root, tiny_config, tmp_path, "slices.csv", subgroups=("hospital",))
    assert of_site(store)["hospital"].fillna("-").to_list() == ["several", "South", "-", "North"]


def test_a_store_without_the_option_is_as_before(site, phantom_root, tiny_config, tmp_path):
    store = prepared_with(site, phantom_root, tiny_config, tmp_path, "studies.csv")
    assert "subgroups.parquet" not in store.manifest.files
    assert "subgroups" not in store.manifest.inputs
    assert store.study_groups().empty


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("born", DataError, "--subgroup born: found values like dates"),
        ("hospitl", ConfigError, 'expected a column "hospitl".*hospital'),
        ("position", ConfigError, '"position" cannot be a subgroup'),
        ("epidural", ConfigError, '"epidural" cannot be a subgroup'),
        ("kvp", ConfigError, '"kvp" cannot be a subgroup'),
    ],
)
def test_what_is_no_group_is_refused(site, phantom_root, tiny_config, tmp_path, name, error, message):
    with pytest.raises(error, match=message):
        prepared_with(site, phantom_root, tiny_config, tmp_path, "studies.csv", subgroups=(name,))


def test_the_command_takes_the_option_more_than_once(site, phantom_root, tmp_path):
    asked = ["prepare", "-c", "demo", "--rsna", phantom_root / "rsna", "--cq500", phantom_root / "cq500"]
    asked += ["--external", f"site={site / 'scans'}", "--labels", f"site={site / 'studies.csv'}"]
    asked += ["--work", tmp_path / "work", "--dry-run", "--subgroup", "hospital", "--subgroup"]
    assert "2 other columns are ignored" in " ".join(call(*asked, "severity").split())
    assert 'expected a column "weight"' in call(*asked, "weight", code=2)
