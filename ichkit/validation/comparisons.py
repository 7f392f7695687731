"""Paired comparisons of sources: bootstrap over the same patients, DeLong's test for external studies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ichkit.core.tasks import Task
from ichkit.validation.delong import delong_test
from ichkit.validation.intervals import interval_of, p_value_of
from ichkit.validation.scores import ROC_AUC

BOOTSTRAP, DELONG = "bootstrap", "delong"
BASELINE = "published baseline"  # the `other` of comparisons with the probabilities published with an external set
_SCORE = ["dataset", "split", "level", "aggregation", "metric", "class"]
DRAWS_DTYPES = {**dict.fromkeys(["source", *_SCORE], "str"), "value": "float64", "n": "int64", "n_positive": "int64"}
COMPARISON_DTYPES = {
    **dict.fromkeys(["source", "other", *_SCORE, "method"], "str"),
    **dict.fromkeys(["value", "other_value", "difference", "low", "high", "p_value"], "float64"),
    **dict.fromkeys(["n", "n_positive", "num_left_out"], "int64"),
}


@dataclass(frozen=True)
class StudyScores:
    """Studies with their labels and the predictions of one source.

    Attributes:
        place: dataset, split, level, aggregation.
        probabilities: (N, C), indexed by study_id.
        labels: (N, C) of 0 and 1, NaN where unknown, indexed alike.
    """

    place: dict[str, str]
    probabilities: pd.DataFrame
    labels: pd.DataFrame


def compare_pairs(
    draws: Mapping[str, pd.DataFrame],
    studies: Mapping[str, Sequence[StudyScores]],
    names: Sequence[str],
    task: Task,
    level: float,
) -> pd.DataFrame:
    """Every ordered pair of sources, with columns of `COMPARISON_DTYPES`: `source` minus `other`.

    Args:
        draws: source to its scores in every bootstrap sample: columns of `DRAWS_DTYPES` and `draws`, (D,) each.
        studies: source to the scores of its external studies, one for each set, in the same order for every source;
            empty without external sets. Compared by DeLong's test.
        names: sources scored on the same rows.
        level: confidence level, e.g. 0.95.
    """
    rows = []
    for one, two in combinations(names, 2):
        found = list(_compare_draws(draws[one], draws[two], level))
        for own, other in zip(studies.get(one, ()), studies.get(two, ()), strict=True):
            found += compare_studies(own, other, task, level)
        named = [{"source": one, "other": two, **row} for row in found]
        rows += [*named, *map(_reverse, named)]
    return make_comparisons(rows)


def compare_studies(own: StudyScores, other: StudyScores, task: Task, level: float) -> list[dict[str, Any]]:
    """DeLong's paired test for the AUC of each class on the studies of both, without the columns `source` and `other`.

    Source: DeLong's test assumes independent rows; the studies of CQ500 are, one for each patient.
    """
    shared = own.probabilities.index.intersection(other.probabilities.index)
    rows = []
    for c, name in enumerate(task.classes):
        labels = own.labels.loc[shared].iloc[:, c].to_numpy(np.float64)
        known = ~np.isnan(labels)
        first, second = (scores.probabilities.loc[shared].to_numpy(np.float64)[known, c] for scores in (own, other))
        test = delong_test(labels[known], first, second, level)
        values = {"value": test.auc, "other_value": test.other_auc, "difference": test.difference}
        interval = {"low": test.low, "high": test.high, "p_value": test.p_value}
        counts = {"n": int(known.sum()), "n_positive": int((labels == 1).sum()), "num_left_out": 0}
        rows.append({**own.place, "metric": ROC_AUC, "class": name, "method": DELONG, **values, **interval, **counts})
    return rows


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values corrected for their number, so that with all hypotheses true one below 0.05 has a chance of 5 % at most.

    A NaN stays NaN and does not count.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(2)
        array([0.03, 0.06, 0.06])
    """
    given = np.asarray(p_values, np.float64)
    order = np.argsort(given, kind="stable")[: int(np.isfinite(given).sum())]
    steps = given[order] * np.arange(len(order), 0, -1)
    corrected = np.full(len(given), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def make_comparisons(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A table of comparisons; may be empty."""
    return pd.DataFrame(list(rows), columns=list(COMPARISON_DTYPES)).astype(COMPARISON_DTYPES)


def _compare_draws(one: pd.DataFrame, two: pd.DataFrame, level: float) -> Iterator[dict[str, Any]]:
    """The differences of all scores that both have, in the same bootstrap samples; NaN if one is undefined."""
    for row in one.merge(two, on=_SCORE, suffixes=("", "_other")).to_dict("records"):
        assert (row["n"], row["n_positive"]) == (row["n_other"], row["n_positive_other"])
        differences = np.asarray(row["draws"]) - np.asarray(row["draws_other"])
        interval = interval_of(differences, level)
        yield {
            **{name: row[name] for name in _SCORE},
            "method": BOOTSTRAP,
            "value": row["value"],
            "other_value": row["value_other"],
            "difference": row["value"] - row["value_other"],
            "low": interval.low,
            "high": interval.high,
            "p_value": p_value_of(differences) if np.isfinite(interval.low) else np.nan,
            "n": row["n"],
            "n_positive": row["n_positive"],
            "num_left_out": interval.num_left_out,
        }


def _reverse(row: dict[str, Any]) -> dict[str, Any]:
    """The same comparison with the sources exchanged."""
    turned = {"source": row["other"], "other": row["source"], "value": row["other_value"], "other_value": row["value"]}
    return {**row, **turned, "difference": -row["difference"], "low": -row["high"], "high": -row["low"]}
