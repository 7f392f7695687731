"""The recipes of papers on phantoms, at toy size: from DICOM to a board and a report in their own words."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from support.commands import call

from ichkit.core.config import load_config
from ichkit.core.tasks import find_task

TOY = (
    "phantom.studies=12",
    "phantom.test_studies=2",
    "phantom.cq500_studies=3",
    "phantom.size=64",
    "prepare.size=40",
    "prepare.num_folds=2",
    "prepare.workers=1",
    "train.image_size=32",
    "train.epochs=2",
    "train.workers=0",
    "evaluate.num_draws=100",
)
OPTIONS = [word for text in TOY for word in ("--set", text)]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores_of(work, source, metric):
    """Value by class, out of fold, of all slices."""
    scores = pd.read_parquet(work / "scores" / "scores.parquet")
    chosen = (scores.source == source) & (scores.metric == metric) & (scores.level == "slice") & (scores.fold == -1)
    return scores[chosen & (scores.subgroup == "all")].set_index("class").value


@pytest.mark.slow
def test_dlmi2021_ends_in_a_board_of_the_mean_and_its_members_with_macro_and_micro_f1(bench):
    call("run", "dlmi2021-demo", *OPTIONS)
    board = pd.read_csv("submissions/leaderboard.csv")
    assert set(board["name"]) == {"first", "second", "dlmi2021-base"}
    assert set(board["kind"]) == {"base"}
    task = find_task("subtypes")
    tables = {
        run: [pd.read_parquet(f"work/runs/{run}/fold{k}/oof.parquet") for k in (0, 1)] for run in ("first", "second")
    }
    p = [pd.concat(one).set_index("slice_id")[task.probability_columns].astype(float) for one in tables.values()]
    found = pd.read_parquet("work/stacks/dlmi2021/base_oof.parquet").set_index("slice_id")[task.probability_columns]
    np.testing.assert_allclose(found, (p[0].loc[found.index] + p[1].loc[found.index]) / 2, atol=1e-6)
    f1 = scores_of(Path("work"), "dlmi2021-base", "f1_at_half")
    assert set(f1.index) == {*task.classes, "mean", "micro"}
    page = Path("work/report.html").read_text()
    assert "<h1>Subtypes of intracranial hemorrhage on head CT</h1>" in page
    assert "micro" in page
    call("export", "dlmi2021-base", "--out", "exported", "-c", "dlmi2021-demo")
    call("predict", "phantom/cq500", "--model", "exported", "-c", "dlmi2021-demo", "--out", "said")
    assert pd.read_csv("said/studies.csv").filter(like="p_").notna().all(axis=None)


@pytest.mark.slow
def test_fiit2021_ends_in_a_board_that_ranks_the_cascade_and_the_joint_network(bench):
    call("run", "fiit2021-demo", *OPTIONS)
    board = pd.read_csv("submissions/leaderboard.csv").set_index("name")
    assert board["rank"].notna().to_dict() == {"fiit2021-base": True, "joint": True, "whether": False, "which": False}
    assert board.loc["fiit2021-base", "submission"] == "fiit2021-base.csv"
    found = pd.read_parquet("work/stacks/fiit2021/base_test.parquet")
    for name in find_task("hemorrhage").subtypes:
        assert (found[f"p_{name}"] <= found["p_any"]).all()
    call("export", "fiit2021-base", "--out", "exported", "-c", "fiit2021-demo")
    call("predict", "phantom/cq500", "--model", "exported", "-c", "fiit2021-demo", "--out", "said")
    said = pd.read_csv("said/studies.csv")
    assert said.filter(like="p_").notna().all(axis=None)
    call("predict", "phantom/cq500", "--model", "which", "-c", "fiit2021-demo", "--out", "which")
    assert pd.read_csv("which/studies.csv")["p_any"].isna().all()
    call("explain", "--run", "which", "-c", "fiit2021-demo", "--worst", "2", "--out", "pictures")
    assert list(Path("pictures").glob("*.png"))


@pytest.mark.slow
def test_aspects2020_starts_from_a_network_of_hemorrhage_and_ends_in_a_board_and_report_of_infarcts(bench):
    call("run", "aspects2020-demo", *OPTIONS, "--set", "prepare.num_folds=2")
    board = pd.read_csv("submissions/leaderboard.csv").set_index("name")
    assert {"early", "early-unfrozen", "early-frozen", "old", "aspects2020-base"} == set(board.index)
    ranked = board["rank"].notna()
    assert ranked["aspects2020-base"]
    assert not ranked.drop("aspects2020-base").any()
    assert board.loc["aspects2020-base", ["cv_early", "cv_old", "site_auc_early"]].notna().all()
    page = Path("work/report.html").read_text()
    assert "<h1>Ischemic stroke on head CT</h1>" in page
    assert "Score of regions by study" in page
    text = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    text = text.replace("models/hemorrhage", "")  # where its networks started
    assert [line for line in text.splitlines() if re.search(r"(?i)\bbleed\b|ha?emorrhage", line)] == []
    # Frozen stages hold the bytes of the hemorrhage network.
    source = load_file("models/hemorrhage/runs/bleeds/fold0/model.safetensors")
    frozen = load_file("work/runs/early-frozen/fold1/model.safetensors")
    same = [name for name in frozen if name in source and torch.equal(frozen[name], source[name])]
    assert len(same) == len([name for name in frozen if not name.startswith("backbone.head")])
    call("predict", "infarcts/site", "--model", "models/ischemia", "-c", "aspects2020-demo", "--out", "said")
    assert pd.read_csv("said/studies.csv").filter(like="p_").notna().all(axis=None)


def test_the_networks_of_aspects2020_have_the_windows_and_numbers_of_the_paper():
    early, old = (load_config(name) for name in ("aspects2020", "aspects2020-old"))
    assert (early.channels.windows, old.channels.windows) == (((40, 20),), ((40, 30),))
    assert early.channels.kind == old.channels.kind == "neighbours"
    assert (early.train.classes, old.train.classes) == (("early",), ("old",))
    assert (early.train.batch_blocks, early.train.epochs) == (16, 100)
    assert early.train.augment.horizontal_flip_probability == 0
    assert early.model_copy(update={"channels": old.channels, "train": old.train}) == old


def test_the_two_networks_of_each_recipe_share_all_that_the_papers_say_they_share():
    whether, which = (load_config(f"fiit2021-{name}") for name in ("whether", "which"))
    assert whether.channels == which.channels
    assert whether.train.augment == which.train.augment
    assert (whether.train.classes, which.train.given) == (("any",), "any")
    assert which.train.validation.share > 0
    paper = load_config("dlmi2021").train
    assert (paper.batch_blocks, paper.epochs, paper.learning_rate) == (48, 100, 5e-5)
