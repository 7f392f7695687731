"""Thresholds of a network, chosen on the validation patients of its training part: studies, by Youden's J."""

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.validation.scope import label_array
from ichkit.validation.thresholds import YOUDEN_AIM, choose_thresholds

COLUMNS = ["class", "threshold", "n", "n_positive"]
_NOWHERE = -1  # no row is of this part, so that thresholds are chosen on all of them


def choose_inner_thresholds(slices: pd.DataFrame, probabilities: np.ndarray, task: Task) -> pd.DataFrame:
    """One row for each class: its threshold by Youden's J on these studies, a study being the maximum of its slices.

    A class without both positive and negative studies, or that is not predicted, has no threshold (NaN).

    Args:
        slices: (N rows) study_id and a column of labels for each class, rows of a study together.
        probabilities: (N, C) in [0, 1], NaN for classes that are not predicted.

    Returns:
        class, threshold, n (studies of known label) and n_positive.

    Example:
        >>> from ichkit.core.tasks import Task
        >>> task = Task("side", ("left",), (1.0,), None, "Left.", "an example")
        >>> rows = pd.DataFrame({"study_id": ["a", "a", "b", "c"], "left": [0, 1, 0, 1]})
        >>> choose_inner_thresholds(rows, np.array([[0.1], [0.7], [0.6], [0.8]]), task).threshold.tolist()
        [0.7]
    """
    first = np.flatnonzero(slices.study_id.ne(slices.study_id.shift()))
    if not len(first):
        empty = [[name, np.nan, 0, 0] for name in task.classes]
        return pd.DataFrame(empty, columns=COLUMNS)
    labels = label_array(slices, task)
    is_positive = np.maximum.reduceat(labels == 1, first)
    of_studies = np.where(is_positive, 1.0, np.maximum.reduceat(labels, first))
    highest = np.maximum.reduceat(probabilities.astype(np.float64), first)
    of_studies = np.where(np.isnan(highest), np.nan, of_studies)
    order = np.stack([np.argsort(-column, kind="stable") for column in highest.T]).astype(np.int32)
    part = np.zeros(len(first), np.int64)
    chosen = choose_thresholds(highest, of_studies, order, part, [_NOWHERE])[_NOWHERE][YOUDEN_AIM]
    counts = ((~np.isnan(of_studies)).sum(0), (of_studies == 1).sum(0))
    return pd.DataFrame(dict(zip(COLUMNS, (task.classes, chosen, *counts), strict=True)))
