"""The single errors of predictions against labels: a table of all, and the most confident ones for the page."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.show.table import Cell, Table, format_number
from ichkit.stages.predict.thresholds import SLICE, Thresholds, as_array
from ichkit.validation.tallies import ScoredRows
from ichkit.validation.thresholds import F1_AIM

FALSE_NEGATIVES, FALSE_POSITIVES = "false negative", "false positive"
ERROR_DTYPES = {
    **dict.fromkeys(["level", "class", "error", "study_id", "slice_id"], "str"),
    **dict.fromkeys(["probability", "threshold"], "float64"),
}
HALF = 0.5
"""The threshold where a model has none of its own."""
_NUM_SHOWN = 20
Place = Callable[[str, str, str], tuple[int, str, int, int, float]]
"""(study_id, slice_id, class) to the number of the study, its viewer, the slice, its number of slices, its position."""


def list_errors(rows: ScoredRows, ids: pd.DataFrame, task: Task, thresholds: Thresholds) -> pd.DataFrame:
    """Every false negative, lowest probability first, then every false positive, highest first, of each class.

    Args:
        ids: study_id of each row, and slice_id where the rows are slices.

    Returns:
        Columns of `ERROR_DTYPES`; slice_id is empty for a study.
    """
    level = str(rows.place["level"])
    limits = as_array(thresholds.get(level, {}).get(F1_AIM, {}), task)
    limits = np.where(np.isnan(limits), HALF, limits)
    parts = []
    for c, name in enumerate(task.classes):
        p, truth = rows.probabilities[:, c], rows.labels[:, c]
        for error, is_wrong, order in (
            (FALSE_NEGATIVES, (truth == 1) & (p < limits[c]), p),
            (FALSE_POSITIVES, (truth == 0) & (p >= limits[c]), -p),
        ):
            wrong = np.flatnonzero(is_wrong)
            own = ids.iloc[wrong[np.argsort(order[wrong], kind="stable")]]
            found = own.assign(probability=np.sort(order[wrong]) * (1 if error == FALSE_NEGATIVES else -1))
            parts.append(found.assign(**{"level": level, "class": name, "error": error, "threshold": limits[c]}))
    table = pd.concat(parts, ignore_index=True)
    table = table if "slice_id" in table else table.assign(slice_id="")
    return table[list(ERROR_DTYPES)].astype(ERROR_DTYPES)


def render_errors(errors: pd.DataFrame, level: str, name: str, place: Place) -> Table:
    """The most confident errors on a class, at most 20 of a kind and one of each study, with links to their slices.

    Args:
        errors: from `list_errors`.
        place: where an error is seen; an error of a study at the slice of its highest probability.
    """
    own = errors[(errors["level"] == level) & (errors["class"] == name)]
    shown = own.drop_duplicates(["error", "study_id"]).groupby("error", sort=False).head(_NUM_SHOWN)
    rows: list[list[Cell | str]] = []
    for row in shown.to_dict("records"):
        number, viewer, index, num_slices, position_mm = place(row["study_id"], row["slice_id"], name)
        seen = Cell(
            f"{index + 1} of {num_slices}",
            f"{format_number(position_mm, 0)} mm",
            link=viewer,
            slice_index=index if viewer else None,
        )
        threshold = f"threshold {format_number(row['threshold'], 4)}"
        rows.append([row["error"], str(number), Cell(format_number(row["probability"], 4), threshold), seen])
    of = "slices, one of each study" if level == SLICE else "studies, at the slice of the highest probability"
    counts = own["error"].value_counts()
    total = ", ".join(f"{counts.get(kind, 0):,} {kind}s" for kind in (FALSE_NEGATIVES, FALSE_POSITIVES))
    note = f"{total} in all: `errors.csv`. Shown: {of}, at most {_NUM_SHOWN} of a kind. A click on a slice shows it."
    columns = ("error", "study", "probability", "slice from\nthe feet")
    return Table(f"Errors on {name}, by {level}", columns, rows, note=note)
