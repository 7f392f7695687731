"""Presets of the regularisation of boosting, of which one is chosen per class on inner patients."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Strength:
    """A preset of the regularisation of boosting.

    Attributes:
        name: key in `STRENGTHS`.
        settings: LightGBM parameters.
        most_rows: tried on training parts of at most this many rows, to save time; None for any.
        description: one sentence.
        source: where the numbers come from.
    """

    name: str
    settings: dict[str, float]
    most_rows: int | None
    description: str
    source: str


# From the strongest to the weakest; `base`, without trees, is the strongest and always a candidate.
STRENGTHS = {
    "strong": Strength(
        name="strong",
        settings={"num_leaves": 3, "min_data_in_leaf": 60, "lambda_l2": 10.0, "feature_fraction": 0.3},
        most_rows=30_000,
        description="Two splits per tree, for tens of studies.",
        source="chosen here on simulated descriptors of 80 patients",
    ),
    "medium": Strength(
        name="medium",
        settings={"num_leaves": 6, "min_data_in_leaf": 40, "lambda_l2": 5.0, "feature_fraction": 0.3},
        most_rows=200_000,
        description="A few interactions, for hundreds of studies.",
        source="chosen here on simulated descriptors",
    ),
    "light": Strength(
        name="light",
        settings={"num_leaves": 24, "min_data_in_leaf": 100, "lambda_l2": 3.0, "feature_fraction": 0.2},
        most_rows=None,
        description="Deep interactions, for thousands of studies.",
        source="RSNA 2019 stackers used 20 to 60 leaves",
    ),
}
