"""`--prove` on simulated stacks: what it finds, what it must not touch, and the ledger of looks."""

import shutil

import numpy as np
import pandas as pd
import pytest
from support.commands import do
from support.simulated import TASK, make_work, rewrite_slices

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError
from ichkit.stages.scores import evaluate, leaderboard, prove
from ichkit.stages.stack import run as stack
from ichkit.work.artifacts import ArtifactWriter, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.looks import read_looks
from ichkit.work.schemas import make_predictions

CONFIG = load_config(
    "demo", ("stack.stackers=[lightgbm]", "stack.lightgbm.max_rounds=15", "stack.num_inner=2", "evaluate.num_draws=256")
)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    """A stack of one run on 30 patients, with 20 locked ones."""
    work = make_work(tmp_path_factory.mktemp("proof") / "work", num_patients=30, locked_studies=20, noise=1.0)
    do(stack, CONFIG, work)
    return work


@pytest.fixture
def work(stacked, tmp_path):
    shutil.copytree(stacked.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


def rewrite(folder, changes):
    """The same artifact with some tables replaced."""
    manifest = read_manifest(folder)
    kept = {name: (folder / name).read_bytes() for name in manifest.files if name not in changes}
    writer = ArtifactWriter(folder, manifest.kind)
    for name, data in kept.items():
        writer.write_bytes(name, data)
    for name, table in changes.items():
        writer.write_table(name, table)
    writer.commit(settings=manifest.settings, inputs=manifest.inputs, facts=manifest.facts)


def with_labels_of(work, table, trust):
    """A table that has read the labels of its own rows."""
    slices = read_table(work.prepared / "slices.parquet")
    train = slices[slices.split == "train"].sort_values(["study_id", "slice_index"], ignore_index=True)
    labels = train[list(TASK.classes)].to_numpy(float)
    own = table[TASK.probability_columns].to_numpy(float)
    return make_predictions(train, (1 - trust) * own + trust * labels, TASK)


def test_both_gains_are_those_of_the_tables(work):
    row = do(prove, CONFIG, work).set_index("kind").loc["lightgbm"]
    evaluate.run(evaluate.plan_scores(CONFIG, work))
    book = leaderboard.open_book(work, TASK)
    losses = {source.name: book.loss(source).value for source in book.sources}
    assert row.oof_gain == pytest.approx(losses["base"] - losses["base-lightgbm"], abs=1e-9)
    assert row.difference == pytest.approx(row.oof_gain - row.locked_gain, abs=1e-12)
    assert row.gain_kept == pytest.approx(row.locked_gain / row.oof_gain)
    assert (row.oof_patients, row.locked_patients) == (30, 20)


def test_a_stack_that_read_the_labels_it_is_scored_on_is_found_out(work):
    folder = work.stacks / "base"
    leaked = with_labels_of(work, read_table(folder / "blend_oof.parquet"), 0.5)
    rewrite(folder, {"blend_oof.parquet": leaked})
    row = do(prove, CONFIG, work).set_index("kind").loc["blend"]
    assert row.difference_low > 0
    assert row.gain_kept < 0.5


def test_labels_of_locked_patients_reach_no_model_no_score_and_no_choice(work, tmp_path):
    slices = read_table(work.prepared / "slices.parquet")
    rows = (slices.dataset == "locked").to_numpy()
    for name in TASK.classes:
        slices.loc[rows, name] = 1 - slices.loc[rows, name]
    shutil.copytree(work.root, tmp_path / "flipped")
    flipped = WorkFolder(tmp_path / "flipped")
    rewrite_slices(flipped, slices)
    assert stack.plan(CONFIG, flipped).current is not None, "a stack depends on the locked labels"
    shutil.rmtree(flipped.stacks)
    do(stack, CONFIG, flipped)
    files = read_manifest(work.stacks / "base").files
    assert {name: file.sha256 for name, file in read_manifest(flipped.stacks / "base").files.items()} == {
        name: file.sha256 for name, file in files.items()
    }
    for each in (work, flipped):
        evaluate.run(evaluate.plan_scores(CONFIG, each))
    for name in ("scores.parquet", "comparisons.parquet"):
        pd.testing.assert_frame_equal(read_table(work.scores / name), read_table(flipped.scores / name))
    assert "locked" not in set(read_table(work.scores / "scores.parquet").dataset)


def test_the_board_shows_what_was_kept_only_after_the_proof_and_only_of_the_current_tables(work):
    def columns():
        return leaderboard.build(work, work.root / "submissions", TASK)

    evaluate.run(evaluate.plan_scores(CONFIG, work))
    assert "gain_kept" not in columns()
    table = do(prove, CONFIG, work).set_index("source")
    board = columns().set_index("name")
    assert list(board.columns)[-1] == "gain_kept"
    np.testing.assert_allclose(board.gain_kept[table.index], table.gain_kept)
    assert np.isnan(board.gain_kept["base"])
    folder = work.stacks / "base"
    rewrite(folder, {"blend_oof.parquet": with_labels_of(work, read_table(folder / "blend_oof.parquet"), 0.1)})
    evaluate.run(evaluate.plan_scores(CONFIG, work))
    assert np.isnan(columns().set_index("name").gain_kept["base-blend"])


def test_the_ledger_has_one_row_for_each_table_that_was_looked_at(work):
    for _ in range(2):
        evaluate.run(evaluate.plan_scores(CONFIG, work))
        do(prove, CONFIG, work)
    looks = read_looks(work)
    of_cq500, of_locked = (set(looks.source[looks["set"] == name]) for name in ("cq500", "locked"))
    assert of_cq500 == {"base", "base-lightgbm", "base-blend"}
    assert of_locked == {"base-lightgbm", "base-blend"}
    assert len(looks) == 5
    shutil.rmtree(work.scores)
    evaluate.run(evaluate.plan_scores(CONFIG, work))
    assert len(read_looks(work)) == 5, "scoring the same predictions again is no further look"
    path = work.fold("base", 0) / "cq500.parquet"
    table = read_table(path)
    p = table[TASK.probability_columns].to_numpy(float) * 0.99
    rewrite(path.parent, {"cq500.parquet": make_predictions(table, p, TASK, 0)})
    evaluate.run(evaluate.plan_scores(CONFIG, work))
    assert read_looks(work).source.tolist().count("base") == 2


def test_without_locked_patients_or_a_current_stack_there_is_one_message(tmp_path, work):
    bare = make_work(tmp_path / "bare", num_patients=10)
    with pytest.raises(ArtifactError, match=r"no patients are locked.*prepare --lock"):
        prove.plan(CONFIG, bare)
    shutil.rmtree(work.stacks)
    with pytest.raises(ArtifactError, match=r"expected a stack.*found none.*ichkit stack"):
        prove.plan(CONFIG, work)
