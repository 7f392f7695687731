"""The recipes for the real data, at toy size."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support.commands import FAST_STACK, TINY, call

from ichkit.core.config import find_yaml, load_config

ROOT = Path(__file__).parents[2]
KINDS = ("fusion", "lightgbm", "blend")
TOY_BACKBONES = {"convnext": "test_convnext", "swin": "test_vit", "resnet50": "test_resnet"}
TOY = (
    "prepare.size=null",
    "train.pretrained=none",
    "stack.lightgbm.max_rounds=5",
    "stack.num_inner=2",
    "stack.sequence.epochs=2",
    "stack.sequence.wide.epochs=2",
    "stack.sequence.wide.units=8",
)


def toy_options():
    overrides = [word for text in (*TINY, *TOY) for word in ("--set", text)]
    return [*overrides, *FAST_STACK]


def write_toy_recipe(folder: Path) -> Path:
    """The podium recipe with a toy backbone for each of its networks."""
    commands = yaml.safe_load(find_yaml("podium", "pipelines").read_text())["commands"]
    for i, command in enumerate(commands):
        if named := re.search(r"^train .*--run (\w+)", command):
            commands[i] += f" --set train.backbone={TOY_BACKBONES[named[1]]}"
    path = folder / "podium.yaml"
    path.write_text(yaml.safe_dump({"commands": commands}))
    return path


def test_the_networks_of_the_podium_are_unlike():
    backbones = [load_config(name).train.backbone for name in ("podium", "podium-swin", "resnet50-midl")]
    assert len({backbone.rstrip("0123456789").split("_")[0] for backbone in backbones}) == 3


@pytest.mark.slow
def test_the_podium_runs_from_dicom_to_the_report_at_toy_size(phantom_root, tmp_path, monkeypatch):
    monkeypatch.setenv("ICHKIT_RSNA", str(phantom_root / "rsna"))
    monkeypatch.setenv("ICHKIT_CQ500", str(phantom_root / "cq500"))
    monkeypatch.chdir(tmp_path)
    call("run", write_toy_recipe(tmp_path), *toy_options())
    board = pd.read_csv("submissions/leaderboard.csv")
    assert {"convnext", "swin", "resnet50", "convnext-2"} <= set(board["name"])
    is_transductive = board["data"].str.contains("transductive")
    assert is_transductive.equals(board["source"].str.contains("convnext-2"))
    stacked = board[board["kind"] != "base"]
    assert {"fusion", "lightgbm", "sequence", "blend"} <= set(stacked["kind"])
    assert board["submission"].notna().any()
    assert Path("work/report.html").is_file()


@pytest.mark.slow
def test_the_series_demo_scores_both_heads_and_a_second_stage_on_each_network_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ("phantom.studies=16", "phantom.test_studies=5", "phantom.cq500_studies=6", "phantom.size=64")
    call("run", "series-demo", *(word for text in sizes for word in ("--set", text)), *toy_options())
    board = pd.read_csv("submissions/leaderboard.csv")
    runs = {"slices", "first", "series"}
    assert set(board["name"]) == runs | {f"{run}-{kind}" for run in runs - {"first"} for kind in KINDS}
    series, alone = (pd.read_parquet(f"work/runs/series/fold0/{name}oof.parquet") for name in ("", "slice_"))
    assert series["slice_id"].equals(alone["slice_id"])
    assert not series["p_any"].equals(alone["p_any"])  # the context has learnt something


@pytest.mark.slow
@pytest.mark.parametrize("is_cut_short", [False, True])
def test_the_benchmark_for_a_gpu_runs_without_one_and_keeps_its_figures_when_it_is_cut_short(tmp_path, is_cut_short):
    figures_path = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--tiny", "--json", figures_path]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    try:
        while is_cut_short and not figures_path.is_file():
            assert process.poll() is None
            time.sleep(0.1)
        if is_cut_short:
            process.send_signal(signal.SIGKILL)
        assert process.wait(500) == (-signal.SIGKILL if is_cut_short else 0)
    finally:
        process.kill()
        process.wait()
    figures = json.loads(figures_path.read_text())
    assert figures["images_per_s_resnet50_512"] > 0
    assert figures["device"]
    if is_cut_short:
        return
    assert [name for name in figures if name.startswith(("error_", "left_out_"))] == ["left_out_compiled"]
    assert 0 < figures["share_of_ceiling"] < 2
    assert figures["agreement_logit"] == 0  # the CPU beside itself
    assert figures["resume_difference"] == figures["repeat_difference"] == 0
    assert all(figures[f"images_per_s_{name}"] > 0 for name in ("convnext", "swin", "loop", "side_by_side"))
