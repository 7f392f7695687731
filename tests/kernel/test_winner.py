"""What Kaggle asks of a winner: stored figures, the rest said to be unknown, and entry points that run."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support.commands import call, do
from support.simulated import TASK
from support.trained import CONFIG, make_trained_work

import ichkit
from ichkit.core.config import change_config, load_config
from ichkit.core.errors import ConfigError
from ichkit.stages.kernel import winner, winner_scripts
from ichkit.stages.scores import evaluate, leaderboard, submit
from ichkit.stages.scores.costs import measure_costs
from ichkit.stages.stack import blend
from ichkit.stages.stack import run as stack
from ichkit.validation.catalog import find_sources
from ichkit.work.artifacts import ArtifactWriter, read_manifest, read_table
from ichkit.work.folder import WorkFolder

FEW = change_config(CONFIG, ("evaluate.num_draws=20", "stack.stackers=[lightgbm]"))
TOP = (
    *(
        "README.md",
        "MODEL_SUMMARY.md",
        "entry_points.md",
        "SETTINGS.json",
        "requirements.txt",
        "directory_structure.txt",
    ),
    *("prepare_data.py", "train.py", "predict.py", "code", "config", "model"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A work folder with a trained run, its stack, scores, and a submission with a score of the site."""
    root = tmp_path_factory.mktemp("winner")
    work = make_trained_work(root / "work")
    do(stack, FEW, work, runs=["demo"])
    do(evaluate, FEW, work)
    do(submit, FEW, work, source="demo-blend", submissions=root / "submissions")
    do(leaderboard, FEW, work, record="demo-blend", private_score=0.07125, submissions=root / "submissions")
    return root


@pytest.fixture(scope="module")
def made(root):
    work = WorkFolder(root / "work")
    return do(winner, FEW, work, model="demo-blend", out=root / "archive", submissions=root / "submissions")


def test_the_archive_has_the_files_of_the_guidelines_and_lists_its_folders(made):
    assert {path.name for path in made.iterdir()} == set(TOP)
    done = subprocess.run(["find", ".", "-type", "d"], cwd=made, capture_output=True, text=True, check=True)
    assert sorted((made / "directory_structure.txt").read_text().split()) == sorted(done.stdout.split())
    assert len(list((made / "code").glob("ichkit-*.whl"))) == 1
    assert read_manifest(made / "model").facts["name"] == "demo-blend"


def test_every_figure_of_the_summary_is_a_stored_one(made, root):
    work, text = WorkFolder(root / "work"), (made / "MODEL_SUMMARY.md").read_text()
    scores = read_table(work.scores / "scores.parquet")
    asked = (scores.source == "demo-blend") & (scores.metric == "weighted_log_loss") & (scores.fold == -1)
    row = scores[asked & (scores.subgroup == "all") & (scores.split == "train")].iloc[0]
    assert f"Out-of-fold weighted log loss: {row.value:.5f} [{row.low:.5f}, {row.high:.5f}] on {row.n:,} slices" in text
    assert "- Private leaderboard score: 0.07125" in text
    assert "- Public leaderboard score: unknown" in text
    costs = measure_costs(work, find_sources(work, TASK))
    for name in ("demo-blend", "demo"):
        line = next(line for line in text.splitlines() if f"| {name} |" in line and "hours" in line)
        cost = costs[name]
        assert line.endswith(
            f"| {cost.hours:.3g} hours | {1000 * cost.seconds_per_study:.0f} ms | {cost.num_bytes / 1e6:.1f} |"
        )
    stored = json.loads((work.stack_folder("demo") / "blend.json").read_text())
    weights = [chain["weights"] for chain in stored["chains"]]
    for number, name in enumerate(stored["members"]):
        of_member = [value for chain in weights for value in chain[number]]
        assert f"{name} {sum(of_member) / len(of_member):.3f}" in text


def test_what_is_not_known_is_said(made, root, tmp_path):
    shutil.copytree(root / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "scores")
    for path in (tmp_path / "work").glob("*/demo/*/manifest.json"):
        path.write_text(re.sub(r'"seconds_per_study": [\d.]+', '"seconds_per_study": null', path.read_text()))
    out = do(
        winner, FEW, WorkFolder(tmp_path / "work"), model="demo", out=tmp_path / "a", submissions=tmp_path / "none"
    )
    text = (out / "MODEL_SUMMARY.md").read_text()
    assert "- Private leaderboard score: unknown" in text
    assert "Out-of-fold weighted log loss: unknown." in text
    assert "predicting a study takes unknown." in text
    assert "Scores: unknown; `ichkit evaluate` computes them." in text
    assert "to be filled in by the authors" in (out / "README.md").read_text()


def test_no_text_names_this_machine_or_its_folders(made, root):
    for path in [path for path in made.rglob("*") if path.suffix in (".md", ".txt", ".json", ".py", ".yaml")]:
        text = path.read_text()
        for word in (str(root), str(Path.cwd()), f" {socket.gethostname()} "):
            assert word not in text, path
    assert winner._without_folders({"pretrained": "model:/home/me/other", "backbone": "hf-hub:timm/a"}) == {
        "pretrained": "model:other",
        "backbone": "hf-hub:timm/a",
    }


def test_the_configs_are_those_of_the_training_and_the_requirements_are_exact(made, root):
    config = load_config(str(made / "config" / "demo.yaml"))
    assert config.train == FEW.train  # threads and batches of the prediction too, which change the last digits
    assert config.stack.settings() == FEW.stack.settings()
    assert config.prepare.num_folds == 2
    trained = read_manifest(root / "work" / "runs" / "demo" / "fold0").versions
    lines = (made / "requirements.txt").read_text().splitlines()
    assert f"torch=={trained['torch']}" in lines
    pinned = {line.split("==")[0] for line in lines if not line.startswith("#")}
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+-]+", line) for line in lines if not line.startswith("#"))
    assert {
        "pydantic",
        "scikit-learn",
        "lightning-fabric",
        "joblib",
    } <= pinned  # needed by ichkit, recorded by no training
    assert {"python", "ichkit", "pytest"} & pinned == set()


def test_the_preparation_locks_and_limits_as_that_of_the_training_did(made, root):
    assert 'words = ["--rsna", SETTINGS["RAW_DATA_DIR"]]' in (made / "prepare_data.py").read_text()
    script = winner_scripts.write_prepare("demo.yaml", ["--lock", "0.15", "--limit-studies", "40"])
    assert 'SETTINGS["RAW_DATA_DIR"], "--lock", "0.15", "--limit-studies", "40"]' in script
    compile(script, "prepare_data.py", "exec")
    store = ArtifactWriter(root / "other" / "prepared", "prepared")
    store.commit(settings={"lock": 0.15}, inputs={"limit_studies": "40"}, facts={})
    found = winner._prepare_options(WorkFolder(root / "other"))
    assert found == ["--lock", "0.15", "--limit-studies", "40"]


def test_it_may_be_written_again_and_replaces_nothing_else(made, root, tmp_path):
    work, before = WorkFolder(root / "work"), (made / "MODEL_SUMMARY.md").read_bytes()
    options = {"model": "demo-blend", "out": made, "submissions": root / "submissions"}
    do(winner, FEW, work, **options)
    assert (made / "MODEL_SUMMARY.md").read_bytes() == before
    (tmp_path / "README.md").write_text("mine")
    for out in (tmp_path, made):
        with pytest.raises(
            ConfigError, match=r"winner: expected no folder, an empty one, or an earlier archive of demo"
        ):
            do(winner, FEW, work, model="demo", out=out)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_what_has_no_model_or_no_competition_is_refused(root, tmp_path, monkeypatch):
    work = WorkFolder(root / "work")
    shutil.copytree(work.root, tmp_path / "work")
    do(blend, FEW, WorkFolder(tmp_path / "work"), sources=("demo", "demo-lightgbm"), name="mine")
    words = ["--work", tmp_path / "work", "--out", tmp_path / "out"]
    assert "which has tables and no models" in " ".join(call("winner", "mine-hand", *words, code=2).split())
    monkeypatch.setattr(winner, "_COMPETITIONS", ("rsna",))
    message = " ".join(call("winner", "demo", *words, code=2).split())
    assert "expected a model of the competition's data" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_three_entry_points_run_one_after_another(made, phantom_root, tmp_path):
    archive = tmp_path / "archive"
    shutil.copytree(made, archive)
    (archive / "data").mkdir()
    for name in ("rsna", "cq500"):
        (archive / "data" / name).symlink_to(phantom_root / name)
    sample = next((phantom_root / "rsna").rglob("stage_2_sample_submission.csv"))
    settings = json.loads((archive / "SETTINGS.json").read_text())
    settings["TEST_DATA_DIR"] = str(next((phantom_root / "rsna").rglob("stage_2_test")))
    settings["SAMPLE_SUBMISSION"] = str(sample)
    (archive / "SETTINGS.json").write_text(json.dumps(settings))
    inside = {**os.environ, "PYTHONPATH": str(Path(ichkit.__file__).parents[1])}
    for name in ("prepare_data.py", "train.py", "predict.py"):
        done = subprocess.run(
            [sys.executable, archive / name], cwd=tmp_path, env=inside, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    work = WorkFolder(archive / "work")
    assert [source.name for source in find_sources(work, TASK)] == ["demo", "demo-blend", "demo-lightgbm"]
    written = pd.read_csv(archive / "submissions" / "submission.csv")
    assert written["ID"].equals(pd.read_csv(sample)["ID"])
    assert written["Label"].between(0, 1).all()


def test_every_run_of_a_model_of_several_is_named_with_how_they_are_combined(root, tmp_path):
    shutil.copytree(root / "work", tmp_path / "work")
    work = WorkFolder(tmp_path / "work")
    for fold in (0, 1):
        shutil.copytree(work.fold("demo", fold), work.fold("second", fold))
    do(stack, change_config(FEW, ("stack.stackers=[]",)), work, runs=["demo", "second"], name="both")
    out = do(winner, FEW, work, model="both-base", out=tmp_path / "out", submissions=tmp_path / "none")
    text = (out / "MODEL_SUMMARY.md").read_text()
    assert "2 x test_byobnet of run demo" in text
    assert "2 x test_byobnet of run second" in text
    assert "The runs demo, second are combined into one base (mean-logit): The mean of the logits" in text
    assert "Ensemble: the mean over the networks of demo, second of all folds" in text
