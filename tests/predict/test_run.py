"""What `predict` says before it predicts: wrong paths, nothing usable, no model, series chosen by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from support.commands import call
from support.dicoms import write_series, write_slice
from support.indexes import plan_of
from support.models import FOLD, make_model, seal
from support.workfolders import write_fold

from ichkit.core.errors import ConfigError, DataError
from ichkit.core.tasks import Task
from ichkit.engine.inference import Predictor
from ichkit.sources.series import check_override
from ichkit.stages.predict.outcome import begin_output, find_key_slices, finish_output, refuse_foreign_files
from ichkit.work.artifacts import digest_file
from ichkit.work.folder import WorkFolder


@pytest.fixture
def model(tmp_path):
    """The folder of a run without weights: whoever loads it fails, whoever only looks for it finds it."""
    work = WorkFolder(tmp_path / "work")
    write_fold(work, "demo", 0)
    return work.runs / "demo"


def text_file(root):
    (root / "notes.txt").write_text("hello")


def nifti(root):
    (root / "brain.nii").write_bytes(np.random.default_rng(0).bytes(4000))


def picture(root):
    (root / "slice.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))


def magnetic_resonance(root):
    for i in range(3):
        write_slice(root / f"{i}.dcm", slice_uid=f"1.{i}", Modality="MR")


def packed(root):
    for i in range(2):
        (root / f"{i}.dcm.gz").write_bytes(b"\x1f\x8b")


def coronal(folder):
    for i in range(3):
        tags = {"slice_uid": f"1.2.3.{i}", "position": (0, 5 * i, 0), "orientation": (1, 0, 0, 0, 0, -1)}
        write_slice(folder / f"{i}.dcm", **tags)


def nothing(root):
    pass


@pytest.mark.parametrize(
    ("fill", "num_files", "reason"),
    [
        (text_file, 1, "1 not DICOM"),
        (nifti, 1, "1 "),
        (picture, 1, "1 not DICOM"),
        (magnetic_resonance, 3, "3 not CT"),
        (packed, 2, "2 gzip archive"),
        (coronal, 3, "3 not axial"),
        (nothing, 0, ""),
    ],
)
def test_a_folder_without_a_usable_slice_is_said_with_the_reasons_before_the_model_is_loaded(
    tmp_path, model, fill, num_files, reason
):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    fill(scans)
    said = call("predict", scans, "--model", model, "--out", out, code=2)
    expected = f"none of {num_files} files could be used: {reason}" if num_files else "found no file that may be an im"
    assert expected in " ".join(said.split())
    rejected = pd.read_csv(out / "rejected.csv")
    assert len(rejected) == num_files
    assert pd.read_csv(out / "slices.csv").empty
    assert pd.read_csv(out / "studies.csv").empty
    assert not pd.read_csv(out / "series_choice.csv")["chosen"].any()


def lose_its_pixels(root):
    for path in (root / "1").glob("*.dcm"):
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("fill", [nothing, text_file, lose_its_pixels])
def test_a_call_that_can_use_no_file_leaves_an_earlier_prediction_as_it_is(tmp_path, fill):
    scans, out, model = tmp_path / "scans", tmp_path / "out", make_model(tmp_path / "exported")
    write_series(tmp_path / "1", 4)
    call("predict", tmp_path / "1", "--model", model, "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    scans.mkdir()
    if fill is lose_its_pixels:
        (tmp_path / "1").rename(scans / "1")
    fill(scans)
    said = call("predict", scans, "--model", model, "--out", out, code=2)
    assert fill is nothing or f"The earlier prediction in {out} is kept" in " ".join(said.split())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_wrong_path_is_said_before_the_model_is_looked_for(tmp_path):
    said = call("predict", tmp_path / "nowhere", "--model", "none-such", code=2)
    assert "expected a folder or a zip at" in said
    assert "none-such" not in said


def test_without_any_model_it_is_said_how_to_get_one(tmp_path):
    write_series(tmp_path / "scans", 3)
    said = call("predict", tmp_path / "scans", "--work", tmp_path / "work", code=2)
    said = " ".join(said.split())
    assert "no model: expected a finished run" in said
    assert "Train one, name an export with --model, or run `ichkit demo` for a small example model." in said


def test_memory_that_runs_out_is_one_message_with_what_to_do(tmp_path, monkeypatch):
    write_series(tmp_path / "scans", 4)
    make_model(tmp_path / "exported")
    read_study = Predictor.read_study

    def run_out(predictor, volume, *arguments):
        if len(volume) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return read_study(predictor, volume, *arguments)

    monkeypatch.setattr(Predictor, "read_study", run_out)
    said = call("predict", tmp_path / "scans", "--model", tmp_path / "exported", "--out", tmp_path / "out", code=2)
    assert "out of memory on the GPU: CUDA out of memory. End other programs" in said
    assert not (tmp_path / "out" / "slices.csv").exists()


def test_studies_have_the_pooled_probability_where_the_network_has_a_pool(tmp_path):
    write_series(tmp_path / "scans", 5)
    folder = make_model(tmp_path / "exported")
    card = json.loads((folder / FOLD / "model.json").read_text())
    card |= {"pool": {**card["pool"], "kind": "noisy-or"}, "window": 8}
    (folder / FOLD / "model.json").write_text(json.dumps(card))
    seal(folder)
    said = call("predict", tmp_path / "scans", "--model", folder, "--out", tmp_path / "out")
    assert "pooled over the study" in " ".join(said.split())
    slices, studies = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in ("slices", "studies"))
    columns = [name for name in slices if name.startswith("p_")]
    # A study has a class if one of its slices has it, each by itself.
    by_hand = 1 - np.prod(1 - slices[columns].to_numpy(np.float64), axis=0)
    np.testing.assert_allclose(studies[columns].to_numpy(np.float64)[0], by_hand, atol=1e-3)
    assert (by_hand > slices[columns].max() + 1e-3).all()


def two_series(root):
    write_series(root / "a", 32, series_uid="1.2.1", SeriesDescription="Head 5.0")
    write_series(root / "b", 33, series_uid="1.2.2", SeriesDescription="BONE")
    return root


@pytest.mark.parametrize("named", ["1.2.2", "series 2"])
def test_a_series_chosen_by_hand_is_what_predict_would_read(tmp_path, named):
    root = two_series(tmp_path)
    assert set(plan_of(root).files["series_id"]) == {"1.2.1"}
    override = pd.DataFrame({"study_id": ["1.2"], "series": [named]})
    plan = plan_of(root, override)
    assert set(plan.files["series_id"]) == {"1.2.2"}
    reasons = plan.series_choice.set_index("series_id")["reason"]
    assert reasons["1.2.2"] == "chosen by the override file"


def test_predict_reads_the_override_and_refuses_one_that_does_not_fit(tmp_path, model):
    root, override = two_series(tmp_path / "scans"), tmp_path / "override.csv"
    override.write_text("study_id,series\n9.9,series 2\n")
    said = call("predict", root, "--model", model, "--series-override", override, "--out", tmp_path / "out", code=2)
    assert "1 studies are not among the 1 studies found, e.g. 9.9" in " ".join(said.split())
    check_override(None, [])
    with pytest.raises(DataError, match="e.g. x"):
        check_override(pd.DataFrame({"study_id": ["x"], "series": ["y"]}), [])


def test_an_output_folder_is_written_again_only_where_every_file_is_as_predict_wrote_it(tmp_path):
    out = tmp_path / "out"
    refuse_foreign_files(out)  # a new folder
    begin_output(out)
    (out / "slices.csv").write_text("half")
    refuse_foreign_files(out)  # unfinished work of a killed call
    (out / "slices.csv").write_text("whole")
    finish_output(out, {"files": {"slices.csv": digest_file(out / "slices.csv")}})
    (out / "mine.txt").write_text("precious")
    refuse_foreign_files(out)  # its own output, beside a file that it never writes
    (out / "slices.csv").write_text("edited")
    with pytest.raises(ConfigError, match=r"found slices\.csv\. Move them away"):
        refuse_foreign_files(out)


@pytest.mark.parametrize("name", ["studies.csv", "predictions.json", "predictions.html"])
def test_predict_leaves_a_file_that_it_did_not_write(tmp_path, model, name):
    write_series(tmp_path / "scans", 3)
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("precious")
    said = call("predict", tmp_path / "scans", "--model", model, "--out", out, code=2)
    assert f"found {name}. Move them away, or choose another folder with --out." in " ".join(said.split())
    assert {path.name: path.read_text() for path in out.iterdir()} == {name: "precious"}


def test_key_slices_of_a_task_without_an_umbrella_class_are_by_its_first_class():
    task = Task("side", ("left", "right"), (0.5, 0.5), None, "Which side.", "an example")
    p_left = [0.1, 0.4, 0.3, 0.2]
    slices = pd.DataFrame({"study_id": "a", "slice_index": range(4), "p_left": p_left, "p_right": 0.5})
    assert find_key_slices(slices, task)["slice_index"].to_list() == [1, 2, 3]
