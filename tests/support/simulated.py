"""Simulated work folders for tests: those of `ichkit.phantom.descriptors`, stacks, and ways to alter them."""

from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.phantom.descriptors import TASK, draw_rotation, make_work
from ichkit.work.artifacts import ArtifactWriter, digest_file, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.schemas import KEY, conform, make_predictions, slices_dtypes

__all__ = ["TASK", "draw_rotation", "make_work"]

BLOCK = 7


def make_stack(
    work: WorkFolder, *, runs: tuple[str, ...] = ("base",), kinds: tuple[str, ...] = ("fusion", "lightgbm", "blend")
) -> str:
    """Writes a finished stack of those runs and returns its name: not a trained one, its kinds smooth more and more."""
    folds = sorted(set.intersection(*(set(take_inventory(work).finished_runs[run]) for run in runs)))
    name = "+".join(sorted(runs))
    manifest = read_manifest(work.fold(runs[0], folds[0]))
    writer = ArtifactWriter(work.stacks / name, "stack")
    for split in ("oof", "test", "cq500"):
        tables = [[read_table(work.fold(run, k) / f"{split}.parquet") for k in folds] for run in runs]
        whole = [pd.concat(of_run).sort_values(KEY, ignore_index=True) for of_run in tables]
        groups = whole if split == "oof" else [table for of_run in tables for table in of_run]
        windows = np.mean([stack_windows(table) for table in groups], axis=0)
        for number, kind in enumerate(kinds):
            near = windows[:, BLOCK // 2 - number - 1 : BLOCK // 2 + number + 2].mean(1)
            fold = None if split == "oof" else -1
            writer.write_table(f"{kind}_{split}.parquet", make_predictions(groups[0], near, TASK, fold))
    facts = {"name": name, "runs": list(runs), "folds": folds, "data": manifest.facts["data"], "task": TASK.name}
    used = [f"{run}/fold{k}/{split}.parquet" for run in runs for k in folds for split in ("oof", "test", "cq500")]
    inputs = {table: digest_file(work.runs / table) for table in used}
    writer.commit(settings={"stackers": list(kinds)}, inputs=inputs, facts=facts)
    return name


def true_posteriors(work: WorkFolder, run: str, fold: int) -> pd.DataFrame:
    """The out-of-fold table of a run made with `noise=0`: each row's probabilities given everything."""
    return read_table(work.fold(run, fold) / "oof.parquet")


def flip_labels(work: WorkFolder, fold: int) -> None:
    """Turns every label of one fold round in `prepared/slices.parquet`; descriptors stay as they are."""
    slices = read_table(work.prepared / "slices.parquet")
    rows = (slices.fold == fold).fillna(False).to_numpy(bool)
    for name in TASK.classes:
        slices.loc[rows, name] = 1 - slices.loc[rows, name]
    rewrite_slices(work, slices)


def rewrite_slices(work: WorkFolder, slices: pd.DataFrame) -> None:
    """Puts another `slices.parquet` in place of the prepared one, manifest included."""
    rewrite_prepared(work, {"slices.parquet": conform(slices, slices_dtypes(TASK))})


def rewrite_prepared(work: WorkFolder, tables: dict[str, pd.DataFrame]) -> None:
    """Puts other tables in place of prepared ones, by file name, manifest included."""
    rewrite_tables(work.prepared, tables)


def rewrite_tables(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Puts other tables in place of those of an artifact, by file name, manifest included."""
    old = read_manifest(folder)
    writer = ArtifactWriter(folder, old.kind)
    for name in old.files:
        if name in tables:
            writer.write_table(name, tables[name])
        else:
            writer.write_bytes(name, (folder / name).read_bytes())
    for name in tables.keys() - old.files.keys():
        writer.write_table(name, tables[name])
    writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


def add_external_set(work: WorkFolder, name: str) -> None:
    """A second external set in the store and in every finished fold and stack: CQ500's rows under other ids."""
    tables = {}
    for file in ("slices.parquet", "studies.parquet"):
        table = read_table(work.prepared / file)
        tables[file] = pd.concat([table, _renamed(table[table.dataset == "cq500"], name)], ignore_index=True)
    rewrite_prepared(work, tables)
    folds = [work.fold(run, fold) for run, folds in take_inventory(work).finished_runs.items() for fold in folds]
    for folder in (*folds, *(work.stacks / stack for stack in take_inventory(work).finished_stacks)):
        old = read_manifest(folder)
        writer = ArtifactWriter(folder, old.kind)
        for file in old.files:
            writer.write_bytes(file, (folder / file).read_bytes())
            if file.endswith("cq500.parquet"):
                writer.write_table(
                    file.removesuffix("cq500.parquet") + f"{name}.parquet", _renamed(read_table(folder / file), name)
                )
        writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


def _renamed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of CQ500 as rows of another external set."""
    ids = [column for column in ("slice_id", "study_id", "series_id", "patient_id") if column in table]
    renamed = table.assign(**{column: f"{name}-" + table[column] for column in ids})
    return renamed.assign(dataset=name) if "dataset" in table else renamed


def stack_windows(table: pd.DataFrame, task: Task = TASK) -> np.ndarray:
    """(N, 7, C) float32: the descriptors around each row, ends repeated; the plain twin of what the runs store."""
    p = table[task.probability_columns].to_numpy(np.float32)
    study = pd.factorize(table.study_id)[0]
    row = np.arange(len(table))
    first, last = (pd.Series(row).groupby(study).transform(end).to_numpy(int) for end in ("min", "max"))
    return np.stack([p[np.clip(row + d, first, last)] for d in range(-(BLOCK // 2), BLOCK // 2 + 1)], axis=1)


def rewrite_fold(folder: Path, arrays: dict[str, np.ndarray], **facts: object) -> None:
    """Puts arrays and facts into a finished fold, manifest included."""
    old = read_manifest(folder)
    contents = {name: (folder / name).read_bytes() for name in old.files}
    writer = ArtifactWriter(folder, "fold")
    for name, data in contents.items():
        writer.write_bytes(name, data)
    for name, array in arrays.items():
        writer.write_array(name, array)
    writer.commit(settings=old.settings, inputs=old.inputs, facts={**old.facts, **facts})
