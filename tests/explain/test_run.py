"""Held-out slices explained: the right network, the right slices, and pictures that name nobody."""

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from support.commands import do
from support.pixels import make_pixel_work
from support.simulated import TASK
from support.trained import make_trained_work
from support.training import config as training_config

from ichkit.cli.main import main
from ichkit.core.tasks import Task
from ichkit.engine.heat import heat_maps
from ichkit.engine.inference import load_predictor
from ichkit.imaging.store import Prepared
from ichkit.stages.explain.held_out import explain_slices, read_held_out
from ichkit.stages.explain.run import render
from ichkit.stages.train import run as train
from ichkit.work.artifacts import read_table


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store of two folds with both trained."""
    return make_trained_work(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def prepared(work):
    return Prepared.open(work.prepared, TASK)


def explain(work, out, *words, code=0):
    result = CliRunner().invoke(main, ["explain", "--work", str(work.root), "--out", str(out), *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def losses_by_hand(work, prepared, folds):
    """slice_id to weighted log loss, from the tables and the definition."""
    tables = pd.concat([read_table(work.fold("demo", k) / "oof.parquet") for k in folds])
    labels = prepared.slices.set_index("slice_id")[list(TASK.classes)]
    found = {}
    for row in tables.to_dict("records"):
        terms = []
        for name, weight in zip(TASK.classes, TASK.weights, strict=True):
            p = row[f"p_{name}"] if labels.loc[row["slice_id"], name] else 1 - row[f"p_{name}"]
            terms.append(-weight * np.log(np.float64(p)))
        found[row["slice_id"]] = sum(terms)
    return found


def test_the_worst_slices_are_those_of_the_greatest_loss_sorted(work, prepared, tmp_path):
    explain(work, tmp_path, "--worst", 40, "--class", "any")
    table = pd.read_csv(tmp_path / "explained.csv")
    by_hand = losses_by_hand(work, prepared, (0, 1))
    expected = sorted(by_hand, key=lambda name: -by_hand[name])[:40]
    assert table["slice_id"].to_list() == expected
    np.testing.assert_allclose(table["loss"], [by_hand[name] for name in expected], rtol=1e-5)
    assert table["file"].to_list() == [f"slice_{i:03d}.png" for i in range(1, 41)]
    folds = prepared.slices.set_index("slice_id")["fold"]
    assert table["fold"].to_list() == folds[expected].to_list()
    assert set(table["fold"]) == {0, 1}


def test_a_slice_is_explained_by_the_network_that_did_not_see_its_fold(work, prepared):
    held_out = read_held_out(prepared, work, "demo", 1)
    ids = [held_out["slice_id"].iloc[i] for i in (5, 0, 9)]
    explained = explain_slices(prepared, work, "demo", 1, ids, class_names=["subdural", "any"])
    oof = read_table(work.fold("demo", 1) / "oof.parquet").set_index("slice_id")
    own, other = (load_predictor(work.fold("demo", k), "cpu") for k in (1, 0))
    slices = prepared.slices.set_index("slice_id")
    for one, slice_id in zip(explained, ids, strict=True):
        row = slices.loc[slice_id]
        volume, at = prepared.read_volume(row["volume"]), np.array([row["slice_index"]])
        assert (one.slice_id, one.slice_index, one.fold) == (slice_id, row["slice_index"], 1)
        np.testing.assert_array_equal(one.hounsfield, volume[row["slice_index"]])
        np.testing.assert_array_equal(
            one.probabilities, oof.loc[slice_id, TASK.probability_columns].to_numpy("float32")
        )
        np.testing.assert_array_equal(one.labels, row[list(TASK.classes)].to_numpy("float64"))
        assert one.class_indices == (4, 5)
        np.testing.assert_allclose(one.heat, heat_maps(own, volume, at, (4, 5))[0], atol=1e-5)
        assert np.abs(one.heat - heat_maps(other, volume, at, (4, 5))[0]).max() > 0.05


def test_a_study_becomes_a_strip_from_feet_to_head(work, prepared, tmp_path):
    study = prepared.split("train")["study_id"].iloc[0]
    explain(work, tmp_path, "--study", study)
    table = pd.read_csv(tmp_path / "explained.csv")
    assert set(table["study_id"]) == {study}
    assert table["slice_index"].to_list() == list(range(len(table)))
    assert set(table["file"]) == {"study.png"}
    picture = cv2.imread(str(tmp_path / "study.png"))
    columns = min(10, len(table))
    assert picture.shape[1] == 160 * columns
    # The brain window, the class that stands for any, and the most probable of the others.
    # Below it, the colour scale.
    assert picture.shape[0] == 3 * 182 * -(-len(table) // columns) + 22


def test_a_study_of_a_network_with_a_pool_has_the_weights_of_its_slices_as_a_curve(tmp_path):
    work, out = make_pixel_work(tmp_path / "work"), tmp_path / "out"
    changes = ("train.pool=attention", "train.sampling=studies", "train.max_slices=7")
    do(train, training_config(*changes), work, run_name="run", folds=[0])
    stored = read_table(work.fold("run", 0) / "study_oof.parquet")
    study = stored["study_id"].iloc[-1]
    explain(work, out, "--study", study, "--class", "any", "--class", "subdural")
    table = pd.read_csv(out / "explained.csv")
    columns = [f"w_{name}" for name in TASK.classes]
    expected = stored[stored["study_id"] == study].set_index("slice_index")[columns].loc[table["slice_index"]]
    np.testing.assert_allclose(table[columns], expected, rtol=1e-6)
    np.testing.assert_allclose(table[columns].sum(), 1, atol=1e-5)
    curve = (out / "weights.svg").read_text()
    assert "weight in the study" in curve
    assert study not in curve
    assert ("subdural" in curve, "epidural" in curve) == (True, False)
    explain(work, out, "--worst", 1)
    assert not (out / "weights.svg").exists()
    assert not set(columns) & set(pd.read_csv(out / "explained.csv"))


def test_a_panel_has_the_slice_and_every_class(work, prepared, tmp_path):
    slice_id = prepared.split("train")["slice_id"].iloc[3]
    explain(work, tmp_path, "--slice", slice_id)
    picture = cv2.imread(str(tmp_path / "slice_001.png"))
    assert picture.shape == (2 * 342 + 22, 4 * 320, 3)
    tiles = [picture[342 * (i // 4) :][:320, 320 * (i % 4) :][:, :320] for i in range(8)]
    assert all(tile.max() > 0 for tile in tiles[:7])
    assert tiles[7].max() == 0
    # The scale goes from middle grey to yellow.
    blue, green, red = picture[2 * 342 + 8, 115].astype(int)
    assert picture[2 * 342 + 8, 16].tolist() == [128, 128, 128]
    assert min(red, green) > blue + 40
    # The first is grey, the others are as colourful as their class is probable.
    colours = np.array([np.ptp(tile.astype(int), axis=2).max() for tile in tiles[:7]])
    p = pd.read_csv(tmp_path / "explained.csv")[TASK.probability_columns].iloc[0].to_numpy()
    assert colours[0] == 0
    assert colours[1 + p.argmax()] > 15
    assert (colours[1:] <= 0.6 * 255 * p + 5).all()


def test_names_of_pictures_say_nothing_of_the_slice(work, prepared, tmp_path):
    slice_id = prepared.split("train")["slice_id"].iloc[0]
    printed = explain(work, tmp_path, "--slice", slice_id)
    assert not [path.name for path in tmp_path.iterdir() if slice_id in path.name]
    assert slice_id not in printed


def test_pictures_of_other_origin_are_not_written_over(work, tmp_path):
    (tmp_path / "slice_002.png").write_text("mine")
    text = explain(work, tmp_path, "--worst", 2, "--class", "any", code=2)
    assert "but those of an earlier `ichkit explain`, found slice_002.png. Move them away" in text
    assert [path.name for path in tmp_path.iterdir()] == ["slice_002.png"]
    (tmp_path / "slice_002.png").rename(tmp_path / "slice_009.png")
    for _ in range(2):  # the second time over its own
        explain(work, tmp_path, "--worst", 2, "--class", "any")
    (tmp_path / "explained.csv").unlink()
    explain(work, tmp_path, "--worst", 1, "--class", "any", code=2)
    mark = tmp_path / ".ichkit-unfinished-pictures"
    mark.touch()  # a killed call
    explain(work, tmp_path, "--worst", 1, "--class", "any")
    assert not mark.exists()
    assert (tmp_path / "slice_009.png").read_text() == "mine"


def fold_of(prepared, number):
    labelled = prepared.split("train")
    return labelled[labelled["fold"] == number]


MISTAKES = [
    (lambda _: ["--slice", "ID_nowhere"], "found ID_nowhere, which is not prepared"),
    (lambda p: ["--fold", 0, "--slice", fold_of(p, 1)["slice_id"].iloc[0]], "is in fold 1, expected one of fold 0"),
    (lambda p: ["--slice", p.split("test")["slice_id"].iloc[0]], "is in the test split of rsna"),
    (lambda _: ["--study", "ID_none"], "found ID_none"),
    (lambda p: ["--fold", 0, "--study", fold_of(p, 1)["study_id"].iloc[0]], "is in fold 1, expected one of fold 0"),
    (lambda _: ["--fold", 7], "run demo has finished folds 0, 1; found --fold 7"),
    (lambda _: ["--run", "dmeo"], 'Did you mean "demo"?'),
    (lambda _: ["--class", "subdurall"], 'Did you mean "subdural"?'),
    (lambda _: ["--worst", 2, "--study", "x"], "exclude each other"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_what_cannot_be_explained_gives_one_message_and_exit_code_2(work, prepared, tmp_path, words, message):
    printed = explain(work, tmp_path / "out", *words(prepared), code=2)
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_task_without_an_umbrella_class_shows_its_first_class():
    task = Task("side", ("left", "right"), (0.5, 0.5), None, "Which side.", "an example")
    row = {"file": "slice_001.png", "slice_index": 3, "fold": 0, "loss": 0.5, "p_left": 0.25, "p_right": 0.75}
    table = render(pd.DataFrame([{**row, "left": 0, "right": 1}, {**row, "left": 0, "right": 0}]), task)
    assert table.columns[4] == "left"
    assert [cells[4:] for cells in table.rows] == [["0.250", "right 0.750"], ["0.250", "none; highest: right 0.750"]]
