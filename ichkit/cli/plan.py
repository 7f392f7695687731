"""`--dry-run`: what each command that writes would do, from the very options it was given."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ichkit.cli.terminal import Settings, show
from ichkit.work.looking import look_only

if TYPE_CHECKING:
    from ichkit.show.plan import Plan

# Stages are imported inside the functions: torch alone takes seconds, and `--help` should not.


def with_dry_run(plan: Callable[..., "Plan"]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --dry-run, with which a command shows its plan and does nothing; stands below `common_options`.

    Args:
        plan: takes what the command takes.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--dry-run", is_flag=True, help="Say what would be done, its disk and time; write nothing.")
        @functools.wraps(command)
        def wrapped(settings: Settings, dry_run: bool, **options: Any) -> Any:
            if not dry_run:
                return command(settings, **options)
            from ichkit.show.plan import render

            with look_only():
                made = plan(settings, **options)
            show(render(made, click.get_current_context().command_path))
            return made

        return wrapped

    return decorate


def plan_phantom(settings: Settings, out: Path, masks: bool, seed: int | None, **counts: int | None) -> "Plan":
    """The plan of `phantom`."""
    from ichkit.stages.prepare.plan import describe_phantom

    config = settings.load()
    asked = phantom_counts(settings, counts)
    return describe_phantom(out, **asked, seed=config.seed if seed is None else seed, keep_masks=masks)


def phantom_counts(settings: Settings, counts: dict[str, int | None]) -> dict[str, int]:
    """The counts of `phantom` that were given, and the config's for the others."""
    own = settings.load().phantom
    return {name: getattr(own, name) if count is None else count for name, count in counts.items()}


def plan_prepare(settings: Settings, **options: Any) -> "Plan":
    """The plan of `prepare`."""
    from ichkit.stages.prepare.plan import describe_prepare
    from ichkit.stages.prepare.request import PrepareOptions

    return describe_prepare(settings.load(), settings.work, PrepareOptions(**options))


def plan_train(
    settings: Settings, folds: list[int] | None, run_name: str | None, fresh: bool, embeddings: bool
) -> "Plan":
    """The plan of `train`."""
    from ichkit.stages.train.plan import describe_plan

    config = settings.load("train.embeddings=true") if embeddings else settings.load()
    return describe_plan(config, settings.work, run_name=run_name or settings.run_name, folds=folds, fresh=fresh)


def plan_stack(settings: Settings, runs: list[str] | None, name: str | None) -> "Plan":
    """The plan of `stack`."""
    from ichkit.stages.stack.plan import describe_plan

    return describe_plan(settings.load(), settings.work, runs=runs, name=name)


def plan_evaluate(settings: Settings, submission: Path | None, **_shown: Any) -> "Plan":
    """The plan of `evaluate`; scoring one file against another writes nothing."""
    from ichkit.show.plan import up_to_date
    from ichkit.stages.scores.plan import describe_evaluate

    if submission is not None:
        return up_to_date("evaluate --submission prints a table and writes no file")
    return describe_evaluate(settings.load(), settings.work)


def plan_submit(settings: Settings, source: str | None, uploads: bool, submissions: Path) -> "Plan":
    """The plan of `submit`."""
    from ichkit.stages.scores.plan import describe_submit

    return describe_submit(settings.load(), settings.work, submissions, source=source, uploads=uploads)


def plan_leaderboard(settings: Settings, record: str | None, submissions: Path, **_scores: float | None) -> "Plan":
    """The plan of `leaderboard`."""
    from ichkit.stages.scores.plan import describe_board

    return describe_board(settings.load(), settings.work, submissions, record)


def plan_predict(settings: Settings, dicom_path: Path, model: str | None, out: Path, page: bool) -> "Plan":
    """The plan of `predict`."""
    from ichkit.stages.predict.plan import describe_predict

    return describe_predict(settings.load(), settings.work, dicom_path, model=model, out=out, has_page=page)


def plan_explain(
    settings: Settings,
    run_name: str | None,
    fold: int | None,
    slices: tuple[str, ...],
    study: str | None,
    worst: int | None,
    class_names: tuple[str, ...],
    out: Path,
) -> "Plan":
    """The plan of `explain`; which classes are drawn does not change it."""
    from ichkit.stages.explain.plan import describe_explain
    from ichkit.stages.explain.run import make_choice

    choice = make_choice(slices, study, worst)
    return describe_explain(settings.load(), settings.work, out, choice, run_name=run_name, fold=fold)


def plan_export(settings: Settings, model: str, out: Path | None) -> "Plan":
    """The plan of `export`."""
    from ichkit.stages.predict.plan import describe_export

    return describe_export(settings.load(), settings.work, model, out)


def plan_report(settings: Settings, submissions: Path) -> "Plan":
    """The plan of `report`; submissions are only read."""
    from ichkit.stages.scores.plan import describe_report

    return describe_report(settings.load(), settings.work)
