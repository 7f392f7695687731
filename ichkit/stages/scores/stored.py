"""The tables of `work/scores` as `ichkit evaluate` leaves them: their names, what they depend on, and their reader."""

from dataclasses import dataclass

import pandas as pd

from ichkit.core.errors import ArtifactError
from ichkit.core.progress import format_count
from ichkit.validation.catalog import Source
from ichkit.work.artifacts import Manifest, read_manifest, read_table
from ichkit.work.folder import WorkFolder

MADE_BY = "ichkit evaluate"
SCORES_NAME = "scores.parquet"
RELIABILITY_NAME = "reliability.parquet"
DRAWS_NAME = "draws.parquet"
COMPARISONS_NAME = "comparisons.parquet"
SELECTION_NAME = "selection.parquet"
MISSING_SUFFIX = "_missing"
"""Behind the name of an external set in the manifest's facts: its studies with labels but no slices."""
FACTS_SUFFIX, BASELINE_SUFFIX = "_facts.csv", "_baseline.csv"
"""Behind the name of a data set in `work/prepared`: facts of its scans, predictions of the model to compare with."""
# Inputs of the scores besides the tables of a source.
_PREPARED_FILES = ("slices.parquet", "studies.parquet", "header_facts.parquet", "subgroups.parquet")


@dataclass(frozen=True)
class ScoreTables:
    """The tables in `work/scores`.

    Attributes:
        scores: columns of `validation.scores.SCORE_DTYPES`.
        reliability: columns of `validation.scores.CURVE_DTYPES`.
        comparisons: columns of `validation.comparisons.COMPARISON_DTYPES`.
        selection: columns of `SELECTION_DTYPES`, one row for all sources of the same folds: the best of them, and the
            optimism of its loss.
        missing: external set to its studies with labels but no slices.
    """

    scores: pd.DataFrame
    reliability: pd.DataFrame
    comparisons: pd.DataFrame
    selection: pd.DataFrame
    missing: dict[str, list[str]]


def read_tables(work: WorkFolder, sources: list[Source]) -> ScoreTables:
    """The existing scores, after checking that they are of the current tables of these sources.

    Raises:
        ArtifactError: there are no scores, or they are of other tables or labels.
    """
    manifest = read_manifest(work.scores)
    prepared = read_manifest(work.prepared)
    if manifest.inputs != inputs_of(sources, prepared):
        raise ArtifactError(
            f"{work.scores}: expected the scores of the current tables of {format_count(len(sources), 'source')}, "
            f"found scores of {format_count(len(manifest.facts['sources']), 'source')} with other tables. Run "
            f"`{MADE_BY}`."
        )
    names = (SCORES_NAME, RELIABILITY_NAME, COMPARISONS_NAME, SELECTION_NAME)
    scores, reliability, comparisons, selection = (
        read_table(work.scores / name, manifest.sha256_of(name)) for name in names
    )
    facts = manifest.facts.items()
    missing = {name.removesuffix(MISSING_SUFFIX): studies for name, studies in facts if name.endswith(MISSING_SUFFIX)}
    return ScoreTables(scores, reliability, comparisons, selection, missing)


def inputs_of(sources: list[Source], prepared: Manifest) -> dict[str, str]:
    """SHA-256 of every file that the scores of these sources depend on."""
    suffixes = (FACTS_SUFFIX, BASELINE_SUFFIX)
    present = [name for name in prepared.files if name in _PREPARED_FILES or name.endswith(suffixes)]
    read = {f"prepared/{name}": prepared.files[name].sha256 for name in present}
    return read | {f"{source.name}:{name}": digest for source in sources for name, digest in source.digests.items()}
