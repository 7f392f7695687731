"""`ichkit export`: copies a model with all files needed for inference elsewhere, without any patient data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError
from ichkit.core.progress import logger
from ichkit.core.roles import is_transductive
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.store import Prepared
from ichkit.show.plan import Forecast, Plan
from ichkit.stages.predict.card import collect_card
from ichkit.stages.predict.card_files import CARD_JSON, CARD_MARKDOWN, encode_card
from ichkit.stages.predict.model import EXPORT, RESEARCH_NOTE, Model, find_model, is_export
from ichkit.stages.predict.signing import SIGNATURE_NAME, check_private_key, sign_export
from ichkit.stages.predict.thresholds import THRESHOLDS_NAME, measure_thresholds
from ichkit.work.artifacts import ArtifactWriter, Manifest, encode_json, has_artifact, read_bytes, read_manifest
from ichkit.work.folder import CARD_NAME, WEIGHTS_NAME, WorkFolder
from ichkit.work.patients import PATIENTS_NAME, decode_patients, digest_patients, encode_patients

DEFAULT_FOLDER = Path("export")
# Predictions (rows of patients) and importances are not needed for inference and not exported.
_TABLES = (".parquet", ".csv")


@dataclass(frozen=True)
class Part:
    """A folder with files to export.

    Attributes:
        source: the folder.
        manifest: its manifest.
        names: the files to export, relative to it.
        below: their folder in the export.
        run: the run it is a fold of; None for the stack.
    """

    source: Path
    manifest: Manifest
    names: tuple[str, ...]
    below: str
    run: str | None


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export`.

    Attributes:
        model: as for `predict --model`.
        out: output folder [default: export/NAME]; an earlier export there is replaced.
        sign: PEM file of the private key that signs it, or None.
    """

    model: str
    out: Path | None = None
    sign: Path | None = None


@dataclass(frozen=True)
class ExportPlan(Plan):
    """What `export` found.

    Attributes:
        config: for the scores that choose its thresholds.
        work: the work folder whose scores the model card quotes.
        folder: the output folder.
        parts: the folds of its runs, and its stack without the tables of predictions.
        sign: as in `ExportOptions`.
    """

    config: Config
    work: WorkFolder
    task: Task
    model: Model
    folder: Path
    parts: tuple[Part, ...]
    sign: Path | None = None

    @property
    def writes(self) -> tuple[Path, ...]:
        """The exported folder."""
        return (self.folder,)

    def forecast(self) -> Forecast:
        """The number of files and folders, and the size of the files."""
        files = [file for part in self.parts for name, file in part.manifest.files.items() if name in part.names]
        step = f"{self.model.name}: {len(files)} files of {len(self.parts)} folders"
        return Forecast(
            (step, f"model card: {CARD_MARKDOWN}, {CARD_JSON}"),
            sum(file.num_bytes for file in files),
            0,
            "files are copied",
        )


def plan(config: Config, work: WorkFolder, options: ExportOptions) -> ExportPlan:
    """Finds the model and checks the output folder; writes nothing.

    Raises:
        ConfigError: no such model, it is an export already, `out` has other content, or a key that cannot sign.
        ArtifactError: a part of the model is unfinished.
    """
    task = find_task(config.task)
    model = find_model(work, options.model, task)
    if model.is_exported:
        raise ConfigError(f"export: {options.model} is an exported folder already; copy it as it is.")
    folder = (DEFAULT_FOLDER / model.name if options.out is None else options.out).resolve()
    _refuse_other_content(folder)
    if options.sign is not None:
        check_private_key(options.sign)
    return ExportPlan(config, work, task, model, folder, _list_parts(model), options.sign)


def run(plan: ExportPlan) -> Manifest:
    """Writes a folder that `predict --model` can use without a work folder, and returns its manifest.

    ::

        OUT/manifest.json                      description of the model, digests of the files below
            model-card.md .json                for readers, and in the schema of RSNA's ATLAS
            thresholds.json                    chosen out of fold, where the work folder has its data
            config.yaml                        settings of every run and of the stack
            patients.json                      digests of the patients it has learnt from, so that a training that
                                               starts from it can refuse them; not where the store is gone
            runs/RUN/foldK/                    model.safetensors, model.json
            stacks/NAME/                       blend.json, the second-stage models, projections of embeddings
            model.sig                          where it is signed: over all files above

    Raises:
        ArtifactError: a part of the model is damaged.
    """
    model = plan.model
    writer = ArtifactWriter(plan.folder, EXPORT)
    settings: dict[str, Any] = {"runs": {}, "stack": None}
    inputs = {}
    for part in plan.parts:
        for name in part.names:
            writer.write_bytes(f"{part.below}/{name}", read_bytes(part.source / name, part.manifest.sha256_of(name)))
        inputs[part.below] = part.manifest.settings_digest
        if part.run is None:
            settings["stack"] = part.manifest.settings
        else:
            settings["runs"][part.run] = part.manifest.settings
    stack_name = None if model.stack is None else model.stack.resolve().name
    for name, data in encode_card(collect_card(plan.work, model, plan.task)).items():
        writer.write_bytes(name, data)
    if points := measure_thresholds(plan.work, model, plan.task, plan.config):
        writer.write_bytes(THRESHOLDS_NAME, encode_json(points))
    if (patients := _collect_patients(plan)) is not None:
        writer.write_bytes(PATIENTS_NAME, encode_patients(patients))
    writer.write_bytes("config.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    facts = {
        "name": model.name,
        "kind": model.kind,
        "runs": list(model.runs),
        "folds": list(model.folds),
        "stack": stack_name,
        "data": model.data,
        "task": plan.task.name,
        "note": RESEARCH_NOTE,
    }
    made = writer.commit(settings=settings, inputs=inputs, facts=facts)
    if plan.sign is not None:
        sign_export(plan.folder, plan.sign)
        logger.info("export: signed, %s", plan.folder / SIGNATURE_NAME)
    num_bytes = sum(digest.num_bytes for digest in made.files.values())
    second = "the mean of its networks" if model.stack is None else "with its second stage"
    logger.info(
        "export: %s, %s, %d files, %.1f MB in %s", model.name, second, len(made.files), num_bytes / 1e6, plan.folder
    )
    return made


def _collect_patients(plan: ExportPlan) -> set[str] | None:
    """Digests of the patients the model has learnt from, also in the data of its initial weights; None if unknown."""
    if not has_artifact(plan.work.prepared):
        return None
    prepared = Prepared.open(plan.work.prepared, plan.task)
    learnt = prepared.slices if is_transductive(plan.model.data) else prepared.split("train")
    found = set(digest_patients(learnt))
    for part in plan.parts:
        if PATIENTS_NAME in part.manifest.files:
            found |= decode_patients(part.source / PATIENTS_NAME)
    return found


def _list_parts(model: Model) -> tuple[Part, ...]:
    """The folds of its runs, and its stack without the tables of predictions."""
    parts = []
    for name, of_run in model.runs.items():
        for k, source in of_run.items():
            manifest = read_manifest(source)
            parts.append(Part(source, manifest, (CARD_NAME, WEIGHTS_NAME), f"runs/{name}/fold{k}", name))
    if model.stack is not None:
        manifest = read_manifest(model.stack)
        names = tuple(name for name in manifest.files if not name.endswith(_TABLES))
        parts.append(Part(model.stack, manifest, names, f"stacks/{model.stack.resolve().name}", None))
    return tuple(parts)


def _refuse_other_content(folder: Path) -> None:
    """Raises if the output folder has content that is not an earlier export."""
    if is_export(folder):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"export: expected no folder, an empty one, or an earlier export at {folder}, found something else. "
            "Name another with --out."
        )
