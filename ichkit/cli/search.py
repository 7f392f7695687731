"""The commands that compare many settings or models: `ichkit tune` and `ichkit blend`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ichkit.cli.completion import complete_setting, complete_source
from ichkit.cli.plan import planned
from ichkit.cli.terminal import PATH, common_options, epilog, parse_folds, show

if TYPE_CHECKING:
    from ichkit.stages.stack.blend import BlendPlan
    from ichkit.stages.tune.run import TunePlan


@click.command(
    "tune",
    epilog=epilog(
        "ichkit tune --try train.learning_rate=1e-4,3e-4 --set train.validation.share=0.15",
        "ichkit tune --name depth --try train.phases.0.frozen_stages=0..5 --objective first-plus-mean",
        "ichkit tune --try train.learning_rate=1e-5..1e-3:log --sampler tpe --trials 20 --objective oof-loss",
    ),
)
@click.option(
    "--try",
    "tries",
    multiple=True,
    metavar="SECTION.KEY=VALUES",
    shell_complete=complete_setting,
    help="Setting to vary: VALUE,VALUE or LOW..HIGH, with :log or :STEP; repeatable.",
)
@click.option("--space", type=PATH, help="YAML file of settings to vary (docs/training.md).")
@click.option("--name", default="tune", show_default=True, help="Name of the search; its runs are NAME-0, NAME-1, ...")
@click.option(
    "--objective",
    default="loss",
    show_default=True,
    metavar="NAME",
    help="loss, best-loss, first-plus-mean, first-plus-minimum, auc, best-auc (validation patients), or oof-loss.",
)
@click.option("--sampler", default="grid", show_default=True, metavar="NAME", help="grid, random, tpe or gp.")
@click.option(
    "--pruner", default="none", show_default=True, metavar="NAME", help="End bad trials early: none, median, wilcoxon."
)
@click.option("--trials", type=click.IntRange(1), help="Number of trials [default: every combination of the grid].")
@click.option(
    "--fold",
    "folds",
    multiple=True,
    callback=parse_folds,
    help='Folds to train: a number, "0,1" or "all"; repeatable [default: all].',
)
@click.option("--fresh", is_flag=True, help="Start over; the search and the runs of its trials are removed.")
@common_options
@planned("ichkit.stages.tune.run", "TuneOptions")
def tune_command(plan: "TunePlan") -> None:
    """Search over settings of training: every trial is a run; chooses by inner validation or out of fold."""
    from ichkit.stages.tune.outcome import PAGE_NAME, render
    from ichkit.stages.tune.run import run

    show(render(run(plan)))
    click.echo(f"Figures: {Path(plan.folder) / PAGE_NAME}. The chosen settings: {plan.folder / 'best.yaml'}.")


def _parse_weights(_ctx: click.Context, _option: click.Parameter, given: str | None) -> list[float] | None:
    if given is None:
        return None
    try:
        return [float(word) for word in given.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"expected numbers such as 2,1,1, found {given}") from error


@click.command(
    "blend",
    epilog=epilog(
        "ichkit blend default resnet50-midl --weights 2,1", "ichkit blend default-blend other-blend --method logit"
    ),
)
@click.argument("sources", nargs=-1, required=True, shell_complete=complete_source)
@click.option("--weights", callback=_parse_weights, metavar="W,W,...", help="One for each source [default: equal].")
@click.option("--method", default="mean", show_default=True, metavar="NAME", help="mean, logit or rank.")
@click.option(
    "--select",
    "selects",
    is_flag=True,
    help="Choose weights by hill climbing on the other folds; runs only.",
)
@click.option("--name", help="Name of the blend; on the leaderboard NAME-hand [default: the sources and the method].")
@common_options
@planned("ichkit.stages.stack.blend", "BlendOptions")
def blend_command(plan: "BlendPlan") -> None:
    """Blend runs and stacks with weights of your own; `evaluate` scores the blend beside its members."""
    from ichkit.stages.stack.blend import render, run

    show(render(run(plan)))
