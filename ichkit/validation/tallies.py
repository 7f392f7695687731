"""The statistics that metrics are computed from, for all rows and for every bootstrap sample of patients."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from ichkit.validation.metrics import log_losses
from ichkit.validation.reliability import COUNT, POSITIVES, PROBABILITY, bin_numbers
from ichkit.validation.resampling import Ranking, resample, score_once
from ichkit.validation.thresholds import FALSE_POSITIVE, NEGATIVE, POSITIVE, TRUE_POSITIVE, Decisions

Blocks = dict[str, np.ndarray]
LOSS, AUC, RANKS, BINS = "loss", "auc", "ranks", "bins"


@dataclass(frozen=True)
class ScoredRows:
    """Rows that are scored together.

    Attributes:
        place: dataset, split, level, aggregation, subgroup, fold of their scores.
        probabilities: (N, C) in [0, 1].
        labels: (N, C) float64 of 0 and 1, NaN where unknown.
        members: (N,) the unit that the bootstrap resamples: the patient of each row.
        decisions: criterion of a threshold to the rows predicted positive; needed by the metrics that count them.
    """

    place: dict[str, str | int]
    probabilities: np.ndarray
    labels: np.ndarray
    members: np.ndarray
    decisions: Mapping[str, Decisions] = field(default_factory=dict)

    @cached_property
    def order(self) -> np.ndarray:
        """(C, N) int32: the rows of each class by descending probability, equal ones in their original order."""
        columns = [np.argsort(-column, kind="stable") for column in self.probabilities.T]
        return np.stack(columns).astype(np.int32)

    @cached_property
    def losses(self) -> np.ndarray:
        """(N, C) float64 log losses, 0 where the label is unknown."""
        return np.where(np.isnan(self.labels), 0.0, log_losses(self.probabilities, self.labels))

    def with_decisions(self, decisions: Mapping[str, Decisions]) -> "ScoredRows":
        """The same rows with these decisions."""
        return self._derived(replace(self, decisions=decisions), order=self.order, losses=self.losses)

    def take(self, is_kept: np.ndarray, **place: str | int) -> "ScoredRows":
        """Some of the rows, by (N,) bool, without their decisions; their order and losses are not computed again.

        Args:
            place: the parts of `place` that differ.
        """
        taken = ScoredRows(
            {**self.place, **place}, self.probabilities[is_kept], self.labels[is_kept], self.members[is_kept]
        )
        number = np.cumsum(is_kept, dtype=np.int32) - np.int32(1)
        order = np.stack([number[row[is_kept[row]]] for row in self.order])
        return self._derived(taken, order=order, losses=self.losses[is_kept])

    @staticmethod
    def _derived(rows: "ScoredRows", **cached: np.ndarray) -> "ScoredRows":
        """The rows with these cached properties, so that they are not computed again."""
        vars(rows).update(cached)
        return rows


def draw_blocks(
    rows: ScoredRows, asked: set[str], *, num_bins: int, num_draws: int, seed: int
) -> tuple[Blocks, Blocks]:
    """The blocks of all rows, and those of every bootstrap sample, with a leading axis D.

    Args:
        asked: of `LOSS`, `AUC`, `RANKS`, `BINS` and the criteria in `rows.decisions`.

    Returns:
        "loss" (C,) mean log losses; for `AUC` "roc_auc", for `RANKS` also "average_precision" (C,); "bins" (C, B, 3) as
        in `reliability`; for each criterion its (C, 4) counts as in `thresholds`, NaN if its threshold is.
    """
    member, names = pd.factorize(rows.members, sort=True)
    known = ~np.isnan(rows.labels)
    tallies = {}
    if LOSS in asked:
        tallies[LOSS] = np.stack([_by_group(table, member, len(names)) for table in (rows.losses, known)], -1)
    if BINS in asked:
        tallies[BINS] = _tally_bins(rows, known, member, len(names), num_bins)
    for aim in sorted(asked & rows.decisions.keys()):
        tallies[aim] = _tally_decisions(rows.decisions[aim], rows.labels, member, len(names))
    rankings = []
    if asked & {AUC, RANKS}:
        columns = zip(rows.probabilities.T, rows.labels.T, rows.order, strict=True)
        rankings = [Ranking.of(p, y, member, order) for p, y, order in columns]
    shapes = {name: block.shape[1:] for name, block in tallies.items()}
    flat = [block.reshape(len(names), -1) for block in tallies.values()]
    sums = np.concatenate(flat, axis=1) if flat else np.zeros((len(names), 0))
    drawn_results = resample(sums, rankings, num_draws=num_draws, seed=seed, has_precision=RANKS in asked)
    results = (score_once(sums, rankings), drawn_results)
    whole, drawn = (_unpack(result.sums, shapes, rows.decisions) for result in results)
    for blocks, result in zip((whole, drawn), results, strict=True):
        if asked & {AUC, RANKS}:
            blocks["roc_auc"] = result.roc_auc
        if RANKS in asked:
            blocks["average_precision"] = result.average_precision
    return {name: block[0] for name, block in whole.items()}, drawn


def _by_group(values: np.ndarray, member: np.ndarray, num_groups: int) -> np.ndarray:
    """(G, C) sums of (N, C) values over the rows of each group."""
    columns = [np.bincount(member, weights=column, minlength=num_groups) for column in values.T]
    return np.stack(columns, axis=1)


def _tally_decisions(decisions: Decisions, labels: np.ndarray, member: np.ndarray, num_groups: int) -> np.ndarray:
    """(G, C, 4) counts of the rows of each group."""
    is_positive, is_negative = labels == 1, labels == 0
    counts = np.empty((num_groups, labels.shape[1], 4))
    counts[..., TRUE_POSITIVE] = _by_group(decisions.is_yes & is_positive, member, num_groups)
    counts[..., FALSE_POSITIVE] = _by_group(decisions.is_yes & is_negative, member, num_groups)
    counts[..., POSITIVE] = _by_group(is_positive, member, num_groups)
    counts[..., NEGATIVE] = _by_group(is_negative, member, num_groups)
    return counts


def _tally_bins(rows: ScoredRows, known: np.ndarray, member: np.ndarray, num_groups: int, num_bins: int) -> np.ndarray:
    """(G, C, B, 3) rows, positives and sum of probabilities of each group in each bin."""
    sums = np.empty((num_groups, rows.labels.shape[1], num_bins, 3))
    for c in range(rows.labels.shape[1]):
        kept = known[:, c]
        p, y = rows.probabilities[kept, c], rows.labels[kept, c]
        cell = member[kept] * num_bins + bin_numbers(p, num_bins)
        for column, weights in ((COUNT, None), (POSITIVES, y), (PROBABILITY, p)):
            tally = np.bincount(cell, weights=weights, minlength=num_groups * num_bins)
            sums[:, c, :, column] = tally.reshape(num_groups, num_bins)
    return sums


def _unpack(sums: np.ndarray, shapes: dict[str, tuple[int, ...]], decisions: Mapping[str, Decisions]) -> Blocks:
    """(D, K) sums, split into the blocks they were concatenated from, with a leading axis D."""
    blocks, first = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        blocks[name] = sums[:, first : first + size].reshape(-1, *shape)
        first += size
    if LOSS in blocks:
        total, count = blocks[LOSS][..., 0], blocks[LOSS][..., 1]
        blocks[LOSS] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    for aim in decisions.keys() & blocks.keys():
        blocks[aim] = np.where(decisions[aim].is_defined[:, None], blocks[aim], np.nan)
    return blocks
