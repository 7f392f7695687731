"""What a page says of blends by hand, stacks of several runs and searches, and the commands that make them again."""

import re
import shlex

import numpy as np
import pytest
import yaml
from support.commands import call, do
from support.reports import CONFIG, make_report_work
from support.simulated import TASK, make_stack
from support.workfolders import write_search

from ichkit.cli.main import main
from ichkit.core.config import change_config
from ichkit.stages.predict.card import collect_card
from ichkit.stages.predict.model import model_of
from ichkit.stages.report import run as report
from ichkit.stages.report.commands import list_commands
from ichkit.stages.report.inner import make_inner
from ichkit.stages.report.methods import make_methods
from ichkit.stages.report.overview import find_missing, make_board, make_overview
from ichkit.stages.report.population import make_population
from ichkit.stages.report.provenance import make_repeat, make_training
from ichkit.stages.report.strips import find_before
from ichkit.stages.stack import blend
from ichkit.work.artifacts import ArtifactWriter, read_manifest, read_table

TRIALS = tuple(f"depth-{number}" for number in range(4))


def collect(work, config=CONFIG, best=None):
    given = report.collect(report.plan(config, work, report.ReportOptions(work.root / "submissions")))
    if best is not None:
        given.scores.sources.sort(key=lambda source: source.name != best)
    return given


def rewrite(folder, settings=None, **contents):
    """Other settings, or a config, in a finished artifact, its tables as they are."""
    old = read_manifest(folder)
    kept = {name: (folder / name).read_bytes() for name in old.files}
    writer = ArtifactWriter(folder, old.kind)
    for name, data in (kept | contents).items():
        writer.write_bytes(name, data)
    writer.commit(settings=settings or old.settings, inputs=old.inputs, facts=old.facts)


def text_of(section):
    return str(section).replace("\\n", "\n")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Runs a and b, the stack of both, a blend with weights and one with selected weights, and a search of four."""
    work = make_report_work(tmp_path_factory.mktemp("sources") / "work", runs=("a", "b", *TRIALS), is_stacked=False)
    make_stack(work, runs=("a", "b"), kinds=("fusion", "blend"))
    make_stack(work, runs=("a", TRIALS[1]), kinds=("fusion",))
    rewrite(work.stacks / f"a+{TRIALS[1]}", {"seed": 5, "stack": {**CONFIG.stack.settings(), "num_inner": 3}})
    rewrite(work.fold("b", 0), **{"config.yaml": yaml.safe_dump({"train": {"epochs": 3}}).encode()})
    do(blend, CONFIG, work, sources=["a", "a+b-blend"], weights=[2, 1], name="mine")
    do(blend, CONFIG, work, sources=["a", "b"], selects=True, method="logit", name="picked")
    write_search(work, "depth", TRIALS, best=TRIALS[2], folds=(0, 1))
    return work


def methods_of(given):
    (found,) = (block for block in make_methods(given).blocks if getattr(block, "title", "").startswith("Second stage"))
    return " ".join(one.text for one in found.blocks)


def test_a_blend_by_hand_is_told_by_its_members_weights_and_method(work):
    given = collect(work, best="mine-hand")
    told = methods_of(given)
    assert "blend by hand of a and a+b-blend (`ichkit blend`, mean)" in told
    assert "Its weights were given by hand: a 0.667, a+b-blend 0.333." in told
    assert "even with weight 1 for a run, these rows differ" in told
    assert "Its member a+b is a stack." in told
    assert "blend by hand of a and a+b-blend, folds 0+1" in text_of(make_overview(given))
    assert {"a", "b", "a+b-fusion", "a+b-blend", "mine-hand"} == {source.name for source in given.stages}
    card = collect_card(work, model_of(work, given.best), TASK)
    assert "a blend by hand (mean) of a 0.667, a+b-blend 0.333" in card.architecture


def test_selected_weights_are_told_fold_by_fold_and_nothing_of_inner_patients(work):
    given = collect(work, best="picked-hand")
    told = methods_of(given)
    assert "chosen by hill climbing, for each fold on the labels of the other folds: fold 0: a 0." in told
    assert "; fold 1: a " in told
    assert "inner patients" not in told
    assert "There is no second stage." in told


def test_the_second_stage_of_two_runs_is_compared_with_their_mean_and_not_with_one_of_them(work):
    given = collect(work)
    second = next(source for source in given.sources if source.name == "a+b-blend")
    name, p = find_before(given, second)
    assert name == "mean-logit of a and b"
    sources = {source.name: source for source in given.sources}
    logits = [np.log(one) - np.log1p(-one) for one in (given.probabilities(sources[run]) for run in ("a", "b"))]
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-np.mean(logits, axis=0))), rtol=1e-6)


def test_the_commands_name_every_run_search_stack_and_blend_with_its_own_config(work):
    lines = list_commands(collect(work))
    assert lines[0].startswith("ichkit prepare --rsna RSNA --cq500 CQ500")
    assert "ichkit train --run a --fold 0,1 --config report.yaml" in lines
    assert "ichkit train --run b --fold 0,1 --config work/runs/b/fold0/config.yaml" in lines
    assert not [line for line in lines if line.startswith("ichkit train") and "depth" in line]
    assert (
        "ichkit tune --name depth --try train.epochs=4,8 --try train.learning_rate=1e-05..0.001:log --sampler tpe "
        "--trials 4 --fold 0,1 --config report.yaml"
    ) in lines
    assert "ichkit stack --runs a,b --name a+b --config report.yaml" in lines
    assert "ichkit blend a a+b-blend --weights 2,1 --method mean --name mine --config report.yaml" in lines
    assert "ichkit blend a b --select --method logit --name picked --config report.yaml" in lines
    order = [line.split()[1] for line in lines]
    commands = ["prepare", "train", "tune", "stack", "blend", "evaluate", "submit", "report"]
    assert order == sorted(order, key=commands.index)
    for line in lines:
        name, *words = shlex.split(line)[1:]
        main.commands[name].make_context(name, words)


def test_settings_of_store_and_stack_that_are_not_those_of_the_report_are_in_the_commands(work):
    given = collect(work, change_config(CONFIG, ("prepare.num_folds=7",)))
    given.prepared.manifest.settings.update(num_folds=2, size=None)
    lines = list_commands(given)
    assert lines[0] == "ichkit prepare --rsna RSNA --cq500 CQ500 --set prepare.num_folds=2 --config report.yaml"
    expected = f"ichkit stack --runs a,{TRIALS[1]} --name a+{TRIALS[1]} --set seed=5 --set stack.num_inner=3"
    assert f"{expected} --config report.yaml" in lines


def test_trials_that_nothing_uses_are_folded_and_counted(work):
    given = collect(work)
    assert given.left_out == {TRIALS[0], TRIALS[3]}
    board = make_board(given)
    whole, folded = board.blocks[1:]
    names = lambda table: {row[1].text for row in table.lines}  # noqa: E731
    assert names(whole) == {source.name for source in given.sources} - given.left_out
    assert names(folded.blocks[0]) == given.left_out
    assert (folded.title, folded.is_open) == ("2 further trials", False)
    for section in (make_training(given), make_repeat(given)):
        for name in given.left_out:
            assert name not in text_of(section)
    assert not given.left_out & {source.name for source in given.peers}
    assert make_inner(given) is None


def test_a_hint_to_prepare_again_has_the_data_the_config_and_the_settings_of_the_store(work):
    given = collect(work)
    blocks = (*find_missing(given), *make_population(given).blocks)
    fresh = [one.command for one in blocks if "--fresh" in getattr(one, "command", "")]
    assert len(fresh) == 2
    for command in fresh:
        assert re.match(r"ichkit prepare --rsna RSNA --cq500 CQ500 .*--fresh.* --config report\.yaml", command)


def test_the_dry_run_knows_the_time_of_a_report_once_one_was_made(work, monkeypatch):
    monkeypatch.setattr(report, "make_sections", lambda _given: [])
    words = ("report", "--work", work.root, "--set", "evaluate.num_draws=60", "--submissions", work.root / "none")
    assert "unknown: no report was made here yet" in call(*words, "--dry-run")
    call(*words)
    printed = " ".join(call(*words, "--dry-run").split())
    assert re.search(r"time (about \d+ s|less than a second), as the last report, if the inputs changed", printed)
    assert (work.root / "report.json").is_file()
    assert read_table(work.scores / "scores.parquet").source.nunique() > 5
