"""The recipe onset2021 on phantoms, at toy size: from NIfTI to a board, a report in its own words and a prediction."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from support.commands import call

TOY = (
    "phantom.studies=12",
    "phantom.size=96",
    "prepare.num_folds=2",
    "prepare.workers=1",
    "prepare.sequences.slices=8",
    "prepare.sequences.rows=32",
    "prepare.sequences.columns=32",
    "train.image_size=32",
    "train.epochs=1",
    "train.workers=0",
    "evaluate.num_draws=50",
)
OPTIONS = [word for text in TOY for word in ("--set", text)]
RUNS = {"lesion": "stroke", "within-3h": "tss3", "within-4h5": "tss45"}


@pytest.mark.slow
def test_onset2021_ends_in_a_board_of_three_phases_thresholds_readers_and_a_prediction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("run", "onset2021-demo", *OPTIONS)
    board = pd.read_csv("submissions/leaderboard.csv").set_index("name")
    assert set(board.index) == {*RUNS, "scratch", "volume", "onset2021-base"}
    assert board["rank"].notna().to_dict() == {name: name == "onset2021-base" for name in board.index}
    # Each class comes from the run that predicts it, the same probability at every slice of a half.
    found = pd.read_parquet("work/stacks/onset2021/base_oof.parquet").set_index("slice_id")
    for run, name in RUNS.items():
        own = pd.concat([pd.read_parquet(f"work/runs/{run}/fold{k}/oof.parquet") for k in (0, 1)])
        np.testing.assert_allclose(found.loc[own.slice_id, f"p_{name}"], own[f"p_{name}"], atol=1e-6)
        assert own.groupby("study_id")[f"p_{name}"].agg(np.ptp).max() == 0
    for k in (0, 1):
        weights = [load_file(f"work/runs/{run}/fold{k}/model.safetensors") for run in RUNS]
        for tensor in (name for name in weights[0] if re.match(r"backbone\.(conv1|bn1|layer1)\.", name)):
            assert all(torch.equal(weights[0][tensor], later[tensor]) for later in weights[1:]), tensor
        thresholds = pd.read_csv(f"work/runs/lesion/fold{k}/thresholds.csv").set_index("class")
        assert thresholds.n[["tss45", "tss3"]].eq(0).all()
        assert thresholds.n["stroke"] > 0
        volume = pd.read_csv(f"work/runs/volume/fold{k}/history.csv")
        assert volume.phase.tolist() == [1, 2, 3, 4]
    page = Path("work/report.html").read_text(encoding="utf-8")
    shown = re.sub(r"<(style|script|svg).*?</\1>|base64,[A-Za-z0-9+/=]+", " ", page, flags=re.DOTALL)
    assert "Decisions at thresholds of validation patients" in shown
    assert "Readers of bids" in shown
    assert not re.search(r"bleed|hemorrhage|head CT|Hounsfield", shown)
    call("predict", "phantom/bids/sub-0001", "--model", "models/onset", "-c", "onset2021-demo", "--out", "said")
    said = pd.read_csv("said/studies.csv")
    assert said.study_id.str.endswith((":left", ":right")).all()
    assert len(said) == 2
    assert said.filter(like="p_").notna().all(axis=None)
