"""The plans of `evaluate`, `submit`, `report` and `predict`."""

from pathlib import Path

from ichkit.core.config import Config
from ichkit.core.layout import WorkFolder
from ichkit.core.tasks import find_task
from ichkit.sources.files import scan_files
from ichkit.sources.folder import image_files
from ichkit.stages import evaluate
from ichkit.stages.leaderboard import BOARD_NAME
from ichkit.stages.plan import PREDICTION_BYTES, Plan, format_bytes, up_to_date
from ichkit.stages.predict import find_chain
from ichkit.stages.submit import choose_source
from ichkit.stages.upload import SITE, find_command
from ichkit.validation.catalog import find_sources, pick_source
from ichkit.validation.notes import note_path

_SCORE_BYTES = 430_000
"""Of the scores of one source, as in the demo; the 2,000 draws behind its intervals are most of it."""
_SUBMISSION_ROW_BYTES = 37
"""Of a row of `ID,Label`, as in the demo."""
_REPORT_BYTES = 180_000
"""Of the page of the demo."""
_SECONDS_TO_WRITE = 5.0
"""Of `submit` or `report` of the demo, scores apart, rounded up (`benchmarks/results/demo.json`: 2.7 and 4.6)."""


def describe_evaluate(config: Config, work: WorkFolder) -> Plan:
    """What `evaluate.run` would do; the time goes by the sources scored before.

    Raises:
        ArtifactError, ContractError, FoldError: as `evaluate.run` before it scores.
    """
    scoring = evaluate.look(config, work)
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


def describe_submit(
    config: Config, work: WorkFolder, submissions: Path, *, source: str | None = None, uploads: bool = False
) -> Plan:
    """What `submit.run` would do, and the upload behind it.

    Raises:
        ConfigError: no such source, or `uploads` and no command to do it with.
        ArtifactError, ContractError, FoldError: as `submit.run` before it writes.
    """
    scores = describe_evaluate(config, work)
    scoring = evaluate.look(config, work)
    if source is not None:
        name = pick_source(scoring.sources, source).name
    else:
        # Whatever must be scored first may turn out the best.
        name = choose_source(config, work).name if scores.is_idle else None
    num_rows = len(scoring.prepared.sample_ids())
    steps = [f"{num_rows} rows of {name or 'the best complete source, which the scores will tell'}"]
    if uploads:
        find_command()
        steps.append(f"sends the file to {SITE}, unless it is there already")
    named = (submissions / f"{name}.csv", note_path(submissions, name)) if name else (submissions,)
    return Plan(
        steps=(*(() if scores.is_idle else scores.steps), *steps),
        writes=(*scores.writes, *named, submissions / BOARD_NAME),
        num_bytes=(scores.num_bytes or 0) + num_rows * _SUBMISSION_ROW_BYTES,
        seconds=None if scores.seconds is None else scores.seconds + _SECONDS_TO_WRITE,
        basis=scores.basis if not scores.is_idle else "as for the demo",
    )


def describe_report(config: Config, work: WorkFolder) -> Plan:
    """What `report.run` would do.

    Raises:
        ArtifactError, ContractError, FoldError: as `report.run` before it writes.
    """
    scores = describe_evaluate(config, work)
    num_sources = len(find_sources(work, find_task(config.task)))
    return Plan(
        steps=(*(() if scores.is_idle else scores.steps), f"one page about {num_sources} sources"),
        writes=(*scores.writes, work.report),
        num_bytes=(scores.num_bytes or 0) + _REPORT_BYTES,
        seconds=None if scores.seconds is None else scores.seconds + _SECONDS_TO_WRITE,
        basis=scores.basis if not scores.is_idle else "as for the demo",
    )


def describe_predict(config: Config, work: WorkFolder, path: Path, *, model: str | None, out: Path) -> Plan:
    """What `predict.run` would do; files are counted and none is read.

    Raises:
        DataError: nothing at the path.
        ArtifactError, ConfigError: no such model.
    """
    task = find_task(config.task)
    if model is None and not evaluate.look(config, work).is_current:
        chosen, writes = "the best complete source, which the scores will tell", (work.scores,)
    else:
        chain = find_chain(config, work, model, task)
        num_networks = sum(len(folds) for folds in chain.runs.values())
        chosen, writes = f"{chain.name}: {num_networks} networks", ()
    files = image_files(scan_files(path)[0])
    size = format_bytes(files["num_bytes"].sum())
    tables = tuple(out / f"{name}.csv" for name in ("slices", "studies", "rejected", "series_choice"))
    return Plan(
        steps=(f"{len(files)} files that may be images, {size}", f"with {chosen}"),
        writes=(*writes, *tables),
        num_bytes=len(files) * 4 * PREDICTION_BYTES,
    )
