"""A simulated work folder with its scores, and how tests pick rows of them."""

from pathlib import Path

import pandas as pd

from ichkit.core.config import Config
from ichkit.stages.scores import evaluate
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder
from support.commands import do
from support.simulated import make_stack, make_work


def make_scored(root: Path, runs: tuple[str, ...], config: Config) -> WorkFolder:
    """Runs and their stack on three folds and 30 CQ500 studies, scored."""
    work = make_work(
        root, runs=runs, num_folds=3, folds=(0, 1, 2), cq500_studies=30, cq500_missing=2, positive_rate=0.7
    )
    make_stack(work, runs=runs, kinds=("fusion",))
    do(evaluate, config, work)
    return work


def read(work: WorkFolder) -> pd.DataFrame:
    """Every row of its scores."""
    return read_table(work.scores / "scores.parquet")


def headlines(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores that rank and are quoted: out of fold by slice, external studies by their maximum, no subgroups."""
    is_external = scores["split"] == "external"
    is_main = (scores.level == "slice") | (is_external & (scores.aggregation == "maximum"))
    return scores[is_main & (scores.subgroup == "all")].reset_index(drop=True)


def pick(scores: pd.DataFrame, **place) -> pd.Series:
    """The one row of that place; of all rows where no subgroup is named."""
    if "subgroup" in scores:
        place = {"subgroup": "all", **place}
    for name, value in place.items():
        scores = scores[scores[name.rstrip("_")] == value]
    assert len(scores) == 1
    return scores.iloc[0]
