"""The phantom of strokes on MR: sides by geometry, times since onset, what FLAIR and readers tell of them."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ichkit import write_phantom
from ichkit.core.tasks import find_task
from ichkit.phantom.onset import Stroke, draw_minutes, write_tables
from ichkit.sources.labels import read_folder_labels

nibabel = pytest.importorskip("nibabel")
NUM_PATIENTS = 6


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("onset")
    write_phantom(out, kind="onset", studies=NUM_PATIENTS, size=160, keep_masks=True, workers=1)
    return out


def read(path):
    """Values (x, y, z) with x to the right, and the affine, as nibabel says."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj, np.float64), image.affine


def digests(root):
    return {
        path.relative_to(root): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_every_patient_has_three_sequences_on_two_grids(tree):
    for number in range(1, NUM_PATIENTS + 1):
        base = tree / "bids" / f"sub-{number:04d}"
        shapes = {
            name: nibabel.load(base / folder / f"{base.name}_{name}.nii.gz").shape
            for folder, name in (("dwi", "dwi"), ("dwi", "b0"), ("anat", "FLAIR"))
        }
        assert shapes == {"dwi": (40, 40, 26), "b0": (40, 40, 26), "FLAIR": (80, 80, 26)}


def test_the_lesion_lies_on_the_side_that_the_labels_name_and_is_bright_on_dwi(tree):
    labels = pd.read_csv(tree / "bids" / "labels.csv")
    has_stroke = labels[labels["stroke"] == 1].set_index("study_id")["side"]
    found, orders = [], set()
    for name, side in has_stroke.items():
        mask, affine = read(tree / "masks" / "bids" / f"{name}_dwi_lesion.nii.gz")
        values, _ = read(tree / "bids" / name / "dwi" / f"{name}_dwi.nii.gz")
        orders.add("".join(nibabel.aff2axcodes(nibabel.load(tree / f"bids/{name}/dwi/{name}_dwi.nii.gz").affine)))
        if not mask.any():
            continue
        x = (affine @ np.append(np.argwhere(mask).mean(0), 1))[0]  # millimetres to the right, in RAS
        found.append(("right" if x > 0 else "left") == side)
        assert values[mask > 0].mean() > 1.05 * np.median(values[values > values.max() / 4])
    assert all(found)
    assert len(found) >= NUM_PATIENTS - 2
    assert orders == {"LPS", "RPS"}  # both storage orders occur: only the affine tells the sides


def test_labels_of_the_healthy_half_are_unknown_but_for_stroke(tree):
    table, key = read_folder_labels(tree / "bids" / "labels.csv", find_task("onset"), by_part=True)
    assert key == "study_id"
    assert len(table) == 2 * NUM_PATIENTS
    assert table["study_id"].str.fullmatch(r"sub-\d{4}:(left|right)").all()
    healthy = table[table["stroke"] == 0]
    assert len(healthy) == NUM_PATIENTS
    assert healthy[["tss45", "tss3"]].isna().all(axis=None)
    affected = table[table["stroke"] == 1]
    assert affected[["tss45", "tss3"]].notna().all(axis=None)
    assert (affected["tss45"] >= affected["tss3"]).all()


def test_the_same_settings_give_the_same_bytes_with_any_number_of_workers(tree, tmp_path):
    write_phantom(tmp_path / "again", kind="onset", studies=NUM_PATIENTS, size=160, keep_masks=True, workers=2)
    assert digests(tmp_path / "again") == digests(tree)


def test_times_since_onset_have_the_quartiles_of_the_paper():
    generator = np.random.default_rng(0)
    minutes = np.array([draw_minutes(generator) for _ in range(20_000)])
    assert np.percentile(minutes, [25, 50, 75]) == pytest.approx([105, 222, 715], rel=0.05)


def test_diffusion_rises_at_once_flair_after_hours_and_b0_last():
    at = {hours: Stroke(60 * hours, "left", 4.5).factors(1.0) for hours in (0.5, 3, 6, 24)}
    assert at[0.5]["dwi"] > 1.5
    assert at[3]["dwi"] > 1.9
    assert at[3]["flair"] < 1.1 < 1.4 < at[6]["flair"]
    assert at[6]["b0"] < 1.1 < 1.3 < at[24]["b0"]


def test_the_oracle_on_the_true_mask_tells_early_from_late_but_not_without_errors(tmp_path):
    write_phantom(tmp_path, kind="onset", studies=40, size=96, workers=1)
    studies = json.loads((tmp_path / "bids" / "phantom.json").read_text())["studies"]
    known = [study for study in studies if study["oracle"]["dwi"] is not None]
    ratio = np.array([study["oracle"]["flair"] / study["oracle"]["dwi"] for study in known])
    early = np.array([study["onset_minutes"] < 270 for study in known])
    assert len(known) > 25
    assert 0.75 < roc_auc_score(early, -ratio) < 0.995


def test_readers_agree_moderately_and_judge_the_mismatch(tmp_path):
    generator = np.random.default_rng(1)
    studies = []
    for number in range(400):
        stroke = Stroke(draw_minutes(generator), "left", float(np.clip(generator.normal(4.5, 1.0), 2, 8)))
        facts = {"onset_minutes": stroke.minutes, "side": stroke.side, "mismatch": stroke.mismatch}
        studies.append({"study_id": f"sub-{number:04d}", **facts})
    write_tables(tmp_path, studies, seed=0, num_readers=3)
    reads = (
        pd.read_csv(tmp_path / "readers.csv").pivot_table(index="study_id", columns="reader", values="tss45").to_numpy()
    )
    early = np.array([study["onset_minutes"] < 270 for study in studies])
    votes = np.stack([3 - reads.sum(1), reads.sum(1)], axis=1)
    agreement = ((votes**2).sum(1) - 3).mean() / 6
    chance = ((votes.sum(0) / votes.sum()) ** 2).sum()
    assert 0.3 < (agreement - chance) / (1 - chance) < 0.75  # Fleiss' kappa; the paper's readers have 0.46
    assert 0.65 < (reads == early[:, None]).mean() < 0.95
