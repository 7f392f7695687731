"""Coherent probabilities: a class that covers others is at least as probable as each of them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichkit.core.logits import to_logits, to_probabilities
from ichkit.core.tasks import Task
from ichkit.validation.scope import Scope
from ichkit.work.schemas import PROBABILITY_CLIP

_SMALLEST_WEIGHT = 1e-12  # for classes of weight 0, so that means over classes are defined
_MAX_ROUNDS, _TOLERANCE = 1000, 1e-10


def make_coherent(probabilities: np.ndarray, task: Task) -> np.ndarray:
    """The coherent probabilities nearest to the given ones; coherent rows are returned unchanged.

    Args:
        probabilities: (N, C) float in [0, 1], a column per class of the task; NaN for classes that are not predicted,
            which stay so.

    Returns:
        (N, C) float64; the column of the covering class is at least each column it covers, also after rounding to
        float32. Without a covering class the values are returned unchanged.

    Nearest means the least sum over the classes of weight times Kullback-Leibler divergence from the given
    probabilities. Whatever the true, coherent probabilities are, the expected weighted log loss falls by at least that
    sum; neither a parameter nor a label is involved.

    Source: I-projection on a convex set, Csiszar 1975, theorem 2.2; pool adjacent violators on a star, Barlow et al.
        1972, section 2.3.

    Example:
        >>> from ichkit.core.tasks import find_task
        >>> make_coherent(np.array([[0.1, 0.1, 0.1, 0.1, 0.8, 0.5]]), find_task("hemorrhage")).round(3).tolist()
        [[0.1, 0.1, 0.1, 0.1, 0.614, 0.614]]
    """
    p = np.array(probabilities, np.float64)
    known = _find_known(p)
    stars, own = _stars(task, known), p[:, known]
    rows = np.flatnonzero(_violations(own, stars))
    if len(rows):
        clipped = np.clip(own[rows], *PROBABILITY_CLIP)
        before = to_logits(clipped)
        after = _project(before, stars, task.weight_array()[known])
        # What the projection leaves alone keeps its bits, and equal logits give equal probabilities.
        own[rows] = np.where(after == before, own[rows], to_probabilities(after))
        _lift(own, stars)
        p[:, known] = own
    return p


def say_coherence(scope: Scope) -> str:
    """What a blend does after its weighted mean; empty if no class covers another.

    Example:
        >>> from ichkit.core.tasks import find_task
        >>> say_coherence(Scope.of(find_task("hemorrhage")))[:50]
        'Then rows with a class above the one that covers i'
    """
    known = {whole for whole, parts in scope.task.covers.items() if set(parts) & set(scope.classes)}
    covering = [name for name in scope.classes if name in known]
    if not covering:
        return ""
    return (
        f"Then rows with a class above the one that covers it ({', '.join(covering)}) are made coherent: even with "
        "weight 1 for a run, these rows differ from those of the run."
    )


def make_logits_coherent(logits: np.ndarray, task: Task) -> np.ndarray:
    """(N, C) float64: `make_coherent` of probabilities that are given as logits, without rounding at either end."""
    z = np.array(logits, np.float64)
    known = _find_known(z)
    stars, own = _stars(task, known), z[:, known]
    rows = np.flatnonzero(_violations(own, stars))
    if len(rows):
        own[rows] = _project(own[rows], stars, task.weight_array()[known])
        z[:, known] = own
    return z


def make_table_coherent(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The predictions table with coherent probabilities, as float32 within the clip; every other column as it is."""
    columns = task.probability_columns
    coherent = make_coherent(table[columns].to_numpy(np.float64), task).astype(np.float32)
    return table.assign(**dict(zip(columns, coherent.T, strict=True)))


@dataclass(frozen=True)
class _Star:
    """Column of a covering class, and the columns it covers."""

    whole: int
    parts: list[int]


def _find_known(values: np.ndarray) -> np.ndarray:
    """(C,) bool: the columns of (N, C) values that are not NaN throughout."""
    return ~np.isnan(values).all(0) if len(values) else np.ones(values.shape[1], bool)


def _stars(task: Task, is_known: np.ndarray) -> list[_Star]:
    """One star per covering class among the known ones, those that cover the fewest first; numbers are among these."""
    columns = {name: number for number, name in enumerate(np.array(task.classes)[is_known].tolist())}
    known = {whole: [columns[name] for name in parts if name in columns] for whole, parts in task.covers.items()}
    stars = [_Star(columns[whole], parts) for whole, parts in known.items() if parts and whole in columns]
    return sorted(stars, key=lambda star: len(star.parts))


def _violations(values: np.ndarray, stars: list[_Star]) -> np.ndarray:
    """(N,) bool: rows of (N, C) values with a covered class above the class that covers it."""
    found = np.zeros(len(values), bool)
    for star in stars:
        found |= values[:, star.parts].max(axis=1) > values[:, star.whole]
    return found


def _project(logits: np.ndarray, stars: list[_Star], weights: np.ndarray) -> np.ndarray:
    """(n, C) projected logits of rows that violate a star: weighted isotonic regression of the logits.

    The projection on one star is exact. Several stars that share classes are used in turn, with Dykstra's corrections,
    until the logits converge.
    """
    weights = np.maximum(weights, _SMALLEST_WEIGHT)
    if len(stars) == 1:
        return _project_on_star(logits, stars[0], weights)
    z, corrections = logits, [np.zeros_like(logits) for _ in stars]
    for _ in range(_MAX_ROUNDS):
        before = z
        for number, star in enumerate(stars):
            shifted = z + corrections[number]
            z = _project_on_star(shifted, star, weights)
            corrections[number] = shifted - z
        if np.abs(z - before).max() < _TOLERANCE:
            break
    z = np.where(np.abs(z - logits) < _TOLERANCE, logits, z)
    _lift(z, stars)
    return z


def _project_on_star(logits: np.ndarray, star: _Star, weights: np.ndarray) -> np.ndarray:
    """(n, C) logits nearest to the given ones with the covering class at least as large as each it covers.

    The covering class is pooled with the largest covered ones as long as that raises the weighted mean: its value is
    the largest of the means over growing pools, and the upper limit of every covered class.
    """
    order = np.argsort(-logits[:, star.parts], axis=1, kind="stable")
    covered = np.take_along_axis(logits[:, star.parts], order, axis=1)  # (n, parts), from the largest on
    count = weights[star.parts][order]
    own = logits[:, star.whole]
    totals = weights[star.whole] * own[:, None] + np.cumsum(count * covered, axis=1)
    means = totals / (weights[star.whole] + np.cumsum(count, axis=1))
    z = logits.copy()
    z[:, star.whole] = np.where(covered[:, 0] > own, means.max(axis=1), own)
    z[:, star.parts] = np.minimum(z[:, star.parts], z[:, [star.whole]])
    return z


def _lift(values: np.ndarray, stars: list[_Star]) -> None:
    """Raises covering classes, in place, to the classes that rounding left above them."""
    for star in stars:
        values[:, star.whole] = np.maximum(values[:, star.whole], values[:, star.parts].max(axis=1))
