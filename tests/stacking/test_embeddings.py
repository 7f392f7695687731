"""Embeddings: spaces of different folds brought together without a label, checked, used, and what they gain told."""

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.simulated import TASK, draw_rotation, flip_labels, make_work, rewrite_fold

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, ConfigError, ContractError
from ichkit.core.stack_config import EmbeddingsConfig
from ichkit.stacking.embeddings import Projection, fit_projections
from ichkit.stacking.fold_models import predict_fold_models
from ichkit.stacking.inputs import read_inputs
from ichkit.stages.stack import run as stack
from ichkit.stages.stack.facts import render
from ichkit.work.artifacts import read_table
from ichkit.work.schemas import KEY

SIZE = 12
ON = (
    "stack.stackers=[sequence]",
    "stack.embeddings.enabled=true",
    f"stack.embeddings.size={SIZE}",
    "stack.sequence.epochs=8",
    "stack.sequence.num_seeds=1",
    "stack.sequence.hidden=8",
    "stack.sequence.weight_decay=[0.01]",
    "stack.num_inner=2",
)
BRIEFLY = (*ON, "stack.sequence.epochs=2", "stack.sequence.learning_rate=0.05")


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(stack, "run_tasks", lambda function, tasks, **_: enumerate(map(function, tasks)))


def make_embedded(root, **settings):
    sizes = {"folds": (0, 1, 2), "num_folds": 3, "num_patients": 30, "test_studies": 12, "noise": 4.0}
    return make_work(root, **{**sizes, "embedding_size": SIZE, **settings})


def draw_features(num_rows=400, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_rows, SIZE)) * np.linspace(3, 0.3, SIZE) + rng.standard_normal(SIZE)


def test_spaces_that_differ_by_a_rotation_and_a_shift_become_one():
    latent = draw_features()
    anchors = {k: (latent @ draw_rotation(0, k, size=SIZE) + k).astype(np.float16) for k in (0, 3, 4)}
    projections = fit_projections(anchors, EmbeddingsConfig(size=5))
    unseen = draw_features(seed=1)
    found = {
        k: p.apply((unseen @ draw_rotation(0, k, size=SIZE) + k).astype(np.float16)) for k, p in projections.items()
    }
    for k in (3, 4):
        np.testing.assert_allclose(found[k], found[0], atol=0.05)
    # Five directions keep nearly all that twelve hold, for the spread falls.
    assert found[0].shape == (400, 5)
    assert found[0].var(axis=0).sum() > 0.75 * unseen.var(axis=0).sum()
    assert np.abs(np.cov(found[0].T)[~np.eye(5, dtype=bool)]).max() < 1.0


def test_without_alignment_the_spaces_would_not_agree():
    latent = draw_features()
    turned = latent @ draw_rotation(0, 3, size=SIZE)
    first = fit_projections({0: latent}, EmbeddingsConfig(size=5))[0]
    assert np.abs(first.apply(turned) - first.apply(latent)).max() > 1


def test_projecting_block_by_block_is_projecting_at_once(monkeypatch):
    from ichkit.stacking import embeddings

    projection = Projection(np.random.default_rng(0).random((SIZE, 3), np.float32), np.ones(3, np.float32))
    features = draw_features().astype(np.float16)
    at_once = projection.apply(features)
    np.testing.assert_allclose(at_once, features.astype(float) @ projection.matrix + 1, rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(embeddings, "_BLOCK_ROWS", 33)
    np.testing.assert_allclose(projection.apply(features), at_once, rtol=1e-6, atol=1e-6)


def test_the_embeddings_of_a_row_are_its_own_folds_and_stand_in_its_row(tmp_path):
    work = make_embedded(tmp_path / "work")
    inputs = read_inputs(work, TASK, None, EmbeddingsConfig(enabled=True, size=SIZE))
    values = inputs.out_of_fold_embeddings()
    assert values.shape == (len(inputs.train), SIZE)
    row = int(np.flatnonzero(inputs.train.fold == 2)[3])
    own = read_table(work.fold("base", 2) / "oof.parquet")
    place = int(np.flatnonzero(own.slice_id == inputs.train.slice_id[row])[0])
    # All rows at once: a processor may multiply a single row in another order.
    projected = inputs.embeddings["base"].projections[2].apply(np.load(work.fold("base", 2) / "embeddings_oof.npy"))
    np.testing.assert_array_equal(values[row], projected[place])


@pytest.mark.slow
def test_embeddings_that_show_what_descriptors_lost_gain_and_the_gain_is_told(tmp_path, in_process):
    # So many that the training part of every fold has six patients with each class, as a correction needs.
    work = make_embedded(tmp_path / "work", num_patients=60)
    manifest = do(stack, load_config("demo", ON), work)
    told = manifest.facts["embeddings"]["sequence"]
    assert told["with"] < 0.9 * told["without"]
    assert not [name for name in manifest.files if "without" in name]
    assert {name for name in manifest.files if name.startswith("projections/")} == {
        f"projections/base/fold{k}.npy" for k in (0, 1, 2)
    }
    assert "base/fold1/embeddings_oof.npy" in manifest.inputs
    assert "embeddings" in str(render(manifest)[-1].title)


def test_what_is_predicted_with_embeddings_comes_from_the_files_and_asks_for_them(tmp_path, in_process):
    work = make_embedded(tmp_path / "work", folds=(0, 1), num_patients=24)
    do(stack, load_config("demo", BRIEFLY), work)
    slices = read_table(work.prepared / "slices.parquet")
    slices = slices[slices.split == "test"].sort_values(KEY)
    tables = {k: read_table(work.fold("base", k) / "test.parquet") for k in (0, 1)}
    features = {k: np.load(work.fold("base", k) / "embeddings_test.npy") for k in tables}
    with pytest.raises(ContractError, match="expected embeddings of run base, fold 0"):
        predict_fold_models(work.stacks / "base", {"base": tables}, slices)
    # Rows of the tables in any order, their embeddings with them.
    order = np.random.default_rng(0).permutation(len(slices))
    given = {"base": {k: table.iloc[order] for k, table in tables.items()}}
    found = predict_fold_models(
        work.stacks / "base", given, slices, {"base": {k: v[order] for k, v in features.items()}}
    )
    stored = read_table(work.stacks / "base" / "sequence_test.parquet")
    np.testing.assert_allclose(found["sequence"][TASK.probability_columns], stored[TASK.probability_columns], atol=1e-6)


@pytest.mark.slow
def test_flipping_a_folds_labels_leaves_its_predictions_alone_with_embeddings_too(tmp_path, in_process):
    work = make_embedded(tmp_path / "work")
    before = do(stack, load_config("demo", ON), work)
    kinds = {kind: read_table(work.stacks / "base" / f"{kind}_oof.parquet") for kind in before.facts["kinds"]}
    flip_labels(work, 1)
    do(stack, load_config("demo", ON), work)
    for kind, table in kinds.items():
        after = read_table(work.stacks / "base" / f"{kind}_oof.parquet")
        own = (table.fold == 1).to_numpy()
        pd.testing.assert_frame_equal(after[own], table[own], check_exact=True)
        assert not after[~own].equals(table[~own])


@pytest.mark.slow
def test_embeddings_are_off_by_default_and_change_nothing_then(tmp_path, in_process):
    assert not load_config("default").stack.embeddings.enabled
    off = (*ON[:1], *ON[3:])
    tables = []
    for size in (0, SIZE):
        work = make_embedded(tmp_path / f"work{size}", embedding_size=size)
        manifest = do(stack, load_config("demo", off), work)
        assert not [name for name in manifest.inputs if "embeddings" in name]
        tables.append(read_table(work.stacks / "base" / "sequence_oof.parquet"))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_folds_that_started_from_other_weights_are_refused(tmp_path):
    work = make_embedded(tmp_path / "work")
    rewrite_fold(work.fold("base", 1), {}, initial_weights="other")
    with pytest.raises(ArtifactError, match=r"started from the same weights.*fold 0: simulated, fold 1: other"):
        do(stack, load_config("demo", ON), work)


def test_a_fold_without_embeddings_or_with_other_rows_is_refused_with_the_command(tmp_path):
    without = make_embedded(tmp_path / "without", embedding_size=0)
    with pytest.raises(ArtifactError, match=r"embeddings_\w+.npy: expected embeddings.*`ichkit train --embeddings`"):
        do(stack, load_config("demo", ON), without)
    work = make_embedded(tmp_path / "work")
    short = np.load(work.fold("base", 0) / "embeddings_oof.npy")[:-1]
    rewrite_fold(work.fold("base", 0), {"embeddings_oof.npy": short})
    with pytest.raises(ArtifactError, match=rf"expected {len(short) + 1} rows as in its table, found shape"):
        do(stack, load_config("demo", ON), work)


def test_cq500_is_aligned_by_where_there_is_no_test_split_and_neither_is_refused(tmp_path):
    config = EmbeddingsConfig(enabled=True, size=SIZE)
    work = make_embedded(tmp_path / "cq500", test_studies=0)
    anchored = read_inputs(work, TASK, None, config).embeddings["base"]
    both = [anchored.project("cq500", fold) for fold in (0, 1)]
    np.testing.assert_allclose(*both, atol=0.2)
    work = make_embedded(tmp_path / "none", test_studies=0, cq500_studies=0)
    with pytest.raises(ArtifactError, match=r"more than 12 slices without labels.*found 0 of test, 0 of cq500"):
        read_inputs(work, TASK, None, config)


def test_asking_for_embeddings_without_a_stacker_that_looks_at_them_is_refused(tmp_path):
    work = make_embedded(tmp_path / "work")
    with pytest.raises(ConfigError, match=r'none of stack.stackers \(lightgbm\).*Add "sequence"'):
        do(stack, load_config("demo", (*ON, "stack.stackers=[lightgbm]")), work)
