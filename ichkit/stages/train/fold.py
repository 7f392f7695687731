"""Trains one fold of a run and writes its predictions."""

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from ichkit.core.errors import ArtifactError
from ichkit.core.progress import Meter, StopFlag, logger
from ichkit.core.roles import mark_transductive
from ichkit.engine.ranks import Ranks
from ichkit.imaging.store import Prepared
from ichkit.stacking.embeddings import INITIAL_WEIGHTS, embeddings_name
from ichkit.stacking.neighbours import neighbour_stacks
from ichkit.stages.train.fold_inputs import (
    KEPT_EPOCH,
    STARTED_NAME,
    TRAIN_ROWS,
    TRANSDUCTIVE,
    FoldState,
    FoldTask,
    Identity,
    Parts,
    find_scope,
    find_state,
    find_training_scope,
    has_embeddings,
    identify,
    slice_head_name,
)
from ichkit.tracking.session import Session, describe
from ichkit.validation.inner_thresholds import choose_inner_thresholds
from ichkit.validation.metrics import weighted_log_loss
from ichkit.validation.scope import label_array
from ichkit.work.artifacts import (
    ArtifactWriter,
    Manifest,
    digest_of,
    encode_json,
    encode_table,
    read_bytes,
    read_manifest,
    write_bytes_atomically,
)
from ichkit.work.folder import (
    CARD_NAME,
    HELDOUT_CURVE_NAME,
    STEP_LOG_NAME,
    THRESHOLDS_NAME,
    WEIGHTS_NAME,
    pooled_name,
)
from ichkit.work.locks import holding
from ichkit.work.patients import PATIENTS_NAME, encode_patients
from ichkit.work.schemas import make_predictions

if TYPE_CHECKING:
    from ichkit.engine.inference import Predictor
    from ichkit.stages.train.network import Trained

STACK_WINDOW = 7


@holding(lambda given: given["task"].folder if Ranks.of_environment().is_main else None)
def do_fold(task: FoldTask, stop: StopFlag) -> Manifest | None:
    """Trains or resumes a fold and writes its tables; a fold with finished weights only predicts again.

    If several processes train together, the main process writes; the others return None.

    Raises:
        Stopped: a stop was requested; the next call resumes.
        ConfigError, ArtifactError, FoldError, DiskFullError: see the message.
    """
    from ichkit.engine.devices import torch_threads
    from ichkit.stages.train.network import train_network

    ranks = Ranks.of_environment()
    began = time.monotonic()
    prepared = task.open_prepared()
    scope = find_scope(task.config)
    identity = identify(task.config, prepared, task.work, task.fold)
    parts = Parts.of(prepared, task.fold, find_training_scope(task.config))
    if ranks.is_main:
        state = find_state(task.config, prepared, task.work, task.run, task.fold)
        trains = state is FoldState.TRAIN
        if ranks.world > 1 and trains != task.trains:
            raise ArtifactError(f"{task.folder}: another process changed it meanwhile. Run the command again.")
        if state is FoldState.DONE:
            return read_manifest(task.folder)
    with torch_threads(task.config.train.threads) as threads:
        if not ranks.is_main:
            train_network(task, prepared, identity, parts, ranks, stop)
            return None
        writer = ArtifactWriter(task.folder, "fold", resume=trains)
        embeds = task.config.train.embeddings or (not trains and has_embeddings(task.folder))
        if trains:
            write_bytes_atomically(writer.folder / STARTED_NAME, encode_json(vars(identity)))
            with _open_session(task, identity) as session:
                trained = train_network(task, prepared, identity, parts, ranks, stop, session)
                session.finish()
            _write_training(writer, task, trained, prepared)
            facts = trained.facts
        else:
            facts = _keep_weights(task, writer)
        validation = parts.hold_validation(task.config, task.fold).validation if trains else None
        device, pace = _predict_parts(writer, task, prepared, parts, stop, embeds=embeds, validation=validation)
    data = prepared.manifest.facts["data"]
    facts = {
        **facts,
        "run": task.run,
        "fold": task.fold,
        "data": mark_transductive(data) if facts.get(TRANSDUCTIVE) else data,
        "task": task.config.task,
        **scope.facts(),
        TRAIN_ROWS: identity.train_rows,
        "num_slices": len(parts.heldout),
        "device": device,
        "threads": threads,
        "seconds_per_study": pace,
        "seconds": round(time.monotonic() - began, 1),
    }
    return writer.commit(settings=identity.settings, inputs=identity.inputs, facts=facts)


def _open_session(task: FoldTask, identity: Identity) -> Session:
    """The experiment of a fold in every logger of the config."""
    config = task.config
    used = {"task": config.task, "seed": config.seed, "channels": config.channels.settings()}
    used |= {"prepare": config.prepare.settings(), "train": config.train.settings()}
    digest = digest_of([identity.settings, identity.inputs])
    name, is_new = f"{task.run}/fold{task.fold}", not task.checkpoint.exists()
    return Session(config.tracking, task.work, name, digest, describe(used), restarts=is_new)


def _predict_parts(
    writer: ArtifactWriter,
    task: FoldTask,
    prepared: Prepared,
    parts: Parts,
    stop: StopFlag,
    *,
    embeds: bool,
    validation: pd.DataFrame | None,
) -> tuple[str, float | None]:
    """Writes the predictions of every part by the weights in the writer's folder.

    Returns:
        The device used, and seconds to read and predict a study; None if there is none.

    Thresholds are chosen on the validation patients of the training part, if there are any.
    """
    from ichkit.engine.devices import memory_advice
    from ichkit.engine.inference import read_predictor

    predictor = read_predictor(writer.folder, task.device_name)
    read_parts = [*parts.predicted.values(), *([] if validation is None else [validation])]
    num_studies = sum(slices.volume.nunique() for slices in read_parts)
    seconds, num_read = 0.0, 0
    keeps_slice_head = task.config.train.keep_slice_head and predictor.network.context is not None
    advice = f"Use smaller batches: --set train.predict_batch={max(predictor.card.batch_size // 4, 1)}."
    with memory_advice(advice), Meter(f"fold {task.fold}: predicting", num_studies, "studies") as meter:
        for name, slices in parts.predicted.items():
            began = time.monotonic()
            read = _predict_slices(
                predictor, prepared, slices, meter, stop, embeds=embeds, keeps_slice_head=keeps_slice_head
            )
            seconds, num_read = seconds + time.monotonic() - began, num_read + slices.study_id.nunique()
            if embeds:
                writer.write_array(embeddings_name(name), read.features)
            fold = None if name == "oof" else task.fold
            table = make_predictions(slices, read.probabilities, prepared.task, fold)
            writer.write_table(f"{name}.parquet", table)
            if keeps_slice_head:
                alone = make_predictions(slices, read.of_slices, prepared.task, fold)
                writer.write_table(slice_head_name(name), alone)
            if predictor.network.pool is not None:
                writer.write_table(pooled_name(name), read.of_studies)
            if name == "oof":
                _write_stacks(writer, table, prepared)
                _log_score(task, table, slices, prepared)
        if validation is not None:
            read = _predict_slices(predictor, prepared, validation, meter, stop, embeds=False, keeps_slice_head=False)
            chosen = choose_inner_thresholds(validation, read.probabilities, prepared.task)
            writer.write_bytes(THRESHOLDS_NAME, encode_table(chosen, ".csv"))
    return str(predictor.device), round(seconds / num_read, 5) if num_read else None


def _write_training(writer: ArtifactWriter, task: FoldTask, trained: "Trained", prepared: Prepared) -> None:
    """Writes weights, model card, config, history and step log into the unfinished folder."""
    from ichkit.engine.inference import encode_weights
    from ichkit.stages.train.other_data import earlier_patients

    config = task.config
    if earlier := earlier_patients(task):
        writer.write_bytes(PATIENTS_NAME, encode_patients(earlier))
    writer.write_bytes(WEIGHTS_NAME, encode_weights(trained.network))
    writer.write_json(CARD_NAME, trained.card.to_json())
    used = {"task": config.task, "seed": config.seed, "channels": config.channels.settings()}
    # Also what only changes the last digits, such as the number of threads: with this file a training can be repeated.
    used |= {"prepare": _stored(prepared), "train": config.train.model_dump(mode="json")}
    writer.write_bytes("config.yaml", yaml.safe_dump(used, sort_keys=False).encode())
    writer.write_bytes("history.csv", encode_table(pd.DataFrame(trained.history), ".csv"))
    if trained.display:
        writer.write_bytes(HELDOUT_CURVE_NAME, encode_table(pd.DataFrame(trained.display), ".csv"))
    journal = writer.folder / STEP_LOG_NAME
    writer.write_bytes(STEP_LOG_NAME, journal.read_bytes() if journal.is_file() else b"")


def _stored(prepared: Prepared) -> dict[str, Any]:
    """The settings of the store that belong into the config of a fold."""
    steps = {"crop": prepared.steps[0]} if prepared.steps else {}
    parts = prepared.manifest.settings.get("parts")
    kept = {"parts": {name: parts[name] for name in ("kind", "slices") if name in parts}} if parts else {}
    return {"size": prepared.manifest.settings["size"], **steps, **kept}


def _keep_weights(task: FoldTask, writer: ArtifactWriter) -> dict[str, Any]:
    """Copies the results of training into the new folder; returns the facts that stay."""
    manifest = read_manifest(task.folder)
    for name in manifest.files:
        if not name.endswith((".parquet", ".npy")):
            writer.write_bytes(name, read_bytes(task.folder / name, manifest.sha256_of(name)))
    trained = ("backbone", "num_parameters", "num_steps", "adapted", "num_train_slices", "num_validation_slices")
    kept = (*trained, TRANSDUCTIVE, KEPT_EPOCH, INITIAL_WEIGHTS)
    return {name: manifest.facts[name] for name in kept if name in manifest.facts}


class _Read(NamedTuple):
    """The predictions of a network for the N rows of a part, in their order.

    Attributes:
        probabilities: (N, C) float32, NaN for classes that are not predicted.
        of_slices: (N, C) float32, see `StudyReading`; no rows unless they are asked for.
        features: (N, F) float16; no rows unless they are asked for, because those of RSNA take a gigabyte.
        of_studies: study_id, slice_index, p_<class> of the study and w_<class>, the weight of the slice in it; empty
            without pooling.
    """

    probabilities: np.ndarray
    of_slices: np.ndarray
    features: np.ndarray
    of_studies: pd.DataFrame


def _predict_slices(
    predictor: "Predictor",
    prepared: Prepared,
    slices: pd.DataFrame,
    meter: Meter,
    stop: StopFlag,
    *,
    embeds: bool,
    keeps_slice_head: bool,
) -> _Read:
    """Predicts rows that are sorted as in a store."""
    from ichkit.engine.inference import spread_positions

    task = prepared.task
    none = np.empty((0, task.num_classes), np.float32)
    probabilities, alone = [none], [none]
    spread = predictor.spread
    features = [np.empty((0, predictor.num_features), np.float16)]
    columns = [*task.probability_columns, *(f"w_{name}" for name in task.classes)]
    studies = [pd.DataFrame(columns=["study_id", "slice_index"]).reindex(columns=["study_id", "slice_index", *columns])]
    for relative, rows in slices.groupby("volume", sort=False):
        volume, own = prepared.read_volume(str(relative)), rows.slice_index.to_numpy()
        study = predictor.read_study(volume, spread_positions(rows, len(volume)))
        probabilities.append(spread(study.probabilities[own]))
        if keeps_slice_head:
            alone.append(spread(study.of_slices[own]))
        if embeds:
            features.append(study.features[own])
        if study.of_study is not None and study.weights is not None:
            of_study, weights = spread(study.of_study), spread(study.weights[own])
            values = np.column_stack([np.repeat(of_study[None], len(own), 0), weights])
            studies.append(rows[["study_id", "slice_index"]].assign(**dict(zip(columns, values.T, strict=True))))
        meter.advance()
        stop.check("the trained weights are saved")
    of_studies = pd.concat(studies[1:] or studies, ignore_index=True)
    return _Read(np.concatenate(probabilities), np.concatenate(alone), np.concatenate(features), of_studies)


def _write_stacks(writer: ArtifactWriter, table: pd.DataFrame, prepared: Prepared) -> None:
    """Writes `stacks_oof.npy`: row i holds the descriptors of the slices around row i of the table."""
    codes = pd.factorize(table.study_id)[0]
    descriptors = table[prepared.task.probability_columns].to_numpy(np.float32)
    writer.write_array("stacks_oof.npy", neighbour_stacks(descriptors, codes, STACK_WINDOW))


def _log_score(task: FoldTask, table: pd.DataFrame, slices: pd.DataFrame, prepared: Prepared) -> None:
    """Logs the held-out loss, which no choice depends on."""
    if table.empty:
        return
    scope, columns = find_scope(task.config), prepared.task.probability_columns
    labels, probabilities = label_array(slices, prepared.task), table[columns].to_numpy(np.float64)
    weights = np.where(scope.knows, prepared.task.weight_array(), 0.0)
    loss = weighted_log_loss(probabilities, labels, weights / weights.sum())
    if np.isfinite(loss):
        logger.info("fold %d: held-out weighted log loss %.5f on %d slices", task.fold, loss, len(table))
