"""A model as `ichkit export` writes it, with random weights: small enough for every test."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from ichkit.core.config import load_config
from ichkit.engine.inference import ModelCard, encode_weights

FOLD = "runs/demo/fold0"
_CONFIG = load_config(
    "demo", ("train.backbone=test_resnet", "train.image_size=32", "train.pretrained=none", "train.predict_batch=8")
)
_HASHED_BYTES = 10**8


def make_model(folder: Path) -> Path:
    """One run of one fold."""
    (folder / FOLD).mkdir(parents=True)
    card = ModelCard.of(_CONFIG, None, (-800, 2000))
    torch.manual_seed(0)
    (folder / FOLD / "model.safetensors").write_bytes(encode_weights(card.build()))
    (folder / FOLD / "model.json").write_text(json.dumps(asdict(card)))
    seal(folder)
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
