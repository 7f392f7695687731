"""`prepare` of several sequences: a phantom end to end, a mirrored person, a real case of three grids, `predict`."""

import gzip
import shutil

import nibabel
import numpy as np
import pandas as pd
import pytest
from support.commands import call

from ichkit import write_phantom
from ichkit.core.config import Config, load_config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.tasks import find_task
from ichkit.imaging.parts import PartSettings
from ichkit.imaging.sequence_steps import run_sequence_steps
from ichkit.imaging.sequences import SequenceSettings
from ichkit.imaging.store import Prepared
from ichkit.sources.bids import image_files, plan_sequences
from ichkit.sources.files import file_refs, scan_files
from ichkit.sources.index import MR, read_index
from ichkit.sources.plan import Found, StudyTasks, order_slices
from ichkit.sources.sequence_files import name_parts, read_sequences
from ichkit.sources.study import PixelSettings, decode_study
from ichkit.stages.prepare import run as prepare
from ichkit.work.folder import WorkFolder

pytest.importorskip("SimpleITK")
TASK = find_task("onset")
NUM_PATIENTS = 6
SETTINGS = (
    "task=onset",
    "channels.kind=sequences",
    "channels.windows=[[1500, 3000], [1500, 3000], [1500, 3000]]",
    "prepare.parts=halves",
    "prepare.sequences.names=[dwi, b0, flair]",
    "prepare.sequences.reference=b0",
    "prepare.sequences.slices=13",
    "prepare.sequences.rows=48",
    "prepare.sequences.columns=40",
    "prepare.num_folds=2",
    "prepare.workers=1",
    "train.backbone=test_byobnet",
    "train.pretrained=none",
    "train.image_size=32",
    "train.epochs=1",
    "train.threads=1",
    "train.workers=0",
)
WORDS = [word for text in SETTINGS for word in ("--set", text)]


def config(*more: str) -> Config:
    return load_config("default", (*SETTINGS, *more))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("strokes")
    write_phantom(out, kind="onset", studies=NUM_PATIENTS, size=128, keep_masks=True, workers=1)
    return out


@pytest.fixture(scope="module")
def work(tree, tmp_path_factory):
    """The phantom's store, by command."""
    folder = tmp_path_factory.mktemp("work")
    call("prepare", "--source", "bids", "--folder", tree / "bids", "--work", folder, *WORDS)
    return WorkFolder(folder)


def halves_of(root):
    """The right and the left half (S, M, H, W) of the only study below a folder, with its settings."""
    way = SequenceSettings.of(config().prepare.sequences)
    images = image_files(scan_files(root)[0])
    plan = plan_sequences(Found(images, images, read_index(images, None, modality=MR), TASK, salt=b"s", sequences=way))
    files, _ = order_slices(plan.files)
    parts = PartSettings.of(config().prepare.parts)
    (task,) = StudyTasks(files, PixelSettings(False, (-800, 3000), None, parts=parts, sequences=way))
    study = decode_study(task)
    assert study.failures == []
    return {part.name: part.volume for part in study.parts}, way


def test_the_store_holds_both_halves_of_every_patient_with_three_sequences(work):
    store = Prepared.open(work.prepared, TASK)
    assert len(store.studies) == 2 * NUM_PATIENTS
    assert store.studies["study_id"].str.fullmatch(r"sub-\d{4}:(left|right)").all()
    for path in store.slices["volume"].unique():
        volume = store.read_volume(path)
        assert volume.shape == (13, 3, 48, 20)
        assert volume.min() == 0
        assert 1000 < volume.max() <= 3000
        inside = volume[:, 0] > 0
        assert 0.2 < inside.mean() < 0.8
        assert all(800 < np.median(volume[:, number][inside]) < 1200 for number in range(3))
    assert store.sequences["names"] == ["dwi", "b0", "flair"]


def test_both_halves_of_a_person_are_in_one_fold_and_only_one_has_a_known_time(work):
    slices = Prepared.open(work.prepared, TASK).slices
    by_patient = slices.groupby("patient_id")
    assert by_patient["fold"].agg(lambda folds: len(set(folds)) == 1).all()
    assert (by_patient["study_id"].nunique() == 2).all()
    of_half = slices.groupby("study_id")[["stroke", "tss45", "tss3"]].first()
    assert (of_half["stroke"] == 0).sum() == NUM_PATIENTS
    assert of_half.loc[of_half["stroke"] == 0, ["tss45", "tss3"]].isna().all(axis=None)


def test_the_affected_half_is_the_one_with_the_bright_lesion(tree, work):
    store = Prepared.open(work.prepared, TASK)
    labels = pd.read_csv(tree / "bids" / "labels.csv")
    told = 0
    for name, of_study in labels.groupby("study_id"):
        if not nibabel.load(tree / "masks" / "bids" / f"{name}_dwi_lesion.nii.gz").get_fdata().sum() > 20:
            continue  # too small to be the brightest part of its half
        tops = {}
        for side in ("left", "right"):
            path = store.slices.loc[store.slices["study_id"] == f"{name}:{side}", "volume"].iloc[0]
            tops[side] = np.percentile(store.read_volume(path)[:, 0], 99.5)
        affected = of_study.loc[of_study["stroke"] == 1, "side"].iloc[0]
        assert max(tops, key=tops.get) == affected
        told += 1
    assert told >= 2


def test_the_same_store_has_the_same_bytes_and_a_second_call_has_nothing_to_do(tree, work, tmp_path):
    again = WorkFolder(tmp_path)
    shutil.copy(work.root / "salt", again.root / "salt")
    call("prepare", "--source", "bids", "--folder", tree / "bids", "--work", tmp_path, "--limit-studies", "2", *WORDS)
    ours, theirs = Prepared.open(work.prepared, TASK), Prepared.open(again.prepared, TASK)
    for path in theirs.slices["volume"].unique():
        assert (again.prepared / path).read_bytes() == (work.prepared / path).read_bytes()
        assert path in set(ours.slices["volume"])
    said = call("prepare", "--source", "bids", "--folder", tree / "bids", "--work", work.root, *WORDS)
    assert "up to date" in said


def test_mirroring_a_person_exchanges_its_pair_of_hemispheres(tree, tmp_path):
    subject = tree / "bids" / "sub-0002"
    shutil.copytree(subject, tmp_path / "plain" / "sub-0002")
    shutil.copytree(subject, tmp_path / "mirrored" / "sub-0002")
    for path in (tmp_path / "mirrored").rglob("*.nii.gz"):
        image = nibabel.load(path)
        # Mirrored about the plane x = 0 of the scanner: the same pixels at mirrored places.
        turned = nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([-1.0, 1, 1, 1]) @ image.affine)
        path.write_bytes(gzip.compress(turned.to_bytes(), mtime=0))
    plain, _ = halves_of(tmp_path / "plain")
    mirrored, _ = halves_of(tmp_path / "mirrored")
    for side, other in (("right", "left"), ("left", "right")):
        one, two = plain[side].astype(int), mirrored[other].astype(int)
        apart = np.abs(one - two)
        assert np.percentile(apart, 99) <= 40  # of 3000
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.999
        assert np.corrcoef(one.ravel(), mirrored[side].ravel())[0, 1] < 0.99


def test_a_real_case_of_three_grids_becomes_one_head_with_its_sides_right(real_data, tmp_path):
    for path in (real_data / "isles22").glob("sub-*"):
        if "_msk" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    halves, way = halves_of(tmp_path)
    assert halves["right"].shape == halves["left"].shape == (13, 3, 48, 20)
    # One head: outside the brain of DWI nothing, inside it all three sequences.
    for half in halves.values():
        inside = half[:, 0] > 0
        assert 0.2 < inside.mean() < 0.6
        assert (half[:, 2][inside] > 0).mean() > 0.95
    # Registered: fluid is bright in b0 and dark in FLAIR, and less so where FLAIR is moved by two pixels.
    whole = np.concatenate([halves["right"], halves["left"][..., ::-1]], axis=-1).astype(float)
    fluid = whole[:, 1] > 1700
    assert fluid.sum() > 50
    moved = [np.roll(whole[:, 2], shift, (1, 2))[fluid] for shift in ((2, 0), (-2, 0), (0, 2), (0, -2))]
    assert np.median(whole[:, 2][fluid]) < 0.95 * min(np.median(values) for values in moved)
    # Sides: the lesion that the readers drew, in the scanner's millimetres, and where the store shows it.
    refs = file_refs(image_files(scan_files(tmp_path)[0]))
    study = run_sequence_steps(read_sequences(refs, way), way)
    drawn = nibabel.load(next((real_data / "isles22").glob("*_msk.nii.gz")))
    ras = drawn.affine @ np.append(np.argwhere(drawn.get_fdata() > 0), np.ones((int(drawn.get_fdata().sum()), 1)), 1).T
    in_head = np.linalg.inv(study.frames[0]) @ (np.diag([-1.0, -1, 1, 1]) @ ras)
    side = "left" if in_head[0].mean() > 0 else "right"
    brain = nibabel.load(next((real_data / "isles22").glob("*_dwi.nii.gz")))
    centre = (brain.affine @ np.append(np.argwhere(brain.get_fdata() > 50).mean(0), 1))[0]
    assert ("right" if ras[0].mean() > centre else "left") == side  # RAS: x grows to the right
    slices, rows, columns = (np.array(way.field_mm) / way.shape).tolist()
    place = (in_head[:3].mean(1) / [columns, rows, slices] + (np.array([40, 48, 13]) - 1) / 2).round().astype(int)
    column = place[0] if side == "right" else 39 - place[0]  # the left half is mirrored
    spot = halves[side][place[2] - 1 : place[2] + 2, 0, place[1] - 1 : place[1] + 2, column - 1 : column + 2]
    assert spot.max() > 1.15 * np.median(halves[side][:, 0][halves[side][:, 0] > 0])


def test_a_model_of_phantoms_predicts_a_real_case_by_its_halves(real_data, work, tmp_path):
    pytest.importorskip("torch")
    call("train", "--work", work.root, "--run", "small", "--fold", "0", *WORDS)
    case = tmp_path / "case"
    case.mkdir()
    for path in (real_data / "isles22").glob("sub-*"):
        (case / path.name).symlink_to(path)
    out = tmp_path / "out"
    call("predict", case, "--model", work.runs / "small", "--work", work.root, "--out", out, *WORDS)
    studies = pd.read_csv(out / "studies.csv")
    assert studies["study_id"].str.rpartition(":")[2].tolist() == ["left", "right"]
    assert studies["num_slices"].tolist() == [13, 13]
    assert studies[["p_tss45", "p_tss3", "p_stroke"]].notna().all(axis=None)
    rejected = pd.read_csv(out / "rejected.csv")
    assert rejected["reason"].str.startswith("not one of the sequences").all()
    with pytest.raises(AssertionError, match="Choose the config it was trained with"):
        call("predict", case, "--model", work.runs / "small", "--work", work.root, "--out", out, "--set", "task=onset")


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("bids", ("prepare.sequences.names=[]",), "expected the sequences of a study for --source bids, found none"),
        ("rsna", (), r"expected none for --source rsna, found names \['dwi', 'b0', 'flair'\]"),
        ("bids", ("prepare.sequences.steps=[strip, midlin]",), 'steps: "midlin"|"midlin"'),
        ("bids", ("prepare.crop=head",), "sequences have a grid of their own"),
    ],
)
def test_settings_that_do_not_fit_the_source_are_refused(tree, tmp_path, source, changes, message):
    options = prepare.PrepareOptions(source=source, folder=tree / "bids" if source == "bids" else None)
    with pytest.raises(ConfigError, match=message):
        prepare.plan(config(*changes), WorkFolder(tmp_path), options)


def test_other_settings_of_the_sequences_are_other_settings_of_the_store(tree, work):
    options = prepare.PrepareOptions(source="bids", folder=tree / "bids")
    with pytest.raises(ArtifactError, match="made from other settings"):
        prepare.plan(config("prepare.sequences.slices=14"), work, options)


def test_roles_of_the_real_case(real_data):
    roles = {name_parts(path.name)[2] for path in (real_data / "isles22").glob("*.nii.gz")}
    assert roles == {"dwi", "adc", "flair", "msk"}
