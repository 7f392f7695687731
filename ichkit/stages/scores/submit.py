"""`ichkit submit`: a source's test predictions as the file the competition site takes, and a note of what it is."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import DataError
from ichkit.core.progress import logger
from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.stages.scores import evaluate, leaderboard
from ichkit.validation.catalog import Source, find_sources, load_split, pick_source
from ichkit.validation.notes import note_path, write_note
from ichkit.validation.sample import Imputed, KnownSlices, fill_sample
from ichkit.validation.scores import POOLED, WEIGHTED_LOG_LOSS
from ichkit.work.artifacts import encode_table, write_bytes_atomically
from ichkit.work.folder import WorkFolder


@dataclass(frozen=True)
class Submission:
    """What `submit` wrote, whose predictions they are, and the slices that were filled in."""

    csv_path: Path
    note_path: Path
    source: Source
    imputed: tuple[Imputed, ...]


def run(config: Config, work: WorkFolder, submissions: Path, source: str | None = None) -> Submission:
    """Writes `<name>.csv`, `<name>.json` and `leaderboard.csv` into `submissions`; the same inputs change no byte.

    Args:
        source: the run or stack to submit; None takes what `choose_source` takes.

    Raises:
        DataError: the prepared data have no test split.
        ConfigError: no such source.
        ContractError: a slice of the sample has no prediction although its file was not rejected.
        ArtifactError: nothing is prepared or trained, or an artifact is damaged.
    """
    task = find_task(config.task)
    prepared = Prepared.open(work.prepared, task)
    sample = read_sample(prepared)
    chosen = choose_source(config, work, source)
    table, imputed = fill_sample(sample, _known_slices(prepared, chosen), task, chosen.path)
    csv_path = submissions / f"{chosen.name}.csv"
    written = write_bytes_atomically(csv_path, encode_table(table, ".csv"))
    facts = {
        "kind": chosen.kind,
        "source": chosen.path,
        "runs": list(chosen.runs),
        "folds": list(chosen.folds),
        "data": chosen.data,
        "csv": csv_path.name,
        "sha256": written.sha256,
        "tables": chosen.digests_of(work, "test"),
        "config_digest": chosen.config_digest,
        "git_commit": chosen.git_commit,
        "imputed": [{**asdict(row), "neighbours": list(row.neighbours)} for row in imputed],
    }
    write_note(submissions, chosen.name, facts)
    logger.info("submit: %s, %d rows, folds %s, data=%s", csv_path, len(table), chosen.folds_label, chosen.data)
    if imputed:
        logger.warning("submit: slices without a readable file, filled in: %d (named in the .json)", len(imputed))
    leaderboard.write(leaderboard.build(work, submissions, task), submissions)
    return Submission(csv_path, note_path(submissions, chosen.name), chosen, tuple(imputed))


def read_sample(prepared: Prepared) -> pd.DataFrame:
    """The ids of the sample submission.

    Raises:
        DataError: there are none.
    """
    sample = prepared.sample_ids()
    if not len(sample):
        raise DataError(
            f"{prepared.folder}: expected the ids of a sample submission, found none: these data have no test split. "
            "`ichkit evaluate` and `ichkit predict` work without; to submit, prepare a folder that has one."
        )
    return sample


def choose_source(config: Config, work: WorkFolder, name: str | None = None) -> Source:
    """The source of that name, else the best complete one, else the best of those with the most slices.

    Complete is a source with every fold of `folds.csv`; best is the lowest cross-validated weighted log loss. Scores
    that are missing are computed.

    Raises:
        ConfigError: no such source.
        ArtifactError: nothing is prepared or trained.
    """
    evaluate.run(config, work)
    prepared = Prepared.open(work.prepared, find_task(config.task))
    sources = find_sources(work, prepared.task)
    if name is not None:
        return pick_source(sources, name)
    scores = evaluate.read_scores(work, sources)
    pooled = scores[(scores.metric == WEIGHTED_LOG_LOSS) & (scores.fold == POOLED)].set_index("source")
    complete = [source for source in sources if list(source.folds) == prepared.fold_numbers]
    most = pooled.n.max()
    candidates = complete or [source for source in sources if pooled.n[source.name] == most]
    best = min(candidates, key=lambda source: (pooled.value[source.name], source.name))
    if not complete:
        logger.warning(
            "no source has all %d folds; taking the best there is: %s, folds %s",
            prepared.num_folds,
            best.name,
            best.folds_label,
        )
    return best


def _known_slices(prepared: Prepared, source: Source) -> KnownSlices:
    train, rejected = prepared.split("train"), prepared.rejected()
    return KnownSlices(
        predictions=load_split(source, "test"),
        slices=prepared.split("test"),
        rejected=rejected[rejected.split == "test"],
        prevalence=train[list(prepared.task.classes)].to_numpy(np.float64, na_value=np.nan).mean(0),
    )
