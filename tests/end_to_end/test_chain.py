"""The phantom through every command, in-process, as a person would type them; and what a newcomer gets wrong first."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.coherent import count_incoherent
from support.commands import FAST_STACK, SMALL, call
from support.dicoms import write_series

from ichkit.cli.main import main
from ichkit.core.tasks import find_task

TASK = find_task("hemorrhage")
README = Path(__file__).parents[2] / "README.md"


def options(*words):
    return [*words, "-c", "demo", *SMALL, *FAST_STACK]


@pytest.fixture(scope="module")
def chain(prepared_once, tmp_path_factory):
    """A folder in which fold 0 was trained, stacked and submitted, then fold 1; with the boards of both times."""
    root = tmp_path_factory.mktemp("chain")
    shutil.copytree(prepared_once.root, root / "work")
    before = Path.cwd()
    os.chdir(root)
    try:
        boards = []
        for fold in (0, 1):
            call(*options("train", "--fold", fold))
            call(*options("stack"))
            call(*options("submit"))
            boards.append(pd.read_csv(root / "submissions" / "leaderboard.csv", dtype={"folds": str}))
        call(*options("report"))
    finally:
        os.chdir(before)
    return root, boards


def inside(chain, monkeypatch):
    root, boards = chain
    monkeypatch.chdir(root)
    return root, boards


def test_one_fold_then_two_give_boards_of_their_folds(chain):
    _, (first, second) = chain
    assert set(first["folds"]) == {"0"}
    assert set(second["folds"]) == {"0+1"}
    for board in (first, second):
        assert {"base", "fusion", "lightgbm", "blend"} == set(board["kind"])
        assert set(board["data"]) == {"phantom"}
        assert sorted(board["rank"]) == [1, 2, 3, 4]
        assert board["submission"].notna().sum() == 1
    assert (second["num_slices"] > first["num_slices"].max()).all()


def test_the_submission_is_the_mean_of_its_chains_in_the_order_of_the_sample(chain, phantom_root):
    root, (_, board) = chain
    sent = board[board["submission"].notna()].iloc[0]
    frame = pd.read_csv(root / "submissions" / sent["submission"])
    sample = pd.read_csv(phantom_root / "rsna" / "stage_2_sample_submission.csv")
    assert frame["ID"].to_list() == sample["ID"].to_list()
    note = json.loads((root / "submissions" / sent["submission"]).with_suffix(".json").read_text())
    assert len(note["imputed"]) == 1  # the truncated test file
    assert frame["Label"].between(0, 1).all()


def test_evaluate_scores_a_submission_as_scikit_learn_does(chain, phantom_root, monkeypatch):
    from sklearn.metrics import log_loss

    root, (_, board) = inside(chain, monkeypatch)
    name = board["submission"].dropna().iloc[0]
    truth = phantom_root / "rsna" / "stage_2_test_labels.csv"
    printed = call("evaluate", "--submission", root / "submissions" / name, "--truth", truth)
    both = pd.read_csv(root / "submissions" / name).merge(pd.read_csv(truth), on="ID")
    both["class"] = both["ID"].str.rsplit("_", n=1).str[1]
    p = np.clip(both["Label_x"].astype(float), 1e-15, 1 - 1e-15)
    losses = {
        label: log_loss(both["Label_y"][rows], p[rows], labels=[0, 1])
        for label, rows in both.groupby("class").groups.items()
    }
    weighted = sum(losses[label] * weight for label, weight in zip(TASK.classes, TASK.weights, strict=True))
    shown = float(re.search(r"weighted_log_loss\s+all\s+([\d.]+)", printed).group(1))
    assert shown == pytest.approx(weighted, abs=1e-9)


def test_everything_is_as_it_was_written_and_a_flipped_byte_is_found(chain, tmp_path, monkeypatch):
    root, _ = inside(chain, monkeypatch)
    assert "every artifact is unchanged since it was written" in call("verify")
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    table = copy / "work" / "runs" / "demo" / "fold0" / "test.parquet"
    data = bytearray(table.read_bytes())
    data[100] ^= 1
    table.write_bytes(data)
    monkeypatch.chdir(copy)
    assert "test.parquet: changed since it was written" in call("verify", code=2)


def test_running_again_changes_nothing_and_the_board_is_rebuilt_the_same(chain, monkeypatch):
    root, _ = inside(chain, monkeypatch)
    board = (root / "submissions" / "leaderboard.csv").read_bytes()
    assert "fold 1: up to date" in call(*options("train", "--fold", "0,1"))
    assert "up to date" in call(*options("stack"))
    call(*options("submit"))
    assert (root / "submissions" / "leaderboard.csv").read_bytes() == board
    call("leaderboard", "-c", "demo", *SMALL)
    assert (root / "submissions" / "leaderboard.csv").read_bytes() == board


def test_recorded_scores_stand_on_the_board_and_never_move_a_rank(chain, tmp_path, monkeypatch):
    root, (_, board) = chain
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    monkeypatch.chdir(copy)
    name = board[board["submission"].notna()]["name"].iloc[0]
    call("leaderboard", "-c", "demo", *SMALL, "--record", name, "--public", "0.9", "--private", "0.05")
    after = pd.read_csv(copy / "submissions" / "leaderboard.csv").set_index("name")
    assert after.loc[name, ["public_score", "private_score"]].to_list() == [0.9, 0.05]
    assert after["rank"].to_list() == board["rank"].to_list()


def test_predict_gives_the_probabilities_of_the_tables(chain, phantom_root, monkeypatch, tmp_path):
    root, _ = inside(chain, monkeypatch)
    study = pd.read_parquet(root / "work" / "stacks" / "demo" / "blend_test.parquet")
    slices = pd.read_parquet(root / "work" / "prepared" / "slices.parquet")
    rejected = set(pd.read_csv(root / "work" / "prepared" / "rejected.csv")["study_id"])
    test = slices[(slices["split"] == "test") & ~slices["study_id"].isin(rejected)]
    plain = test.groupby("study_id").agg(num_series=("series_id", "nunique"), repaired=("hu_repaired", "max"))
    chosen = plain.index[(plain["num_series"] == 1) & ~plain["repaired"]][0]
    scans = tmp_path / "scans"
    scans.mkdir()
    for i, slice_id in enumerate(sorted(test["slice_id"][test["study_id"] == chosen])):
        shutil.copy(phantom_root / "rsna" / "stage_2_test" / f"{slice_id}.dcm", scans / f"{i}.dcm")
    (scans / "notes.txt").write_text("not an image")
    (scans / "LICENSE").write_text("no candidate either")
    printed = call("predict", scans, "--out", tmp_path / "out", "--model", "demo-blend", "-c", "demo", *SMALL)
    assert "Research use only" in printed
    got = pd.read_csv(tmp_path / "out" / "slices.csv")
    expected = study[study["study_id"] == chosen]
    assert got["slice_id"].to_list() == expected["slice_id"].to_list()
    np.testing.assert_allclose(got[TASK.probability_columns], expected[TASK.probability_columns], atol=1e-6)
    assert (got["fold"] == -1).all()
    assert pd.read_csv(tmp_path / "out" / "rejected.csv")["reason"].to_list() == ["not DICOM"]
    top = pd.read_csv(tmp_path / "out" / "studies.csv")
    np.testing.assert_allclose(top["p_any"], [got["p_any"].max()])
    assert pd.read_csv(tmp_path / "out" / "series_choice.csv")["chosen"].sum() == 1
    # A run's own tables are what its networks said; what a reader gets from them is coherent.
    call("predict", scans, "--out", tmp_path / "base", "--model", "demo", "-c", "demo", "--no-page", *SMALL)
    said = pd.read_csv(tmp_path / "base" / "slices.csv")[TASK.probability_columns].to_numpy()
    assert count_incoherent(said, TASK) == count_incoherent(got[TASK.probability_columns].to_numpy(), TASK) == 0
    # The same from an exported folder, where there is no work folder.
    call("export", "demo-blend", "--out", tmp_path / "model", "-c", "demo", *SMALL)
    monkeypatch.chdir(tmp_path)
    call("predict", scans, "--out", tmp_path / "away", "--model", tmp_path / "model", "-c", "demo", *SMALL)
    away = pd.read_csv(tmp_path / "away" / "slices.csv")
    pd.testing.assert_frame_equal(away[TASK.probability_columns], got[TASK.probability_columns])


def test_the_real_tilted_scan_goes_through_predict(chain, real_data, monkeypatch, tmp_path):
    inside(chain, monkeypatch)
    call("predict", real_data / "ge_head_tilt", "--out", tmp_path / "out", "-c", "demo", *SMALL)
    slices = pd.read_csv(tmp_path / "out" / "slices.csv")
    assert len(slices) == 28
    assert (np.diff(slices["position_mm"]) > 0).all()
    assert pd.read_csv(tmp_path / "out" / "rejected.csv").empty


def test_the_report_is_one_file_that_needs_no_network(chain):
    root, _ = chain
    page = (root / "work" / "report.html").read_text()
    assert "Made from phantoms" in page
    assert "Research use only" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<script") == 1
    # Heat from the networks themselves: a fourth picture beside the three windows.
    assert "in 4 images" in page
    assert "Grad-CAM" in page


MISTAKES = [
    (["prepare", "--rsna", "nowhere"], "expected a folder or a zip file at nowhere (--rsna), found nothing"),
    (["train"], "prepared: not found. Run `ichkit prepare` first."),
    (["stack"], "expected at least one finished fold of a run in runs/, found none. Run `ichkit train` first."),
    (["train", "--set", "train.epoch=3"], "--set train.epoch: unknown key, did you mean train.epochs?"),
    (["train", "-c", "dmeo"], 'Did you mean "demo"?'),
    (["evaluate", "--submission", "a.csv"], "expected --submission and --truth together"),
    (["leaderboard", "--public", "0.05"], "name it with --record NAME"),
    (["run", "midl202"], 'Did you mean "midl2020"?'),
    (["trian"], 'Did you mean "train"?'),
    (["predict", "nowhere"], "expected a folder or a zip at nowhere, found nothing"),
    (["verify"], "expected artifacts, found none"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_gives_one_message_and_exit_code_2(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = call(*words, code=2)
    assert message in printed
    assert "Traceback" not in printed


def test_mistakes_after_prepare_give_one_message_each(chain, tmp_path, monkeypatch):
    root, (_, board) = chain
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    monkeypatch.chdir(copy)
    assert "(0, 1, 2), found 7" in call(*options("train", "--fold", "7"), code=2)
    other = call(*options("train", "--fold", "0"), "--set", "train.epochs=9", code=2)
    assert "train.epochs: 1, now 9" in other
    assert "--fresh" in other
    shutil.rmtree(copy / "work" / "runs")
    assert "ichkit train" in call(*options("stack"), code=2)
    name = board["submission"].dropna().iloc[0]
    frame = pd.read_csv(copy / "submissions" / name)
    frame.iloc[6:].to_csv(copy / "short.csv", index=False)
    frame.assign(Label=0).to_csv(copy / "truth.csv", index=False)
    gap = call("evaluate", "--submission", "short.csv", "--truth", "truth.csv", code=2)
    assert frame["ID"].iloc[0].rsplit("_", 1)[0] in gap


def test_every_command_has_help_with_an_example():
    for name in main.commands:
        text = call(name, "--help")
        assert "Example:" in text
        assert f"ichkit {name}" in text


def readme_blocks():
    """The words of every command, block by block."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [[shlex.split(part) for line in block.splitlines() for part in line.split("&&")] for block in blocks]


def test_the_readme_names_every_command_and_no_other():
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"`ichkit ([a-z]+)", text))
    assert named == set(main.commands)


@pytest.mark.slow
def test_every_command_of_the_readme_runs(prepared_once, phantom_root, tmp_path, monkeypatch):
    """Each `ichkit` line as printed, on the small phantom at the places the README names, with a small config added.

    Every block is typed in the same folder.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("rsna", "cq500"):
        (tmp_path / "data" / name).symlink_to(phantom_root / name)
    for i in range(6):
        write_series(tmp_path / "scans" / str(i), 4, study_uid=f"1.2.{i}", series_uid=f"1.2.{i}.1", patient_id=f"p{i}")
    labels = pd.DataFrame({"study_id": [f"1.2.{i}" for i in range(6)]})
    labels.assign(**dict.fromkeys(find_task("hemorrhage").subtypes, 0)).to_csv(tmp_path / "labels.csv", index=False)
    small = [*SMALL, *FAST_STACK, "--set", "train.pretrained=none", "--set", "train.backbone=test_resnet"]
    tiny_phantom = ["--set", "phantom.studies=9", "--set", "phantom.size=64"]
    tiny_phantom += ["--set", "phantom.test_studies=3", "--set", "phantom.cq500_studies=3"]
    ran = []
    for block in readme_blocks():
        monkeypatch.chdir(tmp_path)
        for words in filter(None, block):
            if words[0] == "cd":
                monkeypatch.chdir(words[1])
            elif words[0] == "ichkit":
                call(*words[1:], *small, *(tiny_phantom if words[1] == "demo" else []))
                ran.append(words[1])
    monkeypatch.chdir(tmp_path)
    assert ran == ["demo", "predict", "prepare", "train", "stack", "submit", "prepare"]
    assert (tmp_path / "own" / "prepared" / "audit.html").exists()
    assert (tmp_path / "submissions" / "leaderboard.csv").exists()
    assert (tmp_path / "ichkit-demo" / "work" / "report.html").exists()
    assert (tmp_path / "ichkit-demo" / "predictions" / "predictions.html").exists()
