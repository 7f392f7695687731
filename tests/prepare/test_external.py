"""External sets of a user in `prepare`: side by side with CQ500, each under its name, none of them learnt from."""

import numpy as np
import pandas as pd
import pydicom
import pytest
from click.testing import CliRunner
from support.commands import do, phantom_options
from support.dicoms import write_series
from support.simulated import TASK

from ichkit.cli.main import main
from ichkit.core.errors import ConfigError, DataError
from ichkit.imaging.store import Prepared
from ichkit.sources.external import ExternalSet
from ichkit.stages.prepare import label_ids
from ichkit.stages.prepare import run as prepare
from ichkit.stages.scores.score_source import missing_studies
from ichkit.work.folder import WorkFolder


def write_site(root, key, first=0):
    """Four studies of five slices with labels per slice or study; returns the set and its labels."""
    for i in range(first, first + 4):
        study = f"1.3.{i}"
        write_series(root / f"s{i}", 5, study_uid=study, series_uid=f"{study}.1", patient_id=f"PERSON {i}")
    studies = [f"1.3.{i}" for i in range(first, first + 4)]
    ids = studies if key == "study_id" else [f"{study}.1.{n + 1}" for study in studies for n in range(5)]
    labels = pd.DataFrame({key: ids})
    for column, name in enumerate(TASK.subtypes):
        labels[name] = [int((i + column) % 3 == 0) for i in range(len(ids))]
    path = root.with_suffix(".csv")
    labels.to_csv(path, index=False)
    return ExternalSet(root.name, root, path), labels.set_index(key)


def open_store(work):
    return Prepared.open(work.prepared, TASK)


@pytest.fixture
def sites(tmp_path):
    return write_site(tmp_path / "clinic", "slice_id"), write_site(tmp_path / "site", "study_id", first=50)


@pytest.fixture
def both(sites, phantom_root, tiny_config, tmp_path):
    """A store with CQ500 and two external sets."""
    work = WorkFolder(tmp_path / "work")
    do(prepare, tiny_config, work, phantom_options(phantom_root, external=tuple(item for item, _ in sites)))
    return work


def test_two_sets_stand_beside_cq500_each_with_its_labels(both, sites, prepared_once):
    store, before = open_store(both), open_store(prepared_once)
    assert store.external_sets() == ("cq500", "clinic", "site")
    for name in ("train", "test", "cq500"):
        pd.testing.assert_frame_equal(store.split(name), before.split(name))
    known = {name: store.manifest.facts[name]["is_phantom"] for name in ("rsna", "cq500", "clinic", "site")}
    assert known == {"rsna": True, "cq500": True, "clinic": False, "site": False}
    (_, by_slice), (_, by_study) = sites
    clinic, site = store.split("clinic").set_index("slice_id"), store.split("site")
    subtypes = list(TASK.subtypes)
    pd.testing.assert_frame_equal(clinic[subtypes].astype(int), by_slice.loc[clinic.index, subtypes], check_dtype=False)
    assert clinic["any"].tolist() == by_slice.loc[clinic.index, subtypes].max(axis=1).tolist()
    assert clinic["fold"].isna().all()
    # A label of a study says nothing of one slice of it: a score by slice would be wrong.
    assert site[list(TASK.classes)].isna().all(axis=None)
    studies = store.studies[store.studies["dataset"] == "site"].set_index("study_id")
    assert len(studies) == 4
    pd.testing.assert_frame_equal(
        studies[subtypes].astype(int), by_study.loc[studies.index, subtypes], check_dtype=False, check_names=False
    )
    assert set(studies["split"]) == {"external"}
    of_clinic = store.studies[store.studies["dataset"] == "clinic"].set_index("study_id")
    expected = clinic.groupby("study_id")[list(TASK.classes)].max()
    pd.testing.assert_frame_equal(of_clinic[list(TASK.classes)], expected.loc[of_clinic.index], check_dtype=False)


def test_a_study_of_which_no_file_can_be_read_is_missing_from_its_set(sites, phantom_root, tiny_config, tmp_path):
    (clinic, _), (site, _) = sites
    for root, number in ((clinic.root, 2), (site.root, 51)):  # of one the pixels end early, the other is no CT in HU
        for path in (root / f"s{number}").iterdir():
            dataset = pydicom.dcmread(path)
            pixels = np.full((dataset.Rows, dataset.Columns), 3000, np.uint16)
            dataset.PixelData = dataset.PixelData[:-100] if root == clinic.root else pixels.tobytes()
            dataset.save_as(path)
    work = WorkFolder(tmp_path / "work")
    do(prepare, tiny_config, work, phantom_options(phantom_root, external=(clinic, site)))
    store = open_store(work)
    assert missing_studies(store, "clinic") == ["1.3.2"]
    assert missing_studies(store, "site") == ["1.3.51"]
    assert store.manifest.facts["clinic"]["missing_studies"] == ["1.3.2"]
    assert missing_studies(store, "cq500") == []


def test_nothing_that_names_a_person_is_kept_of_an_external_set(both):
    written = [path for path in both.prepared.rglob("*") if path.is_file() and path.suffix != ".b2nd"]
    whole = "".join(path.read_text("latin-1") for path in written)
    assert "PERSON" not in whole
    assert "s50/" not in whole


def test_a_set_that_is_not_named_again_stays_until_there_is_work_and_then_is_asked_for(
    both, sites, phantom_root, tiny_config, caplog
):
    do(prepare, tiny_config, both, phantom_options(phantom_root))
    assert open_store(both).external_sets() == ("cq500", "clinic", "site")
    with pytest.raises(ConfigError, match=r'external set "clinic".*--external clinic=PATH'):
        do(prepare, tiny_config, both, phantom_options(phantom_root, limit_studies=3))
    own = tuple(item for item, _ in sites)
    without = phantom_options(phantom_root, limit_studies=3, external=own, cq500=None)
    with pytest.raises(ConfigError, match=r'external set "CQ500".*keep it \(--cq500 PATH\)'):
        do(prepare, tiny_config, both, without)
    do(prepare, tiny_config, both, phantom_options(phantom_root, external=(sites[0][0],), fresh=True))
    assert open_store(both).external_sets() == ("cq500", "clinic")


def test_changed_labels_of_a_set_are_taken_up(both, sites, phantom_root, tiny_config):
    external = tuple(item for item, _ in sites)
    path, labels = external[1].labels, sites[1][1]
    flipped = labels.assign(subdural=1 - labels["subdural"])
    flipped.reset_index().to_csv(path, index=False)
    do(prepare, tiny_config, both, phantom_options(phantom_root, external=external))
    studies = open_store(both).studies.set_index("study_id")
    assert studies.loc[flipped.index, "subdural"].tolist() == flipped["subdural"].tolist()


def test_a_set_that_holds_training_studies_is_refused(tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    item, _ = write_site(tmp_path / "site", "slice_id")
    options = prepare.PrepareOptions(folder=item.root, labels=item.labels, external=(item,))
    few = tiny_config.model_copy(update={"prepare": tiny_config.prepare.model_copy(update={"num_folds": 2})})
    with pytest.raises(DataError, match=r"site: 4 of its 4 studies are training studies too, e.g. 1.3.0"):
        do(prepare, few, WorkFolder(tmp_path / "work"), options)


def test_a_set_without_labels_or_scans_is_refused_before_anything_is_read(tmp_path, phantom_root, tiny_config):
    item, _ = write_site(tmp_path / "site", "slice_id")
    for bad, error, message in [
        (ExternalSet("site", item.root), ConfigError, r"expected a label file .* --labels site=CSV.*ichkit predict"),
        (ExternalSet("site", tmp_path / "no", item.labels), DataError, r"--external site=PATH.*found nothing"),
        (ExternalSet("test", item.root, item.labels), ConfigError, '"test" is reserved'),
    ]:
        with pytest.raises(error, match=message):
            do(prepare, tiny_config, WorkFolder(tmp_path / "work"), phantom_options(phantom_root, external=(bad,)))


def test_the_command_takes_several_sets_and_plans_them(tmp_path, phantom_root):
    for name in ("one", "two"):
        write_site(tmp_path / name, "study_id", first=10 * len(name))
    (tmp_path / "two" / "README.md").write_text("no scan")
    asked = ["prepare", "-c", "demo", "--rsna", str(phantom_root / "rsna"), "--work", str(tmp_path / "work")]
    asked += ["--external", f"one={tmp_path / 'one'}", "--labels", f"{tmp_path / 'one.csv'}"]
    asked += ["--external", f"two={tmp_path / 'two'}", "--labels", f"two={tmp_path / 'two.csv'}", "--dry-run"]
    done = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert done.exit_code == 0
    assert "one: 20 files of" in done.output
    assert "two: 20 files of" in done.output
    printed = " ".join(done.output.split())
    assert printed.count("other file, by name no image") == 1
    assert "two.csv: has 4 of 4 ids in the headers of 20 files" in printed


def test_a_dry_run_finds_out_that_labels_are_of_other_scans(tmp_path, phantom_root, tiny_config, monkeypatch):
    item, labels = write_site(tmp_path / "site", "study_id")
    labels.rename(index=lambda name: f"9.{name}").reset_index().to_csv(item.labels, index=False)
    options = phantom_options(phantom_root, external=(item,))
    plan = prepare.plan(tiny_config, WorkFolder(tmp_path / "work"), options)
    with pytest.raises(DataError, match="4 of its 4 ids in column study_id are not among the 4 studies found"):
        plan.forecast()
    monkeypatch.setattr(label_ids, "_MOST_FILES", 3)  # of more files than are read, nothing is certain
    (said,) = (step for step in plan.forecast().steps if "site.csv" in step)
    assert "has 0 of 3 ids in the headers of 3 files (column study_id); prepare compares all of them" in said


def test_cq500_by_another_series_rule_stands_beside_it_and_changes_nothing_of_it(phantom_root, tiny_config, tmp_path):
    root = phantom_root / "cq500"
    names = ("cq500-thin", "cq500-slabs")
    work = WorkFolder(tmp_path / "work")
    options = phantom_options(phantom_root, external=tuple(ExternalSet(name, root) for name in names))
    do(prepare, tiny_config, work, options)
    store = open_store(work)
    thin, slabs, plain = store.split("cq500-thin"), store.split("cq500-slabs"), store.split("cq500")
    have_thin = set(thin.study_id)
    assert set(slabs.study_id) == have_thin < set(plain.study_id)
    assert thin.groupby("study_id").gap_mm.median().tolist() == pytest.approx([1.25] * len(have_thin), abs=0.1)
    assert slabs.groupby("study_id").gap_mm.median().tolist() == pytest.approx([5.0] * len(have_thin), abs=0.3)
    # A slab is the mean of its thin slices.
    study = sorted(have_thin)[0]
    fine, coarse = (of[of.study_id == study] for of in (thin, slabs))
    inside = fine[fine.slice_index < 4]
    mean = store.read_volume(inside.volume.iloc[0])[:4].mean(0)
    assert abs(store.read_volume(coarse.volume.iloc[0])[0] - mean).max() <= 0.5
    labels = store.studies.set_index(["dataset", "study_id"])[list(TASK.classes)]
    pd.testing.assert_frame_equal(labels.loc["cq500-thin"], labels.loc["cq500"].loc[sorted(have_thin)])
    missing = store.manifest.facts["cq500-thin"]["missing_studies"]
    assert set(missing) == set(plain.study_id) - have_thin
    alone = WorkFolder(tmp_path / "alone")
    do(prepare, tiny_config, alone, phantom_options(phantom_root))
    pd.testing.assert_frame_equal(open_store(alone).split("cq500"), plain)
    assert (alone.prepared / "series_choice.csv").read_bytes() == (work.prepared / "series_choice.csv").read_bytes()
    with pytest.raises(ConfigError, match=r'external set "cq500-slabs".*--external cq500-slabs=PATH\)'):
        do(prepare, tiny_config, work, phantom_options(phantom_root, limit_studies=3))
