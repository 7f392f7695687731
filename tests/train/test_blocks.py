"""Every row of contexts, pools and samplings keeps the promises of training: no leak, and the same bytes resumed."""

import json

import numpy as np
import pytest
from support.commands import do
from support.pixels import make_pixel_work
from support.simulated import TASK, flip_labels, rewrite_slices
from support.training import TABLES, StopAtLook, config, read_files

from ichkit.core.errors import ArtifactError, ConfigError, Stopped
from ichkit.core.progress import StopFlag
from ichkit.engine.inference import load_predictor
from ichkit.engine.sampling import CENTRES
from ichkit.imaging.store import Prepared
from ichkit.models.context import CONTEXTS
from ichkit.models.pooling import POOLS
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask, with_defaults
from ichkit.work.artifacts import read_manifest, read_table
from ichkit.work.places import partial_of

STUDIES = (
    "train.sampling=studies",
    "train.context.width=16",
    "train.max_slices=7",
    "train.augment.every_second_probability=0.3",
    "train.augment.reversed_probability=0.5",
    "train.drop_rate=0.2",
)
ROWS = {name: (f"train.context={name}", *STUDIES) for name in CONTEXTS if name != "none"}
ROWS |= {name: (f"train.pool={name}", *STUDIES) for name in POOLS if name != "none"}
# Networks of single slices under every sampling; `test_run` has blocks with uniform centres.
ROWS |= {name: (f"train.centres={name}",) for name in CENTRES if name != "uniform"}
ROWS |= {"slices": ("train.sampling=slices",), "studies": STUDIES}
ROWS["blocks"] = ("train.context=conv", "train.context.width=16")
ROWS["both"] = ("train.context=gru", "train.pool=attention", *STUDIES)
# The others differ in the module alone, which `tests/models` looks at.
FAST = ("transformer", "gru", "attention", "slices")
EVERY = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ROWS]
KEPT = ("model.safetensors", "stacks_oof.npy", *(f"{table}.parquet" for table in TABLES))


def train_fold(work, *changes):
    return do(train, config(*changes), work, run_name="run", folds=[0])[0]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The files of a fold of each row, trained once without a stop."""
    made = {}

    def files_of(name):
        if name not in made:
            work = make_pixel_work(tmp_path_factory.mktemp(name))
            train_fold(work, *ROWS[name])
            made[name] = read_files(work.fold("run", 0))
        return made[name]

    return files_of


@pytest.mark.parametrize("name", EVERY)
def test_flipping_every_label_of_a_fold_leaves_its_predictions_byte_identical(tmp_path, straight, name):
    work = make_pixel_work(tmp_path)
    flip_labels(work, fold=0)
    train_fold(work, *ROWS[name])
    ours, theirs = straight(name), read_files(work.fold("run", 0))
    assert {file: ours[file] == theirs[file] for file in KEPT} == dict.fromkeys(KEPT, True)
    flip_labels(work, fold=1)
    with pytest.raises(ArtifactError, match="the slices or labels of its training part"):
        train_fold(work, *ROWS[name])


@pytest.mark.parametrize("name", EVERY)
def test_a_fold_stopped_anywhere_ends_in_the_bytes_of_one_that_was_not(tmp_path, straight, name):
    work = make_pixel_work(tmp_path)
    task = FoldTask(config(*ROWS[name]), work, "run", 0, trains=True)
    for looks in (1, 2):
        with pytest.raises(Stopped):
            do_fold(task, StopAtLook(looks))
    assert (partial_of(task.folder) / "last.ckpt").exists()
    do_fold(task, StopFlag())
    ours, theirs = straight(name), read_files(task.folder)
    assert {file: ours[file] == theirs[file] for file in KEPT} == dict.fromkeys(KEPT, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_workers_make_the_same_batches(tmp_path, straight, name):
    work = make_pixel_work(tmp_path)
    train_fold(work, *ROWS[name], "train.workers=2")
    ours, theirs = straight(name), read_files(work.fold("run", 0))
    assert {file: ours[file] == theirs[file] for file in KEPT} == dict.fromkeys(KEPT, True)


def test_the_tables_of_both_heads_and_the_predictor_agree(tmp_path):
    work, changes = make_pixel_work(tmp_path), (*ROWS["transformer"], "train.tta=hflip", "train.epochs=4")
    train_fold(work, *changes)
    assert not (work.fold("run", 0) / "slice_oof.parquet").exists()
    before = read_files(work.fold("run", 0))
    train_fold(work, *changes, "train.keep_slice_head=true")  # predicts again with the same weights
    folder, prepared = work.fold("run", 0), Prepared.open(work.prepared, TASK)
    assert {file: read_files(folder)[file] == before[file] for file in KEPT} == dict.fromkeys(KEPT, True)
    predictor = load_predictor(folder, "cpu")
    both = {part: read_table(folder / f"{part}.parquet").set_index("slice_id") for part in ("oof", "slice_oof")}
    labelled = prepared.split("train")
    for relative, rows in labelled[labelled.fold == 0].groupby("volume"):
        volume = prepared.read_volume(relative)
        read = predictor.read_study(volume, rows.position_mm.to_numpy())
        for part, found in (("oof", read.probabilities), ("slice_oof", read.of_slices)):
            stored = both[part].loc[rows.slice_id, TASK.probability_columns].to_numpy()
            np.testing.assert_allclose(found, stored, atol=1e-5)
        twice = predictor.predict_volume(volume, rows.position_mm.to_numpy() * 2)
        assert np.abs(twice - read.probabilities).max() > 1e-6
    series, alone = (both[part][TASK.probability_columns].to_numpy() for part in ("oof", "slice_oof"))
    assert np.abs(series - alone).max() > 1e-4


def test_the_pooled_studies_have_the_weights_of_their_slices(tmp_path):
    work = make_pixel_work(tmp_path)
    train_fold(work, *ROWS["attention"])
    table = read_table(work.fold("run", 0) / "study_oof.parquet")
    oof = read_table(work.fold("run", 0) / "oof.parquet")
    assert table[["study_id", "slice_index"]].equals(oof[["study_id", "slice_index"]])
    weights = table.groupby("study_id")[[f"w_{name}" for name in TASK.classes]].sum()
    np.testing.assert_allclose(weights, 1.0, atol=1e-5)
    assert (table.groupby("study_id")[TASK.probability_columns].nunique() == 1).all().all()
    # Attention is the weighted mean of the logits of the slices.
    logits = np.log(oof[TASK.probability_columns] / (1 - oof[TASK.probability_columns])).to_numpy()
    weighted = logits * table[[f"w_{name}" for name in TASK.classes]].to_numpy()
    pooled = weighted[table.study_id == table.study_id[0]].sum(0)
    first = table[TASK.probability_columns].to_numpy(np.float64)[0]
    np.testing.assert_allclose(pooled, np.log(first / (1 - first)), atol=1e-3)


def test_new_positions_are_other_inputs_for_a_context_alone(tmp_path):
    work = make_pixel_work(tmp_path)
    train_fold(work, *ROWS["transformer"])
    do(train, config(), work, run_name="plain", folds=[0])
    slices = Prepared.open(work.prepared, TASK).slices
    rewrite_slices(work, slices.assign(position_mm=slices.position_mm * 2))
    with pytest.raises(ArtifactError, match="the slices or labels of its training part"):
        train_fold(work, *ROWS["transformer"])
    before = read_files(work.fold("plain", 0))
    do(train, config(), work, run_name="plain", folds=[0])
    assert read_files(work.fold("plain", 0)) == before


def test_a_context_may_start_from_the_weights_of_a_network_of_slices(tmp_path):
    work = make_pixel_work(tmp_path)
    do(train, config(), work, run_name="plain", folds=[0])
    frozen = "train.phases=[{weights: 'run:plain', epochs: 1, learning_rate: 1.0e-9}]"
    train_fold(work, *ROWS["transformer"], frozen, "train.ema_decay=null", "train.keep_slice_head=true")
    # A context that has learnt nothing yet adds nothing.
    ours = read_table(work.fold("run", 0) / "slice_oof.parquet")[TASK.probability_columns]
    theirs = read_table(work.fold("plain", 0) / "oof.parquet")[TASK.probability_columns]
    # The batch statistics have moved by one epoch.
    assert np.abs(ours - theirs).mean().max() < 0.1
    back = config("train.phases=[{weights: 'run:run'}]")
    with pytest.raises(ConfigError, match=r"another network's \(context\."):
        do(train, back, work, run_name="back", folds=[0])


def test_a_run_of_an_earlier_version_without_these_keys_is_up_to_date(tmp_path):
    work = make_pixel_work(tmp_path)
    train_fold(work)
    folder = work.fold("run", 0)
    manifest = json.loads((folder / "manifest.json").read_text())
    new = ("context", "pool", "heads", "max_slices")
    old = {**manifest["settings"], "train": {k: v for k, v in manifest["settings"]["train"].items() if k not in new}}
    assert with_defaults(old) == manifest["settings"]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "settings": old}))
    before = read_files(folder)
    train_fold(work)
    assert read_files(folder) == before
    with pytest.raises(ArtifactError, match=r"train\.context\.kind: none, now gru"):
        train_fold(work, "train.context=gru")
    assert read_manifest(folder).settings == old


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.context=gru", "train.sampling=slices"], "needs blocks of slices; use --set train.sampling=studies"),
        (["train.pool=max"], "a study is pooled from all its slices; use --set train.sampling=studies"),
        (
            ["train.sampling=studies", "train.centres=central"],
            "with train.sampling=studies each study is seen once per epoch; leave it",
        ),
        (["train.context=gru", "train.context.width=20", "train.context.heads=8"], "a multiple of twice the heads"),
        (["train.context=grru"], 'train.context: unknown "grru"'),
        (["train.context.kind=[1]"], "train.context.kind"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_remedy(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train_fold(make_pixel_work(tmp_path), *changes)


def test_one_word_and_single_keys_say_the_same():
    assert config("train.context=gru", "train.context.layers=1").train.context == (
        config("train.context={kind: gru, layers: 1}").train.context
    )
    assert config("train.context.layers=1", "train.context=gru").train.context.layers == 1
    assert config("train.schedule=step", "train.schedule.lowest=0.1").train.schedule.lowest == 0.1
