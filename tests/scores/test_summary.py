"""What `evaluate` prints: short by default, everything when asked, never a number without what it is made from."""

import io
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console
from support.commands import do
from support.scored import headlines
from support.simulated import TASK, make_stack, make_work

from ichkit.cli.main import main
from ichkit.core.config import Config, EvaluateConfig
from ichkit.core.errors import ConfigError
from ichkit.show.terminal import Printable
from ichkit.stages.scores import evaluate, summary
from ichkit.stages.scores.book import ScoreBook
from ichkit.stages.scores.stored import read_tables
from ichkit.validation.catalog import find_sources
from ichkit.validation.comparisons import BASELINE, COMPARISON_DTYPES, make_comparisons
from ichkit.validation.published import PUBLISHED
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder

CONFIG = Config(evaluate=EvaluateConfig(num_draws=60))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> WorkFolder:
    root = tmp_path_factory.mktemp("summary") / "work"
    work = make_work(root, runs=("a",), num_patients=24, num_folds=2, folds=(0, 1), cq500_studies=20, cq500_missing=3)
    make_stack(work, runs=("a",), kinds=("fusion",))
    do(evaluate, CONFIG, work)
    return work


def text_of(tables, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in tables:
        console.print(Printable(table))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    return text


def pooled(work: WorkFolder, name: str) -> pd.DataFrame:
    scores = headlines(read_table(work.scores / "scores.parquet"))
    return scores[(scores.source == name) & (scores.fold == -1)].set_index(["dataset", "metric", "class"])


def test_by_default_every_source_has_its_loss_and_counts_and_the_best_its_classes_in_80_columns(work):
    text = text_of(summary.render(work, TASK))
    rows = {name: pooled(work, name) for name in ("a", "a-fusion")}
    for name, scores in rows.items():
        loss = scores.loc[("rsna", "weighted_log_loss", "all")]
        assert f"{loss.value:.5f}" in text
        assert f"{loss.low:.4f}-{loss.high:.4f}" in text
        assert f"/ {loss.n:,}" in text
        assert name in text
    best = min(rows, key=lambda name: rows[name].value["rsna", "weighted_log_loss", "all"])
    assert f"{best}, out of fold, by slice" in text
    for label in TASK.classes:
        auc = rows[best].loc[("rsna", "roc_auc", label)]
        assert f"{auc.value:.3f}" in text
        assert f"{auc.n_positive:,}" in text
    assert len(text.splitlines()) < 90
    assert "subgroups" not in text


def test_cq500_stands_beside_the_published_numbers_with_its_studies_and_the_missing_ones(work):
    text = text_of(summary.render(work, TASK))
    for row in PUBLISHED.values():
        for value in row.roc_auc.values():
            assert f"{value:.4f}" in text
    flat = " ".join(text.split())
    assert "20 studies, 3 missing" in flat
    assert "Made from phantoms" in flat
    assert "These scores are of phantoms, the published ones of patients" in flat
    assert "not a medical device" in flat


def test_a_source_asked_for_by_name_shows_its_subgroups_thresholds_and_other_study_scores(work):
    text = text_of(summary.render(work, TASK, "a"))
    scores = read_table(work.scores / "scores.parquet")
    scores = scores[scores.source == "a"]
    for row in scores[(scores.subgroup != "all") & (scores.metric == "weighted_log_loss")].itertuples():
        assert f"{row.value:.4f}" in text
    for row in scores[scores.metric.str.startswith("threshold") & (scores.fold == -1)].itertuples():
        assert f"{row.value:.4f}" in text
    for row in scores[scores.aggregation.isin(["top_mean", "noisy_or"]) & (scores.metric == "roc_auc")].itertuples():
        assert f"{row.value:.3f}" in text
    with pytest.raises(ConfigError, match=r'"b" is not a finished run or stack'):
        summary.render(work, TASK, "b")


def test_the_baselines_own_scores_stand_in_the_table_where_they_are_known(work):
    sources = find_sources(work, TASK)
    tables = read_tables(work, sources)
    row = dict.fromkeys(COMPARISON_DTYPES, "") | {"source": "a", "other": BASELINE, "class": "any"}
    row |= {"dataset": "cq500", "metric": "roc_auc"}
    row |= dict.fromkeys(["value", "difference", "low", "high"], 0.1) | {"other_value": 0.876, "p_value": 0.034}
    row |= {"n": 19, "n_positive": 7, "num_left_out": 0}
    book = ScoreBook(replace(tables, comparisons=make_comparisons([row])), sources)
    source = next(one for one in sources if one.name == "a")
    text = text_of(summary.render_source(book, source))
    assert "0.876" in text
    assert "p 0.034" in text
    assert "its own published probabilities of the same 19 studies" in " ".join(text.split())


def test_all_prints_every_row_of_the_table(work):
    scores = read_table(work.scores / "scores.parquet")
    (table,) = summary.render(work, TASK, is_whole=True)
    assert len(table.rows) == len(scores)
    (own,) = summary.render(work, TASK, "a", is_whole=True)
    assert len(own.rows) == (scores.source == "a").sum()


def test_the_command_prints_what_it_is_asked_for(work, tmp_path):
    shutil.copytree(work.root, tmp_path / "work")
    common = ["--work", str(tmp_path / "work"), "--set", "evaluate.num_draws=60"]
    runner = CliRunner()
    short, long, whole = (
        runner.invoke(main, ["evaluate", *extra, *common]) for extra in ([], ["--source", "a"], ["--all"])
    )
    assert [done.exit_code for done in (short, long, whole)] == [0, 0, 0]
    assert "CQ500" in short.output
    assert "thresholds" not in short.output
    assert "thresholds" in long.output
    assert "sensitivity_at_youden" in whole.output
    wrong = runner.invoke(main, ["evaluate", "--source", "fusion", *common])
    assert wrong.exit_code == 2
    assert "a-fusion" in wrong.output
