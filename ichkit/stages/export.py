"""`ichkit export`: a model with everything it needs to predict on another machine, and nothing of any patient."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ichkit.core.artifacts import ArtifactWriter, Manifest, has_artifact, read_manifest
from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import logger
from ichkit.core.tasks import find_task
from ichkit.engine.inference import CARD_NAME, WEIGHTS_NAME
from ichkit.stages.model import EXPORT, EXPORTED_BY, RESEARCH_NOTE, find_model

DEFAULT_FOLDER = Path("export")
# Predictions and importances stay behind: rows of the former are slices of patients, and predicting needs neither.
_TABLES = (".parquet", ".csv")


def run(config: Config, work: WorkFolder, named: str, out: Path | None = None) -> Manifest:
    """Writes a folder that `predict --model` reads without a work folder, and returns its manifest.

    ::

        OUT/manifest.json                      what the model is, and the digests of the files below
            config.yaml                        settings of every run, and of the stack
            runs/RUN/foldK/                    model.safetensors, model.json
            stacks/NAME/                       blend.json, the second-stage models, projections of embeddings

    Args:
        named: as for `predict --model`.
        out: where it goes [default: export/NAME]; an earlier export there is replaced.

    Raises:
        ConfigError: no such model, it is an export already, or there is something else at `out`.
        ArtifactError: a part of the model is unfinished or damaged.
    """
    model = find_model(config, work, named, find_task(config.task))
    if model.is_exported:
        raise ConfigError(f"export: {named} is an exported folder already; copy it as it is.")
    folder = (DEFAULT_FOLDER / model.name if out is None else out).resolve()
    _refuse_other_content(folder)
    writer = ArtifactWriter(folder, EXPORT)
    settings: dict[str, Any] = {"runs": {}, "stack": None}
    inputs = {}
    for run_name, of_run in model.runs.items():
        for k, source in of_run.items():
            below = f"runs/{run_name}/fold{k}"
            manifest = read_manifest(source, made_by="ichkit train")
            _copy_files(writer, source, manifest, (CARD_NAME, WEIGHTS_NAME), below)
            settings["runs"][run_name] = manifest.settings
            inputs[below] = manifest.settings_digest
    stack_name = None
    if model.stack is not None:
        stack_name = model.stack.resolve().name
        manifest = read_manifest(model.stack, made_by="ichkit stack")
        names = [name for name in manifest.files if not name.endswith(_TABLES)]
        _copy_files(writer, model.stack, manifest, names, f"stacks/{stack_name}")
        settings["stack"] = manifest.settings
        inputs[f"stacks/{stack_name}"] = manifest.settings_digest
    writer.write_bytes("config.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    facts = {
        "name": model.name,
        "kind": model.kind,
        "runs": list(model.runs),
        "folds": list(model.folds),
        "stack": stack_name,
        "data": model.data,
        "task": config.task,
        "note": RESEARCH_NOTE,
    }
    made = writer.commit(settings=settings, inputs=inputs, facts=facts)
    num_bytes = sum(digest.num_bytes for digest in made.files.values())
    second = "the mean of its networks" if model.stack is None else "with its second stage"
    logger.info("export: %s, %s, %d files, %.1f MB in %s", model.name, second, len(made.files), num_bytes / 1e6, folder)
    return made


def _copy_files(writer: ArtifactWriter, source: Path, manifest: Manifest, names: Iterable[str], below: str) -> None:
    """Copies files of an artifact, each compared with its digest on the way."""
    for name in names:
        expected = manifest.files.get(name)
        try:
            data = (source / name).read_bytes()
        except OSError as error:
            raise ArtifactError(f"{source / name}: missing. `ichkit verify` lists what is damaged.") from error
        writer.write_bytes(f"{below}/{name}", data)
        if writer.files[f"{below}/{name}"] != expected:
            raise ArtifactError(
                f"{source / name}: changed since it was written (SHA-256 differs). "
                "`ichkit verify` lists what is damaged."
            )


def _refuse_other_content(folder: Path) -> None:
    """Refuses a place where something stands that an export would remove."""
    if has_artifact(folder) and read_manifest(folder, made_by=EXPORTED_BY).kind == EXPORT:
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"export: expected no folder, an empty one, or an earlier export at {folder}, found something else. "
            "Name another with --out."
        )
