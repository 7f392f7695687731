"""A model as `ichkit export` writes it, with random weights: small enough for every test."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ichkit.core.config import load_config
from ichkit.core.tasks import find_task
from ichkit.engine.inference import ModelCard, encode_weights
from ichkit.models.axial import AxialFusion
from ichkit.models.recurrent import SequenceNetwork
from ichkit.stacking.blend import Blend
from ichkit.stacking.boosting import BoostedModel
from ichkit.stacking.calibration import no_calibration
from ichkit.stacking.combine import Ensemble
from ichkit.stacking.fold_models import FoldModel, FoldModels
from ichkit.stacking.fusion import FusionModel
from ichkit.stacking.sequence import SequenceModel
from ichkit.stacking.table import BASE
from ichkit.validation.scope import Scope
from support.commands import call

FOLD, STACK = "runs/demo/fold0", "stacks/demo"
TREE = """tree
version=v4

Tree=0
split_feature=0 1
split_gain=1 1
threshold=0 0
decision_type=8 8
left_child=1 -1
right_child=-2 -3
leaf_value=.1 .2 .3

end of trees
"""
"""What LightGBM writes of one tree of two nodes."""
_CONFIG = load_config(
    "demo", ("train.backbone=test_resnet", "train.image_size=32", "train.pretrained=none", "train.predict_batch=8")
)
_HASHED_BYTES = 10**8


def make_model(folder: Path, seed: int = 0) -> Path:
    """One run of one fold."""
    (folder / FOLD).mkdir(parents=True)
    card = ModelCard.of(_CONFIG, None, (-800, 2000))
    torch.manual_seed(seed)
    (folder / FOLD / "model.safetensors").write_bytes(encode_weights(card.build()))
    (folder / FOLD / "model.json").write_text(json.dumps(asdict(card)))
    seal(folder)
    return folder


def make_stacked_model(folder: Path) -> Path:
    """The same with a second stage behind it: fusion, sequence and boosters, with random weights too."""
    make_model(folder)
    task = find_task("hemorrhage")
    size = task.num_classes
    center, scale, shares = np.zeros((1, size), np.float32), np.ones((1, size), np.float32), np.ones(size)
    torch.manual_seed(0)
    fusion = AxialFusion(2 * size, size, 3, (4, 4)).state_dict()
    sequence = SequenceNetwork(2 * size + 1, size, 4).state_dict()
    parts = {
        "fusion": FusionModel((fusion,), center, scale, shares, {}, 3, (4, 4)),
        "sequence": SequenceModel((sequence,), center[0], scale[0], shares, {}, 4),
        "lightgbm": BoostedModel(task, (), 3, ("neighbours",), (TREE,) * size, ("weak",) * size, shares),
    }
    same = no_calibration(size)
    members = (BASE, *parts)
    weights = np.full((len(members), size), 1 / len(members))
    fold_model = FoldModel("fold0", 0, same, dict.fromkeys(parts, same), Blend(members, weights), Scope.of(task))
    stack = folder / STACK
    for name, part in parts.items():
        (stack / name / "fold0").mkdir(parents=True)
        for file, data in part.encode().items():
            (stack / name / "fold0" / file).write_bytes(data)
    fold_models = FoldModels(
        task,
        ("demo",),
        has_brain_shares=False,
        has_embeddings=False,
        fold_models=(fold_model,),
        ensemble=Ensemble.of_whole(task, 1),
    )
    (stack / "blend.json").write_bytes(fold_models.encode())
    seal(folder, stack="demo", kind="blend")
    return folder


def seal(folder: Path, **changes: object) -> None:
    """Writes the manifest with true digests, as whoever made the folder can; keywords change its facts."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json" and path.stat().st_size < _HASHED_BYTES:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            files[path.relative_to(folder).as_posix()] = {"sha256": digest, "num_bytes": path.stat().st_size}
    facts = {"name": "demo", "kind": "base", "data": "phantom", "task": "hemorrhage", "runs": ["demo"], "folds": [0]}
    manifest = {
        "kind": "export",
        "settings": {},
        "inputs": {},
        "facts": facts | {"stack": None} | changes,
        "files": files,
        "created_utc": "2026-01-01T00:00:00Z",
        "git_commit": "",
        "versions": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def predict(made: Path, model: Path, folder: Path, code: int) -> str:
    """What `ichkit predict` prints for the scans in `made` by a model; its output goes below `folder`."""
    words = ["predict", made / "scans", "--model", model, "--out", folder / "out", "--work", folder / "w"]
    return call(*words, "--no-page", "--set", "prepare.workers=1", code=code)
