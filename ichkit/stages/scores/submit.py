"""`ichkit submit`: writes the test predictions of a source as a Kaggle submission, with a note of its provenance."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ichkit.core.config import Config
from ichkit.core.errors import ConfigError, DataError
from ichkit.core.progress import logger
from ichkit.imaging.store import Prepared
from ichkit.show.plan import Forecast
from ichkit.stages.scores import evaluate, leaderboard, tables
from ichkit.stages.scores.board import track
from ichkit.stages.scores.book import ScoreBook
from ichkit.stages.scores.stored import read_tables
from ichkit.stages.scores.upload import SITE, find_command
from ichkit.validation.catalog import HAND, Source, load_split, pick_source
from ichkit.validation.coherence import make_table_coherent
from ichkit.validation.notes import note_path, refuse_foreign, write_note
from ichkit.validation.sample import Imputed, KnownSlices, fill_sample
from ichkit.work.artifacts import encode_table, write_bytes_atomically
from ichkit.work.folder import WorkFolder
from ichkit.work.locks import holding

_LABEL_BYTES = 25
"""Upper bound: comma, longest shortest text of a float64 (-2.2250738585072014e-308), end of line."""


@dataclass(frozen=True)
class Submission:
    """The files that `submit` wrote, their source, and the imputed slices."""

    csv_path: Path
    note_path: Path
    source: Source
    imputed: tuple[Imputed, ...]


@dataclass(frozen=True)
class SubmitOptions:
    """Options of `submit`.

    Attributes:
        source: the run or stack to submit; None takes the best complete one (`choose_source`).
        uploads: also upload it to Kaggle.
        submissions: the output folder.
    """

    source: str | None = None
    uploads: bool = False
    submissions: Path = Path("submissions")


@dataclass(frozen=True)
class SubmitPlan(evaluate.ScoredPlan):
    """The plan of `submit`.

    Attributes:
        sample: column ID, in the order of the file.
        source: of the predictions; None if missing scores decide it.
    """

    options: SubmitOptions
    sample: pd.DataFrame
    source: Source | None

    @property
    def own_writes(self) -> tuple[Path, ...]:
        """The CSV, its note, and the leaderboard."""
        folder = self.options.submissions
        name = "NAME" if self.source is None else self.source.name
        return (
            folder / f"{name}.csv",
            note_path(folder, name),
            leaderboard.board_path(folder, self.scoring.prepared.task),
        )

    def forecast(self) -> Forecast:
        """The rows to write, with an upper bound of their size, and the upload, after the missing scores."""
        name = "the best complete source, once all are scored" if self.source is None else self.source.name
        sends = (f"uploads the file to {SITE}, unless it was uploaded before",) if self.options.uploads else ()
        num_bytes = int(self.sample["ID"].str.len().sum()) + len(self.sample) * _LABEL_BYTES
        return self.after_scoring((f"{len(self.sample)} rows of {name}", *sends), num_bytes)


def plan(config: Config, work: WorkFolder, options: SubmitOptions | None = None) -> SubmitPlan:
    """The plan of a submission, with the missing scores; writes nothing.

    Raises:
        DataError: the prepared data have no test split.
        ConfigError: no such source, or an upload without the command `kaggle`.
        ArtifactError: nothing is prepared or trained, or an artifact is damaged.
    """
    options = options or SubmitOptions()
    scoring = evaluate.plan_scores(config, work)
    sample = _read_sample(scoring.prepared)
    if options.uploads:
        find_command()
    known = options.source is not None or scoring.is_current
    chosen = choose_source(scoring, options.source) if known else None
    if chosen is not None:
        _refuse_partial(chosen)
    return SubmitPlan(scoring, options, sample, chosen)


@holding(lambda given: given["plan"].options.submissions)
def run(plan: SubmitPlan) -> Submission:
    """Writes `<name>.csv`, `<name>.json` and `leaderboard.csv`; the same inputs give the same bytes.

    Raises:
        ContractError: a slice of the sample has no prediction although its file was not rejected.
        ConfigError: a file that ichkit did not write is in the way.
        ArtifactError: an artifact is damaged.
    """
    prepared, work, submissions = plan.scoring.prepared, plan.scoring.work, plan.options.submissions
    task = prepared.task
    evaluate.make_current(plan.scoring)
    chosen = plan.source or choose_source(plan.scoring)
    _refuse_partial(chosen)
    table, imputed = fill_sample(plan.sample, _known_slices(prepared, chosen), task, chosen.path)
    csv_path = submissions / f"{chosen.name}.csv"
    encoded = encode_table(table, ".csv")
    refuse_foreign(submissions, chosen.name, hashlib.sha256(encoded).hexdigest())
    leaderboard.refuse_foreign(submissions, task)
    written = write_bytes_atomically(csv_path, encoded)
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
        logger.warning(
            "submit: imputed slices without a readable file, filled in: %d (listed in the .json)", len(imputed)
        )
    board = leaderboard.build(work, submissions, task)
    leaderboard.write(board, submissions, task)
    track(board, plan.scoring.config.tracking, work)
    return Submission(csv_path, note_path(submissions, chosen.name), chosen, tuple(imputed))


def _refuse_partial(source: Source) -> None:
    """Refuses a source that predicts only some of the classes; raises ConfigError."""
    if not source.scope.is_whole:
        raise ConfigError(
            f"submit: expected a source of every class, found {source.name}, which predicts "
            f"{tables.describe_scope(source.scope)}. Combine it with runs of the other classes: `ichkit stack --runs`."
        )


def _read_sample(prepared: Prepared) -> pd.DataFrame:
    """The IDs of the sample submission; raises DataError if there are none."""
    sample = prepared.sample_ids()
    if not len(sample):
        raise DataError(
            f"{prepared.folder}: expected the ids of a sample submission, found none: these data have no test split. "
            "`ichkit evaluate` and `ichkit predict` do not need one; to submit, prepare data with a test split."
        )
    return sample


def choose_source(scoring: evaluate.EvaluatePlan, name: str | None = None, *, has_models: bool = False) -> Source:
    """The source of that name; without a name the best complete one, else the best of those with the most slices.

    A source is complete with every fold of `folds.csv`; the best has the lowest out-of-fold weighted log loss. Sources
    that predict only some of the classes are chosen only if there is no other.

    Args:
        scoring: the sources; without a name their scores must be up to date.
        has_models: without a name, leaves out blends by hand, which have tables and no models.

    Raises:
        ConfigError: no such source.
    """
    prepared = scoring.prepared
    if name is not None:
        return pick_source(scoring.sources, name)
    book = ScoreBook(read_tables(scoring.work, scoring.sources), scoring.sources)
    found = [source for source in book.sources if not (has_models and source.kind == HAND)]
    sources = [source for source in found if source.scope.is_whole] or found[:1]
    complete = [source for source in sources if list(source.folds) == prepared.fold_numbers]
    most = book.num_slices(sources[0])
    candidates = complete or [source for source in sources if book.num_slices(source) == most]
    best = min(candidates, key=lambda source: (book.loss(source).value, source.name))
    if not complete:
        logger.warning(
            "no source has all %d folds; taking the best incomplete one: %s, folds %s",
            prepared.num_folds,
            best.name,
            best.folds_label,
        )
    return best


def _known_slices(prepared: Prepared, source: Source) -> KnownSlices:
    train, rejected = prepared.split("train"), prepared.rejected()
    return KnownSlices(
        # The tables of a stack are coherent already, those of a run are not.
        predictions=make_table_coherent(load_split(source, "test"), prepared.task),
        slices=prepared.split("test"),
        rejected=rejected[rejected.split == "test"],
        prevalence=np.nan_to_num(train[list(prepared.task.classes)].astype("Float64").mean().to_numpy(np.float64)),
    )
