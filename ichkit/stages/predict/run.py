"""`ichkit predict`: probabilities per slice and per study for a folder or zip of DICOM."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError, ConfigError, DataError
from ichkit.core.progress import Meter, format_count, logger
from ichkit.core.tasks import Task
from ichkit.engine.devices import memory_advice
from ichkit.engine.inference import Predictor
from ichkit.imaging.parts import PartSettings, part_id, whole_id
from ichkit.imaging.region_scores import score_regions
from ichkit.imaging.sequences import SequenceSettings
from ichkit.sources.collect import PlannedSource, collect_failures, collect_slices
from ichkit.sources.folder import hide_files
from ichkit.sources.plan import SourcePlan, StudyTasks, count_reasons, order_slices
from ichkit.sources.series import check_override, is_doubtful
from ichkit.sources.study import PixelSettings, StudyRecord
from ichkit.stacking.fold_models import predict_fold_models, read_fold_models
from ichkit.stages.explain.volumes import Volumes
from ichkit.stages.predict.foreign import rehearse
from ichkit.stages.predict.gate import GATE_NAME, Gate, Gated, apply_gate
from ichkit.stages.predict.inputs import plan_inputs
from ichkit.stages.predict.judge import LabelFile, check_labels, judge
from ichkit.stages.predict.model import RESEARCH_NOTE, Model
from ichkit.stages.predict.outcome import (
    DICOM_FOLDER,
    PAGE_NAME,
    REGION_SCORES_NAME,
    TABLES,
    Prediction,
    begin_output,
    describe_prediction,
    finish_output,
    is_finished,
    refuse_foreign_files,
)
from ichkit.stages.predict.plan import PredictOptions, PredictPlan, plan
from ichkit.stages.predict.thresholds import STUDY
from ichkit.validation.coherence import make_coherent
from ichkit.validation.metrics import study_maximum
from ichkit.validation.thresholds import F1_AIM
from ichkit.work.artifacts import FileDigest, encode_table, write_bytes_atomically
from ichkit.work.locks import holding
from ichkit.work.schemas import KEY, REJECTED, SERIES_CHOICE, make_predictions, predictions_columns

__all__ = ["PredictOptions", "PredictPlan", "plan", "run"]

_SAVE_MEMORY = "End other programs that use it, or predict on the CPU: CUDA_VISIBLE_DEVICES= ichkit predict ..."


class NothingUsableError(DataError):
    """No slice that can be predicted.

    Args:
        reasons: why, with the number of files.
    """

    def __init__(self, message: str, reasons: str) -> None:
        super().__init__(message)
        self.reasons = reasons


@dataclass(frozen=True)
class ReadyModel:
    """A model whose networks are in memory.

    Attributes:
        networks: by run and fold.
    """

    model: Model
    networks: dict[str, dict[int, Predictor]]


def load_model(plan: PredictPlan) -> ReadyModel:
    """Loads the networks of the model; those of an export make a trial prediction.

    Raises:
        ArtifactError: weights are missing or damaged.
        ConfigError: no such device.
    """
    model = plan.find_model()
    networks = model.load_networks(plan.options.device)
    if model.is_exported:
        rehearse(networks, model.stack, model.kind, plan.task)
    return ReadyModel(model, networks)


@holding(lambda given: given["plan"].options.out)
def run(plan: PredictPlan) -> Prediction:
    """Predicts every study below a path; writes CSV tables, predictions.json and predictions.html.

    Raises:
        NothingUsableError: no readable CT slice at the path; the tables say why.
        ArtifactError: weights are missing or damaged.
    """
    refuse_foreign_files(plan.options.out)
    salt = os.environ.get("ICHKIT_SALT", "").encode()[:64] or secrets.token_bytes(16)
    prediction = write_prediction(plan, salt)
    if plan.options.has_page:
        page = plan.options.out / PAGE_NAME
        logger.info("predict: the page is %s, %.1f MB", page, page.stat().st_size / 1e6)
    if plan.options.has_dicom:
        folder = plan.options.out / DICOM_FOLDER
        has_dicom = any(folder.rglob("*.dcm"))
        made = "heat maps, key slices and structured reports" if has_dicom else "heat maps alone (heat.nii.gz)"
        logger.info("predict: %s are in %s", made, folder)
    logger.info("predict: tables are in %s. %s", plan.options.out, RESEARCH_NOTE)
    return prediction


def write_prediction(plan: PredictPlan, salt: bytes, loaded: ReadyModel | None = None) -> Prediction:
    """Predicts as `run`, without the lock of the output folder and without a look at what lies there.

    Args:
        salt: of the digests that replace ids and file names.
        loaded: the model of the plan; loaded here, once there is something to predict, if None.

    Raises:
        NothingUsableError, ArtifactError: as `run`.
    """
    options, task, out = plan.options, plan.task, plan.options.out
    index, found, sequences = plan_inputs(plan, salt)
    check_override(plan.override, [found.series_choice])
    refused = plan.refused.rename(columns={"relative": "file"}).assign(dataset=found.dataset).reindex(columns=REJECTED)
    refused = _join([found.rejected, hide_files(refused, salt)])
    if found.files.empty:
        # Before the model is loaded: a wrong folder is the most common mistake.
        raise _nothing_usable(plan, refused, found.series_choice)
    if plan.labels is not None:
        check_labels(plan.labels, found.files, index[index["reason"] == ""])
    gated = None
    if plan.gate is not None:
        gated, lost = _run_gate(plan, plan.gate, found)
        found = replace(found, files=gated.keep(found.files))
        # Those of studies that go on are found again by the second model.
        refused = _join([refused, hide_files(lost[~lost["study_id"].isin(found.files["study_id"])], salt)])
    loaded = loaded or load_model(plan)
    chosen, networks = loaded.model, loaded.networks
    ordered, rows = order_slices(found.files)
    pixels = _pixel_settings(networks, chosen, sequences, plan)
    planned = PlannedSource(found, StudyTasks(ordered, pixels), rows, repair=plan.repairs)
    volumes = Volumes(planned)
    files, studies = format_count(len(plan.images), "file"), format_count(len(volumes), "study", "studies")
    logger.info("predict: %s, %s, with %s", files, studies, chosen.name)
    with memory_advice(_SAVE_MEMORY):
        table, pooled, records = _predict_slices(chosen, networks, planned, volumes, task)
    rejected = _join([refused, hide_files(collect_failures(planned, records), salt)])
    if table.empty and (gated is None or not gated.studies.size or gated.studies["goes_on"].any()):
        raise _nothing_usable(plan, rejected, found.series_choice)
    written = _write_tables(out, table, rejected, found.series_choice, task, pooled)
    prediction = Prediction(
        slices=table,
        studies=_study_table(table, task, pooled),
        is_pooled=bool(pooled),
        rejected=rejected,
        series_choice=found.series_choice[SERIES_CHOICE],
        model=chosen,
        gated=gated,
    )
    prediction = _score_regions(prediction, plan, pixels.parts)
    for name, one in (
        (GATE_NAME, None if gated is None else gated.studies),
        (REGION_SCORES_NAME, prediction.region_scores),
    ):
        if one is not None:
            written[name] = write_bytes_atomically(out / name, encode_table(one, ".csv"))
    _log_results(prediction, _count_not_found(records))
    if plan.labels is not None and not _has_label(prediction, plan.labels):
        logger.warning("predict: no predicted study or slice has a label in %s: no scores", plan.labels.path)
    elif plan.labels is not None:
        patients = dict(zip(found.files["study_id"], found.files["patient_id"], strict=True))
        points = plan.find_operating_points(chosen)
        judged = judge(prediction.slices, prediction.studies, patients, plan.labels, task, plan.config, points)
        for name, made in judged.tables().items():
            written[f"{name}.csv"] = write_bytes_atomically(out / f"{name}.csv", encode_table(made, ".csv"))
        truth = plan.labels.labels if plan.labels.key == "slice_id" else None
        prediction = replace(prediction, judged=judged, truth=truth)
    if options.has_page:
        from ichkit.stages.predict.page import write_page

        written[PAGE_NAME] = write_page(out, prediction, networks, volumes, task, plan.find_thresholds(chosen))
    if options.has_dicom:
        from ichkit.stages.predict.dicom_out import write_dicom

        written |= write_dicom(out, prediction, networks, volumes, planned, task)
    finish_output(out, {**describe_prediction(prediction, task), "files": {k: v.sha256 for k, v in written.items()}})
    return prediction


def _has_label(prediction: Prediction, file: LabelFile) -> bool:
    """Whether there is anything to score: a first model or files that cannot be read may have left nothing."""
    table = prediction.slices if file.key == "slice_id" else prediction.studies
    return bool(table[file.key].isin(file.labels[file.key]).any())


def _run_gate(plan: PredictPlan, gate: Gate, found: SourcePlan) -> tuple[Gated, pd.DataFrame]:
    """What the first model says of every study, and the `rejected` rows of the files it could not read."""
    networks = gate.model.load_networks(plan.options.device)
    gate.check(networks)
    rehearse(networks, gate.model.stack, gate.model.kind, gate.task)
    ordered, rows = order_slices(found.files)
    pixels = _pixel_settings(networks, gate.model, None, plan)
    planned = PlannedSource(found, StudyTasks(ordered, pixels), rows, repair=plan.repairs)
    logger.info("predict: first %s, for %s", gate.model.name, gate.task.finding)
    with memory_advice(_SAVE_MEMORY):
        table, pooled, records = _predict_slices(gate.model, networks, planned, Volumes(planned), gate.task)
    gated = apply_gate(gate, _study_table(table, gate.task, pooled))
    goes_on = gated.studies["goes_on"]
    logger.info("predict: %d of %d studies are negative for %s", goes_on.sum(), len(goes_on), gate.task.finding)
    return gated, collect_failures(planned, records)


def _score_regions(prediction: Prediction, plan: PredictPlan, parts: PartSettings) -> Prediction:
    """The prediction with the scores of regions, where its studies are cut into regions and its task counts a class."""
    counted = plan.task.counted_class
    if counted is None or not parts.regions or prediction.studies[f"p_{counted}"].isna().all():
        return prediction
    points = plan.find_operating_points(prediction.model)
    threshold = points.get(STUDY, {}).get(F1_AIM, {}).get(counted, prediction.region_threshold)
    found = prediction.studies[["study_id"]].assign(has_finding=prediction.studies[f"p_{counted}"] >= threshold)
    scores = score_regions(found, parts.regions)
    return replace(prediction, region_scores=scores, region_threshold=threshold)


def _count_not_found(records: dict[str, StudyRecord]) -> int:
    """Studies in which no head was found, of which the whole picture was used."""
    return sum(any(not piece.origin.get("is_found", True) for piece in one.pieces()) for one in records.values())


def _join(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """`rejected` tables as one, sorted by file."""
    rejected = pd.concat([part for part in parts if len(part)] or [pd.DataFrame(columns=REJECTED)])
    return rejected.sort_values("file", ignore_index=True)


def _write_tables(
    out: Path,
    slices: pd.DataFrame,
    rejected: pd.DataFrame,
    series_choice: pd.DataFrame,
    task: Task,
    pooled: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, FileDigest]:
    """Writes all tables, also empty ones to replace those of an earlier call; returns digests by file name."""
    tables = (slices, _study_table(slices, task, pooled), rejected, series_choice[SERIES_CHOICE])
    begin_output(out)
    return {
        f"{name}.csv": write_bytes_atomically(out / f"{name}.csv", encode_table(table, ".csv"))
        for name, table in zip(TABLES, tables, strict=True)
    }


def _nothing_usable(plan: PredictPlan, rejected: pd.DataFrame, series_choice: pd.DataFrame) -> NothingUsableError:
    """Writes why no file could be used, unless that would replace an earlier prediction; returns the error."""
    path, out = plan.options.path, plan.options.out
    reasons, num_files = count_reasons(rejected), len(plan.images) + len(plan.refused)
    if is_finished(out):
        where = f"The earlier prediction in {out} is kept; with another --out, rejected.csv lists every file."
    else:
        nothing = pd.DataFrame(columns=[*predictions_columns(plan.task), "position_mm"])
        _write_tables(out, nothing, rejected, series_choice, plan.task)
        where = f"{out / 'rejected.csv'} has every file."
    if names := plan.config.prepare.sequences.names:
        message = (
            f"predict: expected NIfTI files of {', '.join(names)} at {path}, none could be used: {reasons}. {where}"
        )
    elif num_files:
        found = f"{reasons}. {where}"
        message = f"predict: expected slices of a head CT at {path}, none of {num_files} files could be used: {found}"
    else:
        message = f"predict: expected slices of a head CT at {path}, found no file that may be an image."
    return NothingUsableError(f"{message} Check the path.", reasons)


def _predict_slices(
    model: Model,
    networks: dict[str, dict[int, Predictor]],
    planned: PlannedSource,
    volumes: Volumes,
    task: Task,
) -> tuple[pd.DataFrame, dict[str, np.ndarray], dict[str, StudyRecord]]:
    """The rows of `slices.csv`, the pooled probabilities of every study, and its record by key."""
    embeds = model.stack is not None and read_fold_models(model.stack).has_embeddings
    descriptors, embeddings, slices, read, records = _describe(networks, planned, volumes, task, embeds=embeds)
    # A second stage makes other slices of the descriptors, which the pool has not seen.
    pooled = read if model.stack is None else {}
    table = (
        _second_stage(model, descriptors, embeddings, slices, task)
        if len(slices)
        else make_predictions(slices, _none(task), task, -1)
    )
    table = table.merge(slices[["slice_id", "study_id", "position_mm"]], on=["study_id", "slice_id"])
    return table[[*predictions_columns(task), "position_mm"]], pooled, records


def _pixel_settings(
    networks: dict[str, dict[int, Predictor]], model: Model, sequences: SequenceSettings | None, plan: PredictPlan
) -> PixelSettings:
    """The pixel settings of the stores the networks were trained on, which must agree."""
    cards = [predictor.card for of_run in networks.values() for predictor in of_run.values()]
    ways = {(card.hull_hu, card.prepare_size, card.steps, PartSettings.from_json(card.parts)) for card in cards}
    if len(ways) != 1:
        raise ArtifactError(
            f"{model.name}: its networks were trained on stores of different size, HU range, crop or parts "
            f"({sorted(map(str, ways))}). Train them on one prepared folder."
        )
    if sequences is None and any(card.sequences for card in cards):
        raise ConfigError(
            f"{model.name}: expected the sequences that its networks were trained on in prepare.sequences, found none. "
            "Choose the config it was trained with, e.g. -c onset2021."
        )
    hull_hu, size, steps, parts = ways.pop()
    judges_hu = plan.judges_hu and sequences is None
    return PixelSettings(plan.repairs, hull_hu, size, judges_hu, steps, parts, sequences)


def _describe(
    networks: dict[str, dict[int, Predictor]], planned: PlannedSource, volumes: Volumes, task: Task, *, embeds: bool
) -> tuple[
    dict[str, dict[int, pd.DataFrame]],
    dict[str, dict[int, np.ndarray]],
    pd.DataFrame,
    dict[str, np.ndarray],
    dict[str, StudyRecord],
]:
    """The predictions of the networks for every study, as predictions.json lists them.

    Returns:
        Predictions of every network; with `embeds` its embeddings in the same row order; the slices; (C,) by study_id,
        the mean over the networks with a pool; and the records.
    """
    values, features = _empty_lists(networks), _empty_lists(networks)
    records, pooled = {}, {}
    all_positions = planned.slices["position_mm"].to_numpy()
    starts = np.flatnonzero(planned.slices["slice_index"].to_numpy() == 0)
    with Meter("predict", len(volumes), "studies") as meter:
        for start, study_id, (record, pieces) in zip(starts, planned.tasks.study_ids, volumes, strict=True):
            records[record.key] = record
            for piece, volume in zip(record.pieces(), pieces, strict=True):
                positions = all_positions[start + np.array(piece.kept, np.int64)]
                of_study = []
                for name, of_run in networks.items() if piece.kept else ():
                    for k, predictor in of_run.items():
                        read = predictor.read_study(volume, positions)
                        values[name][k].append(predictor.spread(read.probabilities))
                        features[name][k] += [read.features] if embeds else []
                        of_study += [] if read.of_study is None else [predictor.spread(read.of_study[None])[0]]
                if of_study:
                    pooled[part_id(study_id, piece.name)] = np.stack(of_study).mean(axis=0, dtype=np.float64)
            meter.advance()
    slices = collect_slices(planned, records, task)
    order = slices.reset_index(drop=True).sort_values(KEY).index  # as in the tables
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
    return tables, embeddings, slices, pooled, records


def _empty_lists(networks: dict[str, dict[int, Predictor]]) -> dict[str, dict[int, list[np.ndarray]]]:
    return {name: {k: [] for k in of_run} for name, of_run in networks.items()}


def _none(task: Task) -> np.ndarray:
    """No rows: (0, C) probabilities."""
    return np.empty((0, task.num_classes), np.float32)


def _second_stage(
    model: Model,
    descriptors: dict[str, dict[int, pd.DataFrame]],
    embeddings: dict[str, dict[int, np.ndarray]],
    slices: pd.DataFrame,
    task: Task,
) -> pd.DataFrame:
    if model.stack is not None:
        return predict_fold_models(model.stack, descriptors, slices, embeddings)[model.kind]
    (tables,) = descriptors.values()
    mean = np.mean([table[task.probability_columns].to_numpy(np.float64) for table in tables.values()], axis=0)
    return make_predictions(next(iter(tables.values())), make_coherent(mean, task), task, fold=-1)


def _study_table(
    table: pd.DataFrame, task: Task, pooled: Mapping[str, np.ndarray] = MappingProxyType({})
) -> pd.DataFrame:
    """The rows of `studies.csv`: study_id, num_slices, and of each class the pooled probability of the study.

    Without a pool, or after a second stage, the maximum over its slices.
    """
    if table.empty:
        return pd.DataFrame(columns=["study_id", "num_slices", *task.probability_columns])
    counts = table.groupby("study_id", sort=True).size().to_numpy()
    studies = study_maximum(table, task)
    studies.insert(1, "num_slices", counts)
    if pooled:
        values = make_coherent(np.stack([pooled[str(name)] for name in studies["study_id"]]), task)
        studies[task.probability_columns] = values.astype(np.float32)
    return studies


def _log_results(prediction: Prediction, num_whole: int) -> None:
    for reason, count in prediction.rejected["reason"].value_counts().items():
        logger.info("predict: %d rejected: %s", count, reason)
    if num_whole:
        where = format_count(num_whole, "study", "studies")
        logger.warning("predict: no head was found in %s; the whole picture was used", where)
    studies = prediction.studies["study_id"]
    is_used = prediction.series_choice["study_id"].isin({*studies, *studies.map(whole_id)})
    chosen = prediction.series_choice[prediction.series_choice["chosen"] & is_used].drop_duplicates("study_id")
    for reason, count in chosen["reason"].value_counts().items():
        if not is_doubtful(str(reason)):  # of the others a warning was given when they were chosen
            logger.info("predict: %s: %s", format_count(count, "study", "studies"), reason)
