"""A search from end to end: what is chosen and by whom, resuming, and what its files say."""

import json
import types

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from support.pixels import make_pixel_work
from support.simulated import TASK, flip_labels
from support.training import config, read_files

from ichkit.cli.main import main
from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, ConfigError, Stopped
from ichkit.imaging.store import Prepared
from ichkit.stages.tune import run as tune
from ichkit.stages.tune.outcome import describe_outcome, render
from ichkit.validation.metrics import weighted_log_loss
from ichkit.work.artifacts import ArtifactWriter, find_damage, read_manifest
from ichkit.work.folder import WorkFolder

SHARE = "train.validation.share=0.25"
# One fold after the other in this process.
ONE_LANE = "train.threads=null"
RATES = ("train.learning_rate=0.0003,0.003",)
TABLES = ("trials.json", "trials.csv", "values.csv", "epochs.csv", "best.yaml", "tune.html")


def search(work, *changes, **options):
    asked = tune.TuneOptions(**{"tries": RATES, **options})
    return tune.run(tune.plan(config(SHARE, ONE_LANE, "train.epochs=1", *changes), work, asked))


def folds_of(work, run):
    return {fold: read_files(work.fold(run, fold)) for fold in (0, 1) if work.fold(run, fold).is_dir()}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A store with the search `tune` over two learning rates, on both folds."""
    work = make_pixel_work(tmp_path_factory.mktemp("work"), num_patients=16)
    search(work)
    return work


@pytest.fixture
def outcome(work):
    return search(work)


# Training that takes no time: a fold is its history, worked out from the settings.


def write_fold(work, run, fold, losses, **facts):
    writer = ArtifactWriter(work.fold(run, fold), "fold")
    history = {"phase": 1, "epoch": range(1, len(losses) + 1), "validation_weighted_log_loss": losses}
    writer.write_table("history.csv", pd.DataFrame(history))
    manifest = {"seconds": 1.0, "kept_epoch": len(losses), "data": "phantom", "task": TASK.name, "run": run, **facts}
    writer.commit(settings={"run": run}, inputs={}, facts=manifest)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A work folder, the losses of a fold by the rate and the fold, and the trainings that took place."""
    work = make_pixel_work(tmp_path / "quick", num_patients=4, num_folds=2)
    world = types.SimpleNamespace(work=work, trained=[], stops_at=None, folds=(0, 1), fails=())
    world.loss = lambda rate, fold: abs(np.log10(rate) + 3) + 0.1 * fold

    def plan(made, folder, options):
        return types.SimpleNamespace(config=made, options=options, folds=tuple(options.folds or world.folds))

    def train(plan):
        rate = plan.config.train.learning_rate
        for fold in plan.folds:
            if rate in world.fails:
                raise ConfigError("train: expected a finite loss, found nan")
            if len(world.trained) == world.stops_at:
                world.stops_at = None
                raise Stopped.after("nothing")
            world.trained.append((plan.options.run_name, fold))
            if not work.fold(plan.options.run_name, fold).exists():
                write_fold(work, plan.options.run_name, fold, [0.9, world.loss(rate, fold)])
        return []

    monkeypatch.setattr(tune.train, "plan", plan)
    monkeypatch.setattr(tune.train, "run", train)

    def run(**options):
        asked = tune.TuneOptions(**{"tries": RATES, **options})
        return tune.run(tune.plan(load_config("default", (SHARE, "evaluate.num_draws=50")), work, asked))

    world.run = run
    return world


# the choice


def test_a_fold_gets_the_settings_that_are_best_by_its_own_validation_patients(work, outcome):
    for fold in (0, 1):
        losses = []
        for number in (0, 1):
            history = pd.read_csv(work.fold(f"tune-{number}", fold) / "history.csv")
            losses.append(history.validation_weighted_log_loss.iloc[-1])
        assert outcome.choice.of_folds[fold] == int(np.argmin(losses))
        chosen, copy = read_files(work.fold(f"tune-{np.argmin(losses)}", fold)), read_files(work.fold("tune", fold))
        assert {name: copy[name] for name in copy if name != "manifest.json"} == {
            name: chosen[name] for name in chosen if name != "manifest.json"
        }
        facts = read_manifest(work.fold("tune", fold)).facts
        assert (facts["run"], facts["chosen_by"]["trial"]) == ("tune", f"tune-{np.argmin(losses)}")


def test_each_fold_has_a_choice_of_its_own(quick):
    quick.loss = lambda rate, fold: rate if fold == 0 else 1 - rate
    found = quick.run(tries=("train.learning_rate=0.1,0.2,0.3",))
    assert found.choice.of_folds == {0: 0, 1: 2}
    losses = [pd.read_csv(quick.work.fold("tune", fold) / "history.csv").iloc[-1, -1] for fold in (0, 1)]
    assert losses == [0.1, 0.7]


def test_labels_of_the_held_out_fold_change_nothing_of_its_choice(work, outcome, tmp_path):
    other = make_pixel_work(tmp_path / "other", num_patients=16)
    flip_labels(other, 0)
    found = search(other)
    for trial, flipped in zip(outcome.trials, found.trials, strict=True):
        assert flipped.values[0] == trial.values[0]
        assert flipped.values[1] != trial.values[1]  # its networks were trained on fold 0
    assert found.choice.of_folds[0] == outcome.choice.of_folds[0]
    same = ("model.safetensors", "oof.parquet", "test.parquet", "cq500.parquet")
    before, after = folds_of(work, "tune"), folds_of(other, "tune")
    assert all(before[0][name] == after[0][name] for name in same)
    assert before[1]["model.safetensors"] != after[1]["model.safetensors"]
    # Out of fold the values do depend on them, so that the same comparison would see it.
    one, two = (search(place, objective="oof-loss", name="oof", folds=[0]) for place in (work, other))
    assert [trial.value for trial in one.trials] != [trial.value for trial in two.trials]


def test_the_value_out_of_fold_is_the_loss_of_all_rows_with_its_interval_and_optimism(work):
    found = search(work, objective="oof-loss", name="oof-all")
    labels = Prepared.open(work.prepared, TASK).split("train").set_index("slice_id")
    for trial in found.trials:
        table = pd.concat([pd.read_parquet(work.fold(trial.run, fold) / "oof.parquet") for fold in (0, 1)])
        truth = labels.loc[table.slice_id, list(TASK.classes)].to_numpy(np.float64)
        expected = weighted_log_loss(table[TASK.probability_columns].to_numpy(np.float64), truth, TASK.weight_array())
        assert trial.value == pytest.approx(expected, rel=1e-12)
        interval = found.choice.intervals[trial.number]
        assert interval.low < trial.value < interval.high
    values = [trial.value for trial in found.trials]
    assert found.choice.best == int(np.argmin(values))
    assert found.choice.of_folds == {}
    assert not work.fold("oof-all", 0).exists()
    assert found.choice.selection.value == pytest.approx(min(values))
    assert f"optimism of the choice {found.choice.selection.optimism:+.5f}" in describe_outcome(found)


def test_a_search_that_is_up_to_date_trains_nothing_and_every_file_is_listed(work, outcome):
    before = folds_of(work, "tune-0")
    assert tune.plan(config(SHARE, ONE_LANE, "train.epochs=1"), work, tune.TuneOptions(tries=RATES)).is_idle
    assert folds_of(work, "tune-0") == before
    folder = work.searches / "tune"
    assert set(read_manifest(folder).files) == set(TABLES)
    assert find_damage(folder, read_manifest(folder)) == []
    epochs = pd.read_csv(folder / "epochs.csv")
    assert epochs[["trial", "fold"]].drop_duplicates().to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    values = pd.read_csv(folder / "values.csv")
    assert values[values.is_chosen].groupby("fold").trial.first().to_dict() == outcome.choice.of_folds
    best = load_config(str(folder / "best.yaml"))
    assert best.train.learning_rate == (0.0003, 0.003)[outcome.choice.best]
    assert best.train.accelerator == "cpu"  # also what only changes speed or the last digits
    page = (folder / "tune.html").read_text()
    *_, curves = page.split("<svg")
    assert page.count("<svg") == 3
    assert ">1</text>" in curves  # of one epoch, which is a whole number
    assert "Validation weighted log loss after each epoch" in curves
    assert "its out-of-fold score is not optimistic" in page


# searching


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_a_search_that_was_stopped_ends_like_one_that_was_not(quick, sampler, tmp_path):
    rates = ("train.learning_rate=1e-5..1e-1:log",) if sampler != "grid" else ("train.learning_rate=1e-4,1e-3,1e-2",)
    options = {"tries": rates, "sampler": sampler, "trials": None if sampler == "grid" else 12}
    whole = quick.run(**options)
    files = read_files(quick.work.searches / "tune")
    quick.run(**{**options, "fresh": True, "trials": 3})
    for stop in (0, 3):
        quick.trained.clear()
        quick.stops_at = stop
        with pytest.raises(Stopped):
            quick.run(**{**options, "fresh": stop == 0})
    again = quick.run(**options)
    assert [trial.params for trial in again.trials] == [trial.params for trial in whole.trials]
    after = read_files(quick.work.searches / "tune")
    for name in TABLES:
        assert after[name] == files[name], name
    manifests = [json.loads(found["manifest.json"]) for found in (files, after)]
    assert manifests[0]["inputs"] == manifests[1]["inputs"]


def test_more_trials_go_on_where_a_search_ended(quick):
    options = {"tries": ("train.learning_rate=1e-5..1e-1:log",), "sampler": "random"}
    first = quick.run(**options, trials=3)
    quick.trained.clear()
    second = quick.run(**options, trials=5)
    assert [trial.params for trial in second.trials[:3]] == [trial.params for trial in first.trials]
    assert {run for run, _ in quick.trained} == {"tune-3", "tune-4"}
    assert len(quick.run(**options, trials=2).trials) == 5


def test_settings_that_were_tried_are_not_trained_again(quick):
    found = quick.run(tries=("train.epochs=1..2", "train.learning_rate=0.001"), sampler="random", trials=8)
    assert len({trial.run for trial in found.trials}) == 2
    assert len(quick.trained) == 4
    assert [trial.number for trial in found.trials] == list(range(8))


def test_a_trial_that_is_far_behind_ends_after_a_fold_and_is_never_chosen(quick):
    # Ahead of all others over both folds, had it the second one; behind them on the first, which is the one they share.
    quick.loss = lambda rate, fold: 0.9 if rate > 0.05 else (0.5, 2.0)[fold]
    rates = "train.learning_rate=" + ",".join(f"{number}e-4" for number in range(1, 7)) + ",0.06"
    found = quick.run(tries=(rates,), pruner="median")
    last = found.trials[-1]
    assert (last.state, last.folds) == ("pruned", (0,))
    assert ("tune-6", 1) not in quick.trained
    assert found.choice.best != 6
    assert not found.plan.is_nested
    assert "slightly optimistic" in describe_outcome(found)
    assert not quick.work.fold("tune", 0).exists()


def test_a_trial_that_fails_is_listed_with_its_reason_and_the_search_goes_on(quick):
    quick.fails = (0.003,)
    found = quick.run(tries=("train.learning_rate=0.003,0.0003",))
    assert [trial.state for trial in found.trials] == ["failed", "complete"]
    assert found.choice.best == 1
    assert "expected a finite loss" in (quick.work.searches / "tune" / "tune.html").read_text()
    quick.fails = (0.003, 0.0003)
    with pytest.raises(ConfigError, match="every trial failed; the first: train: expected a finite loss"):
        quick.run(name="other")


def test_a_run_that_was_removed_is_trained_again(quick):
    before = quick.run()
    for fold in (0, 1):
        (quick.work.fold("tune-1", fold) / "manifest.json").unlink()
        (quick.work.fold("tune-1", fold) / "history.csv").unlink()
        quick.work.fold("tune-1", fold).rmdir()
    quick.trained.clear()
    after = quick.run()
    assert quick.trained == [("tune-1", 0), ("tune-1", 1)]
    assert [trial.values for trial in after.trials] == [trial.values for trial in before.trials]


def test_starting_over_removes_the_runs_of_the_search_and_no_other(quick):
    quick.run()
    write_fold(quick.work, "mine", 0, [0.1])
    quick.run(tries=("train.learning_rate=0.02",), fresh=True)
    assert not quick.work.fold("tune-1", 0).exists()
    assert quick.work.fold("mine", 0).exists()


def test_the_table_shows_the_best_first_and_marks_what_was_chosen(quick):
    table = render(quick.run(tries=("train.learning_rate=0.0003,0.003,0.001",)))
    assert [row[0].text for row in table.rows] == ["tune-2", "tune-1", "tune-0"]
    assert [row[3] for row in table.rows] == ["0+1", "-", "-"]


# refusals


def test_what_cannot_be_searched_is_refused_with_what_to_do(quick):
    quick.run()
    for options, message in (
        ({"objective": "losses"}, "Did you mean"),
        ({"sampler": "tpe"}, "needs a number of trials, e.g. --trials 20"),
        ({"tries": ("train.learning_rate=1e-4..1e-2",)}, "found a range of real numbers"),
        ({"pruner": "median", "folds": [0]}, "found one fold"),
        ({"name": "../up"}, "tune --name: expected a name"),
        ({"tries": ("train.epochs=x,y",)}, "train.epochs: Input should be a valid integer"),
    ):
        with pytest.raises(ConfigError) as caught:
            quick.run(**options)
        assert message in str(caught.value)
    with pytest.raises(ArtifactError, match=r"a search with other settings \(space\.train\.learning_rate"):
        quick.run(tries=("train.learning_rate=0.1,0.2",))
    write_fold(quick.work, "mine", 0, [0.1])
    with pytest.raises(ConfigError, match="mine is a run that was trained by itself"):
        quick.run(name="mine")
    with pytest.raises(ConfigError, match=r"needs validation patients.*train\.validation\.share=0\.15"):
        tune.plan(load_config("default"), quick.work, tune.TuneOptions(tries=RATES))


def test_a_damaged_file_of_trials_is_named(quick):
    quick.run()
    path = quick.work.searches / "tune" / "trials.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ArtifactError, match=r"trials\.json: cannot be read"):
        quick.run()


def test_the_command_plans_runs_and_prints_the_table(quick):
    words = ["tune", "--try", "train.learning_rate=0.001,0.01", "--set", SHARE, "--work", str(quick.work.root)]
    planned = CliRunner().invoke(main, [*words, "--objective", "oof-loss", "--name", "other", "--dry-run"])
    assert planned.exit_code == 1 or "2 trials by grid" in planned.output
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "tune-0" in done.output
    assert "best.yaml" in done.output
    assert CliRunner().invoke(main, [*words, "--objective", "nothing"]).exit_code == 2


def test_the_folder_of_a_search_is_one_that_verify_knows(quick):
    quick.run()
    from ichkit.work.inventory import take_inventory

    entries = [entry.folder for entry in take_inventory(WorkFolder(quick.work.root)).finished]
    assert quick.work.searches / "tune" in entries
