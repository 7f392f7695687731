"""The inputs of a stack: runs and folds, their checked tables, and the rows of each fold model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ichkit.core.errors import ArtifactError, FoldError, nearest
from ichkit.core.roles import is_transductive, unmark_transductive
from ichkit.core.seeding import derive_seed
from ichkit.core.stack_config import EmbeddingsConfig
from ichkit.core.tasks import Task
from ichkit.imaging.store import FACTS_NAME, Prepared
from ichkit.stacking.combine import MEAN_LOGIT, Ensemble
from ichkit.stacking.embeddings import Anchored, read_embeddings
from ichkit.stacking.rows import FACTS, PREPARED_FACTS
from ichkit.validation.folds import check_folds, deal_patients
from ichkit.validation.scope import Scope
from ichkit.work.artifacts import check_sizes, digest_table, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.schemas import BRAIN_SHARE, KEY, check_predictions

TRAINED_BY = "ichkit train"


@dataclass(frozen=True)
class Inputs:
    """All inputs of a stack, checked.

    Attributes:
        runs: in alphabetical order.
        folds: the folds that are fitted and predicted, ascending.
        train: prepared slices of those folds, sorted by study_id and slice_index, with the labels that are asked.
        test: prepared slices, without labels.
        external: prepared slices of each external set, by name.
        tables: split, then run, then fold, to a predictions table.
        embeddings: run to its embeddings in the shared space; empty if they are not enabled.
        digests: name to digest of everything read.
        data: "rsna", "phantom" or "folder".
        ensemble: the runs, and how they are combined.
    """

    runs: tuple[str, ...]
    folds: tuple[int, ...]
    train: pd.DataFrame
    test: pd.DataFrame
    external: Mapping[str, pd.DataFrame]
    tables: Mapping[str, Mapping[str, Mapping[int, pd.DataFrame]]]
    embeddings: Mapping[str, Anchored]
    digests: Mapping[str, str]
    data: str
    ensemble: Ensemble

    @property
    def unseen(self) -> dict[str, pd.DataFrame]:
        """The slices that no model is fitted on, by the name of their tables: test, then external sets."""
        return {"test": self.test, **self.external}

    @property
    def has_brain_shares(self) -> bool:
        """True if the store has the brain share of its slices."""
        return BRAIN_SHARE in self.train

    def out_of_fold(self, run: str) -> pd.DataFrame:
        """The descriptors of every row of `train`, each by the model of its own fold."""
        return pd.concat(list(self.tables["oof"][run].values()), ignore_index=True)

    def out_of_fold_embeddings(self) -> np.ndarray:
        """(N, E) float32 of every row of `train`, each by the model of its own fold; E = 0 without embeddings."""
        parts = [np.empty((len(self.train), 0), np.float32)]
        for run, anchored in self.embeddings.items():
            tables = self.tables["oof"][run]
            order = pd.concat(list(tables.values()), ignore_index=True).sort_values(KEY).index
            values = np.concatenate([anchored.project("oof", fold) for fold in tables])
            parts.append(values[order])
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class FoldModelPlan:
    """One fold model to fit.

    Attributes:
        name: `fold<k>`, or `part<p>` if there is only one fold.
        fold: the first-stage fold it reads.
        held: (N,) bool over `Inputs.train`: the rows it predicts; it is fitted on the others.
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
        requested: runs by name; None selects all complete ones or, without any, those with the largest number of folds
            and the same folds as the first of them by name.

    Raises:
        ArtifactError: no run, a requested run that does not exist, or runs that share no fold.

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


def read_inputs(
    work: WorkFolder,
    task: Task,
    requested: Sequence[str] | None,
    embeddings: EmbeddingsConfig | None = None,
    combine: str = MEAN_LOGIT,
) -> Inputs:
    """Reads and checks the inputs of a stack.

    Args:
        embeddings: settings of the alignment of embeddings; None, or not enabled, does not read them.
        combine: a row of `COMBINERS`.

    Raises:
        ArtifactError: nothing prepared or trained, an artifact is damaged, or embeddings cannot be aligned.
        ContractError: a table does not have exactly the prepared slices with their folds.
        FoldError: a patient has two folds.
        ConfigError: the runs cannot be combined in that way.
    """
    finished = take_inventory(work).finished_runs
    if not finished:
        choose_runs(finished, (), requested)
    prepared = Prepared.open(work.prepared, task)
    runs, folds = choose_runs(finished, prepared.fold_numbers, requested)
    knows_brain = FACTS_NAME in prepared.manifest.files
    prepared = _with_brain_shares(prepared) if knows_brain else prepared
    train = prepared.split("train")
    unseen = {name: prepared.split(name) for name in ("test", *prepared.external_sets())}
    splits = ("oof", *unseen)
    check_folds(train)
    first = {run: work.fold(run, folds[0]) for run in runs}
    scopes = {run: Scope.of_facts(task, read_manifest(folder).facts, str(folder)) for run, folder in first.items()}
    ensemble = Ensemble.of(combine, scopes)
    train = ensemble.scope.mask(train[train.fold.isin(folds)].reset_index(drop=True))
    tables: dict[str, dict[str, dict[int, pd.DataFrame]]] = {split: {run: {} for run in runs} for split in splits}
    known = FACTS if knows_brain else PREPARED_FACTS
    facts = ["slice_id", *KEY, *(name for name in known if name not in KEY)]
    digests = {
        "prepared/labels": digest_table(train[[*facts, "patient_id", "fold", *task.classes]]),
        **{f"prepared/{name}": digest_table(slices[facts]) for name, slices in unseen.items()},
    }
    data = set()
    for run in runs:
        for fold in folds:
            folder = work.fold(run, fold)
            manifest = read_manifest(folder)
            check_sizes(folder, manifest)
            data.add(str(manifest.facts["data"]))
            expected = {"oof": train.loc[train.fold == fold, ["slice_id", "fold"]]}
            expected |= {name: slices[["slice_id"]].assign(fold=fold) for name, slices in unseen.items()}
            for split in splits:
                if f"{split}.parquet" not in manifest.files:
                    raise ArtifactError(
                        f"stack: expected {split}.parquet in {folder}, because {split} is prepared; the fold was "
                        f"finished before. Run `{TRAINED_BY} --run {run}` again: it only predicts, nothing is trained."
                    )
                path = folder / f"{split}.parquet"
                where = f"{run}/fold{fold}/{split}.parquet"
                digests[where] = manifest.sha256_of(path.name)
                table = read_table(path, digests[where])
                check_predictions(table, task, where, expected[split])
                tables[split][run][fold] = table
    if len({unmark_transductive(one) for one in data}) > 1:
        raise ArtifactError(
            f"stack: expected runs trained on the same data, found {', '.join(sorted(data))}. Name runs of one kind."
        )
    anchored = {}
    if embeddings is not None and embeddings.enabled:
        for run in runs:
            anchored[run] = read_embeddings(
                work, run, folds, {split: tables[split][run] for split in splits}, embeddings
            )
            digests |= anchored[run].digests
    test, external = unseen["test"], {name: slices for name, slices in unseen.items() if name != "test"}
    origin = max(data, key=is_transductive)
    return Inputs(runs, folds, train, test, external, tables, anchored, digests, origin, ensemble)


def _with_brain_shares(prepared: Prepared) -> Prepared:
    """The store with the brain share of every slice as a column."""
    key = ["dataset", "slice_id"]
    facts = prepared.slice_facts()[[*key, BRAIN_SHARE]].drop_duplicates(key)
    return replace(prepared, slices=prepared.slices.merge(facts, on=key, how="left"))


def plan_fold_models(inputs: Inputs, task: Task, num_parts: int, seed: int) -> list[FoldModelPlan]:
    """One fold model per fold; with a single fold, one per part of its patients.

    Raises:
        FoldError: too few patients.
    """
    train = inputs.train
    if len(inputs.folds) > 1:
        own = train.fold.to_numpy(np.int64)
        plans = [FoldModelPlan(f"fold{fold}", fold, own == fold) for fold in inputs.folds]
    else:
        num_parts = max(2, min(num_parts, train.patient_id.nunique()))
        parts = deal_patients(train, num_parts, task.classes, derive_seed(seed, "stack parts"))
        plans = [FoldModelPlan(f"part{part}", inputs.folds[0], parts == part) for part in range(num_parts)]
    fewest = min(train.patient_id[~plan.held].nunique() for plan in plans)
    if fewest < 2:
        raise FoldError(
            f"stack: expected at least 2 patients to fit each model on, found {fewest}. "
            f"Train more folds (`{TRAINED_BY} --fold all`) or prepare more studies."
        )
    return plans
