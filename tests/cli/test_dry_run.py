"""`--dry-run`: the plan is what then happens, and not a byte, name or time of a file is another afterwards."""

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from click.testing import CliRunner
from support.commands import TINY
from support.simulated import make_stack, make_work

from ichkit.cli.main import main
from ichkit.core.config import load_config
from ichkit.core.progress import format_seconds
from ichkit.core.tasks import find_task
from ichkit.engine.inference import ModelCard
from ichkit.show.plan import Forecast, Plan, render
from ichkit.stages.scores import submit
from ichkit.stages.train import lanes
from ichkit.stages.train import plan as train_plan
from ichkit.stages.train import run as train
from ichkit.stages.train.lanes import spread
from ichkit.stages.train.plan import ForeseenTraining
from ichkit.stages.tune import run as tune
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder

SMALL = ["-c", "demo", *(word for text in (*TINY, "prepare.size=null") for word in ("--set", text))]
WRITERS = (
    "phantom",
    "prepare",
    "train",
    "stack",
    "tune",
    "blend",
    "evaluate",
    "submit",
    "leaderboard",
    "predict",
    "watch",
    "explain",
    "export",
    "kernel",
    "winner",
    "report",
    "run",
    "demo",
)


def call(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="ichkit")
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def tree_of(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder: when it was last changed, and its size."""
    found = [(path, path.stat()) for path in [root, *root.rglob("*")]]
    return {path.relative_to(root).as_posix(): (state.st_mtime_ns, state.st_size) for path, state in found}


@pytest.fixture(scope="module")
def world(prepared_once, phantom_root, tmp_path_factory):
    """A folder with a store (`real`), one with finished runs and a stack (`made`), and scans."""
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(prepared_once.root, root / "real")
    shutil.copytree(phantom_root, root / "phantom")
    work = make_work(root / "made", num_patients=20, num_folds=3, folds=(0, 1, 2), cq500_studies=4)
    make_stack(work, runs=("base",), kinds=("lightgbm", "blend"))
    (root / "begun").mkdir()
    return root


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


SAME = [
    word
    for text in ("studies=16", "test_studies=6", "cq500_studies=6", "size=64")
    for word in ("--set", f"phantom.{text}")
]
"""The phantom that is there."""
SCORED = ["--work", "made", "--set", "evaluate.num_draws=40"]
CASES = {
    "phantom": (["phantom", "new", "--studies", "3", "--size", "64"], "18 as RSNA 2019"),
    "phantom that is there": (
        ["phantom", "phantom", *["--studies", "16", "--test-studies", "6", "--cq500-studies", "6", "--size", "64"]],
        "nothing to do",
    ),
    "prepare": (["prepare", "--rsna", "phantom/rsna", "--cq500", "phantom/cq500", "--work", "new", *SMALL], "rsna: "),
    "prepare --fresh": (
        ["prepare", "--rsna", "phantom/rsna", "--fresh", "--work", "real", *SMALL],
        "removes real/prepared first",
    ),
    "train": (["train", "--fold", "0", "--work", "real", *SMALL], "fold 0: 1 epochs of"),
    "train of a run": (["train", "--run", "mine", "--work", "real", *SMALL], "real/runs/mine/fold2"),
    "stack": (["stack", "--name", "other", "--work", "made"], "lightgbm and their blend: 6 fits of 3 fold models"),
    "blend": (["blend", "base", "base-lightgbm", "--weights", "3,1", "--work", "made"], "weights base 0.750"),
    "tune": (
        ["tune", "--try", "train.learning_rate=0.001,0.01", "--objective", "oof-loss", "--work", "real", *SMALL],
        "tune-1: train.learning_rate=0.01",
    ),
    "evaluate": (["evaluate", *SCORED], "scores 3 of 3 sources"),
    "submit": (["submit", *SCORED], "the best complete source, once all are scored"),
    "submit --source": (["submit", "--source", "base", *SCORED], "submissions/base.csv"),
    "leaderboard": (["leaderboard", *SCORED], "submissions/leaderboard.csv"),
    "predict": (["predict", "phantom/rsna/stage_2_test", "--model", "base", "--work", "made"], "base: 3 networks"),
    "watch": (["watch", "phantom/rsna/stage_2_test", "--model", "base", "--work", "made"], "looks every 5 s until"),
    "explain": (["explain", "--worst", "3", "--work", "made"], "3 held-out slices of base, by the networks of folds"),
    "kernel": (["kernel", "base", "--work", "made"], "notebook/inference.ipynb, data set ichkit-base"),
    "winner": (["winner", "base", "--work", "made"], "MODEL_SUMMARY.md, entry_points.md, SETTINGS.json"),
    "export": (["export", "base", "--work", "made"], "export/base"),
    "report": (["report", *SCORED], "made/report.html"),
    "run": (["run", "demo", "--work", "new", *SMALL, *SAME], "cannot be planned until the previous commands have run"),
    "demo": (["demo"], "the phantom alone takes about"),
    "demo that was begun": (["demo", "begun"], "cannot be planned until the previous commands have run"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_shows_a_plan_and_leaves_the_tree_of_files_as_it_was(here, name):
    words, expected = CASES[name]
    before = tree_of(here)
    printed = call(*words, "--dry-run")
    assert expected in printed
    assert "Nothing was written" in printed
    assert tree_of(here) == before


def test_every_command_that_writes_has_the_option_and_says_disk_and_time(here):
    assert {words[0] for words, _ in CASES.values()} == set(WRITERS)
    for name in WRITERS:
        assert "--dry-run" in call(name, "--help")
    printed = call("prepare", "--rsna", "phantom/rsna", "--work", "new", *SMALL, "--dry-run")
    assert re.search(r"disk about [\d.]+ .B; [\d.]+ .B free", printed)
    assert re.search(r"time about [5-9] s, on 1 process, if", printed)  # processes start and compile in seconds
    printed = call("train", "--fold", "0", "--work", "real", *SMALL, "--set", "train.epochs=1000", "--dry-run")
    assert re.search(r"time about \d+ (s|min|h \d+ min), measured on a trial step", printed)


def test_a_huge_sparse_file_among_the_scans_is_counted_in_no_estimate(here, tmp_path):
    shutil.copytree(here / "phantom" / "cq500", tmp_path / "scans")
    found = pydicom.dcmread(next((tmp_path / "scans").rglob("*.dcm")), stop_before_pixels=True)
    classes = find_task("hemorrhage").classes
    rows = [["study_id", *classes], [found.StudyInstanceUID, *"0" * len(classes)]]
    (tmp_path / "labels.csv").write_text("".join(f"{','.join(row)}\n" for row in rows))
    prepare = ["prepare", "--source", "folder", "--folder", tmp_path / "scans", "--labels", tmp_path / "labels.csv"]
    predict = ["predict", tmp_path / "scans", "--model", "base", "--work", "made"]
    commands = ([*prepare, "--work", "new", *SMALL, "--dry-run"], [*predict, "--dry-run"])
    before = [re.sub(r"[\d.]+ .B free", "", call(*words)) for words in commands]
    with (tmp_path / "scans" / "backup.img").open("wb") as file:
        file.truncate(10**13)
    assert [re.sub(r"[\d.]+ .B free", "", call(*words)) for words in commands] == before


def test_the_plan_of_a_submission_names_the_files_that_are_then_written(world, tmp_path, monkeypatch):
    shutil.copytree(world / "made", tmp_path / "made")
    monkeypatch.chdir(tmp_path)
    words = ["submit", "--source", "base-blend", *SCORED]
    planned = call(*words, "--dry-run")
    before = set(tree_of(tmp_path))
    call(*words)
    made = {name for name in set(tree_of(tmp_path)) - before if name.startswith("submissions/")}
    assert made == {"submissions/base-blend.csv", "submissions/base-blend.json", "submissions/leaderboard.csv"}
    for name in (*made, "made/scores"):
        assert name in planned
    # What is scored now need not be scored again, and the best of it is known.
    made = WorkFolder(Path("made"))
    best = submit.plan(load_config("default", ("evaluate.num_draws=40",)), made).source
    after = call("submit", *SCORED, "--dry-run")
    assert f"rows of {best.name}" in after
    assert "made/scores" not in after
    assert "up to date, nothing to do" in call("evaluate", *SCORED, "--dry-run")


def test_the_plan_of_prepare_bounds_what_it_then_takes(here, tmp_path):
    words = ["prepare", "--rsna", "phantom/rsna", "--cq500", "phantom/cq500", "--work", tmp_path / "new", *SMALL]
    planned = call(*words, "--dry-run")
    size, unit = re.search(r"disk about ([\d.]+) (.B)", planned).groups()
    call(*words)
    taken = sum(path.stat().st_size for path in (tmp_path / "new" / "prepared" / "volumes").rglob("*.b2nd"))
    assert 0 < taken <= float(size) * {"kB": 1e3, "MB": 1e6}[unit]
    assert "up to date, nothing to do" in call(*words, "--dry-run")


def test_time_goes_by_what_was_made_before(here):
    unknown = call("stack", "--name", "other", "--work", "made", "--dry-run")
    assert "there is no stack of these stackers" in " ".join(unknown.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--fold", "7", "--work", "real", *SMALL], "found 7"),
        (["train", "--set", "train.backbone=resnet5", "--work", "real", *SMALL], "train.backbone: unknown"),
        (["stack", "--runs", "bsae", "--work", "made"], 'Did you mean "base"'),
        (["submit", "--source", "bse", "--work", "made"], 'Did you mean "base"'),
        (["leaderboard", "--record", "base", "--public", "0.7", *SCORED], 'holds no submission "base"'),
        (["prepare", "--rsna", "nowhere"], "found nothing"),
        (["phantom", "real"], "expected a new or empty folder"),
        (["run", "demo", "--set", "train.epoch=1"], "did you mean train.epochs"),
        (["predict", "nowhere", "--work", "made", "--model", "base"], "nowhere"),
    ],
)
def test_what_would_be_refused_is_refused_in_a_dry_run_too(here, words, message):
    before = tree_of(here)
    assert message in call(*words, "--dry-run", code=2)
    assert tree_of(here) == before


def test_a_recipe_is_planned_as_far_as_its_input_is_there(here):
    printed = call("run", "demo", "--work", "real", *SMALL, *SAME, "--dry-run")
    assert "phantom: what it would do" in printed
    assert "fold 0: 1 epochs of" in printed  # the store is there
    assert "cannot be planned until the previous commands have run" in printed  # no run is


def test_a_recipe_says_how_long_training_would_take_before_anything_is_prepared(here, tmp_path, monkeypatch):
    from ichkit.engine import step_cost

    cost = step_cost.StepCost(seconds=3600.0, activation_bytes=123_000_000)
    monkeypatch.setattr(step_cost, "measure_step_cost", lambda *_, **__: cost)
    monkeypatch.setattr(lanes, "count_cores", lambda: 2)
    for name in ("rsna", "cq500"):
        monkeypatch.setenv(f"ICHKIT_{name.upper()}", str(here / "phantom" / name))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("commands: [prepare, train --run mine --time-limit 9, stack --runs mine]")
    before = tree_of(here)
    printed = call("run", recipe, "--work", "none", *SMALL, "--dry-run")
    assert tree_of(here) == before
    count = {name: len(list((here / "phantom" / name).rglob("*.dcm"))) for name in ("rsna", "cq500")}
    plan = ForeseenTraining(load_config("demo", TINY), WorkFolder("none"), "mine", *count.values())
    folds = 3
    steps = math.ceil(math.ceil(count["rsna"] * (folds - 1) // folds / 7) / 4)
    predicted = count["rsna"] / folds + count["cq500"]
    # Three folds of one thread each on two cores: the third starts when the first two have ended.
    assert plan.forecast().seconds == pytest.approx(2 * 3600 * (steps + predicted / 28 / 3))
    assert f"about {format_seconds(plan.forecast().seconds)}, 2 folds side by side, measured" in printed
    assert "as if every image file were a slice" in printed
    assert "the epochs and folds that fit into 9 h 00 min, chosen once the store is there" in printed
    assert "none/runs/mine/fold2" in printed
    assert "stack" in printed.split("cannot be planned until")[0].rsplit("$", 1)[1]  # only what follows has no plan


def test_the_plan_of_a_training_has_its_memory_and_counts_every_view_of_the_prediction(here, monkeypatch):
    from ichkit.engine import step_cost

    cost = step_cost.StepCost(seconds=90.0, activation_bytes=123_000_000)
    monkeypatch.setattr(step_cost, "measure_step_cost", lambda *_, **__: cost)
    work, options = WorkFolder(here / "real"), train.TrainOptions(run_name="new", folds=[0])
    configs = [load_config("demo", (*TINY, f"train.tta={name}")) for name in ("none", "flip-scale-rotate")]
    plans = [train.plan(config, work, options) for config in configs]
    plain, augmented = (plan.forecast() for plan in plans)
    # Ten views cost nine more, each a third of a trained slice's share of a step of 28.
    slices = read_table(work.prepared / "slices.parquet")
    num_predicted = ((slices.split != "train") | (slices.fold == 0)).sum()
    assert augmented.seconds - plain.seconds == pytest.approx(9 * num_predicted * 90 / 28 / 3)
    assert "with prediction in 10 views" in augmented.basis
    # Weights, gradients, two moments and their average.
    num_weights = sum(parameter.numel() for parameter in ModelCard.of(configs[0], None, (0, 1)).build().parameters())
    assert plain.memory_bytes == 123_000_000 + 5 * 4 * num_weights
    assert "about 127.0 MB for weights and activations" in " ".join(
        text.text for _, text in render(plans[0], "ichkit train").lines
    )


def test_the_plan_of_a_training_counts_folds_side_by_side_as_they_will_run(here, monkeypatch):
    from ichkit.engine import step_cost

    cost = step_cost.StepCost(seconds=90.0, activation_bytes=123_000_000)
    monkeypatch.setattr(step_cost, "measure_step_cost", lambda *_, **__: cost)
    monkeypatch.setattr(lanes, "count_cores", lambda: 2)
    work, forecasts = WorkFolder(here / "real"), {}
    for threads in (1, 2):
        config = load_config("demo", (*TINY, f"train.threads={threads}"))
        of_fold = [train.plan(config, work, train.TrainOptions("new", [k])).forecast().seconds for k in range(3)]
        forecasts[threads] = train.plan(config, work, train.TrainOptions("new")).forecast()
        assert forecasts[threads].seconds == pytest.approx(spread(of_fold, 2 // threads))
    assert forecasts[1].basis.startswith("2 folds side by side, measured on a trial step")
    assert forecasts[2].basis.startswith("one fold after another, measured on a trial step")
    searched = tune.TuneOptions(tries=("train.learning_rate=0.001,0.01",), objective="oof-loss")
    found = tune.plan(load_config("demo", TINY), work, searched).forecast()
    assert found.seconds == pytest.approx(2 * forecasts[1].seconds)
    assert found.basis.startswith("all trials together, one after another: 2 folds side by side, measured")
    pruned = tune.plan(load_config("demo", TINY), work, replace(searched, pruner="median")).forecast()
    assert pruned.basis.startswith("all trials together, one after another: measured")  # fold by fold


def test_memory_that_does_not_suffice_is_said(here, monkeypatch):
    from ichkit.engine import step_cost

    cost = step_cost.StepCost(seconds=90.0, activation_bytes=50_000_000_000)
    monkeypatch.setattr(step_cost, "measure_step_cost", lambda *_, **__: cost)
    monkeypatch.setattr(lanes, "count_cores", lambda: 2)
    for free, expected in ((25e9, "12.5 GB free for each; NOT ENOUGH MEMORY"), (200e9, "per fold")):
        monkeypatch.setattr(train_plan, "free_memory_bytes", lambda free=free: free)
        made = train.plan(load_config("demo", TINY), WorkFolder(here / "real"), train.TrainOptions("new"))
        (line,) = [text for label, text in made_lines(made) if label == "memory"]
        assert line.endswith(expected)


def made_lines(made):
    return [(label.text, text.text) for label, text in render(made, "ichkit train").lines]


def test_less_than_a_second_is_said_in_words(tmp_path):
    class Short(Plan):
        writes = (tmp_path,)

        def forecast(self):
            return Forecast(("one",), seconds=0.2, basis="measured")

    assert ("time", "less than a second, measured") in made_lines(Short())


def test_a_disk_that_is_too_small_is_said(tmp_path):
    class Huge(Plan):
        writes = (tmp_path,)

        def forecast(self):
            return Forecast(("one",), num_bytes=1e18)

    table = render(Huge(), "ichkit train")
    assert "NOT ENOUGH DISK SPACE" in " ".join(text.text for _, text in table.lines)
