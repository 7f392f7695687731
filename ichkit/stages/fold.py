"""One fold of a run: its identity, its training, its tables."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from ichkit.core.artifacts import (
    ArtifactWriter,
    Manifest,
    digest_file,
    digest_table,
    encode_json,
    encode_table,
    partial_of,
    read_manifest,
    write_bytes_atomically,
)
from ichkit.core.config import Config
from ichkit.core.errors import FoldError
from ichkit.core.layout import WorkFolder
from ichkit.core.progress import Meter, StopFlag, logger
from ichkit.core.schemas import make_predictions
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.stacking.embeddings import INITIAL_WEIGHTS, embeddings_name
from ichkit.stacking.neighbours import neighbour_stacks
from ichkit.validation.metrics import weighted_log_loss

if TYPE_CHECKING:
    from ichkit.engine.inference import Predictor

MADE_BY = "ichkit train"
STARTED_NAME, CHECKPOINT_NAME = "started.json", "last.ckpt"
STACK_WINDOW = 7
# What a network sees of a slice without its label; the volume's name is a digest of its content.
_SEEN = ["slice_id", "study_id", "slice_index", "volume"]


@dataclass(frozen=True)
class FoldTask:
    """One fold to work on, small enough to travel to a worker.

    Attributes:
        config: the whole configuration.
        work: the work folder.
        run: name of the run.
        fold: the fold held out.
        trains: False where the weights are there and only tables have to be made again.
        shows_meter: a progress bar; else one line per epoch.
    """

    config: Config
    work: WorkFolder
    run: str
    fold: int
    trains: bool
    shows_meter: bool = True

    @property
    def folder(self) -> Path:
        """Where the finished fold will stand."""
        return self.work.fold(self.run, self.fold)

    def open_prepared(self) -> Prepared:
        """The store.

        Raises:
            ArtifactError: missing or unfinished.
        """
        return Prepared.open(self.work.prepared, find_task(self.config.task))


@dataclass(frozen=True)
class Identity:
    """What a fold is made from: other settings or other training slices make another fold."""

    settings: dict[str, Any]
    inputs: dict[str, str]


@dataclass(frozen=True)
class Parts:
    """The slices of every part of one fold, sorted by study_id and slice_index."""

    train: pd.DataFrame
    heldout: pd.DataFrame
    test: pd.DataFrame
    cq500: pd.DataFrame

    @classmethod
    def of(cls, prepared: Prepared, fold: int) -> "Parts":
        """The parts of a fold."""
        labelled = prepared.split("train")
        is_held_out = labelled.fold.to_numpy(np.int64) == fold
        return cls(
            train=labelled[~is_held_out].reset_index(drop=True),
            heldout=labelled[is_held_out].reset_index(drop=True),
            test=prepared.split("test"),
            cq500=prepared.split("cq500"),
        )


def identify(config: Config, prepared: Prepared, fold: int) -> Identity:
    """Settings and input digests of a fold.

    The labels of the held-out fold are no part of it: nothing that is made here may depend on them.
    """
    parts, classes = Parts.of(prepared, fold), list(prepared.task.classes)
    train = config.train.settings()
    weights = Path(config.train.pretrained)
    if weights.is_file():
        train["pretrained"] = f"file {digest_file(weights)[:16]}"
    stored = prepared.manifest.settings
    return Identity(
        settings={
            "task": config.task,
            "seed": config.seed,
            "channels": config.channels.settings(),
            "train": train,
            "prepare": {"size": stored["size"], "hull_hu": stored["hull_hu"]},
        },
        inputs={
            "train_slices": digest_table(parts.train[[*_SEEN, *classes]]),
            "heldout_slices": digest_table(parts.heldout[_SEEN]),
            "test_slices": digest_table(parts.test[_SEEN]),
            "cq500_slices": digest_table(parts.cq500[_SEEN]),
        },
    )


def read_started(folder: Path) -> Identity | None:
    """The identity of an unfinished fold; None where there is none that could go on."""
    path = partial_of(folder) / STARTED_NAME
    if not path.is_file():
        return None
    try:
        return Identity(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        return None


def do_fold(task: FoldTask, stop: StopFlag) -> Manifest:
    """Trains a fold, or goes on with it, and writes its tables; or makes the tables again from finished weights.

    Raises:
        Stopped: a stop was asked for; the next call goes on from there.
        ConfigError, ArtifactError, FoldError, DiskFullError: see the message.
    """
    from ichkit.engine.devices import torch_threads
    from ichkit.engine.inference import read_predictor

    began = time.monotonic()
    prepared = task.open_prepared()
    identity, parts = identify(task.config, prepared, task.fold), Parts.of(prepared, task.fold)
    writer = ArtifactWriter(task.folder, "fold", resume=task.trains)
    embeds = task.config.train.embeddings or (not task.trains and has_embeddings(task.folder))
    with torch_threads(task.config.train.threads) as threads:
        facts = _train(task, prepared, parts, identity, writer, stop) if task.trains else _keep_weights(task, writer)
        predictor = read_predictor(writer.folder, task.config.train.accelerator)
        tables = {"oof": (parts.heldout, None), "test": (parts.test, task.fold), "cq500": (parts.cq500, task.fold)}
        num_studies = sum(slices.volume.nunique() for slices, _ in tables.values())
        with Meter(f"fold {task.fold}: predicting", num_studies, "studies") as meter:
            for name, (slices, fold) in tables.items():
                probabilities, embeddings = _predict_slices(predictor, prepared, slices, meter, stop, embeds=embeds)
                if embeds:
                    writer.write_array(embeddings_name(name), embeddings)
                table = make_predictions(slices, probabilities, prepared.task, fold)
                writer.write_table(f"{name}.parquet", table)
                if name == "oof":
                    _write_stacks(writer, table, prepared)
                    _say_score(task, table, slices, prepared)
    for name in (CHECKPOINT_NAME, STARTED_NAME):
        writer.discard(name)
    return writer.commit(
        settings=identity.settings,
        inputs=identity.inputs,
        facts={
            **facts,
            "run": task.run,
            "fold": task.fold,
            "data": prepared.manifest.facts["data"],
            "task": task.config.task,
            "num_slices": len(parts.heldout),
            "device": str(predictor.device),
            "threads": threads,
            "seconds": round(time.monotonic() - began, 1),
        },
    )


def _train(
    task: FoldTask, prepared: Prepared, parts: Parts, identity: Identity, writer: ArtifactWriter, stop: StopFlag
) -> dict[str, Any]:
    """Trains, writes weights, card, config and history into the unfinished folder; returns facts about the network."""
    import torch

    from ichkit.engine.blocks import BlockDataset, SliceIndex, VolumeReader
    from ichkit.engine.devices import make_fabric
    from ichkit.engine.inference import CARD_NAME, WEIGHTS_NAME, ModelCard, encode_card, encode_weights
    from ichkit.engine.loop import TrainingLoop
    from ichkit.imaging.windows import make_rendering
    from ichkit.models.descriptor import set_prior_bias
    from ichkit.models.losses import make_loss

    if parts.train.empty:
        raise FoldError(f"train: fold {task.fold} leaves no slices to train on. Prepare more patients, or other folds.")
    config, settings = task.config, task.config.train
    write_bytes_atomically(writer.folder / STARTED_NAME, encode_json(vars(identity)))
    index = SliceIndex.of(parts.train, prepared.task)
    prevalence = index.labels.mean(0, dtype=np.float64)
    stored = prepared.manifest.settings
    card = ModelCard.of(config, stored["size"], tuple(stored["hull_hu"]))
    # The same for every fold: only then can what the networks see be brought into one space.
    torch.manual_seed(derive_seed(config.seed, "network"))
    network = card.build(drop_rate=settings.drop_rate, pretrained=settings.pretrained)
    initial_weights = hashlib.sha256(encode_weights(network)).hexdigest()[:16]
    if settings.label_prior_bias:
        set_prior_bias(network, prevalence)
    dataset = BlockDataset(
        index, VolumeReader(prepared.folder), make_rendering(config.channels), settings, config.seed, task.fold
    )
    loop = TrainingLoop(
        make_fabric(settings),
        network,
        dataset,
        make_loss(settings.loss, prepared.task.weight_array(), prevalence),
        settings,
        writer.folder / CHECKPOINT_NAME,
        shows_meter=task.shows_meter,
    )
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    logger.info(
        "fold %d: %s, %.2f M parameters, weights %s; %d slices of %d patients to train on, %d held out; %s",
        task.fold,
        settings.backbone,
        num_parameters / 1e6,
        "random" if settings.pretrained == "none" else settings.pretrained,
        len(parts.train),
        parts.train.patient_id.nunique(),
        len(parts.heldout),
        loop.describe(),
    )
    trained = loop.run(stop)
    writer.write_bytes(WEIGHTS_NAME, encode_weights(trained))
    writer.write_json(CARD_NAME, encode_card(card))
    used = {"task": config.task, "seed": config.seed, "channels": config.channels.settings()}
    used |= {"prepare": {"size": stored["size"]}, "train": settings.settings()}
    writer.write_bytes("config.yaml", yaml.safe_dump(used, sort_keys=False).encode())
    writer.write_bytes("history.csv", encode_table(pd.DataFrame(loop.progress.history), ".csv"))
    return {
        "backbone": settings.backbone,
        "num_parameters": num_parameters,
        "num_train_slices": len(parts.train),
        INITIAL_WEIGHTS: initial_weights,
    }


def _keep_weights(task: FoldTask, writer: ArtifactWriter) -> dict[str, Any]:
    """Copies what training made into the new folder; returns the facts that stay."""
    manifest = read_manifest(task.folder, made_by=MADE_BY)
    for name in manifest.files:
        if not name.endswith((".parquet", ".npy")):
            writer.write_bytes(name, (task.folder / name).read_bytes())
    kept = ("backbone", "num_parameters", "num_train_slices", INITIAL_WEIGHTS)
    return {name: manifest.facts[name] for name in kept if name in manifest.facts}


def _predict_slices(
    predictor: "Predictor", prepared: Prepared, slices: pd.DataFrame, meter: Meter, stop: StopFlag, *, embeds: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) float32 probabilities and (N, F) float16 features of the rows, sorted by study_id and slice_index.

    Without `embeds` there are no features, F = 0.
    """
    probabilities = [np.empty((0, prepared.task.num_classes), np.float32)]
    features = [np.empty((0, predictor.num_features if embeds else 0), np.float16)]
    for relative, rows in slices.groupby("volume", sort=False):
        volume, own = prepared.read_volume(relative), rows.slice_index.to_numpy()
        if embeds:
            described, seen = predictor.describe_volume(volume)
            features.append(seen[own])
        else:
            described = predictor.predict_volume(volume)
        probabilities.append(described[own])
        meter.advance()
        stop.check("training is saved, and the tables are made anew")
    return np.concatenate(probabilities), np.concatenate(features)


def has_embeddings(folder: Path) -> bool:
    """True where a finished fold holds what its network sees before its last layer."""
    return embeddings_name("oof") in read_manifest(folder, made_by=MADE_BY).files


def _write_stacks(writer: ArtifactWriter, table: pd.DataFrame, prepared: Prepared) -> None:
    """`stacks_oof.npy`: row i holds the descriptors around row i of the table."""
    codes = pd.factorize(table.study_id)[0]
    descriptors = table[prepared.task.probability_columns].to_numpy(np.float32)
    writer.write_array("stacks_oof.npy", neighbour_stacks(descriptors, codes, STACK_WINDOW))


def _say_score(task: FoldTask, table: pd.DataFrame, slices: pd.DataFrame, prepared: Prepared) -> None:
    """Shows the held-out loss; nothing is chosen by it."""
    if table.empty:
        return
    labels = slices[list(prepared.task.classes)].to_numpy(np.float64)
    probabilities = table[prepared.task.probability_columns].to_numpy(np.float64)
    loss = weighted_log_loss(probabilities, labels, prepared.task.weight_array())
    logger.info("fold %d: held-out weighted log loss %.5f on %d slices", task.fold, loss, len(table))
