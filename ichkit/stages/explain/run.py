"""`ichkit explain`: pictures of held-out slices, and of the places for which a network gave its probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError, DataError
from ichkit.core.progress import logger
from ichkit.core.tasks import Task, find_task
from ichkit.imaging.pictures import encode_png
from ichkit.imaging.store import Prepared
from ichkit.show.terminal import make_table
from ichkit.stages.explain.held_out import (
    Explained,
    explain_slices,
    find_class_indices,
    pick_worst,
    read_held_out,
    refuse_foreign,
    refuse_unknown_fold,
)
from ichkit.stages.explain.panels import draw_panel, draw_strip
from ichkit.work.artifacts import encode_table, write_bytes_atomically
from ichkit.work.folder import WorkFolder

DEFAULT_WORST = 10
TABLE_NAME = "explained.csv"
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Choice:
    """Which slices to explain: those of the first of the three that is given.

    Attributes:
        slices: by slice_id.
        study: a study_id; all its slices, as one strip.
        worst: so many slices of the greatest loss.
    """

    slices: tuple[str, ...] = ()
    study: str | None = None
    worst: int = DEFAULT_WORST


def make_choice(slices: tuple[str, ...], study: str | None, worst: int | None) -> Choice:
    """The choice that the options of the command say.

    Raises:
        ConfigError: more than one of them.
    """
    if sum((bool(slices), study is not None, worst is not None)) > 1:
        raise ConfigError("explain: --slice, --study and --worst exclude each other: give one of them.")
    return Choice(slices, study, worst or DEFAULT_WORST)


def run(
    config: Config,
    work: WorkFolder,
    out: Path,
    choice: Choice,
    *,
    run_name: str | None = None,
    fold: int | None = None,
    class_names: Sequence[str] | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Writes a PNG for every slice, or a strip for a study, and `explained.csv`, which says what each shows.

    Every slice is explained by the network of its own fold, which never saw it. File names are numbers, no ids.

    Args:
        out: the folder they go to; pictures of an earlier call are overwritten.
        run_name: a run with finished folds; None where there is only one.
        fold: only slices of this fold; None for all finished folds of the run.
        class_names: whose heat is drawn [default: every class; for a study the class that stands for any, and the most
            probable of the others].

    Returns:
        The rows of `explained.csv`: file, slice_id, study_id, slice_index, fold, loss, the labels, the probabilities.

    Raises:
        ConfigError: an unknown run, fold or class.
        DataError: an unknown slice or study, or one that the fold does not hold out.
        ArtifactError, ContractError: nothing is prepared or trained, or it is damaged.
    """
    prepared, name, chosen = choose(config, work, choice, run_name=run_name, fold=fold)
    task = prepared.task
    find_class_indices(task, class_names)
    if class_names is None and choice.study is not None:
        class_names = _telling_classes(chosen, task)
    explained: dict[str, Explained] = {}
    for k, of_fold in chosen.groupby("fold"):
        ids = of_fold["slice_id"].to_list()
        found = explain_slices(prepared, work, name, int(k), ids, class_names=class_names, device=device)
        explained |= {one.slice_id: one for one in found}
    ordered = [explained[slice_id] for slice_id in chosen["slice_id"]]
    if choice.study is not None and not choice.slices:
        pictures = [("study.png", draw_strip(ordered, task), ordered)]
    else:
        pictures = [(f"slice_{i:03d}.png", draw_panel(one, task), [one]) for i, one in enumerate(ordered, 1)]
    rows = []
    for file, picture, shown in pictures:
        write_bytes_atomically(out / file, encode_png(picture))
        rows += [_row(file, one, task) for one in shown]
    table = pd.DataFrame(rows)
    write_bytes_atomically(out / TABLE_NAME, encode_table(table, ".csv"))
    logger.info("explain: %d slices in %d pictures, listed in %s", len(table), len(pictures), out / TABLE_NAME)
    return table


def choose(
    config: Config, work: WorkFolder, choice: Choice, *, run_name: str | None, fold: int | None
) -> tuple[Prepared, str, pd.DataFrame]:
    """The store, the name of the run, and the held-out rows that are asked for, in the order of their pictures.

    Raises:
        ConfigError, DataError, ArtifactError, ContractError: as `run`.
    """
    prepared = Prepared.open(work.prepared, find_task(config.task))
    name, folds = _pick_folds(work, run_name, fold)
    held_out = pd.concat([read_held_out(prepared, work, name, k) for k in folds], ignore_index=True)
    return prepared, name, _choose(prepared, held_out, folds, choice)


def render(table: pd.DataFrame, task: Task) -> Table:
    """What was explained, for the terminal, without ids: loss, truth, and what the network said of it."""
    caption = f"Probabilities out of fold; ids and every class are in {TABLE_NAME}."
    columns = ["picture", "slice", "fold", "loss", task.any_class, "truth, and its probability"]
    shown = make_table("What was explained", columns, caption=caption)
    for row in table.to_dict("records"):
        said = {name: row[f"p_{name}"] for name in task.subtypes}
        highest = max(said, key=said.__getitem__)
        truth = ", ".join(f"{name} {said[name]:.3f}" for name in task.subtypes if row[name])
        if not truth:
            truth = f"{task.any_class if row[task.any_class] else 'none'}; highest: {highest} {said[highest]:.3f}"
        place = (row["file"], str(row["slice_index"]), str(row["fold"]))
        shown.add_row(*place, f"{row['loss']:.3f}", f"{row[f'p_{task.any_class}']:.3f}", truth)
    return shown


def _pick_folds(work: WorkFolder, name: str | None, fold: int | None) -> tuple[str, list[int]]:
    """The run of that name, or the only one there is; and the fold asked for, or all that are finished."""
    runs = work.finished_runs()
    if not runs:
        raise ConfigError(f"explain: expected a run with a finished fold in {work.runs}. Run `ichkit train` first.")
    if name is None and len(runs) > 1:
        raise ConfigError(f"explain: expected --run NAME, because there are several runs: {', '.join(runs)}.")
    name = next(iter(runs)) if name is None else name
    refuse_unknown_fold(work, name, fold)
    return name, runs[name] if fold is None else [fold]


def _choose(prepared: Prepared, held_out: pd.DataFrame, folds: Sequence[int], choice: Choice) -> pd.DataFrame:
    """The rows of `held_out` that are asked for, in the order of their pictures."""
    if choice.slices:
        refuse_foreign(prepared, held_out, folds, choice.slices)
        return held_out.set_index("slice_id", drop=False).loc[list(dict.fromkeys(choice.slices))]
    if choice.study is None:
        return held_out.set_index("slice_id", drop=False).loc[pick_worst(held_out, choice.worst)]
    of_study = held_out[held_out["study_id"] == choice.study]
    if of_study.empty:
        known = prepared.slices[prepared.slices["study_id"] == choice.study]
        refuse_foreign(prepared, held_out, folds, known["slice_id"].head(1).to_list())
        examples = held_out["study_id"].drop_duplicates().head(_NUM_EXAMPLES)
        raise DataError(
            f"explain: expected a study_id of {prepared.folder / 'studies.parquet'} in fold "
            f"{', '.join(map(str, folds))}, such as {', '.join(examples)}; found {choice.study}."
        )
    return of_study.sort_values("slice_index")


def _telling_classes(rows: pd.DataFrame, task: Task) -> list[str]:
    """The class that stands for any, and the one of the others with the highest probability in these rows."""
    highest = rows[[f"p_{name}" for name in task.subtypes]].max()
    return [task.any_class, highest.idxmax().removeprefix("p_")]


def _row(file: str, one: Explained, task: Task) -> dict[str, Any]:
    return {
        "file": file,
        "slice_id": one.slice_id,
        "study_id": one.study_id,
        "slice_index": one.slice_index,
        "fold": one.fold,
        "loss": one.loss,
        **{name: int(label) for name, label in zip(task.classes, one.labels, strict=True)},
        **dict(zip(task.probability_columns, one.probabilities, strict=True)),
    }
