"""What a stack is made from: which runs and folds, their tables checked against the contract, and the chains."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.artifacts import digest_file, digest_table, read_manifest, read_table
from ichkit.core.errors import ArtifactError, ConfigError, FoldError, nearest
from ichkit.core.layout import WorkFolder
from ichkit.core.schemas import KEY, check_predictions
from ichkit.core.seeding import derive_seed
from ichkit.core.tasks import Task
from ichkit.imaging.store import Prepared
from ichkit.stacking.rows import FACTS
from ichkit.validation.folds import check_folds, deal_patients

TRAINED_BY = "ichkit train"
SPLITS = ("oof", "test", "cq500")


@dataclass(frozen=True)
class Inputs:
    """Everything a stack reads, checked.

    Attributes:
        runs: in alphabetical order.
        folds: the folds whose rows are learnt from and predicted, ascending.
        train: prepared slices of those folds, labels included, sorted by study_id and slice_index.
        test, cq500: prepared slices, without labels.
        tables: split, then run, then fold, to a predictions table.
        digests: name to digest of everything read.
        data: "rsna", "phantom" or "folder".
    """

    runs: tuple[str, ...]
    folds: tuple[int, ...]
    train: pd.DataFrame
    test: pd.DataFrame
    cq500: pd.DataFrame
    tables: Mapping[str, Mapping[str, Mapping[int, pd.DataFrame]]]
    digests: Mapping[str, str]
    data: str

    def out_of_fold(self, run: str) -> pd.DataFrame:
        """The descriptors of every row of `train`, each by the model of its own fold."""
        return pd.concat(list(self.tables["oof"][run].values()), ignore_index=True)


@dataclass(frozen=True)
class ChainPlan:
    """One chain to fit.

    Attributes:
        name: `fold<k>`, or `part<p>` where one fold is all there is.
        fold: the first-stage fold it reads.
        held: (N,) bool over `Inputs.train`: the rows it predicts; it learns from the others.
    """

    name: str
    fold: int
    held: np.ndarray


def choose_runs(
    finished: Mapping[str, Sequence[int]], all_folds: Sequence[int], requested: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The runs of a stack, in alphabetical order, and the folds they share.

    Args:
        finished: every run with at least one finished fold, and its folds.
        all_folds: the folds of `folds.csv`; a run that has them all is complete.
        requested: runs by name; None takes all complete ones and, where there is none, those with the largest number
            of folds and the same folds as the first of them by name.

    Raises:
        ArtifactError: no run at all, a requested one that is not there, or runs that share no fold.

    Example:
        >>> choose_runs({"a": [0, 1], "b": [0]}, [0, 1], None)
        (('a',), (0, 1))
    """
    if not finished:
        raise ArtifactError(
            f"stack: expected at least one finished fold of a run in runs/, found none. Run `{TRAINED_BY}` first."
        )
    if requested:
        for run in requested:
            if run not in finished:
                raise ArtifactError(
                    f'stack: run "{run}" has no finished fold. {nearest(run, finished)} '
                    f"Run `{TRAINED_BY} --run {run}` first."
                )
        runs = sorted(set(requested))
    else:
        complete = [run for run in finished if set(all_folds) <= set(finished[run])]
        most = max(len(folds) for folds in finished.values())
        largest = [run for run in sorted(finished) if len(finished[run]) == most]
        runs = sorted(complete) or [run for run in largest if set(finished[run]) == set(finished[largest[0]])]
    shared = sorted(set.intersection(*(set(finished[run]) for run in runs)))
    if not shared:
        each = "; ".join(f"{run}: {', '.join(map(str, finished[run]))}" for run in runs)
        raise ArtifactError(
            f"stack: expected runs that share a fold, found {each}. Train the same folds, e.g. "
            f"`{TRAINED_BY} --run {runs[-1]} --fold {finished[runs[0]][0]}`, or name other runs."
        )
    return tuple(runs), tuple(shared)


def check_name(name: str) -> str:
    """The name of a stack, if it can name a folder.

    Raises:
        ConfigError: it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name) or name.endswith((".partial", ".old")):
        raise ConfigError(
            f'--name: expected letters, digits, "_", "+", "-" and ".", found "{name}". Give another name.'
        )
    return name


def read_inputs(work: WorkFolder, task: Task, requested: Sequence[str] | None) -> Inputs:
    """Reads and checks everything a stack is made from.

    Raises:
        ArtifactError: nothing prepared or trained, or an artifact is damaged.
        ContractError: a table does not hold exactly the prepared slices, or a row's fold is not its own.
        FoldError: a patient has two folds.
    """
    finished = work.finished_runs()
    if not finished:
        choose_runs(finished, (), requested)
    prepared = Prepared.open(work.prepared, task)
    runs, folds = choose_runs(finished, prepared.fold_numbers, requested)
    train, test, cq500 = (prepared.split(name) for name in ("train", "test", "cq500"))
    check_folds(train)
    train = train[train.fold.isin(folds)].reset_index(drop=True)
    tables: dict[str, dict[str, dict[int, pd.DataFrame]]] = {split: {run: {} for run in runs} for split in SPLITS}
    facts = ["slice_id", *KEY, *(name for name in FACTS if name not in KEY)]
    digests = {
        "prepared/labels": digest_table(train[[*facts, "patient_id", "fold", *task.classes]]),
        "prepared/test": digest_table(test[facts]),
        "prepared/cq500": digest_table(cq500[facts]),
    }
    data = set()
    for run in runs:
        for fold in folds:
            folder = work.fold(run, fold)
            data.add(str(read_manifest(folder, made_by=TRAINED_BY).facts["data"]))
            expected = {
                "oof": train.loc[train.fold == fold, ["slice_id", "fold"]],
                "test": test[["slice_id"]].assign(fold=fold),
                "cq500": cq500[["slice_id"]].assign(fold=fold),
            }
            for split in SPLITS:
                path = folder / f"{split}.parquet"
                where = f"{run}/fold{fold}/{split}.parquet"
                table = read_table(path)
                check_predictions(table, task, where, expected[split])
                tables[split][run][fold] = table
                digests[where] = digest_file(path)
    if len(data) > 1:
        raise ArtifactError(
            f"stack: expected runs trained on the same data, found {', '.join(sorted(data))}. Name runs of one kind."
        )
    return Inputs(runs, folds, train, test, cq500, tables, digests, data.pop())


def plan_chains(inputs: Inputs, task: Task, num_parts: int, seed: int) -> list[ChainPlan]:
    """One chain per fold; where there is one fold, its patients are dealt into parts and each part has a chain.

    Raises:
        FoldError: too few patients to learn from some and predict another.
    """
    train = inputs.train
    if len(inputs.folds) > 1:
        own = train.fold.to_numpy(np.int64)
        plans = [ChainPlan(f"fold{fold}", fold, own == fold) for fold in inputs.folds]
    else:
        num_parts = max(2, min(num_parts, train.patient_id.nunique()))
        parts = deal_patients(train, num_parts, task.classes, derive_seed(seed, "stack parts"))
        plans = [ChainPlan(f"part{part}", inputs.folds[0], parts == part) for part in range(num_parts)]
    fewest = min(train.patient_id[~plan.held].nunique() for plan in plans)
    if fewest < 2:
        raise FoldError(
            f"stack: expected at least 2 patients beside those that a model predicts, found {fewest}. "
            f"Train more folds (`{TRAINED_BY} --fold all`) or prepare more studies."
        )
    return plans
