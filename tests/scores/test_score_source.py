"""Thresholds, studies, subgroups, batches and comparisons of `evaluate`, each against what it should be made from."""

import hashlib
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from support.commands import do
from support.scored import make_scored, pick, read
from support.simulated import TASK, flip_labels, make_stack, make_work, rewrite_slices

from ichkit.core.config import Config, EvaluateConfig
from ichkit.core.errors import ContractError
from ichkit.stages.scores import evaluate, score_source
from ichkit.validation.catalog import find_sources, load_out_of_fold, load_split, pick_source
from ichkit.validation.coherence import make_coherent, make_table_coherent
from ichkit.validation.comparisons import BASELINE
from ichkit.validation.delong import delong_test
from ichkit.validation.metrics import study_maximum, weighted_log_loss
from ichkit.work.artifacts import ArtifactWriter, read_manifest, read_table
from ichkit.work.folder import WorkFolder

CONFIG = Config(evaluate=EvaluateConfig(num_draws=60))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> WorkFolder:
    return make_scored(tmp_path_factory.mktemp("parts") / "work", ("a",), CONFIG)


@pytest.fixture
def work(made, tmp_path) -> WorkFolder:
    shutil.copytree(made.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


def test_intervals_are_drawn_by_patient_also_where_one_has_several_studies(work, monkeypatch):
    slices = read_table(work.prepared / "slices.parquet")
    of_fold = slices[(slices.split == "train") & (slices.fold == 0)].drop_duplicates("study_id")
    one, other = of_fold.patient_id.iloc[:2]
    slices["patient_id"] = slices.patient_id.replace(other, one)
    rewrite_slices(work, slices)
    scored = []
    original = score_source.score_rows
    monkeypatch.setattr(
        score_source, "score_rows", lambda rows, *_, **__: scored.append(rows) or original(rows, *_, **__)
    )
    do(evaluate, CONFIG, work)
    train = slices[slices.split == "train"].sort_values(["study_id", "slice_index"])
    patients = {"slice": train.patient_id, "study": train.drop_duplicates("study_id").patient_id}
    whole = [rows for rows in scored if rows.place["split"] == "train" and rows.place["subgroup"] == "all"]
    whole = {rows.place["level"]: rows for rows in whole if rows.place["fold"] == -1}
    for level, of_rows in patients.items():
        drawn = pd.factorize(whole[level].members)[0]
        np.testing.assert_array_equal(drawn, pd.factorize(of_rows)[0])
        assert len(np.unique(drawn)) == train.patient_id.nunique() < train.study_id.nunique() < len(train)
    external = next(rows for rows in scored if rows.place["split"] == "external")
    assert len(np.unique(external.members)) == len(external.labels)


def study_rows(work: WorkFolder, name: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Out of fold: the highest probability of each study, its labels and its fold, by study_id."""
    table = load_out_of_fold(pick_source(find_sources(work, TASK), name))
    labels = read_table(work.prepared / "slices.parquet").set_index("slice_id").loc[table.slice_id].reset_index()
    by_study = labels.groupby("study_id")[list(TASK.classes)].max().astype(int)
    return table.groupby("study_id")[TASK.probability_columns].max(), by_study, table.groupby("study_id").fold.first()


def test_a_run_is_scored_as_it_stands_and_coherent_where_that_is_asked_for(work):
    table = load_out_of_fold(pick_source(find_sources(work, TASK), "a"))
    labels = read_table(work.prepared / "slices.parquet").set_index("slice_id").loc[table.slice_id, list(TASK.classes)]
    raw, y = table[TASK.probability_columns].to_numpy(np.float64), labels.to_numpy(float)
    place = {"source": "a", "dataset": "rsna", "level": "slice", "fold": -1, "metric": "weighted_log_loss"}
    assert pick(read(work), **place).value == pytest.approx(weighted_log_loss(raw, y, TASK.weight_array()), abs=1e-12)
    top = study_maximum(load_split(pick_source(find_sources(work, TASK), "a"), "cq500"), TASK)
    do(evaluate, Config(evaluate=EvaluateConfig(num_draws=60, coherent_base=True)), work)
    expected = weighted_log_loss(make_coherent(raw, TASK), y, TASK.weight_array())
    assert expected < weighted_log_loss(raw, y, TASK.weight_array()) - 1e-4
    assert pick(read(work), **place).value == pytest.approx(expected, abs=1e-6)
    cq500 = make_table_coherent(load_split(pick_source(find_sources(work, TASK), "a"), "cq500"), TASK)
    coherent, known = study_maximum(cq500, TASK), read_table(work.prepared / "studies.parquet").set_index("study_id")
    place = {
        "source": "a",
        "dataset": "cq500",
        "level": "study",
        "aggregation": "maximum",
        "metric": "roc_auc",
        "fold": -1,
    }
    differ = 0
    for name in TASK.classes:
        y = known.loc[coherent.study_id, name].astype(int)
        auc = sklearn.metrics.roc_auc_score(y, coherent[f"p_{name}"])
        differ += auc != sklearn.metrics.roc_auc_score(y, top[f"p_{name}"])
        assert pick(read(work), **place, class_=name).value == pytest.approx(auc, abs=1e-9)
    assert differ  # otherwise it would not matter which was scored


def test_study_scores_out_of_fold_are_those_of_scikit_learn_for_the_highest_slice(made):
    scores = read(made)
    top, labels, _ = study_rows(made, "a")
    place = {"source": "a", "dataset": "rsna", "level": "study", "aggregation": "maximum", "fold": -1}
    for name in TASK.classes:
        p, y = top[f"p_{name}"].to_numpy(np.float64), labels[name].to_numpy()
        auc, precision = (
            pick(scores, **place, metric=metric, class_=name) for metric in ("roc_auc", "average_precision")
        )
        assert auc.value == pytest.approx(sklearn.metrics.roc_auc_score(y, p), abs=1e-9)
        assert precision.value == pytest.approx(sklearn.metrics.average_precision_score(y, p), abs=1e-9)
        half = pick(scores, **place, metric="f1_at_half", class_=name)
        assert half.value == pytest.approx(sklearn.metrics.f1_score(y, p >= 0.5), abs=1e-9)
        assert (half.n, half.n_positive) == (len(y), y.sum())


def thresholds_of(scores: pd.DataFrame) -> pd.Series:
    """The thresholds of run a by aim, level, fold and class."""
    rows = scores[(scores.source == "a") & scores.metric.str.startswith("threshold_")]
    aim = rows.metric.str.removeprefix("threshold_")
    return rows.assign(aim=aim).set_index(["aim", "level", "fold", "class"]).value.sort_index()


def test_decisions_of_a_fold_are_made_at_the_threshold_of_the_others_and_add_up(made):
    scores = read(made)
    top, labels, folds = study_rows(made, "a")
    place, chosen = {"source": "a", "dataset": "rsna", "level": "study", "fold": -1}, thresholds_of(scores)
    for name in TASK.classes:
        p, y = top[f"p_{name}"].to_numpy(np.float64), labels[name].to_numpy()
        own = {aim: [chosen[aim, "study", k, name] for k in folds] for aim in ("best_f1", "youden")}
        best, found = p >= np.array(own["best_f1"]), p >= np.array(own["youden"])
        assert pick(scores, **place, metric="f1_at_best", class_=name).value == pytest.approx(
            sklearn.metrics.f1_score(y, best), abs=1e-9
        )
        rates = [
            pick(scores, **place, metric=f"{what}_at_youden", class_=name).value
            for what in ("sensitivity", "specificity")
        ]
        assert rates == pytest.approx([found[y == 1].mean(), (~found)[y == 0].mean()], abs=1e-9)


def test_no_label_of_a_fold_moves_its_own_thresholds(work):
    before = thresholds_of(read(work))
    flip_labels(work, 1)
    do(evaluate, CONFIG, work)
    is_moved = before != thresholds_of(read(work))
    for level in ("slice", "study"):
        for aim in ("best_f1", "youden"):
            assert is_moved[aim, level].groupby("fold").any().to_dict() == {-1: True, 0: True, 1: False, 2: True}


def test_cq500_is_decided_at_thresholds_of_the_out_of_fold_studies_and_none_of_its_own(work):
    scores, chosen = read(work), thresholds_of(read(work))
    top = (
        load_split(pick_source(find_sources(work, TASK), "a"), "cq500")
        .groupby("study_id")[TASK.probability_columns]
        .max()
    )
    studies = read_table(work.prepared / "studies.parquet").set_index("study_id").loc[top.index]
    for name in TASK.classes:
        at = chosen["youden", "study", -1, name]
        y, yes = studies[name].to_numpy(int), top[f"p_{name}"].to_numpy(np.float64) >= at
        row = pick(scores, source="a", dataset="cq500", metric="sensitivity_at_youden", class_=name)
        assert row.value == pytest.approx(yes[y == 1].mean(), abs=1e-9)
    assert not len(scores[(scores.dataset == "cq500") & scores.metric.str.startswith("threshold")])


def test_a_single_fold_gets_thresholds_from_parts_of_its_own_patients(tmp_path):
    work = make_work(tmp_path / "work", num_patients=30, num_folds=2, folds=(1,), cq500_studies=0)
    do(evaluate, CONFIG, work)
    scores = read(work)
    assert scores[scores.metric.str.startswith("threshold")].fold.unique().tolist() == [-1]
    assert np.isfinite(pick(scores, level="study", fold=-1, metric="sensitivity_at_youden", class_="any").value)


def test_subgroups_are_scored_on_their_own_rows_and_add_up_to_all(work):
    slices = read_table(work.prepared / "slices.parquet")
    slices["padded"] = slices.study_id.map(lambda name: hash_of(name) % 3 == 0)
    rewrite_slices(work, slices)
    do(evaluate, CONFIG, work)
    scores = read(work)
    parts = [
        pick(scores, source="a", subgroup=f"padded={word}", metric="weighted_log_loss", fold=-1)
        for word in ("yes", "no")
    ]
    whole = pick(scores, source="a", level="slice", metric="weighted_log_loss", fold=-1)
    assert sum(part.n for part in parts) == whole.n
    assert sum(part.n_positive for part in parts) == whole.n_positive
    assert sum(part.n * part.value for part in parts) / whole.n == pytest.approx(whole.value, abs=1e-12)
    table = load_out_of_fold(pick_source(find_sources(work, TASK), "a"))
    rows = slices.set_index("slice_id").loc[table.slice_id]
    inside = rows.padded.to_numpy(bool)
    expected = sklearn.metrics.roc_auc_score(rows["any"].to_numpy(int)[inside], table.p_any.to_numpy()[inside])
    row = pick(scores, source="a", subgroup="padded=yes", metric="roc_auc", class_="any", fold=-1)
    assert row.value == pytest.approx(expected, abs=1e-9)


def hash_of(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def add_prepared(work: WorkFolder, name: str, table: pd.DataFrame) -> None:
    """One more file in the prepared artifact, manifest included."""
    old = read_manifest(work.prepared)
    writer = ArtifactWriter(work.prepared, "prepared")
    for other in old.files.keys() - {name}:
        writer.write_bytes(other, (work.prepared / other).read_bytes())
    writer.write_table(name, table)
    writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


def test_cq500_is_scored_by_batch_once_the_batches_are_known(work, caplog):
    assert not read(work).subgroup.str.startswith("batch").any()
    names = [f"CQ500-CT-{i}" for i in range(32)]
    facts = pd.DataFrame({"study_id": names, "batch": ["B1", "B1", "B2", "B2"] * 8})
    add_prepared(work, "cq500_facts.csv", facts)
    caplog.set_level(logging.INFO, logger="ichkit")
    do(evaluate, CONFIG, work)
    assert "scoring 2 of 2 sources: inputs changed" in caplog.text
    scores = read(work)
    top = load_split(pick_source(find_sources(work, TASK), "a"), "cq500").groupby("study_id")[["p_any"]].max()
    studies = read_table(work.prepared / "studies.parquet").set_index("study_id").loc[top.index]
    batch = facts.set_index("study_id").batch[top.index]
    for name in ("B1", "B2"):
        inside = (batch == name).to_numpy()
        row = pick(scores, source="a", dataset="cq500", subgroup=f"batch={name}", metric="roc_auc", class_="any")
        expected = sklearn.metrics.roc_auc_score(studies["any"].to_numpy(int)[inside], top.p_any.to_numpy()[inside])
        assert row.value == pytest.approx(expected, abs=1e-9)
        assert row.n == inside.sum()


def test_the_baselines_own_probabilities_are_compared_on_the_studies_that_both_score(work):
    assert not len(read_comparisons(work, BASELINE))
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.random((25, 6)), columns=TASK.probability_columns)
    table.insert(0, "study_id", [f"CQ500-CT-{i}" for i in range(25)])
    add_prepared(work, "cq500_baseline.csv", table)
    do(evaluate, CONFIG, work)
    found = read_comparisons(work, BASELINE)
    assert set(found.source) == {"a", "a-fusion"}
    assert (found.n == 25).all()
    top = load_split(pick_source(find_sources(work, TASK), "a"), "cq500").groupby("study_id")[["p_any"]].max()
    y = read_table(work.prepared / "studies.parquet").set_index("study_id").loc[table.study_id, "any"].to_numpy(int)
    row = found[(found.source == "a") & (found["class"] == "any")].iloc[0]
    own = top.loc[table.study_id, "p_any"].to_numpy(np.float64)
    test = delong_test(y, own, table.p_any.to_numpy(), 0.95)
    assert (row.value, row.other_value, row.p_value) == pytest.approx(
        (test.auc, test.other_auc, test.p_value), abs=1e-12
    )
    add_prepared(work, "cq500_baseline.csv", table.drop(columns="p_any"))
    with pytest.raises(ContractError, match=r"cq500_baseline.csv: expected one row .* found no column p_any"):
        do(evaluate, CONFIG, work)


def read_comparisons(work: WorkFolder, other: str) -> pd.DataFrame:
    table = read_table(work.scores / "comparisons.parquet")
    return table[table.other == other]


def test_comparisons_go_when_one_of_the_two_goes_and_follow_when_it_changes(work):
    assert set(read_comparisons(work, "a").source) == {"a-fusion"}
    before = (work.scores / "comparisons.parquet").read_bytes()
    shutil.rmtree(work.fold("a", 2))
    do(evaluate, CONFIG, work)
    # The run has other folds now, so nothing is left to compare.
    assert not len(read_table(work.scores / "comparisons.parquet"))
    shutil.rmtree(work.stacks)
    make_stack(work, runs=("a",), kinds=("fusion",))
    do(evaluate, CONFIG, work)
    kept = (work.scores / "comparisons.parquet").read_bytes()
    assert set(read_comparisons(work, "a").source) == {"a-fusion"}
    shutil.rmtree(work.scores)
    do(evaluate, CONFIG, work)
    assert (work.scores / "comparisons.parquet").read_bytes() == kept != before
