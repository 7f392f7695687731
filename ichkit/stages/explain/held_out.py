"""Held-out slices with out-of-fold probabilities and Grad-CAM heat maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.errors import ConfigError, DataError, nearest
from ichkit.core.tasks import Task
from ichkit.engine.heat import heat_maps
from ichkit.engine.inference import load_predictor
from ichkit.imaging.pictures import picture_volume
from ichkit.imaging.steps import restore
from ichkit.imaging.store import Prepared
from ichkit.imaging.windows import TABLE_LOW_HU
from ichkit.validation.metrics import log_losses
from ichkit.validation.scope import Scope
from ichkit.work.artifacts import read_manifest, read_table
from ichkit.work.folder import WorkFolder, pooled_name
from ichkit.work.inventory import take_inventory
from ichkit.work.schemas import check_predictions

LOSS = "loss"
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Explained:
    """One slice with the predictions and heat maps of the network that was trained without its fold.

    Attributes:
        slice_id, study_id, slice_index, num_slices: as in `slices.parquet`.
        fold: the fold of the slice, held out from the network.
        loss: weighted log loss of the slice, in nats.
        hounsfield: (H, W) int16 HU; of the source picture where the store is cropped, air outside the crop.
        labels: (C,) float64, 0 or 1, in the order of the task's classes.
        probabilities: (C,) float32, the row of `oof.parquet`.
        class_indices: (K,) the classes of the heat maps.
        heat: (K, H, W) float32 in [0, 1], see `engine.heat.heat_maps`.
    """

    slice_id: str
    study_id: str
    slice_index: int
    num_slices: int
    fold: int
    loss: float
    hounsfield: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    class_indices: tuple[int, ...]
    heat: np.ndarray


def read_held_out(prepared: Prepared, work: WorkFolder, run: str, fold: int) -> pd.DataFrame:
    """The out-of-fold predictions of a fold with labels and losses.

    Args:
        run, fold: a finished fold.

    Returns:
        The rows of `oof.parquet`, sorted by study_id and slice_index, with the columns num_slices, position_mm,
        volume, the labels (float64, NaN where unknown or not asked), and loss: the weighted log loss of the row in
        nats over the known ones.

    Raises:
        ConfigError: no such run or fold; the message lists the finished ones.
        ArtifactError: the fold is damaged.
        ContractError: the fold's slices are no longer those of the store.
    """
    refuse_unknown_fold(work, run, fold)
    folder, task = work.fold(run, fold), prepared.task
    table = read_table(folder / "oof.parquet", read_manifest(folder).sha256_of("oof.parquet"))
    labelled = prepared.split("train")
    own = labelled[labelled["fold"] == fold]
    check_predictions(table, task, str(folder / "oof.parquet"), own)
    classes = list(task.classes)
    labels = read_scope(folder, task).mask(own)[classes].astype("float64")
    facts = own[["slice_id", "num_slices", "position_mm", "volume"]].join(labels)
    table = table.merge(facts, on="slice_id", validate="one_to_one")
    losses = log_losses(table[task.probability_columns].to_numpy(np.float64), table[classes].to_numpy(np.float64))
    return table.assign(**{LOSS: _weigh(losses, task.weight_array())})


def _weigh(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N,) weighted means of (N, C) losses over the known ones; NaN for a row without any."""
    known = ~np.isnan(losses)
    if known.all():
        whole: np.ndarray = losses @ weights
        return whole
    own = np.where(known, weights, 0.0)
    totals = (np.where(known, losses, 0.0) * own).sum(1)
    weighed: np.ndarray = np.divide(totals, own.sum(1), out=np.full(len(losses), np.nan), where=known.any(1))
    return weighed


def read_scope(fold_folder: Path, task: Task) -> Scope:
    """The classes that the network of a finished fold predicts."""
    return Scope.of_facts(task, read_manifest(fold_folder).facts, str(fold_folder))


def pick_worst(held_out: pd.DataFrame, count: int) -> list[str]:
    """Ids of the slices with the greatest loss, greatest first; ties by slice_id.

    Args:
        held_out: from `read_held_out`.
    """
    order = held_out.dropna(subset=[LOSS]).sort_values([LOSS, "slice_id"], ascending=[False, True])
    return order["slice_id"].head(count).to_list()


def read_weights(work: WorkFolder, run: str, fold: int, study: str) -> pd.DataFrame | None:
    """The part of each slice in the pooled probability of a study: slice_index and w_<class>, by slice_index.

    None for a network without a pool.

    Raises:
        ArtifactError: the fold is damaged.
    """
    folder, name = work.fold(run, fold), pooled_name("oof")
    manifest = read_manifest(folder)
    if name not in manifest.files:
        return None
    table = read_table(folder / name, manifest.sha256_of(name))
    weights = table.loc[table["study_id"] == study].sort_values("slice_index", ignore_index=True)
    return weights[["slice_index", *(column for column in map(str, weights) if column.startswith("w_"))]]


def explain_slices(
    prepared: Prepared,
    work: WorkFolder,
    run: str,
    fold: int,
    slice_ids: Sequence[str],
    *,
    class_names: Sequence[str] | None = None,
    device: str = "auto",
) -> list[Explained]:
    """Computes heat maps of held-out slices of a fold, in the order of `slice_ids`.

    Args:
        slice_ids: slices of the fold.
        class_names: the classes of the heat maps [default: every class].
        device: the device of the network.

    Raises:
        DataError: a slice is not in this fold; the message says where it is.
        ConfigError: an unknown run, fold or class.
        ArtifactError, ContractError: see `read_held_out`.
    """
    held_out = read_held_out(prepared, work, run, fold)
    refuse_foreign(prepared, held_out, [fold], slice_ids)
    task = prepared.task
    indices = find_class_indices(task, class_names, read_scope(work.fold(run, fold), task).classes)
    predictor = load_predictor(work.fold(run, fold), device)
    rows = held_out.set_index("slice_id", drop=False).loc[list(dict.fromkeys(slice_ids))]
    found: dict[str, Explained] = {}
    for relative, of_study in rows.groupby("volume", sort=False):
        volume = prepared.read_volume(str(relative))
        whole = held_out[held_out["volume"] == relative].sort_values("slice_index")
        positions = of_study["slice_index"].to_numpy()
        heat = heat_maps(predictor, volume, positions, indices, whole["position_mm"].to_numpy())
        origin = prepared.origins.get(str(relative))
        slices, heat = restore(picture_volume(volume[positions]), origin, TABLE_LOW_HU), restore(heat, origin, 0.0)
        for position, (_, row) in enumerate(of_study.iterrows()):
            found[row["slice_id"]] = Explained(
                slice_id=row["slice_id"],
                study_id=row["study_id"],
                slice_index=int(row["slice_index"]),
                num_slices=int(row["num_slices"]),
                fold=fold,
                loss=float(row[LOSS]),
                hounsfield=slices[position],
                labels=row[list(task.classes)].to_numpy(np.float64),
                probabilities=row[task.probability_columns].to_numpy(np.float32),
                class_indices=indices,
                heat=heat[position],
            )
    return [found[slice_id] for slice_id in slice_ids]


def find_class_indices(task: Task, names: Sequence[str] | None, known: Sequence[str]) -> tuple[int, ...]:
    """The indices in the task of named classes; without names of all that are known.

    Args:
        known: the classes that the network predicts.

    Raises:
        ConfigError: no such class; the message lists the choices.
    """
    for name in names or ():
        if name not in known:
            raise ConfigError(f'explain: unknown class "{name}". {nearest(name, known)}')
    return tuple(task.classes.index(name) for name in (known if names is None else names))


def refuse_unknown_fold(work: WorkFolder, run: str, fold: int | None) -> None:
    """Checks that a run has finished folds, and the fold is one of them.

    Raises:
        ConfigError: the message lists the finished ones.
    """
    runs = take_inventory(work).finished_runs
    if run not in runs:
        raise ConfigError(f'explain: "{run}" is not a run with a finished fold in {work.runs}. {nearest(run, runs)}')
    if fold is not None and fold not in runs[run]:
        finished = ", ".join(map(str, runs[run]))
        raise ConfigError(f"explain: run {run} has finished folds {finished}; found --fold {fold}.")


def refuse_foreign(prepared: Prepared, held_out: pd.DataFrame, folds: Sequence[int], slice_ids: Sequence[str]) -> None:
    """Checks that all slices are held out in these folds.

    Args:
        held_out: the slices of the folds.

    Raises:
        DataError: names the first other slice, and where it is.
    """
    foreign = [name for name in slice_ids if name not in set(held_out["slice_id"])]
    if not foreign:
        return
    wanted = f"fold {', '.join(map(str, folds))}"
    elsewhere = prepared.slices[prepared.slices["slice_id"] == foreign[0]]
    if elsewhere.empty:
        examples = ", ".join(held_out["slice_id"].head(_NUM_EXAMPLES))
        raise DataError(
            f"explain: expected a slice_id of {prepared.folder / 'slices.parquet'} in {wanted}, such as {examples}; "
            f"found {foreign[0]}, which is not prepared."
        )
    row = elsewhere.iloc[0]
    is_labelled = row["split"] == "train"
    where = f"fold {row['fold']}" if is_labelled else f"the {row['split']} split of {row['dataset']}"
    remedy = f"Use --fold {row['fold']}, once it is trained" if is_labelled else "Choose a labelled slice"
    raise DataError(
        f"explain: slice {foreign[0]} is in {where}, expected one of {wanted}: only held-out slices are "
        f"explained. {remedy}."
    )
