"""Heat falls on the bleed: phantoms know where theirs are, to the pixel."""

import numpy as np
import pytest
from support.commands import do

from ichkit import write_phantom
from ichkit.core.config import load_config
from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.phantom.bleeds import SUBTYPES
from ichkit.stages.explain.held_out import explain_slices, read_held_out
from ichkit.stages.prepare import run as prepare
from ichkit.stages.train import run as train
from ichkit.work.folder import WorkFolder

TASK = find_task("hemorrhage")
SIZE, NUM_STUDIES = 128, 70
SETTINGS = ("prepare.num_folds=4", "prepare.size=null", "train.epochs=5", "train.accelerator=cpu", "train.threads=1")
HEAD_HU = -300


def read_masks(root, study_ids):
    """slice_id to (H, W) uint8, bit c set where class c of SUBTYPES bleeds."""
    masks = {}
    for study_id in study_ids:
        with np.load(root / "masks" / "rsna" / f"{study_id}.npz", allow_pickle=False) as study:
            masks |= {name: study[name] for name in study.files}
    return masks


def measure_hits(explained, masks, name):
    """Of each slice with a bleed of that class: its area share of the head, the heat's share in it, and whether the
    hottest pixel is in it."""
    index = TASK.classes.index(name)
    found = []
    for one in explained:
        bits = masks[one.slice_id]
        is_bleed = bits > 0 if name == TASK.any_class else (bits >> SUBTYPES.index(name) & 1).astype(bool)
        is_head, heat = one.hounsfield > HEAD_HU, one.heat[one.class_indices.index(index)]
        if is_bleed.any() and heat.max() > 0:
            hottest = np.unravel_index(heat.argmax(), heat.shape)
            found.append((is_bleed.sum() / is_head.sum(), heat[is_bleed].sum() / heat.sum(), is_bleed[hottest]))
    return np.array(found, float)


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["none", "head"])
def test_the_heat_of_true_positives_falls_on_the_bleed_far_above_chance(tmp_path, crop):
    """Chance is the bleed's share of the head's area: what heat spread evenly over it, or a blind guess, would hit."""
    write_phantom(tmp_path, studies=NUM_STUDIES, test_studies=0, cq500_studies=0, size=SIZE, seed=3, keep_masks=True)
    config, work = load_config("demo", (*SETTINGS, f"prepare.crop={crop}")), WorkFolder(tmp_path / "work")
    do(prepare, config, work, prepare.PrepareOptions(rsna=tmp_path / "rsna"))
    do(train, config, work, run_name="demo", folds=[0])
    prepared = Prepared.open(work.prepared, TASK)
    held_out = read_held_out(prepared, work, "demo", 0)
    is_hit = (held_out[TASK.any_class] == 1) & (held_out[f"p_{TASK.any_class}"] > 0.5)
    hits = held_out[is_hit]
    assert len(hits) >= 30
    explained = explain_slices(prepared, work, "demo", 0, hits["slice_id"].to_list(), class_names=[TASK.any_class])
    found = measure_hits(explained, read_masks(tmp_path, hits["study_id"].unique()), TASK.any_class)
    chance, share, pointing = found.mean(axis=0)
    assert share > 3 * chance
    assert pointing > 8 * chance
