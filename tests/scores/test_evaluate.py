"""`evaluate` against scikit-learn, its counts and intervals, what it reuses, and what it refuses."""

import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from support.commands import do
from support.scored import headlines, make_scored, pick, read
from support.simulated import TASK, make_work, rewrite_slices, rewrite_tables

from ichkit.core.config import Config, EvaluateConfig
from ichkit.core.errors import ArtifactError, ContractError, FoldError
from ichkit.stages.scores import evaluate, score_source
from ichkit.stages.scores.book import SLICES, external_studies, open_book
from ichkit.stages.scores.score_source import read_out_of_fold
from ichkit.validation.catalog import find_sources, load_out_of_fold, load_split
from ichkit.validation.scores import PLACE
from ichkit.work.artifacts import read_manifest, read_table
from ichkit.work.folder import WorkFolder

CONFIG = Config(evaluate=EvaluateConfig(num_draws=100))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> WorkFolder:
    return make_scored(tmp_path_factory.mktemp("evaluate") / "work", ("a", "b"), CONFIG)


@pytest.fixture
def work(made, tmp_path) -> WorkFolder:
    shutil.copytree(made.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


def test_every_out_of_fold_score_is_that_of_scikit_learn_pooled_and_per_fold(made):
    scores, labels = read(made), read_table(made.prepared / "slices.parquet").set_index("slice_id")
    for source in find_sources(made, TASK):
        table = load_out_of_fold(source)
        for fold in (-1, 2):
            rows = table if fold < 0 else table[table.fold == fold]
            y = labels.loc[rows.slice_id, list(TASK.classes)].to_numpy(int)
            p = rows[TASK.probability_columns].to_numpy(np.float64)
            place = {"source": source.name, "dataset": "rsna", "level": "slice", "fold": fold}
            losses = []
            for c, name in enumerate(TASK.classes):
                losses.append(sklearn.metrics.log_loss(y[:, c], p[:, c], labels=[0, 1]))
                loss = pick(scores, **place, metric="log_loss", class_=name)
                auc = pick(scores, **place, metric="roc_auc", class_=name)
                assert loss.value == pytest.approx(losses[-1], abs=1e-9)
                assert auc.value == pytest.approx(sklearn.metrics.roc_auc_score(y[:, c], p[:, c]), abs=1e-9)
                assert (loss.n, loss.n_positive) == (auc.n, auc.n_positive) == (len(y), y[:, c].sum())
            whole = pick(scores, **place, metric="weighted_log_loss")
            assert whole.value == pytest.approx(np.dot(losses, TASK.weights), abs=1e-9)
            assert whole["class"] == "all"


def test_the_cq500_score_of_a_study_is_that_of_its_highest_slice(made):
    scores, studies = read(made), read_table(made.prepared / "studies.parquet").set_index("study_id")
    for source in find_sources(made, TASK):
        top = load_split(source, "cq500").groupby("study_id")[TASK.probability_columns].max()
        place = {"source": source.name, "dataset": "cq500", "level": "study", "aggregation": "maximum"}
        aucs = []
        for name in TASK.classes:
            aucs.append(sklearn.metrics.roc_auc_score(studies.loc[top.index, name].astype(int), top[f"p_{name}"]))
            row = pick(scores, **place, metric="roc_auc", class_=name)
            assert row.value == pytest.approx(aucs[-1], abs=1e-9)
            assert row.n == 30
            assert row.n_positive == studies.loc[top.index, name].sum()
        assert pick(scores, **place, metric="roc_auc", class_="mean").value == pytest.approx(np.mean(aucs), abs=1e-9)


def test_every_interval_holds_its_value_and_every_undefined_score_is_nan_with_its_counts(made):
    scores = read(made)
    told = scores[scores.low.notna()]
    assert ((told.low <= told.value) & (told.value <= told.high)).all()
    assert (told.num_left_out <= 5).all()
    assert (scores[scores.num_left_out > 5].low.isna()).all()
    assert told.metric.nunique() == scores.metric.nunique() - 2  # thresholds have none
    whole = scores[scores["class"] == "all"]
    assert (whole.high - whole.low > 0).all()
    assert not scores.duplicated(PLACE).any()
    assert (scores[scores.metric.str.startswith("threshold")].low.isna()).all()
    assert (scores.n_positive <= scores.n).all()


def test_a_class_without_positives_in_a_fold_has_no_auc_there(work):
    slices = read_table(work.prepared / "slices.parquet")
    slices.loc[(slices.fold == 2).fillna(False), "epidural"] = 0
    rewrite_slices(work, slices)
    do(evaluate, CONFIG, work)
    row = pick(read(work), source="a", dataset="rsna", fold=2, metric="roc_auc", class_="epidural")
    assert np.isnan([row.value, row.low, row.high]).all()
    assert (row.n, row.n_positive) == (int((slices.fold == 2).sum()), 0)
    assert row.num_left_out == 100


def test_two_sources_are_drawn_alike_so_equal_tables_have_equal_intervals(work):
    shutil.copytree(work.runs / "a", work.runs / "twin")
    do(evaluate, CONFIG, work)
    scores = read(work)
    a, twin = (scores[scores.source == name].drop(columns="source").reset_index(drop=True) for name in ("a", "twin"))
    pd.testing.assert_frame_equal(a, twin)


def test_scores_are_made_once_and_again_only_for_what_changed(work, caplog):
    caplog.set_level(logging.INFO, logger="ichkit")
    before, bytes_before = do(evaluate, CONFIG, work), (work.scores / "scores.parquet").read_bytes()
    assert "the scores of 3 sources are up to date" in caplog.text
    assert before.created_utc == read_manifest(work.scores).created_utc
    shutil.rmtree(work.fold("b", 2))
    caplog.clear()
    after = do(evaluate, CONFIG, work)
    assert "scoring 1 of 3 sources: inputs changed" in caplog.text
    assert after.inputs != before.inputs
    kept = (work.scores / "scores.parquet").read_bytes()
    shutil.rmtree(work.scores)
    do(evaluate, CONFIG, work)
    assert (work.scores / "scores.parquet").read_bytes() == kept != bytes_before


def test_the_out_of_fold_rows_of_a_source_are_read_once(work, monkeypatch):
    """Reading and checking them is a good part of the work."""
    asked = []

    def read_rows(source, *rest):
        asked.append(source.name)
        return read_out_of_fold(source, *rest)

    for module in (evaluate, score_source):
        monkeypatch.setattr(module, "read_out_of_fold", read_rows)
    names = [source.name for source in find_sources(work, TASK)]
    shutil.rmtree(work.scores)
    evaluate.run(evaluate.plan(Config(), work))
    assert sorted(asked) == sorted(names)


def test_other_labels_or_other_settings_score_everything_again(work, caplog):
    caplog.set_level(logging.INFO, logger="ichkit")
    slices = read_table(work.prepared / "slices.parquet")
    slices.loc[(slices.split == "train").to_numpy(), "epidural"] = 0
    rewrite_slices(work, slices)
    do(evaluate, CONFIG, work)
    assert "scoring 3 of 3 sources: inputs changed" in caplog.text
    caplog.clear()
    do(evaluate, Config(evaluate=EvaluateConfig(num_draws=60)), work)
    assert "scoring 3 of 3 sources" in caplog.text


def test_missing_cq500_studies_are_counted_in_the_log_and_named_in_the_manifest(work, caplog):
    shutil.rmtree(work.scores)
    caplog.set_level(logging.INFO, logger="ichkit")
    manifest = do(evaluate, CONFIG, work)
    assert "CQ500 studies without slices, not scored: 2" in caplog.text
    assert manifest.facts["cq500_missing"] == ["CQ500-CT-30", "CQ500-CT-31"]
    assert "CQ500-CT-30" not in caplog.text


def test_without_cq500_there_are_only_out_of_fold_scores(tmp_path):
    work = make_work(tmp_path / "work", num_patients=10, num_folds=2, folds=(0, 1), cq500_studies=0)
    do(evaluate, CONFIG, work)
    assert read(work).dataset.unique().tolist() == ["rsna"]


def test_nothing_trained_is_refused_with_the_command_to_run(tmp_path):
    work = make_work(tmp_path / "work", num_patients=10, folds=())
    with pytest.raises(ArtifactError, match=r"expected a finished fold of a run, found none. Run `ichkit train` first"):
        do(evaluate, CONFIG, work)


def test_a_source_made_before_scans_were_added_is_refused_with_its_remedy(work):
    slices = read_table(work.prepared / "slices.parquet")
    extra = slices[slices.fold == 1].iloc[:1].assign(slice_id="ID_new", study_id="ID_zz", slice_index=0, num_slices=1)
    rewrite_slices(work, pd.concat([slices, extra]))
    with pytest.raises(ContractError, match=r"runs/a \(oof\).*found .* rows, 1 of other slices.*run `ichkit train`"):
        do(evaluate, CONFIG, work)
    shutil.rmtree(work.runs)
    with pytest.raises(ContractError, match=r"stacks/.*run `ichkit stack`"):
        do(evaluate, CONFIG, work)


def test_a_stack_older_than_the_descriptors_of_its_runs_is_named(work, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ichkit"):
        do(evaluate, CONFIG, work)
        assert not caplog.records
        other = make_work(tmp_path / "other", runs=("b",), num_folds=3, folds=(1,), seed=1)
        shutil.rmtree(work.fold("b", 1))
        shutil.copytree(other.fold("b", 1), work.fold("b", 1))
        with pytest.raises(ContractError, match=r"runs/b \(oof\)"):
            do(evaluate, CONFIG, work)
    assert caplog.messages == ["evaluate: a+b-fusion is outdated: its runs have changed since; run `ichkit stack`"]


def test_a_row_with_a_fold_that_is_not_its_own_is_refused(work):
    path = work.fold("a", 0) / "oof.parquet"
    rewrite_tables(path.parent, {path.name: read_table(path).assign(fold=1)})
    shutil.rmtree(work.scores)
    with pytest.raises(ContractError, match=r"has fold 1, expected 0"):
        do(evaluate, CONFIG, work)


def test_a_patient_in_two_folds_stops_the_scores(work):
    slices = read_table(work.prepared / "slices.parquet")
    twice = slices[slices.fold == 0].groupby("patient_id").slice_id.first().iloc[0]
    slices.loc[slices.slice_id == twice, "fold"] = 1
    rewrite_slices(work, slices)
    with pytest.raises(FoldError, match=r"has folds 0 and 1; a patient has one"):
        do(evaluate, CONFIG, work)


def test_the_line_of_a_source_says_how_many_classes_have_both_labels(work, caplog):
    slices = read_table(work.prepared / "slices.parquet")
    slices.loc[slices["split"] == "train", ["epidural", "subdural"]] = 0
    rewrite_slices(work, slices)
    caplog.set_level(logging.INFO, logger="ichkit")
    do(evaluate, CONFIG, work)
    assert "positive; 4 of 6 classes scored" in caplog.text


def test_scores_older_than_a_source_are_not_read(work):
    shutil.rmtree(work.fold("b", 2))
    with pytest.raises(ArtifactError, match=r"with other tables. Run `ichkit evaluate`"):
        open_book(work, TASK)


def test_what_ranks_is_one_row_per_source_metric_class_and_fold(made):
    main = headlines(read(made))
    keys = ["source", "dataset", "fold", "metric", "class"]
    assert not main.duplicated(keys).any()
    assert (main.subgroup == "all").all()
    assert set(zip(main.dataset, main["level"], strict=True)) == {("cq500", "study"), ("rsna", "slice")}
    book = open_book(made, TASK)
    for row in main.itertuples():
        group = SLICES if row.split == "train" else external_studies(row.dataset)
        source = next(one for one in book.sources if one.name == row.source)
        found = book.find(source, row.metric, row._9, group, fold=row.fold)
        np.testing.assert_equal((found.value, found.low, found.high), (row.value, row.low, row.high))
        assert (found.n, found.n_positive) == (row.n, row.n_positive)
