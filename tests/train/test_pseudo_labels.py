"""Pseudo-labels: a teacher for each fold that never saw its labels, soft targets, and the mark that results carry."""

import numpy as np
import pytest
from click.testing import CliRunner
from support.commands import do
from support.pixels import make_pixel_work
from support.simulated import TASK, flip_labels, rewrite_slices
from support.training import TINY, StopAtLook, config, read_files

from ichkit.cli.main import main
from ichkit.core.errors import ArtifactError, ConfigError, Stopped
from ichkit.core.progress import StopFlag
from ichkit.engine.sampling import SliceIndex
from ichkit.imaging.store import Prepared
from ichkit.stages.scores import evaluate, leaderboard
from ichkit.stages.scores.tables import data_note
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask, Parts, identify
from ichkit.stages.train.pseudo_labels import add_pseudo_labels
from ichkit.work.artifacts import read_manifest, read_table

SAME = ("model.safetensors", "oof.parquet", "test.parquet", "cq500.parquet", "stacks_oof.npy")
PHASES = "train.phases=[{epochs: 1}, {epochs: 1, labels: 'run:first', pseudo_share: 0.4}]"


def make_work(root, **changes):
    return make_pixel_work(root, test_studies=6, **changes)


def train_folds(work, run, *changes, folds=(0,)):
    do(train, config("train.epochs=1", *changes), work, run_name=run, folds=list(folds))
    return read_files(work.fold(run, 0))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store with both folds of run `first` and fold 0 of its student."""
    work = make_work(tmp_path_factory.mktemp("work"))
    train_folds(work, "first", folds=(0, 1))
    train_folds(work, "student", PHASES)
    return work


def taught(work, *changes, number=1, fold=0):
    """The slices that a phase trains on."""
    settings, prepared = config("train.epochs=1", *changes), Prepared.open(work.prepared, TASK)
    parts = Parts.of(prepared, fold).hold_validation(settings, fold)
    task = FoldTask(settings, work, "student", fold, trains=True)
    phase = settings.train.resolve_phases(TASK.classes)[number]
    return add_pseudo_labels(task, identify(settings, prepared, work, fold), prepared, parts, phase, number), parts


@pytest.mark.parametrize("fold", [0, 1])
def test_the_teacher_of_a_fold_is_its_own_network_and_its_targets_are_soft(work, fold):
    slices, parts = taught(work, PHASES, fold=fold)
    pseudo = slices[slices.split == "test"].set_index("slice_id")
    table = read_table(work.fold("first", fold) / "test.parquet").set_index("slice_id").loc[pseudo.index]
    np.testing.assert_array_equal(pseudo[list(TASK.classes)], table[TASK.probability_columns].astype(np.float64))
    others = read_table(work.fold("first", 1 - fold) / "test.parquet").set_index("slice_id").loc[pseudo.index]
    assert np.abs(others.p_any - table.p_any).max() > 1e-3
    own = slices[slices.split == "train"]
    assert set(own.slice_id) == set(parts.train.slice_id)
    assert not set(slices.slice_id) & set(parts.heldout.slice_id)
    index = SliceIndex.of(slices, TASK.classes)
    assert len(index) == len(slices)
    assert ((index.labels > 0.01) & (index.labels < 0.99)).any()


def test_the_share_is_met_by_whole_studies_and_other_seeds_draw_others(work):
    slices, parts = taught(work, PHASES)
    pseudo, whole = slices[slices.split == "test"], parts.test
    assert (whole[whole.study_id.isin(pseudo.study_id)].slice_id.tolist()) == pseudo.slice_id.tolist()
    wanted = 0.4 / 0.6 * len(parts.train)
    assert 0 < len(pseudo) < len(whole)
    assert wanted <= len(pseudo) < wanted + whole.groupby("study_id").size().max()
    drawn = {frozenset(taught(work, PHASES, f"seed={seed}")[0].query("split == 'test'").study_id) for seed in range(6)}
    assert len(drawn) > 1
    everything, _ = taught(work, PHASES.replace("0.4", "0.99"))
    assert len(everything) == len(parts.train) + len(whole)


def test_flipping_the_labels_of_a_fold_leaves_teacher_and_student_byte_identical(work, tmp_path):
    other = make_work(tmp_path)
    flip_labels(other, fold=0)
    for run, changes in (("first", ()), ("student", (PHASES,))):
        ours, theirs = train_folds(other, run, *changes), read_files(work.fold(run, 0))
        assert {name: ours[name] == theirs[name] for name in SAME} == dict.fromkeys(SAME, True)


def test_a_stopped_student_ends_in_the_same_bytes(work, tmp_path):
    other = make_work(tmp_path)
    train_folds(other, "first")
    task = FoldTask(config("train.epochs=1", PHASES), other, "student", 0, trains=True)
    for looks in (1, 2):
        with pytest.raises(Stopped):
            do_fold(task, StopAtLook(looks))
    do_fold(task, StopFlag())
    ours, theirs = read_files(task.folder), read_files(work.fold("student", 0))
    assert {name: ours[name] == theirs[name] for name in SAME} == dict.fromkeys(SAME, True)


def test_pseudo_labels_change_the_network_and_every_result_is_marked(work):
    plain = train_folds(work, "plain", "train.phases=[{epochs: 1}, {epochs: 1}]")
    assert plain["model.safetensors"] != read_files(work.fold("student", 0))["model.safetensors"]
    train_folds(work, "tuned", "train.phases=[{weights: 'run:student', epochs: 1}]")
    data = {run: read_manifest(work.fold(run, 0)).facts["data"] for run in ("first", "plain", "student", "tuned")}
    marked = "phantom transductive"
    assert data == {"first": "phantom", "plain": "phantom", "student": marked, "tuned": marked}
    settings = config("evaluate.num_draws=20")
    do(evaluate, settings, work)
    board = leaderboard.build(work, work.root / "submissions", TASK).set_index("name")
    assert board.data.to_dict() == data
    assert "Transductive: networks were trained on predictions" in data_note("+".join(data.values()))
    assert "Transductive" not in data_note("phantom")


def test_a_teacher_of_other_folds_is_refused(work, tmp_path):
    other = make_work(tmp_path)
    train_folds(other, "first")
    slices = read_table(other.prepared / "slices.parquet")
    rewrite_slices(other, slices.assign(fold=(slices.fold + 1) % 2))
    with pytest.raises(ArtifactError, match=r"run:first cannot label fold 0.*may have seen labels"):
        train_folds(other, "student", PHASES)


def test_a_teacher_that_is_missing_or_predicted_other_slices_is_refused(work, tmp_path):
    with pytest.raises(ArtifactError, match="none"):
        train_folds(work, "nothing", PHASES.replace("first", "none"))
    other = make_work(tmp_path)
    train_folds(other, "first")
    slices = read_table(other.prepared / "slices.parquet")
    fewer = slices[(slices.split != "test") | (slices.study_id != slices[slices.split == "test"].study_id.iloc[0])]
    rewrite_slices(other, fewer)
    with pytest.raises(ArtifactError, match=r"run:first predicted other slices of test.*only predicts"):
        train_folds(other, "student", PHASES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pseudo_sets: [tset]", r'unknown set "tset" in pseudo_sets\. Did you mean "test"'),
        ("pseudo_sets: [cq500]", r"cq500 has labels and is scored"),
    ],
)
def test_a_set_that_is_unknown_or_scored_is_refused(work, change, message):
    phases = f"train.phases=[{{labels: 'run:first', {change}}}]"
    with pytest.raises(ConfigError, match=message):
        taught(work, phases, number=0)


def test_labels_are_own_or_of_a_run():
    with pytest.raises(ConfigError, match=r'phases\.0\.labels: must be "own" or "run:NAME".*found \'first\''):
        config("train.phases=[{labels: first}]")


def test_the_plan_and_the_log_name_the_teacher(work, caplog):
    words = [word for change in (*TINY, PHASES) for word in ("--set", change)]
    command = ["train", "--work", str(work.root), "--run", "planned", "--fold", "0", "--dry-run", *words]
    plan = " ".join(CliRunner().invoke(main, command).output.split())
    assert "of test with labels by run:first (transductive)" in plan


def test_a_student_whose_pseudo_labelled_slices_changed_is_refused(tmp_path):
    work = make_work(tmp_path)
    train_folds(work, "first")
    train_folds(work, "student", PHASES)
    slices = read_table(work.prepared / "slices.parquet")
    gone = slices[slices.split == "test"].study_id.iloc[0]
    rewrite_slices(work, slices[slices.study_id != gone])
    train_folds(work, "first")
    with pytest.raises(ArtifactError, match="the slices or labels of its training part"):
        train_folds(work, "student", PHASES)
