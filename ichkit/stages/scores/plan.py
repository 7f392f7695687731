"""The plans of `evaluate`, `submit`, `leaderboard` and `report`."""

from collections.abc import Sequence
from pathlib import Path

from ichkit.core.config import Config
from ichkit.show.plan import Plan, up_to_date
from ichkit.stages.scores import evaluate
from ichkit.stages.scores.leaderboard import BOARD_NAME
from ichkit.stages.scores.submit import choose_source, read_sample
from ichkit.stages.scores.upload import SITE, find_command
from ichkit.validation.catalog import pick_source
from ichkit.validation.notes import note_path, read_present
from ichkit.work.folder import WorkFolder

_SCORE_BYTES = 430_000
"""Of the scores of one source, as in the demo; the 2,000 draws behind its intervals are most of it."""
_SUBMISSION_ROW_BYTES = 37
"""Of a row of `ID,Label`, as in the demo."""
_BOARD_BYTES = 2_000
_REPORT_BYTES = 180_000
"""Of the board and the page of the demo."""
_SECONDS_TO_WRITE = 5.1
"""Of `submit` or `report` of the demo, the slower of the two (`benchmarks/results/demo.json`)."""


def describe_evaluate(config: Config, work: WorkFolder) -> Plan:
    """What `evaluate.run` would do; the time goes by the sources scored before.

    Raises:
        ArtifactError, ContractError, FoldError: as `evaluate.run` before it scores.
    """
    return _describe_scoring(config, work, evaluate.look(config, work))


def _describe_scoring(config: Config, work: WorkFolder, scoring: evaluate.Scoring) -> Plan:
    if scoring.is_current:
        return up_to_date(f"the scores of {len(scoring.sources)} sources")
    stale = scoring.stale
    each = None if scoring.old is None else scoring.old.facts.get("seconds_per_source")
    return Plan(
        steps=(
            f"scores {len(stale)} of {len(scoring.sources)} sources ({', '.join(source.name for source in stale)})",
            f"{config.evaluate.num_draws} draws of patients for each interval",
        ),
        writes=(work.scores,),
        num_bytes=len(scoring.sources) * _SCORE_BYTES,
        seconds=None if each is None else each * len(stale),
        basis="not known: nothing was scored here to go by" if each is None else "as the sources before took",
    )


def _after_scores(scores: Plan, steps: Sequence[str], writes: Sequence[Path], num_bytes: float) -> Plan:
    """The plan of a command that scores what is not scored, and then writes files of its own."""
    return Plan(
        steps=(*(() if scores.is_idle else scores.steps), *steps),
        writes=(*scores.writes, *writes),
        num_bytes=(scores.num_bytes or 0) + num_bytes,
        seconds=None if scores.seconds is None else scores.seconds + _SECONDS_TO_WRITE,
        basis="as for the demo" if scores.is_idle else scores.basis,
    )


def describe_submit(
    config: Config, work: WorkFolder, submissions: Path, *, source: str | None = None, uploads: bool = False
) -> Plan:
    """What `submit.run` would do, and the upload behind it.

    Raises:
        ConfigError: no such source, or `uploads` and no command to do it with.
        DataError: the prepared data have no test split.
        ArtifactError, ContractError, FoldError: as `submit.run` before it writes.
    """
    scoring = evaluate.look(config, work)
    num_rows = len(read_sample(scoring.prepared))
    if source is not None:
        name = pick_source(scoring.sources, source).name
    else:
        # Whatever must be scored first may turn out the best.
        name = choose_source(config, work).name if scoring.is_current else None
    steps = [f"{num_rows} rows of {name or 'the best complete source, which the scores will tell'}"]
    if uploads:
        find_command()
        steps.append(f"sends the file to {SITE}, unless it is there already")
    files = (submissions / f"{name}.csv", note_path(submissions, name)) if name else (submissions / "NAME.csv",)
    scores = _describe_scoring(config, work, scoring)
    return _after_scores(scores, steps, (*files, submissions / BOARD_NAME), num_rows * _SUBMISSION_ROW_BYTES)


def describe_board(config: Config, work: WorkFolder, submissions: Path, record: str | None = None) -> Plan:
    """What `leaderboard.run` would do, or `leaderboard.record` for a submission of that name.

    Raises:
        ConfigError: no such submission.
        ArtifactError, ContractError, FoldError: as `leaderboard.run` before it writes.
    """
    if record is not None:
        read_present(submissions, record)
    scores = describe_evaluate(config, work)
    noted = () if record is None else (note_path(submissions, record),)
    steps = ["rebuilds the board from the artifacts"]
    return _after_scores(scores, steps, (*noted, submissions / BOARD_NAME), _BOARD_BYTES)


def describe_report(config: Config, work: WorkFolder) -> Plan:
    """What `report.run` would do.

    Raises:
        ArtifactError, ContractError, FoldError: as `report.run` before it writes.
    """
    scoring = evaluate.look(config, work)
    steps = [f"one page about {len(scoring.sources)} sources"]
    return _after_scores(_describe_scoring(config, work, scoring), steps, (work.report,), _REPORT_BYTES)
