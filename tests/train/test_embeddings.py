"""`train --embeddings`: what a network sees before its last layer, kept beside its descriptors."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import TINY, do
from support.pixels import make_pixel_work
from support.training import TABLES, config, read_files

from ichkit.core.config import load_config
from ichkit.core.progress import StopFlag
from ichkit.core.tasks import find_task
from ichkit.engine.inference import load_predictor
from ichkit.imaging.store import Prepared
from ichkit.stacking import choice
from ichkit.stages.predict import run as predict
from ichkit.stages.stack import run as stack
from ichkit.stages.train import network as training
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask
from ichkit.work.artifacts import read_manifest, read_table


def train_folds(work, *changes, folds=(0,)):
    return do(train, config("train.epochs=1", *changes), work, run_name="run", folds=list(folds))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store with both folds finished, embeddings and all."""
    work = make_pixel_work(tmp_path_factory.mktemp("embedded"))
    train_folds(work, "train.embeddings=true", folds=(0, 1))
    return work


def test_every_table_has_its_embeddings_beside_it_and_they_are_what_the_head_reads(work):
    folder = work.fold("run", 0)
    manifest = read_manifest(folder)
    weights = load_file(folder / "model.safetensors")
    head = next(name.removesuffix(".weight") for name, value in weights.items() if value.shape == (6, 256))
    for name in TABLES:
        table, embeddings = read_table(folder / f"{name}.parquet"), np.load(folder / f"embeddings_{name}.npy")
        assert f"embeddings_{name}.npy" in manifest.files
        assert (embeddings.dtype, embeddings.shape) == (np.float16, (len(table), 256))
        logits = torch.from_numpy(embeddings).float() @ weights[f"{head}.weight"].T + weights[f"{head}.bias"]
        np.testing.assert_allclose(torch.sigmoid(logits), table.filter(like="p_"), atol=2e-3)


@pytest.mark.slow
def test_keeping_embeddings_changes_no_descriptor_and_no_weight(work, tmp_path):
    plain = make_pixel_work(tmp_path)
    train_folds(plain)
    with_them, without = (read_files(place.fold("run", 0)) for place in (work, plain))
    assert set(with_them) - set(without) == {f"embeddings_{name}.npy" for name in TABLES}
    same = ("model.safetensors", "stacks_oof.npy", *(f"{name}.parquet" for name in TABLES))
    assert all(with_them[name] == without[name] for name in same)


@pytest.mark.slow
def test_all_folds_start_from_the_same_weights_and_another_seed_from_others(work, tmp_path):
    starts = {read_manifest(work.fold("run", k)).facts["initial_weights"] for k in (0, 1)}
    assert len(starts) == 1
    other = make_pixel_work(tmp_path)
    (manifest,) = train_folds(other, "seed=1")
    assert manifest.facts["initial_weights"] not in starts


@pytest.mark.slow
def test_a_finished_fold_gets_its_embeddings_without_training_again_and_keeps_them(tmp_path, monkeypatch):
    work = make_pixel_work(tmp_path)
    train_folds(work)
    before = read_files(work.fold("run", 0))
    monkeypatch.setattr(training, "train_network", lambda *_: pytest.fail("it was trained again"))
    train_folds(work, "train.embeddings=true")
    after = read_files(work.fold("run", 0))
    assert {name for name in after if name.startswith("embeddings")} == {f"embeddings_{name}.npy" for name in TABLES}
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    # Without the option they stay, also where the tables are made anew.
    train_folds(work)
    assert read_files(work.fold("run", 0)) == after
    do_fold(FoldTask(config("train.epochs=1"), work, "run", 0, trains=False), StopFlag())
    assert set(read_files(work.fold("run", 0))) == set(after)


def test_features_are_averaged_over_the_mirrored_image_too(work):
    predictor = load_predictor(work.fold("run", 0))
    prepared = Prepared.open(work.prepared, predictor.task)
    volume = prepared.read_volume(prepared.slices.volume.iloc[0])
    plain, mirrored = (predictor.describe_volume(v)[1].astype(float) for v in (volume, volume[:, :, ::-1].copy()))
    predictor.card = type(predictor.card)(**{**vars(predictor.card), "tta": "hflip"})
    probabilities, both = predictor.describe_volume(volume)
    np.testing.assert_allclose(both, (plain + mirrored) / 2, atol=2e-2)
    assert probabilities.tobytes() == predictor.predict_volume(volume).tobytes()


@pytest.mark.slow
def test_predict_goes_through_the_embeddings_as_the_stack_did(prepared_work, phantom_root, tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "run_tasks", lambda function, tasks, **_: enumerate(map(function, tasks)))
    # So few patients support no correction; here it is taken whole, or there would be nothing to compare.
    monkeypatch.setattr(choice, "choose_share", lambda *_: 1.0)
    changes = ("train.backbone=test_resnet", "stack.stackers=[sequence]", "stack.embeddings.enabled=true")
    changes += ("stack.sequence.epochs=4", "stack.sequence.num_seeds=1", "train.embeddings=true")
    settings = load_config("demo", (*TINY, "prepare.size=null", *changes))
    do(train, settings, prepared_work, run_name="run", folds=[0, 1])
    do(stack, settings, prepared_work)
    dicom, out = phantom_root / "rsna" / "stage_2_test", tmp_path / "out"
    found = do(predict, settings, prepared_work, path=dicom, model="run-sequence", out=out).slices.set_index("slice_id")
    slices = Prepared.open(prepared_work.prepared, find_task("hemorrhage")).split("test").set_index("slice_id")
    # Of a study with several series predict takes one, and the stack all.
    single = slices.groupby("study_id").series_id.transform("nunique") == 1
    shared = found.index.intersection(slices.index[single])
    table = read_table(prepared_work.stacks / "run" / "sequence_test.parquet").set_index("slice_id")
    stored = table.loc[shared].filter(like="p_")
    np.testing.assert_allclose(found.loc[shared, list(stored)], stored, atol=1e-5)
    assert len(shared) > 100
    folds = [read_table(prepared_work.fold("run", k) / "test.parquet").set_index("slice_id") for k in (0, 1)]
    base = np.mean([fold.loc[shared, list(stored)] for fold in folds], axis=0)
    assert np.abs(stored.to_numpy() - base).max() > 0.05
