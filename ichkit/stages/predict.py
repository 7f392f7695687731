"""Any folder or zip of DICOM to probabilities per slice and per study."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from ichkit.core.artifacts import encode_table, has_artifact, read_manifest, write_bytes_atomically
from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError, DataError
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import Meter, logger
from ichkit.core.schemas import KEY, REJECTED, SERIES_CHOICE, make_predictions, predictions_columns
from ichkit.core.tasks import Task, find_task
from ichkit.engine.inference import Predictor, load_predictor
from ichkit.engine.parallel import run_tasks
from ichkit.sources.collect import PlannedSource, collect_failures, collect_slices
from ichkit.sources.files import scan_files
from ichkit.sources.folder import hide_files, image_files, plan_folder
from ichkit.sources.index import read_index
from ichkit.sources.plan import StudyTasks, order_slices
from ichkit.sources.study import PixelSettings, StudyRecord, decode_study
from ichkit.stacking.chain import predict_chains, read_chains
from ichkit.stages.submit import choose_source
from ichkit.validation.catalog import find_sources, pick_source
from ichkit.validation.metrics import study_maximum

RESEARCH_NOTE = "Research use only: not a medical device, not for diagnosis."
_BEST_KIND = "blend"


@dataclass(frozen=True)
class Chain:
    """The networks, and what comes after them.

    Attributes:
        name: of the source, as on the board.
        runs: fold folders of each run.
        stack: the stack's folder, or None where the run's mean is the answer.
        kind: which of the stack's predictions are taken.
    """

    name: str
    runs: dict[str, dict[int, Path]]
    stack: Path | None
    kind: str


@dataclass(frozen=True)
class Prediction:
    """What `predict` made: the four tables of its output folder."""

    slices: pd.DataFrame
    studies: pd.DataFrame
    rejected: pd.DataFrame
    series_choice: pd.DataFrame


def run(
    config: Config, work: WorkFolder, path: Path, *, model: str | None, out: Path, device: str = "auto"
) -> Prediction:
    """Predicts every study below a path and writes slices.csv, studies.csv, rejected.csv, series_choice.csv.

    Args:
        path: a folder or a zip of DICOM, any number of studies and series.
        model: a run or stack by name or folder; None takes the source that `submit` would take.
        out: where the tables go.
        device: where the networks compute.

    Raises:
        DataError: nothing at the path, or no readable CT slice in it.
        ArtifactError, ConfigError: no such model.
    """
    task = find_task(config.task)
    chain = find_chain(config, work, model, task)
    files, refused = scan_files(path)
    salt = os.environ.get("ICHKIT_SALT", "").encode()[:64] or secrets.token_bytes(16)
    files = image_files(files)
    index = read_index(files, None, run=partial(run_tasks, workers=config.prepare.workers))
    plan = plan_folder(index, salt)
    networks = {
        name: {k: load_predictor(folder, device) for k, folder in of.items()} for name, of in chain.runs.items()
    }
    pixels = _pixel_settings(networks, chain)
    ordered, rows = order_slices(plan.files)
    planned = PlannedSource(plan, StudyTasks(ordered, pixels), rows, repair=False)
    logger.info("predict: %d files, %d studies, with %s", len(files), len(planned.tasks), chain.name)
    embeds = chain.stack is not None and read_chains(chain.stack).has_embeddings
    descriptors, embeddings, slices, records = _describe(networks, planned, task, embeds=embeds)
    refused = refused.rename(columns={"relative": "file"}).assign(dataset=plan.dataset).reindex(columns=REJECTED)
    parts = [plan.rejected, hide_files(collect_failures(planned, records), salt), hide_files(refused, salt)]
    rejected = pd.concat([part for part in parts if len(part)] or [pd.DataFrame(columns=REJECTED)])
    table = (
        _second_stage(chain, descriptors, embeddings, slices, task)
        if len(slices)
        else make_predictions(slices, _none(task), task, -1)
    )
    table = table.merge(slices[["slice_id", "study_id", "position_mm"]], on=["study_id", "slice_id"])
    prediction = Prediction(
        slices=table[[*predictions_columns(task), "position_mm"]],
        studies=_study_table(table, task),
        rejected=rejected.sort_values("file", ignore_index=True),
        series_choice=plan.series_choice[SERIES_CHOICE],
    )
    for name in ("slices", "studies", "rejected", "series_choice"):
        write_bytes_atomically(out / f"{name}.csv", encode_table(getattr(prediction, name), ".csv"))
    _say_what_came(prediction, out)
    if prediction.slices.empty:
        raise DataError(
            f"predict: none of the {len(files)} files at {path} could be used; {out / 'rejected.csv'} says why."
        )
    return prediction


def find_chain(config: Config, work: WorkFolder, model: str | None, task: Task) -> Chain:
    """The networks and the second stage behind a name, a folder, or the best source of the work folder.

    Raises:
        ArtifactError, ConfigError: there is none; the message lists the choices.
    """
    if model is not None and Path(model).is_dir():
        return _chain_of_folder(Path(model))
    source = choose_source(config, work, None) if model is None else pick_source(find_sources(work, task), model)
    stack = None if source.kind == "base" else (work.root / source.path).parent
    return _chain(source.name, {name: work.runs / name for name in source.runs}, source.folds, stack, source.kind)


def _chain_of_folder(folder: Path) -> Chain:
    """A run's folder (with fold0, fold1, ...) or a stack's (its runs stand where its work folder has them)."""
    if has_artifact(folder) and (manifest := read_manifest(folder, made_by="ichkit stack")).kind == "stack":
        runs = {name: folder.resolve().parents[1] / "runs" / name for name in manifest.facts["runs"]}
        kinds = [name.removesuffix("_oof.parquet") for name in manifest.files if name.endswith("_oof.parquet")]
        kind = _BEST_KIND if _BEST_KIND in kinds else sorted(kinds)[0]
        return _chain(f"{folder.name}-{kind}", runs, tuple(manifest.facts["folds"]), folder, kind)
    resolved = folder.resolve()
    folds = WorkFolder(resolved.parents[1]).finished_folds(resolved.name) if resolved.parent.name == "runs" else []
    if not folds:
        raise ConfigError(
            f"predict: expected a run (work/runs/NAME) or a stack (work/stacks/NAME) at {folder}, found neither. "
            "Leave --model out to take the best source of --work."
        )
    return _chain(folder.name, {folder.name: resolved}, tuple(folds), None, "base")


def _chain(name: str, runs: dict[str, Path], folds: tuple[int, ...], stack: Path | None, kind: str) -> Chain:
    folders = {run: {k: folder / f"fold{k}" for k in folds} for run, folder in runs.items()}
    return Chain(name, folders, stack, kind)


def _pixel_settings(networks: dict[str, dict[int, Predictor]], chain: Chain) -> PixelSettings:
    """How the stores were made that the networks learnt from; they must agree."""
    cards = [predictor.card for of_run in networks.values() for predictor in of_run.values()]
    ways = {(card.hull_hu, card.prepare_size) for card in cards}
    if len(ways) != 1:
        raise ArtifactError(
            f"{chain.name}: its networks learnt from stores of different size or HU range ({sorted(map(str, ways))}); "
            "train them on one prepared folder."
        )
    hull_hu, size = ways.pop()
    return PixelSettings(repair=False, hull_hu=hull_hu, size=size)


def _describe(
    networks: dict[str, dict[int, Predictor]], planned: PlannedSource, task: Task, *, embeds: bool
) -> tuple[dict[str, dict[int, pd.DataFrame]], dict[str, dict[int, np.ndarray]], pd.DataFrame, dict[str, StudyRecord]]:
    """Descriptors of every study by every network and, with `embeds`, its features with rows as in those tables; the
    slices they stand for; what could not be read.
    """
    values = {name: {k: [] for k in of_run} for name, of_run in networks.items()}
    features = {name: {k: [] for k in of_run} for name, of_run in networks.items()} if embeds else {}
    records = {}
    with Meter("predict", len(planned.tasks), "studies") as meter:
        for record, volume in _decoded(planned):
            records[record.key] = record
            for name, of_run in networks.items() if record.kept else ():
                for k, predictor in of_run.items():
                    if embeds:
                        described, seen = predictor.describe_volume(volume)
                        features[name][k].append(seen)
                    else:
                        described = predictor.predict_volume(volume)
                    values[name][k].append(described)
            meter.advance()
    slices = collect_slices(planned, records, task)
    order = slices.reset_index(drop=True).sort_values(KEY).index  # the tables are sorted by it
    tables = {
        name: {
            k: make_predictions(slices, np.concatenate([_none(task), *parts]), task, fold=k)
            for k, parts in of_run.items()
        }
        for name, of_run in values.items()
    }
    embeddings = {
        name: {k: np.concatenate(parts)[order] for k, parts in of_run.items() if parts}
        for name, of_run in features.items()
    }
    return tables, embeddings, slices, records


def _decoded(planned: PlannedSource) -> Iterator[tuple[StudyRecord, np.ndarray]]:
    for position in range(len(planned.tasks)):
        task = planned.tasks[position]
        study = decode_study(task)
        volume = "memory" if study.kept else ""
        facts = (study.kept, study.padded, study.brain_share, study.failures)
        yield StudyRecord(task.key, volume, "", 0, *facts), study.volume


def _none(task: Task) -> np.ndarray:
    """(0, C) probabilities."""
    return np.empty((0, task.num_classes), np.float32)


def _second_stage(
    chain: Chain,
    descriptors: dict[str, dict[int, pd.DataFrame]],
    embeddings: dict[str, dict[int, np.ndarray]],
    slices: pd.DataFrame,
    task: Task,
) -> pd.DataFrame:
    if chain.stack is not None:
        return predict_chains(chain.stack, descriptors, slices, embeddings)[chain.kind]
    (tables,) = descriptors.values()
    mean = np.mean([table[task.probability_columns].to_numpy(np.float64) for table in tables.values()], axis=0)
    return make_predictions(next(iter(tables.values())), mean, task, fold=-1)


def _study_table(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """study_id, num_slices and the maximum of each class over the slices of each study."""
    counts = table.groupby("study_id", sort=True).size().to_numpy()
    studies = study_maximum(table, task)
    studies.insert(1, "num_slices", counts)
    return studies


def _say_what_came(prediction: Prediction, out: Path) -> None:
    for reason, count in prediction.rejected["reason"].value_counts().items():
        logger.info("predict: %d files rejected: %s", count, reason)
    chosen = prediction.series_choice[prediction.series_choice["chosen"]]
    for number, row in enumerate(chosen.itertuples(), 1):
        logger.info("predict: study %d: %d slices, %s", number, row.num_slices, row.reason)
    logger.info("predict: tables are in %s. %s", out, RESEARCH_NOTE)


def make_table(prediction: Prediction, task: Task) -> Table:
    """A table for the terminal, one row per study in the order of studies.csv; studies are told apart by number."""
    table = Table(title="Probability of each class, maximum over the slices", caption=RESEARCH_NOTE)
    table.add_column("study", justify="right")
    table.add_column("slices", justify="right")
    for name in task.classes:
        table.add_column(name, justify="right")
    for number, row in enumerate(prediction.studies.itertuples(index=False), 1):
        values = [getattr(row, column) for column in task.probability_columns]
        table.add_row(str(number), str(row.num_slices), *(f"{value:.3f}" for value in values))
    return table
