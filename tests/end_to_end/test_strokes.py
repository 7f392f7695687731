"""The phases of onset2021 on small phantom brains: what is frozen, what is carried on, and that it helps."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from support.commands import do
from support.strokes import NUM_SLICES, TASK, draw_patient, halves_of, make_strokes
from support.training import StopAtLook, read_files

from ichkit.core.config import load_config
from ichkit.core.errors import ConfigError, Stopped
from ichkit.core.progress import StopFlag
from ichkit.engine.inference import load_predictor
from ichkit.imaging.store import Prepared
from ichkit.stages.train import run as train
from ichkit.stages.train.fold import do_fold
from ichkit.stages.train.fold_inputs import FoldTask
from ichkit.work.artifacts import read_table

GATES = "frozen: [backbone.gates]"
SETTINGS = (
    "task=onset",
    "channels={kind: sequences, windows: [[1500, 3000], [1500, 3000], [1500, 3000]]}",
    "train.pretrained=none",
    "train.sampling=studies",
    f"train.max_slices={NUM_SLICES}",
    "train.block_size=1",
    "train.batch_blocks=4",
    "train.optimizer=adam",
    "train.learning_rate=0.003",
    "train.schedule=constant",
    "train.loss=bce",
    "train.adapts_to_length=false",
    "train.ema_decay=null",
    "train.cutmix.probability=0",
    *(f"train.augment.{name}_probability=0" for name in ("crop", "horizontal_flip", "rotation", "distortion", "noise")),
    "train.threads=1",
    "train.accelerator=cpu",
    "train.precision=32",
)
FLAT = (
    "train.backbone=resnet18-gated",
    "train.backbone_args={layers: [1, 1, 1, 1], channels: [16, 32, 48, 64]}",
    "train.image_size=64",
    f"train.pool={{kind: slice-weights, positions: {NUM_SLICES}, writes: study}}",
)
VOLUME = (
    "train.backbone=unet3d",
    "train.backbone_args={width: 2}",
    "train.image_size=32",
    "train.pool={kind: mean, writes: study}",
)
RESTORED = "train.phases=[{kind: restore, epochs: 1}, {epochs: 1, frozen_stages: 4}]"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_strokes(tmp_path_factory.mktemp("small"), 9)[0]


def config(*changes):
    return load_config("default", (*SETTINGS, *changes))


def train_run(work, run, *changes, folds=(0,)):
    do(train, config(*changes), work, run_name=run, folds=None if folds is None else list(folds))
    return load_file(work.fold(run, 0) / "model.safetensors")


def changed(before, after):
    """The parts of the network, to the second level, whose tensors differ."""
    return {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}


def test_frozen_parts_are_the_same_bytes_from_phase_to_phase_until_the_last_trains_the_gate(small):
    """Four phases in three runs; halves without a stroke have no part in the second to the fourth."""
    held = f"frozen_stages: 2, {GATES}"
    lesion = train_run(small, "lesion", *FLAT, "train.classes=[stroke]", f"train.phases=[{{epochs: 1, {GATES}}}]")
    early = train_run(
        small, "3h", *FLAT, "train.classes=[tss3]", f"train.phases=[{{weights: 'run:lesion', epochs: 1, {held}}}]"
    )
    last = ("train.classes=[tss45]", f"train.phases=[{{weights: 'run:3h', epochs: 1, {held}}}")
    third = train_run(small, "third", *FLAT, last[0], f"{last[1]}]")
    fourth = train_run(small, "4h5", *FLAT, last[0], f"{last[1]}, {{epochs: 1, frozen_stages: 2}}]")
    rest = {"backbone.layer2", "backbone.layer3", "backbone.layer4", "backbone.fc", "pool.scores"}
    assert changed(lesion, early) == changed(early, third) == rest
    assert changed(third, fourth) == rest | {"backbone.gates"}
    gates = [lesion[name] for name in lesion if "gates.score" in name]
    assert all((value == 0).all() for value in gates)
    table = read_table(small.fold("4h5", 0) / "oof.parquet")
    assert table.groupby("study_id").p_tss45.nunique().max() == 1  # one probability per half
    assert table[["p_stroke", "p_tss3"]].isna().all(axis=None)


def test_the_other_half_of_a_patient_is_never_in_another_fold(small):
    slices = Prepared.open(small.prepared, TASK).slices
    pairs = slices.drop_duplicates("study_id").groupby("patient_id").fold
    assert (pairs.size() == 2).all()
    assert (pairs.min() == pairs.max()).all()


def test_mirroring_a_person_exchanges_the_pair_of_predictions(small):
    train_run(small, "lesion", *FLAT, "train.classes=[stroke]", f"train.phases=[{{epochs: 1, {GATES}}}]")
    predictor = load_predictor(small.fold("lesion", 0), "cpu")
    pairs = []
    for is_mirrored in (False, True):
        halves = halves_of(draw_patient(7, 0, mirrored=is_mirrored)[0])
        pairs.append({side: predictor.read_study(volume).of_study for side, volume in halves.items()})
    assert np.array_equal(pairs[0]["left"], pairs[1]["right"])
    assert np.array_equal(pairs[0]["right"], pairs[1]["left"])
    assert not np.array_equal(pairs[0]["left"], pairs[0]["right"])


def test_restoring_changes_the_encoder_that_the_next_phase_gets_and_leaves_the_decoder_behind(small):
    restored = train_run(small, "restored", *VOLUME, "train.classes=[stroke]", RESTORED)
    fresh = train_run(small, "fresh", *VOLUME, "train.classes=[stroke]", "train.phases=[{epochs: 1, frozen_stages: 4}]")
    assert "backbone.levels" in changed(fresh, restored)
    assert not [name for name in restored if "decoder" in name]
    assert read_table(small.fold("restored", 0) / "oof.parquet").p_stroke.notna().all()
    history = pd.read_csv(small.fold("restored", 0) / "history.csv")
    assert history.phase.tolist() == [1, 2]


@pytest.mark.parametrize("looks", [(1,), (3, 1)])
def test_a_run_that_restores_first_ends_in_the_same_bytes_when_it_was_stopped(small, tmp_path, looks):
    train_run(small, "restored", *VOLUME, "train.classes=[stroke]", RESTORED)
    other = make_strokes(tmp_path, 9)[0]
    task = FoldTask(config(*VOLUME, "train.classes=[stroke]", RESTORED), other, "restored", 0, trains=True)
    for number in looks:
        with pytest.raises(Stopped):
            do_fold(task, StopAtLook(number))
    do_fold(task, StopFlag())
    ours, theirs = (read_files(one.fold("restored", 0)) for one in (other, small))
    for name in ("model.safetensors", "oof.parquet", "study_oof.parquet"):
        assert ours[name] == theirs[name], name


def test_a_network_of_slices_cannot_restore(small):
    with pytest.raises(ConfigError, match=r"kind restore pretrains a backbone of volumes"):
        train_run(small, "wrong", *FLAT, "train.classes=[stroke]", "train.phases=[{kind: restore}, {epochs: 1}]")


def test_the_last_phase_learns_labels():
    with pytest.raises(ConfigError, match=r"kind restore must be followed by one that learns labels"):
        config(*VOLUME, "train.phases=[{epochs: 1}, {kind: restore}]")
