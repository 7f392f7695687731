"""An exported model predicts what it predicted at home; the page and the tables of `predict`."""

import json
import re
import shutil
import zipfile

import pandas as pd
import pytest
from support.browsers import find_browser, look_at
from support.commands import do
from support.dicoms import write_series, write_slice
from support.simulated import TASK
from support.trained import CONFIG, make_trained_work

from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.stages.predict import export
from ichkit.stages.predict import run as predict
from ichkit.stages.stack import run as stack
from ichkit.work.artifacts import read_manifest
from ichkit.work.folder import WorkFolder

NOWHERE = WorkFolder("nowhere")


# Minutes of training and predicting; tests/test_end_to_end.py has the round trip in small.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two folds trained and stacked; never written to."""
    work = make_trained_work(tmp_path_factory.mktemp("export"))
    do(stack, CONFIG, work)
    return work


@pytest.fixture(scope="module")
def exported(work, tmp_path_factory):
    """The blend, exported; never written to."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    do(export, CONFIG, work, model="demo-blend", out=folder)
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A PACS export: two studies; the first has a localizer, a bone kernel, a thin, a plain series and a dose page."""
    folder = tmp_path_factory.mktemp("scans")
    plain = {"study_uid": "1.2.1", "patient_id": "Doe^Jane"}
    write_series(
        folder / "a", 1, series_uid="1.2.1.1", SeriesDescription="Topogram", orientation=(0, 1, 0, 0, 0, -1), **plain
    )
    write_series(folder / "b", 30, series_uid="1.2.1.2", SeriesDescription="Head 5.0 H60s bone", **plain)
    write_series(folder / "c", 100, 1.25, series_uid="1.2.1.3", SeriesDescription="Head thin", **plain)
    write_series(folder / "d", 30, series_uid="1.2.1.4", SeriesDescription="Head 5.0", **plain)
    write_slice(folder / "e" / "dose.dcm", slice_uid="1.2.1.5.1", series_uid="1.2.1.5", Modality="SR", **plain)
    write_series(folder / "f", 20, series_uid="1.2.2.1", study_uid="1.2.2", patient_id="Roe^Joe")
    return folder


def predict_with(model, scans, out, work=NOWHERE, **options):
    return do(predict, CONFIG, work, path=scans, model=str(model), out=out, **options)


@pytest.mark.parametrize("name", ["demo", "demo-blend", "demo-fusion"])
def test_an_export_predicts_exactly_what_the_work_folder_predicts(work, scans, tmp_path, monkeypatch, name):
    monkeypatch.setenv("ICHKIT_SALT", "same")
    do(export, CONFIG, work, model=name, out=tmp_path / "model")
    moved = tmp_path / "elsewhere" / "m"
    moved.parent.mkdir()
    (tmp_path / "model").rename(moved)
    predict_with(name, scans, tmp_path / "home", work, has_page=False)
    predict_with(moved, scans, tmp_path / "away", has_page=False)
    for file in ("slices.csv", "studies.csv", "rejected.csv", "series_choice.csv", "predictions.json"):
        assert (tmp_path / "home" / file).read_bytes() == (tmp_path / "away" / file).read_bytes(), file


def test_an_export_holds_no_table_and_no_id(work, exported):
    manifest = read_manifest(exported)
    assert {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()} == {
        *manifest.files,
        "manifest.json",
    }
    # Trees are text files; in a store as small as this one a class may have none.
    assert {name.rpartition(".")[2] for name in manifest.files} <= {"safetensors", "json", "yaml", "txt", "md"}
    own = read_manifest(work.stacks / "demo").files
    models = {f"stacks/demo/{name}" for name in own if not name.endswith((".parquet", "importance.csv"))}
    assert models == {name for name in manifest.files if name.startswith("stacks/")}
    slices = pd.read_parquet(work.prepared / "slices.parquet")
    ids = {*slices["slice_id"], *slices["study_id"], *slices["patient_id"]}
    text = b"".join(path.read_bytes() for path in exported.rglob("*") if path.is_file())
    assert not [name for name in ids if name.encode() in text]
    assert str(work.root.parent).encode() not in text


@pytest.mark.parametrize(
    "name", ["runs/demo/fold1/model.safetensors", "stacks/demo/blend.json", "runs/demo/fold0/model.json", "config.yaml"]
)
def test_a_tampered_export_is_refused_with_the_name_of_the_file(exported, scans, tmp_path, name):
    shutil.copytree(exported, tmp_path / "model")
    data = bytearray((tmp_path / "model" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model" / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{re.escape(name)}: changed since it was written"):
        predict_with(tmp_path / "model", scans, tmp_path / "out")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(ArtifactError, match=f"{re.escape(name)}: missing"):
        predict_with(tmp_path / "model", scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damage_at_home_is_not_exported(work, tmp_path):
    copy = WorkFolder(tmp_path / "work")
    shutil.copytree(work.root, copy.root)
    path = copy.fold("demo", 0) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"fold0/model\.safetensors: changed since it was written"):
        do(export, CONFIG, copy, model="demo", out=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_export_replaces_an_earlier_one_and_nothing_else(work, exported, tmp_path):
    do(export, CONFIG, work, model="demo", out=tmp_path / "model")
    do(export, CONFIG, work, model="demo-blend", out=tmp_path / "model")
    assert read_manifest(tmp_path / "model").facts["name"] == "demo-blend"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("keep me")
    for other in (tmp_path / "home", work.prepared):
        with pytest.raises(ConfigError, match="found something else"):
            do(export, CONFIG, work, model="demo", out=other)
    assert (tmp_path / "home" / "letter.txt").exists()
    with pytest.raises(ConfigError, match="exported folder already"):
        do(export, CONFIG, work, model=str(exported), out=tmp_path / "again")


def test_the_series_of_a_pacs_export_are_chosen_and_the_others_told_why(exported, scans, tmp_path):
    made = predict_with(exported, scans, tmp_path, has_page=False)
    choice = pd.read_csv(tmp_path / "series_choice.csv").set_index("series_id")
    assert choice.index[choice["chosen"]].to_list() == ["1.2.1.4", "1.2.2.1"]
    reasons = choice["reason"].to_dict()
    assert reasons["1.2.1.1"] == "localizer"
    assert reasons["1.2.1.2"] == "bone or high-resolution kernel"
    assert reasons["1.2.1.3"].startswith("another series is nearer 5 mm")
    assert reasons["1.2.1.4"] == "plain axial series with spacing nearest 5 mm"
    assert made.studies["num_slices"].to_list() == [30, 20]
    assert made.rejected["reason"].to_list() == ["not CT"]


def test_the_log_has_one_line_for_each_reason_of_a_series_choice(exported, scans, tmp_path, caplog):
    holed = shutil.copytree(scans, tmp_path / "scans")
    for path in sorted((holed / "f").glob("*.dcm"))[8:10]:
        path.unlink()
    with caplog.at_level("INFO", logger="ichkit"):
        predict_with(exported, holed, tmp_path / "out", has_page=False)
    said = [
        message for message in caplog.messages if "plain axial series" in message or "slices may be missing" in message
    ]
    plain = "plain axial series with spacing nearest 5 mm"
    assert len(said) == 2
    assert re.match(r"folder: study 2 of \d+ found: ", said[0])
    assert "slices may be missing" in said[0]
    assert said[1] == f"predict: 1 study: {plain}"


def test_a_zip_of_the_folder_gives_the_same_tables(exported, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("ICHKIT_SALT", "same")
    with zipfile.ZipFile(tmp_path / "scans.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(scans.rglob("*.dcm")):
            archive.write(path, path.relative_to(scans))
    predict_with(exported, scans, tmp_path / "folder")
    predict_with(exported, tmp_path / "scans.zip", tmp_path / "zip")
    for file in ("slices.csv", "studies.csv", "series_choice.csv", "predictions.json", "predictions.html"):
        assert (tmp_path / "folder" / file).read_bytes() == (tmp_path / "zip" / file).read_bytes(), file


def test_the_json_says_what_the_tables_say(exported, scans, tmp_path):
    made = predict_with(exported, scans, tmp_path, has_page=False)
    note = json.loads((tmp_path / "predictions.json").read_text())
    assert note["model"] == {"name": "demo-blend", "learnt_from": "phantom"}
    assert "not a medical device" in note["note"]
    assert [study["study_id"] for study in note["studies"]] == made.studies["study_id"].to_list()
    for study, row in zip(note["studies"], made.studies.to_dict("records"), strict=True):
        for name in TASK.classes:
            assert study["probabilities"][name] == pytest.approx(row[f"p_{name}"], abs=1e-6)
        own = made.slices[made.slices["study_id"] == study["study_id"]]
        best = own.sort_values(["p_any", "slice_index"], ascending=[False, True])["slice_id"].head(3).to_list()
        assert [one["slice_id"] for one in study["key_slices"]] == best
        assert sum(series["chosen"] for series in study["series"]) == 1
    assert note["rejected"] == {"not CT": 1}


def test_the_page_is_one_file_that_names_nobody(exported, scans, tmp_path):
    predict_with(exported, scans, tmp_path)
    page = (tmp_path / "predictions.html").read_text()
    assert page.count("<img ") == 2 * 3  # of two studies, pairs of a picture and its heat map
    assert not re.search(r' (src|href)="(?!data:image/webp;base64,|#)', page)
    assert page.count('href="#study-') >= 2
    assert page.count("<script") == 1
    assert "Research use only" in page
    assert "trained on synthetic phantoms" in page
    assert "not selected: localizer" in page
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # a picture may spell three letters
    for secret in ("Doe", "Roe", "1.2.1.4", "1.2.2"):
        assert secret not in words


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_the_page_is_well_behaved_in_a_browser(exported, scans, tmp_path):
    predict_with(exported, scans, tmp_path / "out")
    page = (tmp_path / "out" / "predictions.html").read_text()
    findings, console = look_at(find_browser(), page, (1280, 390), tmp_path)
    assert console == []
    for width, found in findings.items():
        assert (found["inner_width"], found["wide"], found["broken_pictures"]) == (width, [], 0)
        assert found["scroll_width"] <= width
        assert (found["pictures"], found["dead_links"], found["elsewhere"]) == (0, [], [])


def test_without_the_page_there_is_none_and_the_tables_are_the_same(exported, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("ICHKIT_SALT", "same")
    predict_with(exported, scans, tmp_path / "with")
    predict_with(exported, scans, tmp_path / "without", has_page=False)
    names = {path.name for path in (tmp_path / "without").iterdir()}
    assert {path.name for path in (tmp_path / "with").iterdir()} - names == {"predictions.html"}
    assert (tmp_path / "with" / "slices.csv").read_bytes() == (tmp_path / "without" / "slices.csv").read_bytes()


def test_a_stack_may_be_named_without_its_kind(work, tmp_path):
    shutil.copytree(work.root, tmp_path / "work")
    own = WorkFolder(tmp_path / "work")
    (own.stacks / "demo").rename(own.stacks / "mine")
    made = do(export, CONFIG, own, model="mine", out=tmp_path / "model")
    assert (made.facts["name"], made.facts["kind"]) == ("mine-blend", "blend")
