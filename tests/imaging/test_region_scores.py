"""Scores of a patient from regions: ten a side less those with a finding."""

import numpy as np
import pandas as pd
import pytest

from ichkit.imaging.region_scores import SCORE_COLUMNS, score_regions
from ichkit.imaging.regions import REGIONS
from ichkit.phantom.ischemia import plan_infarcts


def table_of(findings):
    """Every region of both sides of study 1.2, with a finding where named, unknown where named with a question mark."""
    rows = []
    for side in ("right", "left"):
        for region in REGIONS:
            name = f"{side}-{region.name}"
            value = np.nan if f"{name}?" in findings else float(name in findings)
            rows.append((f"1.2:{name}", value))
    return pd.DataFrame(rows, columns=["study_id", "has_finding"])


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ((), (10, 10, 10, 0, "", "")),
        (("left-M1", "left-C"), (10, 8, 8, 0, "", "C M1")),
        (("left-M1", "right-M1", "right-I"), (8, 9, 8, 0, "I M1", "M1")),
        (("left-ACA1", "right-PCA2"), (10, 10, 10, 0, "", "")),  # of other groups
        (("left-M1?", "left-M2"), (10, 9, 9, 1, "", "M2")),
    ],
)
def test_a_side_loses_a_point_for_each_of_its_ten_regions_with_a_finding(findings, expected):
    scores = score_regions(table_of(findings), REGIONS)
    assert list(scores.columns) == SCORE_COLUMNS
    assert scores.iloc[0].tolist() == ["1.2", *expected]


def test_studies_have_scores_of_their_own_whatever_the_order_of_the_rows():
    other = table_of(("right-L", "right-IC")).assign(study_id=lambda rows: rows.study_id.str.replace("1.2", "0.9"))
    both = pd.concat([table_of(("left-M1",)), other]).sample(frac=1, random_state=0)
    assert score_regions(both, REGIONS)[["study_id", "score"]].to_numpy().tolist() == [["0.9", 8], ["1.2", 9]]


def test_the_scores_of_phantoms_are_those_of_their_plans():
    """`InfarctPlan.scores` counts on its own; here a table as a reader of the plan would fill it."""
    for plan in plan_infarcts("scans", 30, 2):
        early = [
            f"{one.side}-{one.region}"
            for one in plan.findings
            if one.category in ("frank hypodensity", "territorial infarction")
        ]
        row = score_regions(table_of(early), REGIONS).iloc[0]
        assert {side: row[side] for side in ("right", "left")} == plan.scores()
