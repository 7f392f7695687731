"""Runs of some classes, asked only where another is present: what they read, write and leave out."""

import json

import numpy as np
import pytest
from support.commands import call, do
from support.pixels import make_pixel_work
from support.simulated import TASK, rewrite_slices
from support.training import config, read_files

from ichkit.core.errors import ConfigError, FoldError
from ichkit.engine.inference import load_predictor
from ichkit.engine.sampling import SliceIndex, plan_epoch
from ichkit.imaging.store import Prepared
from ichkit.stages.scores import evaluate, leaderboard
from ichkit.stages.scores.submit import SubmitOptions
from ichkit.stages.scores.submit import plan as plan_submit
from ichkit.stages.stack import run as stack
from ichkit.stages.train import run as train
from ichkit.validation.catalog import find_sources
from ichkit.work.artifacts import read_manifest, read_table

SUBTYPES = "train.classes=[epidural, intraparenchymal, intraventricular, subarachnoid, subdural]"
WHICH = (SUBTYPES, "train.given=any")
WHETHER = ("train.classes=[any]",)
BASE = ("stack.stackers=[]", "stack.calibrate=false", "stack.combine=cascade", "evaluate.num_draws=40")
# Seconds, device and paths of a journal are not results.
TIMES = ("manifest.json", "history.csv", "steps.jsonl", ".ichkit")


def train_run(work, run, *changes, folds=(0,)):
    do(train, config("train.epochs=1", *changes), work, run_name=run, folds=list(folds))
    return read_files(work.fold(run, folds[0]))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Both folds of a run that says whether, of one that says which, and of a joint run; and their cascade."""
    work = make_pixel_work(tmp_path_factory.mktemp("work"))
    train_run(work, "whether", *WHETHER, folds=(0, 1))
    train_run(work, "which", *WHICH, folds=(0, 1))
    train_run(work, "joint", folds=(0, 1))
    do(stack, config(*BASE), work, runs=("which", "whether"), name="cascade")
    return work


def turn_subtypes(work, where):
    """Turns the subtype labels of the training slices around where `any` has a value."""
    slices = read_table(work.prepared / "slices.parquet")
    rows = ((slices.split == "train") & (slices["any"] == where)).to_numpy(bool)
    for name in TASK.subtypes:
        slices.loc[rows, name] = 1 - slices.loc[rows, name]
    rewrite_slices(work, slices)


def test_turning_the_subtypes_of_slices_without_the_given_class_changes_no_byte_of_the_run(work, tmp_path):
    other = make_pixel_work(tmp_path)
    turn_subtypes(other, where=0)
    files, before = train_run(other, "which", *WHICH), read_files(work.fold("which", 0))
    assert files.keys() == before.keys()
    assert [name for name in files if files[name] != before[name] and name not in TIMES] == []
    inputs = [read_manifest(one.fold("which", 0)).inputs for one in (work, other)]
    assert inputs[0] == inputs[1]
    # The canary sings: the same where the class is present is other training data.
    turn_subtypes(other, where=1)
    assert train_run(other, "sung", *WHICH)["model.safetensors"] != before["model.safetensors"]


def test_slices_without_a_known_label_are_as_if_they_were_not_there(work):
    """With single slices an epoch of the labelled ones is an epoch of a store without the others."""
    slices = Prepared.open(work.prepared, TASK).split("train")
    settings = config("train.sampling=slices").train
    index = SliceIndex.of(slices, TASK.classes)
    kept = np.arange(len(index)) % 3 > 0
    index.labels[~kept] = np.nan
    for centres in ("uniform", "balanced"):
        chosen = settings.model_copy(update={"centres": centres})
        plan = plan_epoch(index, chosen, 0, 0, 1)
        alone = plan_epoch(SliceIndex.of(slices[kept].reset_index(drop=True), TASK.classes), chosen, 0, 0, 1)
        np.testing.assert_array_equal(plan.rows, np.flatnonzero(kept)[alone.rows])
        np.testing.assert_array_equal(plan.is_real, alone.is_real)


def test_blocks_are_centred_on_labelled_slices_and_studies_without_any_are_not_drawn(work):
    index = SliceIndex.of(Prepared.open(work.prepared, TASK).split("train"), TASK.classes)
    first = index.first == index.first[0]
    index.labels[first] = np.nan
    for sampling in ("blocks", "studies"):
        settings = config(f"train.sampling={sampling}").train
        for epoch in range(5):
            assert not first[plan_epoch(index, settings, 0, 0, epoch).rows].any()


def test_a_run_says_which_classes_it_knows_and_the_others_are_nan_everywhere(work):
    card = json.loads((work.fold("which", 0) / "model.json").read_text())
    assert card["classes"] == list(TASK.subtypes)
    assert load_predictor(work.fold("whether", 0), "cpu").classes == ("any",)
    for table in ("oof", "test", "cq500"):
        which, whether = (read_table(work.fold(run, 0) / f"{table}.parquet") for run in ("which", "whether"))
        assert which["p_any"].isna().all()
        assert which[[f"p_{name}" for name in TASK.subtypes]].notna().all(axis=None)
        assert whether.columns[whether.notna().all()].to_list()[-1] == "p_any"
    assert read_manifest(work.fold("joint", 0)).facts.get("scope") is None


def test_the_cascade_is_the_product_by_class_name_and_never_exceeds_the_given_class(work):
    whether, which = (
        np.concatenate([read_table(work.fold(run, k) / "oof.parquet")[TASK.probability_columns] for k in (0, 1)])
        for run in ("whether", "which")
    )
    ids = np.concatenate([read_table(work.fold("which", k) / "oof.parquet").slice_id for k in (0, 1)])
    table = read_table(work.stack_folder("cascade") / "base_oof.parquet").set_index("slice_id").loc[ids]
    p_any = whether[:, 5].astype(np.float64)
    np.testing.assert_allclose(table["p_any"], p_any, atol=1e-7)
    for column, name in enumerate(TASK.subtypes):
        np.testing.assert_allclose(table[f"p_{name}"], p_any * which[:, column], atol=1e-7)
        assert (table[f"p_{name}"] <= table["p_any"]).all()


def test_only_sources_of_every_class_are_ranked_and_submitted(work, tmp_path):
    settings = config(*BASE)
    do(evaluate, settings, work)
    board = leaderboard.build(work, tmp_path, TASK).set_index("name")
    assert board["rank"].dropna().astype(int).to_dict() == {
        name: number for number, name in enumerate(board.index[:2], 1)
    }
    assert set(board.index[:2]) == {"joint", "cascade-base"}
    assert board.loc[["whether", "which"], "rank"].isna().all()
    assert board.cv_weighted_log_loss.isna().to_dict() == {
        "joint": False,
        "cascade-base": False,
        "whether": True,
        "which": True,
    }
    assert board.loc["whether"].filter(like="cv_").notna().sum() == 2  # log loss and AUC of any
    assert board.loc["cascade-base", "kind"] == "base"
    slices = read_table(work.prepared / "slices.parquet").query("split == 'train'")
    assert board.loc["which", "num_slices"] == int((slices["any"] == 1).sum())
    printed = call("evaluate", "--work", work.root, "-c", "demo", "--set", "evaluate.num_draws=40", "--source", "which")
    assert "subdural" in printed
    with pytest.raises(
        ConfigError, match=r"expected a source of every class, found which, which predicts .* given any"
    ):
        plan_submit(settings, work, SubmitOptions(source="which", submissions=tmp_path))
    assert {one.name for one in find_sources(work, TASK) if one.scope.is_whole} == {"joint", "cascade-base"}


@pytest.mark.parametrize(
    ("runs", "combine", "message"),
    [
        (
            ("which", "joint"),
            "mean-logit",
            r"expects runs with the same train.given, found joint: on every slice; which: any",
        ),
        (("joint",), "cascade", r"expects a run with train\.given"),
        (("which",), "cascade", r"expects a run that predicts any on every slice"),
        (("joint", "which"), "cascade", r"found both for epidural"),
        (("joint",), "median", r'stack\.combine: unknown "median"'),
    ],
)
def test_runs_that_cannot_be_combined_are_refused(work, runs, combine, message):
    with pytest.raises(ConfigError, match=message):
        do(stack, config(*BASE, f"stack.combine={combine}"), work, runs=runs, name="wrong")


def test_without_stackers_a_mean_of_probabilities_is_that_of_the_members(work):
    do(train, config("train.epochs=1", "seed=1"), work, run_name="second", folds=[0, 1])
    do(stack, config(*BASE, "stack.combine=mean-probability"), work, runs=("joint", "second"), name="pair")
    assert sorted(path.name for path in work.stack_folder("pair").glob("*_oof.parquet")) == ["base_oof.parquet"]
    columns = TASK.probability_columns
    found = read_table(work.stack_folder("pair") / "base_oof.parquet").set_index("slice_id")
    for fold in (0, 1):
        tables = [read_table(work.fold(run, fold) / "oof.parquet").set_index("slice_id") for run in ("joint", "second")]
        mean = sum(table[columns].astype(np.float64) for table in tables) / 2
        # A covering class may be raised to the classes it covers.
        own = found.loc[mean.index, columns]
        same = (mean["p_any"] >= mean[columns[:5]].max(axis=1)).to_numpy()
        assert same.any()
        np.testing.assert_allclose(own[same], mean[same], atol=1e-6)


def test_an_unknown_class_and_a_part_without_labels_are_refused(work, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.given: unknown class \"all\""):
        do(train, config("train.given=all"), work, run_name="wrong", folds=[0])
    other = make_pixel_work(tmp_path)
    slices = read_table(other.prepared / "slices.parquet")
    slices.loc[slices.split == "train", "any"] = 0
    rewrite_slices(other, slices)
    with pytest.raises(FoldError, match="no slice with a known label of epidural, .* where any is present"):
        do(train, config(*WHICH), other, run_name="wrong", folds=[0])


def test_an_earlier_phase_may_learn_a_class_that_the_run_does_not_predict(work, tmp_path):
    phases = "train.phases=[{classes: [subdural], epochs: 1, batch_blocks: 1}, {epochs: 1}]"
    files = train_run(work, "by-way", *WHETHER, phases)
    table = read_table(work.fold("by-way", 0) / "oof.parquet")
    assert table.p_any.notna().all()
    assert table.p_subdural.isna().all()
    # The canary sings: labels of the class of the first phase count, of the training part alone.
    other = make_pixel_work(tmp_path)
    slices = read_table(other.prepared / "slices.parquet")
    rows = ((slices.split == "train") & (slices.fold == 0)).to_numpy(bool)
    slices.loc[rows, "subdural"] = 1 - slices.loc[rows, "subdural"]
    rewrite_slices(other, slices)
    assert train_run(other, "held", *WHETHER, phases)["model.safetensors"] == files["model.safetensors"]
    rows = ((slices.split == "train") & (slices.fold != 0)).to_numpy(bool)
    slices.loc[rows, "subdural"] = 1 - slices.loc[rows, "subdural"]
    rewrite_slices(other, slices)
    assert train_run(other, "sung", *WHETHER, phases)["model.safetensors"] != files["model.safetensors"]
