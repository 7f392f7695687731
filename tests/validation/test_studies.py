"""Slices to a study, and the parts of the data that have scores of their own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.simulated import TASK

from ichkit.validation.published import PUBLISHED, find_published
from ichkit.validation.studies import AGGREGATIONS
from ichkit.validation.subgroups import SLICE_PARTITIONS, STUDY_PARTITIONS, find_subgroups


def make_predictions(sizes: dict[str, int], seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"study_id": [name for name, size in sizes.items() for _ in range(size)]})
    table[TASK.probability_columns] = rng.random((len(table), TASK.num_classes), np.float32) * 0.5
    return table


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_aggregation_gives_one_probability_per_study_and_class_whatever_the_order_of_rows(name):
    row = AGGREGATIONS[name]
    assert row.name == name
    assert row.description.endswith(".")
    assert row.source
    table = make_predictions({"b": 5, "a": 3, "c": 1})
    scores = row.score(table, TASK, 2)
    assert list(scores.columns) == ["study_id", *TASK.probability_columns]
    assert scores.study_id.tolist() == ["a", "b", "c"]
    p = scores[TASK.probability_columns].to_numpy(np.float64)
    assert ((p > 0) & (p < 1)).all()
    turned = row.score(table.sample(frac=1, random_state=1), TASK, 2)
    np.testing.assert_allclose(turned[TASK.probability_columns].to_numpy(np.float64), p, atol=1e-12)
    alone = table[table.study_id == "c"][TASK.probability_columns].to_numpy(np.float64)
    np.testing.assert_allclose(p[2:], alone, atol=1e-7)


def test_each_aggregation_is_its_definition():
    table = make_predictions({"a": 6, "b": 2})
    made = {name: row.score(table, TASK, 3).set_index("study_id") for name, row in AGGREGATIONS.items()}
    for study, part in table.groupby("study_id"):
        for column in TASK.probability_columns:
            p = np.sort(part[column].to_numpy(np.float64))
            assert made["maximum"].loc[study, column] == pytest.approx(p[-1], abs=1e-7)
            assert made["top_mean"].loc[study, column] == pytest.approx(p[-3:].mean(), abs=1e-7)
            assert made["noisy_or"].loc[study, column] == pytest.approx(1 - np.prod(1 - p), abs=1e-7)


def make_slices(**columns) -> pd.DataFrame:
    """Six slices of study a in two series, three of b, one of c."""
    table = pd.DataFrame(
        {
            "study_id": list("aaaaaabbbc"),
            "series_id": list("1111223334"),
            "slice_index": [0, 1, 2, 3, 4, 5, 0, 1, 2, 0],
            "num_slices": [6] * 6 + [3] * 3 + [1],
            "gap_mm": [5.0, 5.0, 4.4, np.nan, 2.0, np.nan, 1.0, 3.5, np.nan, np.nan],
            "padded": [True] * 6 + [False] * 4,
            "pixel_format": ["16,1,-1024"] * 6 + ["12,0,1"] * 4,
        }
    )
    return table.assign(**columns)


def test_slices_fall_into_the_subgroups_worked_out_by_hand():
    groups = find_subgroups(make_slices(), SLICE_PARTITIONS)
    rows = {name: np.flatnonzero(inside).tolist() for name, inside in groups.items()}
    assert rows == {
        "padded=no": [6, 7, 8, 9],
        "padded=yes": [0, 1, 2, 3, 4, 5],
        "position=lower third": [0, 1, 6],
        "position=middle third": [2, 3, 7, 9],
        "position=upper third": [4, 5, 8],
        "edge=first or last": [0, 5, 6, 8, 9],
        "pixel_format=12,0,1": [6, 7, 8, 9],
        "pixel_format=16,1,-1024": [0, 1, 2, 3, 4, 5],
        # The last slice of a series has the gap below it; a single slice has none.
        "gap_mm=2-3.5": [4, 5],
        "gap_mm=3.5-4.5": [2, 3, 7, 8],
        "gap_mm=<2": [6],
        "gap_mm=>=4.5": [0, 1],
    }


def test_studies_fall_into_batches_and_gaps_and_none_where_that_is_not_known():
    studies = pd.DataFrame({"gap_mm": [5.0, 0.6, np.nan], "batch": pd.array(["B1", "B2", None], dtype="str")})
    rows = {name: np.flatnonzero(inside).tolist() for name, inside in find_subgroups(studies, STUDY_PARTITIONS).items()}
    assert rows == {"batch=B1": [0], "batch=B2": [1], "gap_mm=<2": [1], "gap_mm=>=4.5": [0]}
    unknown = studies.assign(batch=pd.array([None] * 3, dtype="str"))
    assert list(find_subgroups(unknown, STUDY_PARTITIONS)) == ["gap_mm=<2", "gap_mm=>=4.5"]


@pytest.mark.parametrize("table", [SLICE_PARTITIONS, STUDY_PARTITIONS], ids=["slices", "studies"])
def test_every_partition_says_what_it_is_and_why(table):
    for name, row in table.items():
        assert row.name == name
        assert row.description.endswith(".")
        assert row.source


def test_the_published_means_are_those_of_the_published_classes_to_their_digits():
    for name, row in PUBLISHED.items():
        assert set(row.roc_auc) == {*TASK.classes, "mean"}
        # The printed means are of unrounded classes: the printed six give .97065 and .95165.
        assert np.mean([row.roc_auc[label] for label in TASK.classes]) == pytest.approx(row.roc_auc["mean"], abs=6e-4)
        assert find_published("cq500", TASK)[name] is row
    assert find_published("site", TASK) == {}
    assert find_published("cq500", replace(TASK, name="other")) == {}


def test_parts_of_a_partition_follow_each_other_by_number():
    studies = pd.DataFrame({"gap_mm": [5.0, 1.0, 4.0, 2.0], "batch": ["B10", "B2", "B1", "B1"]})
    parts = [name.partition("=")[2] for name in find_subgroups(studies, STUDY_PARTITIONS)]
    assert parts == ["B1", "B2", "B10", "<2", "2-3.5", "3.5-4.5", ">=4.5"]
    batches = ["16,1,0", "12,0,1", "12,0,-1000", "12,0,-1024"]
    studies = pd.DataFrame({"gap_mm": np.nan, "batch": batches})
    parts = [name.partition("=")[2] for name in find_subgroups(studies, STUDY_PARTITIONS)]
    assert parts == ["12,0,-1024", "12,0,-1000", "12,0,1", "16,1,0"]
