"""Work folders with the manifests of finished work and hardly anything in them, for what only looks at manifests."""

import json
from pathlib import Path

import pandas as pd
import yaml

from ichkit.validation.notes import write_note
from ichkit.work.artifacts import ArtifactWriter, write_bytes_atomically

FACTS = {"data": "phantom", "task": "hemorrhage", "num_slices": 40, "num_studies": 4, "num_rejected": 1}


def write_prepared(work, folds=3, *, has_sample=True, settings=None):
    writer = ArtifactWriter(work.prepared, "prepared")
    writer.write_table("folds.csv", pd.DataFrame({"patient_id": range(folds), "fold": range(folds)}))
    writer.write_table("sample_ids.csv", pd.DataFrame({"ID": ["ID_1_any"] if has_sample else []}))
    writer.commit(settings=settings or {"task": FACTS["task"]}, inputs={}, facts=FACTS)


def write_fold(work, run, fold, content="first", config=None):
    """A fold whose tables are not tables, only bytes with a digest."""
    writer = ArtifactWriter(work.fold(run, fold), "fold")
    for split in ("oof", "test", "cq500"):
        writer.write_bytes(f"{split}.parquet", f"{content} {run} {fold} {split}".encode())
    if config is not None:
        used = {"task": config.task, "seed": config.seed, "channels": config.channels.settings()}
        writer.write_bytes("config.yaml", yaml.safe_dump(used | {"train": config.train.settings()}).encode())
    writer.commit(settings={}, inputs={}, facts=FACTS)


def write_stack(work, run, folds, name=None, kind="blend"):
    writer = ArtifactWriter(work.stacks / (name or run), "stack")
    for split in ("oof", "test", "cq500"):
        writer.write_bytes(f"{kind}_{split}.parquet", f"{run} {folds} {split}".encode())
    inputs = {}
    for fold in folds:
        manifest = json.loads((work.fold(run, fold) / "manifest.json").read_text())
        inputs |= {f"{run}/fold{fold}/{table}": file["sha256"] for table, file in manifest["files"].items()}
    facts = {**FACTS, "runs": [run], "folds": list(folds), "kinds": [kind]}
    writer.commit(settings={}, inputs=inputs, facts=facts)


def write_submission(work, stack, folds):
    manifest = json.loads((work.stacks / stack / "manifest.json").read_text())
    table = "blend_test.parquet"
    tables = {f"stacks/{stack}/{table}": manifest["files"][table]["sha256"]}
    Path("submissions").mkdir(exist_ok=True)
    digest = write_bytes_atomically(Path("submissions", f"{stack}-blend.csv"), b"ID,Label\n")
    facts = {"csv": f"{stack}-blend.csv", "sha256": digest.sha256, "folds": folds, "tables": tables}
    write_note(Path("submissions"), f"{stack}-blend", facts)


def write_search(work, name, trials, best, folds):
    """A finished search over two settings, whose trials are these runs."""
    space = {
        "train.epochs": {"4": ["train.epochs=4"], "8": ["train.epochs=8"]},
        "train.learning_rate": {"low": 1e-5, "high": 1e-3, "step": None, "log": True},
    }
    settings = {"config": {}, "space": space, "objective": "loss", "sampler": "tpe", "pruner": "none"}
    inputs = {f"{trial}/fold{fold}/oof.parquet": "0" for trial in trials for fold in folds}
    writer = ArtifactWriter(work.tune_folder(name), "tune")
    writer.commit(
        settings=settings | {"folds": list(folds)},
        inputs={"prepared/labels": "0", **inputs},
        facts={**FACTS, "num_trials": len(trials), "best": best, "is_nested": False},
    )
