"""`ichkit explain`: Grad-CAM heat maps of held-out slices."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ArtifactError, ConfigError, DataError
from ichkit.core.progress import format_count, logger
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.pictures import encode_png
from ichkit.imaging.store import Prepared
from ichkit.show.plan import Forecast, Plan
from ichkit.show.table import Table
from ichkit.stages.explain.held_out import (
    Explained,
    explain_slices,
    find_class_indices,
    pick_worst,
    read_held_out,
    read_scope,
    read_weights,
    refuse_foreign,
    refuse_unknown_fold,
)
from ichkit.stages.explain.panels import draw_panel, draw_strip, draw_weights
from ichkit.work.artifacts import encode_table, read_table, write_bytes_atomically
from ichkit.work.folder import WorkFolder
from ichkit.work.inventory import take_inventory
from ichkit.work.locks import holding

DEFAULT_WORST = 10
TABLE_NAME, CURVE_NAME = "explained.csv", "weights.svg"
_NUM_EXAMPLES = 3
_UNFINISHED = ".ichkit-unfinished-pictures"
"""The file that marks an output folder whose table is not written yet."""


@dataclass(frozen=True)
class ExplainOptions:
    """Options of `explain`; at most one of slices, study and worst.

    Attributes:
        run_name: a run with finished folds; None if there is only one.
        fold: only slices of this fold; None for all finished folds of the run.
        slices: slice_ids.
        study: a study_id; all its slices are drawn as one strip.
        worst: the number of slices with the highest loss; None for 10 if neither slices nor a study are given.
        class_names: the classes of the heat maps; none for every class or, for a study, the headline class and the
            most probable subtype.
        out: the output folder; only pictures of an earlier call are overwritten.
        device: the device of the networks.

    Raises:
        ConfigError: more than one of slices, study and worst.
    """

    run_name: str | None = None
    fold: int | None = None
    slices: Sequence[str] = ()
    study: str | None = None
    worst: int | None = None
    class_names: Sequence[str] = ()
    out: Path = Path("explained")
    device: str = "auto"

    def __post_init__(self) -> None:
        if sum((bool(self.slices), self.study is not None, self.worst is not None)) > 1:
            raise ConfigError("explain: --slice, --study and --worst exclude each other: give one of them.")


@dataclass(frozen=True)
class ExplainPlan(Plan):
    """What `explain` found.

    Attributes:
        run_name: the run of the networks.
        chosen: the requested held-out rows, in the order of their pictures.
    """

    work: WorkFolder
    options: ExplainOptions
    prepared: Prepared
    run_name: str
    chosen: pd.DataFrame

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folder of the pictures."""
        return (self.options.out,)

    def forecast(self) -> Forecast:
        """How many slices, and by which networks."""
        folds = ", ".join(map(str, sorted(self.chosen["fold"].unique())))
        return Forecast((f"{len(self.chosen)} held-out slices of {self.run_name}, by the networks of folds {folds}",))


def plan(config: Config, work: WorkFolder, options: ExplainOptions | None = None) -> ExplainPlan:
    """Finds the run and its requested held-out slices; writes nothing.

    Raises:
        ConfigError: an unknown run, fold or class.
        DataError: an unknown slice or study, or one outside the held-out fold.
        ArtifactError, ContractError: nothing is prepared or trained, or it is damaged.
    """
    options = options or ExplainOptions()
    prepared = Prepared.open(work.prepared, find_task(config.task))
    name, folds = _pick_folds(work, options.run_name, options.fold)
    held_out = pd.concat([read_held_out(prepared, work, name, k) for k in folds], ignore_index=True)
    chosen = _choose(prepared, held_out, folds, options)
    scope = read_scope(work.fold(name, folds[0]), prepared.task)
    find_class_indices(prepared.task, options.class_names or None, scope.classes)
    return ExplainPlan(work, options, prepared, name, chosen)


@holding(lambda given: given["plan"].options.out)
def run(plan: ExplainPlan) -> pd.DataFrame:
    """Writes a PNG for every slice, or a strip for a study, and `explained.csv`, which lists them.

    The heat maps of a slice come from the network of its fold, which was trained without it. Of a network with a pool,
    a study also has `weights.svg`, the part of each slice in its pooled probability, and the same values as columns
    w_<class>. File names have no ids.

    Returns:
        The rows of `explained.csv`: file, slice_id, study_id, slice_index, fold, loss, the labels, the probabilities.

    Raises:
        ConfigError: the output folder has files of these names that no earlier call wrote.
        ArtifactError, ContractError: weights or volumes are damaged.
    """
    options, task, out = plan.options, plan.prepared.task, plan.options.out
    is_strip = options.study is not None
    files = ["study.png"] if is_strip else [f"slice_{i:03d}.png" for i in range(1, len(plan.chosen) + 1)]
    _refuse_foreign_files(out, [*files, TABLE_NAME, CURVE_NAME])
    class_names = list(options.class_names) or None
    if class_names is None and options.study is not None:
        class_names = _main_classes(plan.chosen, task)
    explained: dict[str, Explained] = {}
    for k in sorted(plan.chosen["fold"].unique()):
        ids = plan.chosen["slice_id"][plan.chosen["fold"] == k].to_list()
        found = explain_slices(
            plan.prepared, plan.work, plan.run_name, int(k), ids, class_names=class_names, device=options.device
        )
        explained |= {one.slice_id: one for one in found}
    ordered = [explained[slice_id] for slice_id in plan.chosen["slice_id"]]
    if is_strip:
        pictures = [(draw_strip(ordered, task), ordered)]
    else:
        pictures = [(draw_panel(one, task), [one]) for one in ordered]
    rows = []
    write_bytes_atomically(out / _UNFINISHED, b"")
    for file, (picture, shown) in zip(files, pictures, strict=True):
        write_bytes_atomically(out / file, encode_png(picture))
        rows += [_row(file, one, task) for one in shown]
    table = pd.DataFrame(rows)
    (out / CURVE_NAME).unlink(missing_ok=True)  # of an earlier call
    if options.study is not None:
        weights = read_weights(plan.work, plan.run_name, int(table["fold"].iloc[0]), options.study)
        if weights is not None:
            write_bytes_atomically(out / CURVE_NAME, draw_weights(weights, class_names or task.classes))
            table = table.merge(weights, on="slice_index", validate="one_to_one")
    write_bytes_atomically(out / TABLE_NAME, encode_table(table, ".csv"))
    (out / _UNFINISHED).unlink()
    counts = f"{format_count(len(table), 'slice')} in {format_count(len(pictures), 'picture')}"
    logger.info("explain: %s, listed in %s", counts, out / TABLE_NAME)
    return table


def _refuse_foreign_files(out: Path, names: Sequence[str]) -> None:
    """Refuses to replace files that an earlier `explain` did not list; raises ConfigError."""
    if (out / _UNFINISHED).is_file():  # a killed call
        return
    try:
        listed = read_table(out / TABLE_NAME, dtype=str)
        own = {TABLE_NAME, CURVE_NAME, *listed["file"]} if "slice_id" in listed else set()
    except (ArtifactError, KeyError):
        own = set()
    foreign = [name for name in names if (out / name).exists() and name not in own]
    if foreign:
        raise ConfigError(
            f"explain: expected no files at {out} but those of an earlier `ichkit explain`, found "
            f"{', '.join(foreign[:_NUM_EXAMPLES])}. Move them away, or choose another folder with --out."
        )


def render(table: pd.DataFrame, task: Task) -> Table:
    """The explained slices without ids: loss, labels and probabilities."""
    rows = []
    for row in table.to_dict("records"):
        predicted = {name: row[f"p_{name}"] for name in task.classes if not np.isnan(row[f"p_{name}"])}
        main = task.headline_class if task.headline_class in predicted else next(iter(predicted))
        if len(predicted) > 1:
            predicted.pop(task.any_class or "", None)
        highest = max(predicted, key=predicted.__getitem__)
        truth = ", ".join(f"{name} {value:.3f}" for name, value in predicted.items() if row[name] == 1)
        if not truth:
            label = task.headline_class if row[task.headline_class] == 1 else "none"
            truth = f"{label}; highest: {highest} {predicted[highest]:.3f}"
        picture = (row["file"], str(row["slice_index"]), str(row["fold"]))
        rows.append([*picture, f"{row['loss']:.3f}", f"{row[f'p_{main}']:.3f}", truth])
    columns = ("picture", "slice", "fold", "loss", task.headline_class, "label, and its probability")
    note = f"Out-of-fold probabilities; ids and all classes are in {TABLE_NAME}."
    return Table("Explained slices", columns, rows, note=note)


def _pick_folds(work: WorkFolder, name: str | None, fold: int | None) -> tuple[str, list[int]]:
    """The named run or the only one; the requested fold or all finished ones."""
    runs = take_inventory(work).finished_runs
    if not runs:
        raise ConfigError(f"explain: expected a run with a finished fold in {work.runs}. Run `ichkit train` first.")
    if name is None and len(runs) > 1:
        raise ConfigError(f"explain: expected --run NAME, because there are several runs: {', '.join(runs)}.")
    name = next(iter(runs)) if name is None else name
    refuse_unknown_fold(work, name, fold)
    return name, runs[name] if fold is None else [fold]


def _choose(prepared: Prepared, held_out: pd.DataFrame, folds: Sequence[int], options: ExplainOptions) -> pd.DataFrame:
    """The requested rows of `held_out`, in the order of their pictures."""
    if options.slices:
        refuse_foreign(prepared, held_out, folds, options.slices)
        return held_out.set_index("slice_id", drop=False).loc[list(dict.fromkeys(options.slices))]
    if options.study is None:
        return held_out.set_index("slice_id", drop=False).loc[pick_worst(held_out, options.worst or DEFAULT_WORST)]
    of_study = held_out[held_out["study_id"] == options.study]
    if of_study.empty:
        known = prepared.slices[prepared.slices["study_id"] == options.study]
        refuse_foreign(prepared, held_out, folds, known["slice_id"].head(1).to_list())
        examples = held_out["study_id"].drop_duplicates().head(_NUM_EXAMPLES)
        raise DataError(
            f"explain: expected a study_id of {prepared.folder / 'studies.parquet'} in fold "
            f"{', '.join(map(str, folds))}, such as {', '.join(examples)}; found {options.study}."
        )
    return of_study.sort_values("slice_index")


def _main_classes(rows: pd.DataFrame, task: Task) -> list[str]:
    """The headline class and the subtype with the highest probability in these rows, of those that are predicted."""
    highest = rows[task.probability_columns].max().dropna()
    known = [name for name in task.classes if f"p_{name}" in highest.index]
    subtypes = [name for name in known if name != task.any_class] or known
    main = task.headline_class if task.headline_class in known else known[0]
    return list(dict.fromkeys((main, max(subtypes, key=lambda name: float(highest[f"p_{name}"])))))


def _row(file: str, one: Explained, task: Task) -> dict[str, Any]:
    return {
        "file": file,
        "slice_id": one.slice_id,
        "study_id": one.study_id,
        "slice_index": one.slice_index,
        "fold": one.fold,
        "loss": one.loss,
        **{name: None if np.isnan(label) else int(label) for name, label in zip(task.classes, one.labels, strict=True)},
        **dict(zip(task.probability_columns, one.probabilities, strict=True)),
    }
