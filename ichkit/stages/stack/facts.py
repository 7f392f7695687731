"""Diagnostics of a stack: optimism of in-sample scores, calibration, gain by embeddings, feature importance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.logits import to_probabilities
from ichkit.core.progress import logger
from ichkit.show.table import Cell, Table
from ichkit.stacking.boosting import BoostedModel
from ichkit.stacking.fold_models import FoldModels
from ichkit.stacking.rows import known_rows, log_losses_of_logits, mean_by_class
from ichkit.stacking.table import BASE, find_stacker
from ichkit.validation.coherence import make_logits_coherent
from ichkit.validation.reliability import bin_numbers, expected_calibration_error
from ichkit.work.artifacts import ArtifactWriter, Manifest

IMPORTANCE_FILE = "importance.csv"
_SHOWN_FEATURES = 15
_NUM_BINS = 15


@dataclass(frozen=True)
class FoldModelLogits:
    """The predictions of one fold model, all (rows, C) float64 logits.

    Attributes:
        held: numbers of the held-out rows.
        members: held-out rows, by the calibrated base and each uncalibrated stacker.
        kinds: held-out rows, by each calibrated stacker and the blend, as in the tables.
        references: held-out rows, by stackers fitted without embeddings.
        seen: row numbers of the inner patients of its training part.
        seen_members, seen_kinds: in-sample predictions of those rows by the same models.
    """

    held: np.ndarray
    members: Mapping[str, np.ndarray]
    kinds: Mapping[str, np.ndarray]
    references: Mapping[str, np.ndarray]
    seen: np.ndarray
    seen_members: Mapping[str, np.ndarray]
    seen_kinds: Mapping[str, np.ndarray]


def describe_stack(stack: FoldModels, results: Sequence[FoldModelLogits], labels: np.ndarray) -> dict[str, Any]:
    """The diagnostics of a stack for its manifest.

    Args:
        results: one per fold model.
        labels: (N, C) of 0 and 1, NaN where unknown, of all rows.

    Returns:
        `optimism`: by kind, the weighted log loss of training rows: `in_sample`, by the fold models that were fitted
        on them, and `out_of_fold`, of the same rows with the same multiplicity, by the fold model that was not.
        `calibration`: by stacker, the out-of-fold loss, and by class the expected calibration error, before and
        after. `embeddings`: by stacker that uses them, the out-of-fold loss with and without.
    """
    weights = np.where(np.isnan(labels).all(0), 0.0, stack.task.weight_array())
    weights /= max(weights.sum(), np.finfo(float).tiny)
    seen = np.concatenate([result.seen for result in results])

    def loss(logits: np.ndarray, truth: np.ndarray) -> float:
        # Always of coherent logits, so that base and stackers, before and after calibration, are comparable.
        return float(mean_by_class(log_losses_of_logits(make_logits_coherent(logits, stack.task), truth)) @ weights)

    # One pooled array at a time: at the size of RSNA 2019 each is 36 MB.
    optimism: dict[str, dict[str, float]] = {}
    calibration: dict[str, dict[str, Any]] = {}
    embeddings: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys((BASE, *stack.kinds)):
        is_base = kind == BASE
        unseen = _pool(results, [(result.members if is_base else result.kinds)[kind] for result in results])
        own = np.concatenate([(result.seen_members if is_base else result.seen_kinds)[kind] for result in results])
        optimism[kind] = {"in_sample": loss(own, labels[seen]), "out_of_fold": loss(unseen[seen], labels[seen])}
    for name in stack.fold_models[0].calibrations:
        calibration[name] = {}
        for when in ("before", "after"):
            pooled = _pool(
                results, [(result.members if when == "before" else result.kinds)[name] for result in results]
            )
            coherent = make_logits_coherent(pooled, stack.task)
            errors = dict(zip(stack.task.classes, _calibration_errors(coherent, labels), strict=True))
            calibration[name] |= {f"loss_{when}": loss(pooled, labels), f"error_{when}": errors}
    for name in results[0].references:
        without = _pool(results, [result.references[name] for result in results])
        embeddings[name] = {"with": calibration[name]["loss_before"], "without": loss(without, labels)}
    return {"optimism": optimism, "calibration": calibration, "embeddings": embeddings}


def write_importance(writer: ArtifactWriter, stack: FoldModels) -> None:
    """Writes `importance.csv` for each boosted stacker and logs the most important features.

    Columns: feature, then one per class and `mean`: the share of the gain in training loss due to splits on the
    feature, averaged over the fold models that have trees for the class.
    """
    for name in stack.fold_models[0].calibrations:
        models = [find_stacker(name).load(writer.folder / name / fold_model.name) for fold_model in stack.fold_models]
        boosted = [model for model in models if isinstance(model, BoostedModel)]
        if not boosted:
            continue
        shares = np.stack([model.importance() for model in boosted])  # (fold models, F, C)
        total = shares.sum(axis=(0, 1))
        mean = np.divide(shares.sum(axis=0), total, out=np.zeros(shares.shape[1:]), where=total > 0)
        table = pd.DataFrame(mean, columns=list(stack.task.classes))
        table.insert(0, "feature", boosted[0].names)
        table["mean"] = mean.mean(axis=1)
        table = table.sort_values(["mean", "feature"], ascending=[False, True], ignore_index=True)
        writer.write_table(f"{name}/{IMPORTANCE_FILE}", table)
        top = table[table["mean"] > 0].head(_SHOWN_FEATURES)
        if top.empty:
            logger.info("%s: no tree has a split", name)
            continue
        lines = [f"  {feature:36s} {100 * mean:5.1f} %" for feature, mean in zip(top.feature, top["mean"], strict=True)]
        logger.info("%s: share of the gain by feature\n%s", name, "\n".join(lines))


def render(manifest: Manifest) -> list[Table]:
    """The diagnostics as tables: optimism of in-sample scores, calibration, embeddings."""
    facts = manifest.facts
    made = []
    if facts.get("optimism"):
        rows = _compare(facts["optimism"], "out_of_fold", "in_sample")
        title = f"{facts['name']}: weighted log loss out of fold and in sample"
        note = "In sample: the same rows, by the models that were fitted on them. All other scores are out of fold."
        made.append(Table(title, ("kind", "out of fold", "in sample", "optimism"), rows, note=note))
    made += [_calibration_table(facts)] if facts.get("calibration") else []
    if facts.get("embeddings"):
        rows = _compare(facts["embeddings"], "without", "with")
        title = f"{facts['name']}: embeddings, out-of-fold log loss before calibration"
        made.append(Table(title, ("stacker", "logits alone", "with embeddings", "gain"), rows))
    return made


def _compare(losses: Mapping[str, Mapping[str, float]], first: str, second: str) -> list[list[str]]:
    """Rows of name, both losses, and the share by which the second is lower."""
    return [
        [name, f"{pair[first]:.5f}", f"{pair[second]:.5f}", f"{100 * (1 - pair[second] / pair[first]):.1f} %"]
        for name, pair in losses.items()
    ]


def _calibration_table(facts: Mapping[str, Any]) -> Table:
    found = facts["calibration"]
    errors = {f"ECE {name}": name for name in next(iter(found.values()))["error_before"]}

    def cell(before: float, after: float, digits: int) -> Cell:
        return Cell(f"{after:.{digits}f}", f"from {before:.{digits}f}")

    rows: list[list[Cell | str]] = [
        ["log loss", *(cell(one["loss_before"], one["loss_after"], 5) for one in found.values())]
    ]
    for label, name in errors.items():
        pairs = [(one["error_before"][name], one["error_after"][name]) for one in found.values()]
        rows.append([label, *(cell(before, after, 4) for before, after in pairs)])
    title = f"{facts['name']}: out of fold, after and before calibration"
    note = "Fitted on inner patients of the training part. Where it does not help them, it is the identity."
    return Table(title, ("score", *found), rows, note=note)


def _pool(results: Sequence[FoldModelLogits], parts: Sequence[np.ndarray]) -> np.ndarray:
    """(N, C) float64: the held-out predictions of all fold models in row order."""
    order = np.argsort(np.concatenate([result.held for result in results]))
    return np.concatenate(parts)[order]


def _calibration_errors(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """The expected calibration error of each class, with 15 bins."""
    errors = []
    for column in range(labels.shape[1]):
        known = known_rows(labels[:, column])
        p, truth = to_probabilities(logits[known, column]), labels[known, column]
        if not len(p):
            errors.append(np.nan)
            continue
        sums = (None, truth, p)
        number = bin_numbers(p, _NUM_BINS)
        bins = [np.bincount(number, weights=values, minlength=_NUM_BINS) for values in sums]
        errors.append(float(expected_calibration_error(np.stack(bins, axis=-1))))
    return errors
