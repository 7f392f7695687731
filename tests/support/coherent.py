"""How tests count incoherent predictions."""

import numpy as np

from ichkit.core.tasks import Task


def count_incoherent(probabilities: np.ndarray, task: Task) -> int:
    """How many of the N rows of (N, C) probabilities have a covered class above the class that covers it."""
    of_class = dict(zip(task.classes, np.asarray(probabilities).T, strict=True))
    pairs = [(of_class[part], of_class[whole]) for whole, parts in task.covers.items() for part in parts]
    return int(np.any([part > whole for part, whole in pairs], axis=0).sum())
