"""The command line: each command parses its options and calls one stage."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ichkit import __version__
from ichkit.cli.completion import (
    complete_checklist,
    complete_run,
    complete_runs,
    complete_source,
    complete_training_source,
)
from ichkit.cli.config import config_commands
from ichkit.cli.external import external_options
from ichkit.cli.labels import label_commands
from ichkit.cli.model import (
    explain_command,
    export_command,
    kernel_command,
    predict_command,
    watch_command,
    winner_command,
)
from ichkit.cli.plan import planned
from ichkit.cli.run import demo, run_command
from ichkit.cli.search import blend_command, tune_command
from ichkit.cli.terminal import (
    PATH,
    CommandGroup,
    Settings,
    common_options,
    epilog,
    parse_folds,
    show,
    submissions_option,
)

if TYPE_CHECKING:
    from ichkit.phantom.writer import PhantomPlan
    from ichkit.stages.prepare.run import PreparePlan
    from ichkit.stages.report.run import ReportPlan
    from ichkit.stages.scores.adversarial import AdversarialPlan
    from ichkit.stages.scores.evaluate import EvaluatePlan, FilePlan
    from ichkit.stages.scores.leaderboard import LeaderboardPlan
    from ichkit.stages.scores.robustness import RobustnessPlan
    from ichkit.stages.scores.submit import SubmitPlan
    from ichkit.stages.stack.run import StackPlan
    from ichkit.stages.train.run import TrainPlan

# Stages are imported inside the commands: torch alone takes seconds, and `--help` should not.

_USER_ERROR = 2
_SECTIONS = {
    "Pipeline steps, in order": ("prepare", "train", "stack", "evaluate", "submit", "leaderboard", "report"),
    "Search and blend": ("tune", "blend"),
    "Use a trained model": ("predict", "watch", "explain", "export", "kernel", "winner"),
    "Labels, synthetic data and pipelines": ("labels", "demo", "phantom", "run"),
    "Inspect": ("doctor", "verify", "config"),
}


@click.group(
    cls=CommandGroup,
    sections=_SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`ichkit help COMMAND` shows the options of a command with examples.",
)
@click.version_option(__version__, prog_name="ichkit")
def main() -> None:
    """Detect intracranial hemorrhage on head CT: from DICOM files to the leaderboard. Research use only."""


@main.command(
    epilog=epilog(
        "ichkit phantom phantom --studies 60",
        "ichkit phantom infarcts --kind ischemia --studies 40",
        "ichkit phantom strokes --kind onset --studies 40",
    )
)
@click.argument("out", type=PATH)
@click.option("--studies", type=click.IntRange(1), help="Number of training studies [default: from the config, 60].")
@click.option("--test-studies", type=click.IntRange(0), help="Number of test studies [default: from the config, 15].")
@click.option("--cq500-studies", type=click.IntRange(0), help="Number of CQ500 studies [default: from the config, 20].")
@click.option(
    "--size", type=click.IntRange(64, 1024), help="Rows and columns of each image [default: from the config, 512]."
)
@click.option("--seed", type=int, help="Random seed [default: from the config, 0].")
@click.option("--kind", help="hemorrhage, ischemia, or onset (MR) [default: from the config, hemorrhage].")
@click.option("--difficulty", help="demo, or real: subtle bleeds and look-alikes [default: from the config, demo].")
@click.option("--masks", "keep_masks", is_flag=True, help="Also write the segmentation masks of the lesions.")
@common_options
@planned("ichkit.phantom.writer", "PhantomOptions")
def phantom(plan: "PhantomPlan") -> None:
    """Write synthetic scans of heads below OUT, to try every command without real data."""
    from ichkit.phantom.writer import run

    run(plan)


@main.command(
    epilog=epilog(
        "ichkit prepare --rsna data/rsna --cq500 data/cq500",
        "ichkit prepare --folder scans/ --labels labels.csv",
        "ichkit prepare --external site=scans/ --labels site=labels.csv --subgroup hospital",
        "ichkit prepare --cq500 data/cq500 --external cq500-thin=data/cq500",
    )
)
@click.option(
    "--source",
    shell_complete=complete_training_source,
    help="Source of the training data: rsna, folder, or one that a plug-in adds [default: rsna].",
)
@click.option("--rsna", type=PATH, help="RSNA 2019: folder or zip file (env ICHKIT_RSNA) [default: data/rsna].")
@click.option("--cq500", type=PATH, help="CQ500, optional: folder (env ICHKIT_CQ500) [default: data/cq500].")
@click.option("--folder", type=PATH, help="Your own scans: folder or zip file of DICOM; needs --labels.")
@click.option("--series-override", type=PATH, help="Series selected by hand: CSV with columns study_id, series.")
@click.option("--limit-studies", type=click.IntRange(1), help="Prepare at most this many studies of each split.")
@click.option(
    "--lock",
    type=click.FloatRange(0, 0.5, min_open=True),
    metavar="SHARE",
    help="Lock this share of the patients out of all training, for --prove [default: none, or those locked before].",
)
@click.option("--fresh", is_flag=True, help="Prepare everything again; folds.csv and locked patients are kept.")
@click.option("--new-folds", is_flag=True, help="Re-create the folds; existing runs become invalid.")
@click.option("--folds", "folds_file", type=PATH, help="Import the folds from a CSV with columns patient_id, fold.")
@click.option("--strict", is_flag=True, help="Stop at the first unreadable file.")
@click.option("--accept-raw", is_flag=True, help="Accept images whose pixel values may not be Hounsfield units.")
@click.option("--skip-undecodable", is_flag=True, help="Skip images whose decoder is not installed.")
@click.option(
    "--store",
    type=click.Choice(("compact", "fast")),
    help="How volumes are compressed: fast is faster, and a quarter larger [default: from the config, compact].",
)
@click.option(
    "--backend",
    type=click.Choice(("processes", "ray")),
    help="Local processes, or a Ray cluster (env RAY_ADDRESS; extra ray) [default: from the config, processes].",
)
@common_options
@external_options
@planned("ichkit.stages.prepare.run", "PrepareOptions")
def prepare(plan: "PreparePlan") -> None:
    """Convert DICOM to a compressed store in Hounsfield units, with patient-wise folds."""
    from ichkit.stages.prepare.run import run

    run(plan)


def _name_after_config(ctx: click.Context, _option: click.Parameter, given: str | None) -> str:
    """The name of the run; by default that of its config, which is an eager option and so parsed already."""
    return Path(ctx.params["config"]).stem if given is None else given


@main.command(
    epilog=epilog(
        "ichkit train --fold 0", "ichkit train -c resnet50-midl --fold 0,1", "ichkit train --time-limit 8 --dry-run"
    )
)
@click.option(
    "--fold",
    "folds",
    multiple=True,
    callback=parse_folds,
    help='Fold to train: a number, "0,1" or "all"; repeatable [default: all].',
)
@click.option(
    "--run",
    "run_name",
    callback=_name_after_config,
    shell_complete=complete_run,
    help="Name of the run [default: the name of the config].",
)
@click.option("--fresh", is_flag=True, help="Train from scratch; existing results of these folds are replaced.")
@click.option("--embeddings", is_flag=True, help="Save penultimate-layer embeddings for stage 2.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="HOURS",
    help="Train as many epochs and folds as are expected to fit [default: all].",
)
@common_options
@planned("ichkit.stages.train.run", "TrainOptions")
def train(plan: "TrainPlan") -> None:
    """Stage 1: train the 2D network on each fold and save its out-of-fold predictions."""
    from ichkit.stages.train.run import run

    run(plan)


def _parse_runs(_ctx: click.Context, _option: click.Parameter, given: str | None) -> list[str] | None:
    if given is None:
        return None
    runs = [run.strip() for run in given.split(",") if run.strip()]
    if not runs:
        raise click.BadParameter("expected names of runs, found none")
    return runs


@main.command(epilog=epilog("ichkit stack", "ichkit stack --runs default,resnet50-midl"))
@click.option(
    "--runs",
    callback=_parse_runs,
    shell_complete=complete_runs,
    help="Runs to stack, separated by commas [default: all complete runs].",
)
@click.option("--name", help="Name of the stack [default: the names of the runs joined by +].")
@click.option("--prove", "proves", is_flag=True, help="Also measure its gains on the locked patients (prepare --lock).")
@common_options
@planned("ichkit.stages.stack.run", "StackOptions")
def stack(plan: "StackPlan") -> None:
    """Stage 2: train axial fusion, LightGBM and their blend on the out-of-fold predictions."""
    from ichkit.stages.stack.facts import render
    from ichkit.stages.stack.run import run

    for table in render(run(plan)):
        show(table)
    if plan.options.proves:
        from ichkit.stages.scores import prove

        proof = prove.plan(plan.config, plan.work, prove.ProveOptions(plan.final.name))
        show(prove.render(prove.run(proof), proof.data))


@main.command(
    epilog=epilog(
        "ichkit evaluate",
        "ichkit evaluate --source default-blend",
        "ichkit evaluate --protocols",
        "ichkit evaluate --robustness",
        "ichkit evaluate --adversarial",
        "ichkit evaluate --submission mine.csv --truth labels.csv",
    )
)
@click.option(
    "--source",
    shell_complete=complete_source,
    help="Show all tables of this run or stack [default: a summary of the best one].",
)
@click.option("--all", "is_whole", is_flag=True, help="Print every row of scores.parquet.")
@click.option(
    "--prove", "proves", is_flag=True, help="Measure the gains of all stacks on the locked patients (prepare --lock)."
)
@click.option("--protocols", is_flag=True, help="Score the external sets under every published protocol.")
@click.option(
    "--robustness",
    "perturbs",
    is_flag=True,
    help="Measure a run on noisy, shifted, moved and coarser held-out scans [default: the best run; --source].",
)
@click.option(
    "--adversarial",
    "is_adversarial",
    is_flag=True,
    help="Adversarial validation: measure how well the data sets are told apart, and by what; needs no run.",
)
@click.option("--submission", type=PATH, help="Score this submission file (ID,Label) instead; needs --truth.")
@click.option("--truth", type=PATH, help="Ground-truth labels of that file (ID,Label).")
@common_options
@planned("ichkit.stages.scores.command", "EvaluateOptions")
def evaluate(plan: "EvaluatePlan | FilePlan | RobustnessPlan | AdversarialPlan") -> None:
    """Score every run and stack: weighted log loss, AUC and external test, with confidence intervals."""
    from ichkit.stages.scores import summary, tables
    from ichkit.stages.scores.adversarial import AdversarialPlan
    from ichkit.stages.scores.evaluate import FilePlan, run, score_submission
    from ichkit.stages.scores.robustness import RobustnessPlan

    if isinstance(plan, FilePlan):
        show(summary.render_submission(score_submission(plan.submission, plan.truth, plan.task)))
        return
    if isinstance(plan, AdversarialPlan):
        from ichkit.stages.scores import adversarial

        for table in adversarial.render_all(plan, adversarial.run(plan)):
            show(table)
        return
    if isinstance(plan, RobustnessPlan):
        from ichkit.stages.scores import robustness

        data = str(plan.prepared.manifest.facts["data"])
        show(summary.with_data_note(tables.robustness(robustness.run(plan), plan.prepared.task), data))
        return
    run(plan)
    options, task = plan.options, plan.prepared.task
    if plan.protocols is not None:
        for table in summary.render_protocols(plan.protocols, options.source, is_whole=options.is_whole):
            show(table)
        return
    if options.proves:
        from ichkit.stages.scores import prove

        proof = prove.plan(plan.config, plan.work)
        show(prove.render(prove.run(proof), proof.data))
        return
    for table in summary.render(plan.work, task, options.source, is_whole=options.is_whole):
        show(table)


@main.command(epilog=epilog("ichkit submit", "ichkit submit --source default-blend --upload"))
@click.option(
    "--source", shell_complete=complete_source, help="Run or stack to submit [default: the best complete one]."
)
@click.option(
    "--upload",
    "uploads",
    is_flag=True,
    help="Also upload the file to Kaggle, at most once, with the kaggle command (extra kaggle).",
)
@submissions_option
@common_options
@planned("ichkit.stages.scores.submit", "SubmitOptions")
def submit(plan: "SubmitPlan") -> None:
    """Write the submission file of a run or stack, and update the leaderboard."""
    from ichkit.stages.scores import leaderboard as board
    from ichkit.stages.scores.submit import run

    name, submissions = run(plan).source.name, plan.options.submissions
    if plan.options.uploads:
        from ichkit.stages.scores.upload import upload, what_next

        click.echo(f"kaggle: {upload(submissions, name)}\n{what_next(name)}")
    work, task = plan.scoring.work, plan.scoring.prepared.task
    show(board.render(work, board.build(work, submissions, task), task))


@main.command(
    epilog=epilog(
        "ichkit leaderboard",
        "ichkit leaderboard --record default-blend --private 0.0473",
        "ichkit leaderboard --pareto --export board.md",
    )
)
@click.option("--record", metavar="NAME", help="Record Kaggle scores of this submission; needs --public or --private.")
@click.option("--public", "public_score", type=float, help="Public score shown by Kaggle.")
@click.option("--private", "private_score", type=float, help="Private score shown by Kaggle.")
@click.option(
    "--pareto", is_flag=True, help="Show only sources that no other beats in both log loss and prediction time."
)
@click.option("--export", type=PATH, help="Also write the table to this file: .csv, .md (Markdown) or .tex (LaTeX).")
@submissions_option
@common_options
@planned("ichkit.stages.scores.leaderboard", "LeaderboardOptions")
def leaderboard(plan: "LeaderboardPlan") -> None:
    """Print the leaderboard, or record the Kaggle scores of a submission."""
    from ichkit.stages.scores.leaderboard import render, run

    show(render(plan.scoring.work, run(plan), plan.scoring.prepared.task, is_pareto=plan.options.pareto))


main.add_command(tune_command)
main.add_command(blend_command)
main.add_command(predict_command)
main.add_command(watch_command)
main.add_command(export_command)
main.add_command(kernel_command)
main.add_command(winner_command)
main.add_command(explain_command)


@main.command(
    epilog=epilog("ichkit report", "ichkit report --label-errors", "ichkit report --checklist claim --tables")
)
@click.option(
    "--label-errors", is_flag=True, help="Also list labels that the out-of-fold predictions contradict (HTML and CSV)."
)
@click.option(
    "--checklist",
    "checklists",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_checklist,
    help="Also fill the checklist of a reporting guideline, claim, tripod-ai or stard-ai (HTML and CSV); repeatable.",
)
@click.option("--tables", "has_tables", is_flag=True, help="Also write every table to work/tables, as CSV and LaTeX.")
@click.option(
    "--word", "has_word", is_flag=True, help="Also write every table as CSV, LaTeX and one Word document (extra word)."
)
@submissions_option
@common_options
@planned("ichkit.stages.report.run", "ReportOptions")
def report(plan: "ReportPlan") -> None:
    """Write one self-contained HTML page: leaderboard, curves, example images and provenance."""
    from ichkit.stages.report.run import run

    run(plan)


main.add_command(run_command)
main.add_command(demo)


@main.command(epilog=epilog("ichkit verify"))
@submissions_option
@common_options
def verify(settings: Settings, submissions: Path) -> None:
    """Check the SHA-256 digests of every artifact and submission."""
    from ichkit.stages.doctor import verify as stage

    damage = stage.run(settings.work, submissions)
    for line in damage:
        click.echo(line)
    if damage:
        click.get_current_context().exit(_USER_ERROR)
    click.echo("every artifact is unchanged since it was written")


@main.command(epilog=epilog("ichkit doctor", "ichkit doctor --json"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@submissions_option
@common_options
def doctor(settings: Settings, submissions: Path, as_json: bool) -> None:
    """Check this machine, the data and the work folder, and suggest the next command."""
    from ichkit.stages.doctor.packages import check_packages

    check_packages()
    config, name = settings.load(), settings.config_name if settings.is_config_named else None
    from ichkit.stages.doctor.gpus import ask_torch

    asked = ask_torch()  # before the imports below, which take as long
    from ichkit.stages.doctor import run as stage
    from ichkit.stages.doctor import table

    diagnosis = stage.run(config, settings.work, submissions, name, asked)
    if as_json:
        click.echo(json.dumps(asdict(diagnosis), indent=2))
    else:
        show(table.render(diagnosis))
        click.echo(f"What to do next: {diagnosis.next.command}\n{diagnosis.next.reason}")
    if diagnosis.problems:
        click.get_current_context().exit(_USER_ERROR)


main.add_command(config_commands)
main.add_command(label_commands)
