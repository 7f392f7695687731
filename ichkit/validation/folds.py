"""Patient-wise folds, balanced by class, studies and slices; assigned patients keep their fold."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ichkit.core.errors import FoldError
from ichkit.core.progress import logger
from ichkit.core.seeding import derive_seed, make_generator
from ichkit.work.schemas import FOLDS, LOCKS

_MAX_STEPS = 1000
_MAX_SWAP_CANDIDATES = 512


def assign_folds(
    patients: pd.DataFrame,
    num_folds: int,
    classes: Sequence[str],
    seed: int,
    existing: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A fold for every patient: known patients keep theirs, new ones are assigned so that the folds are balanced.

    Balanced are, each relative to its mean over folds: studies, slices, positive studies of each class and, if the
    class columns count slices, positive slices of each class. Rows may be in any order.

    Args:
        patients: one row per study: patient_id; for each class its positive slices, or just 0 and 1 (missing: 0);
            optionally num_slices.
        existing: patient_id and fold of patients assigned before; they are returned unchanged, even without a study.

    Returns:
        patient_id and fold (int64), sorted by patient_id.

    Raises:
        FoldError: fewer patients than folds, `existing` names a patient twice, or a fold outside 0..num_folds-1.

    Source: chosen here: greedy, rarest class and largest patient first, then steepest descent over single moves and
        swaps, because label sets of six classes have too many combinations for stratification by group.

    Example:
        >>> frame = pd.DataFrame({"patient_id": list("abcd"), "any": [1, 1, 0, 0]})
        >>> assign_folds(frame, 2, ["any"], seed=0).merge(frame).groupby("fold")["any"].sum().tolist()
        [1, 1]
    """
    existing = pd.DataFrame({"patient_id": [], "fold": []}) if existing is None else existing
    loads = _patient_loads(patients, classes)
    _warn_of_rare_classes(loads, classes, num_folds)
    return _assign(loads, _check_existing(existing, num_folds), num_folds, classes, seed)


def lock_patients(
    patients: pd.DataFrame, share: float, classes: Sequence[str], seed: int, existing: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The patients excluded from all training: one part in round(1 / share), balanced like the folds.

    Known patients stay as they are. Of new patients as many parts are dealt again; fewer patients than parts are not
    locked.

    Args:
        patients: as for `assign_folds`.
        share: above 0, at most 0.5.
        existing: patient_id and is_locked of an earlier call.

    Returns:
        patient_id and is_locked (bool), sorted by patient_id.

    Raises:
        FoldError: fewer patients than parts in the first call.

    Example:
        >>> frame = pd.DataFrame({"patient_id": list("abcd"), "any": [1, 1, 0, 0]})
        >>> lock_patients(frame, 0.5, ["any"], seed=0).is_locked.tolist().count(True)
        2
    """
    known = pd.DataFrame({"patient_id": [], "is_locked": []}) if existing is None else existing
    loads = _patient_loads(patients[~patients.patient_id.isin(known.patient_id)], classes)
    num_parts = round(1 / share)
    if existing is None and len(loads) < num_parts:
        raise FoldError(
            f"--lock {share:g}: expected at least {num_parts} patients to lock one part in {num_parts}, found "
            f"{len(loads)}. Prepare more studies, or lock a larger share."
        )
    parts = pd.Series(1, index=loads.index)
    if len(loads) >= num_parts:
        dealt = _assign(loads, pd.Series(dtype=np.int64), num_parts, classes, derive_seed(seed, "lock"))
        parts = dealt.set_index("patient_id").fold
    new = pd.DataFrame({"patient_id": parts.index.astype("str"), "is_locked": parts.to_numpy() == 0})
    both = pd.concat([known, new]) if len(known) else new
    return both.astype({"is_locked": bool}).sort_values("patient_id", ignore_index=True)[LOCKS]


def deal_patients(slices: pd.DataFrame, num_parts: int, classes: Sequence[str], seed: int) -> np.ndarray:
    """(N,) int64: the part of each slice, assigned by patient like the folds, without the warning.

    Args:
        slices: (N rows) patient_id, study_id and the classes, 0 or 1.

    Raises:
        FoldError: fewer patients than parts.
    """
    loads = _patient_loads(tally_studies(slices, classes), classes)
    parts = _assign(loads, pd.Series(dtype=np.int64), num_parts, classes, seed)
    return slices.patient_id.map(dict(zip(parts.patient_id, parts.fold, strict=True))).to_numpy(np.int64)


def tally_studies(slices: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """One row per study, for `assign_folds`: patient_id, num_slices, positive slices of each class."""
    by_study = slices.groupby(["patient_id", "study_id"], sort=True)
    counts = by_study[list(classes)].sum().astype("int64")
    counts["num_slices"] = by_study.size()
    return counts.reset_index()


def check_folds(slices: pd.DataFrame) -> None:
    """Checks that every patient of the training slices has exactly one fold.

    Args:
        slices: patient_id and fold; with a column `split`, only its "train" rows are checked.

    Raises:
        FoldError: a patient has none or several.
    """
    train = slices[slices["split"] == "train"] if "split" in slices else slices
    without = train.patient_id[train.fold.isna()]
    if len(without):
        raise FoldError(
            f"folds: patient {without.iloc[0]} has no fold (with {len(without)} of {len(train)} training slices); "
            "a patient has one. Run `ichkit prepare` again."
        )
    spread = train.groupby("patient_id").fold.nunique()
    for patient in spread.index[spread > 1][:1]:
        found = sorted(int(fold) for fold in train.fold[train.patient_id == patient].unique())
        raise FoldError(
            f"folds: patient {patient} has folds {' and '.join(map(str, found))}; a patient has one. "
            "Run `ichkit prepare --new-folds`."
        )


def _assign(loads: pd.DataFrame, known: pd.Series, num_folds: int, classes: Sequence[str], seed: int) -> pd.DataFrame:
    """patient_id and fold of the patients in `loads` and in `known`; see `assign_folds`."""
    num_patients = len(known.index.union(loads.index))
    if num_patients < num_folds:
        raise FoldError(
            f"folds: expected at least {num_folds} patients, one for each fold, found {num_patients}. "
            "Prepare more studies, or use fewer folds (`--set prepare.num_folds=2` needs two patients)."
        )
    settled = loads.index.isin(known.index)
    x = _relative(loads.to_numpy(np.float64), num_folds)
    fold = np.full(len(loads), -1)
    fold[settled] = known.reindex(loads.index[settled]).to_numpy()
    rng = make_generator(seed, "folds")
    _deal_new(x, loads, classes, fold, num_folds, rng)
    _improve(x, fold, np.flatnonzero(~settled), num_folds, rng)
    dealt = pd.Series(fold, index=loads.index)[~settled]
    both = pd.concat([known, dealt]).sort_index()
    return pd.DataFrame({"patient_id": both.index.astype("str"), "fold": both.to_numpy(np.int64)})[FOLDS]


def _check_existing(existing: pd.DataFrame, num_folds: int) -> pd.Series:
    """The fold of each known patient, by patient_id."""
    twice = existing.patient_id[existing.patient_id.duplicated()]
    if len(twice):
        raise FoldError(
            f"folds: patient {twice.iloc[0]} has {int((existing.patient_id == twice.iloc[0]).sum())} rows; "
            "a patient has one. Correct the file, or run `ichkit prepare --new-folds`."
        )
    foreign = existing[~existing.fold.isin(range(num_folds))]
    if len(foreign):
        raise FoldError(
            f"folds: expected folds 0 to {num_folds - 1}, found fold {foreign.fold.iloc[0]} (patient "
            f"{foreign.patient_id.iloc[0]}). Set prepare.num_folds to match, or run `ichkit prepare --new-folds`."
        )
    return pd.Series(existing.fold.to_numpy(np.int64), index=pd.Index(existing.patient_id, dtype="str"))


def _patient_loads(patients: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """(P, F) by patient_id, ascending: studies, slices, then positive studies and positive slices of each class."""
    positive = patients[list(classes)].fillna(0).astype("int64")
    columns: dict[str | tuple[str, str], object] = {"studies": 1, "slices": patients.get("num_slices", 1)}
    columns |= {("studies", name): (positive[name] > 0).astype("int64") for name in classes}
    columns |= {("slices", name): positive[name] for name in classes}
    loads = pd.DataFrame(columns, index=patients.index)
    return loads.groupby(patients.patient_id.astype("str"), sort=True).sum()


def _relative(loads: np.ndarray, num_folds: int) -> np.ndarray:
    """Loads relative to the mean of a fold, so that every column has the same weight in the squared imbalance."""
    total = loads.sum(0)
    relative: np.ndarray = loads * np.divide(num_folds, total, out=np.zeros_like(total), where=total > 0)
    return relative


def _deal_new(
    x: np.ndarray,
    loads: pd.DataFrame,
    classes: Sequence[str],
    fold: np.ndarray,
    num_folds: int,
    rng: np.random.Generator,
) -> None:
    """Assigns every patient without a fold to the fold where the squared imbalance grows least, in place."""
    positive = loads[[("studies", name) for name in classes]].to_numpy() > 0
    frequency = positive.sum(0)
    rarest = np.where(positive, frequency, len(loads) + 1).min(1, initial=len(loads) + 1)
    order = np.lexsort((rng.random(len(loads)), -loads["slices"].to_numpy(), rarest))
    held = _fold_loads(x, fold, num_folds)
    # Ties are resolved by this permutation, so that another seed gives other folds.
    preference = rng.permutation(num_folds)
    for patient in order[fold[order] < 0]:
        # The target of a column is the same in every fold, so only the term linear in the load differs.
        growth = held[preference] @ x[patient]
        chosen = preference[int(np.argmin(growth))]
        fold[patient] = chosen
        held[chosen] += x[patient]


def _improve(x: np.ndarray, fold: np.ndarray, movable: np.ndarray, num_folds: int, rng: np.random.Generator) -> None:
    """Moves or swaps the patients in `movable`, in place, as long as the squared imbalance decreases."""
    if not len(movable):
        return
    held = _fold_loads(x, fold, num_folds)
    floor = 1e-9 * x.shape[1]
    for _ in range(_MAX_STEPS):
        candidates = movable
        if len(movable) > _MAX_SWAP_CANDIDATES:
            candidates = rng.choice(movable, _MAX_SWAP_CANDIDATES, replace=False)
        move_gain, patient, target = _best_move(x, fold, held, movable)
        swap_gain, first, second = _best_swap(x, fold, held, candidates)
        if max(move_gain, swap_gain) <= floor:
            return
        changes = [(patient, target)] if move_gain >= swap_gain else [(first, fold[second]), (second, fold[first])]
        for who, where in changes:
            held[fold[who]] -= x[who]
            held[where] += x[who]
            fold[who] = where


def _fold_loads(x: np.ndarray, fold: np.ndarray, num_folds: int) -> np.ndarray:
    """(K, F): the summed loads of each fold; patients without a fold are ignored."""
    held = np.zeros((num_folds, x.shape[1]))
    np.add.at(held, fold[fold >= 0], x[fold >= 0])
    return held


def _best_move(x: np.ndarray, fold: np.ndarray, held: np.ndarray, movable: np.ndarray) -> tuple[float, int, int]:
    """The decrease of the squared imbalance by the best move, its patient, and the target fold."""
    own = x[movable]
    beside = own @ held.T  # (M, K)
    here = beside[np.arange(len(movable)), fold[movable]]
    gain = 2 * (here[:, None] - beside - (own**2).sum(1)[:, None])
    gain[np.arange(len(movable)), fold[movable]] = -np.inf
    best = int(np.argmax(gain))
    row, target = divmod(best, held.shape[0])
    return float(gain[row, target]), int(movable[row]), target


def _best_swap(x: np.ndarray, fold: np.ndarray, held: np.ndarray, candidates: np.ndarray) -> tuple[float, int, int]:
    """The decrease of the squared imbalance by the best swap of two candidates of different folds, and these two."""
    own, place = x[candidates], fold[candidates]
    gram = own @ own.T
    squared = np.diag(gram)
    beside = own @ held.T  # (M, K)
    here = beside[np.arange(len(candidates)), place]
    there = beside[:, place]  # (M, M): candidate i beside the fold of j
    # d = x_j - x_i enters i's fold and leaves j's: the sum of squares changes by 2 d.(held_i - held_j) + 2 d.d
    across = there.T - here[None, :] - here[:, None] + there
    change = 2 * across + 2 * (squared[:, None] + squared[None, :] - 2 * gram)
    change[place[:, None] == place[None, :]] = np.inf
    best = int(np.argmin(change))
    i, j = divmod(best, len(candidates))
    return float(-change[i, j]), int(candidates[i]), int(candidates[j])


def _warn_of_rare_classes(loads: pd.DataFrame, classes: Sequence[str], num_folds: int) -> None:
    counts = {name: int((loads[("studies", name)] > 0).sum()) for name in classes}
    rare = [f"{name} {count}" for name, count in counts.items() if count < num_folds]
    if rare:
        logger.warning(
            "folds: fewer than %d patients are positive for: %s; some folds have none of them, "
            "so scores of these classes are undefined there",
            num_folds,
            ", ".join(rare),
        )
