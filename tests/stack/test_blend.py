"""Blends by hand: what they are worth out of fold, that nothing leaks through their weights, and what they refuse."""

import numpy as np
import pandas as pd
import pytest
from support.commands import call, do
from support.scored import read
from support.simulated import TASK, flip_labels, make_stack, make_work, rewrite_tables

from ichkit.core.config import load_config
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.stacking.weighting import METHODS, climb
from ichkit.stages.scores import evaluate
from ichkit.stages.stack import blend
from ichkit.validation.metrics import roc_auc
from ichkit.work.artifacts import read_manifest, read_table

CONFIG = load_config("default", ("evaluate.num_draws=40",))
COLUMNS = TASK.probability_columns


@pytest.fixture
def work(tmp_path):
    """Two runs on three folds, and their stack."""
    work = make_work(
        tmp_path / "work", runs=("one", "two"), num_patients=30, num_folds=3, folds=(0, 1, 2), cq500_studies=6
    )
    make_stack(work, runs=("one", "two"), kinds=("fusion",))
    return work


def make_blend(work, *sources, **options):
    return do(blend, CONFIG, work, sources=list(sources), **options)


def table(work, name, split="oof"):
    return read_table(work.stacks / name / f"hand_{split}.parquet")


def run_table(work, run, split="oof"):
    tables = [read_table(work.fold(run, fold) / f"{split}.parquet") for fold in (0, 1, 2)]
    if split == "oof":
        return pd.concat(tables).sort_values(["study_id", "slice_index"], ignore_index=True)[COLUMNS].to_numpy(float)
    return np.stack([one[COLUMNS].to_numpy(np.float64) for one in tables])


def is_coherent(p):
    return (p[:, :-1].max(1) <= p[:, -1]).all()


def coherent_rows(p):
    """Rows that coherence leaves alone: the covering class is the last."""
    return p[:, -1] > p[:, :-1].max(1) + 1e-6


# the methods, against formulas


def members_of(seed=0, number=3, rows=200):
    return np.random.default_rng(seed).uniform(0.01, 0.99, (number, rows, 2))


def test_mean_and_logit_are_their_formulas():
    p, weights = members_of(), np.array([0.5, 0.3, 0.2])
    assert np.allclose(METHODS["mean"].combine(p, weights, p), 0.5 * p[0] + 0.3 * p[1] + 0.2 * p[2])
    odds = np.prod((p / (1 - p)) ** weights[:, None, None], axis=0)
    assert np.allclose(METHODS["logit"].combine(p, weights, p), odds / (1 + odds))


def test_ranks_are_those_of_the_mean_rank_and_no_monotone_change_of_a_member_matters():
    p, weights = members_of(), np.array([0.4931, 0.2877, 0.2192])
    own = METHODS["rank"].combine(p, weights, p)
    ranks = np.tensordot(weights, p.argsort(1).argsort(1), axes=1)
    for c in range(2):
        order = np.argsort(ranks[:, c], kind="stable")
        assert (np.diff(own[order, c]) >= 0).all()
        assert np.allclose(np.sort(own[:, c]), np.sort(weights @ p[..., c]))
    bent = p.copy()
    bent[1] = bent[1] ** 3
    labels = (p[0] > 0.5).astype(float)
    after = METHODS["rank"].combine(bent, weights, bent)
    for c in range(2):
        assert roc_auc(labels[:, c], after[:, c]) == roc_auc(labels[:, c], own[:, c])
    # One row alone gets what it gets among others: nothing is learnt from the rows that are predicted.
    assert np.allclose(METHODS["rank"].combine(p[:, :1], weights, p), own[:1])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is_and_weights_of_one_member_give_that_member(name):
    row, p = METHODS[name], members_of()
    assert row.name == name
    assert row.description.endswith(".")
    assert row.source
    assert np.allclose(row.combine(p, np.array([0, 1.0, 0]), p), p[1], atol=1e-12)


def test_climbing_finds_the_good_member_and_mixes_two_that_err_apart():
    rng = np.random.default_rng(0)
    labels = (rng.random((4000, 1)) < 0.4).astype(float)
    signal = np.where(labels > 0, 1.2, -1.2)
    noisy = [1 / (1 + np.exp(-(signal + rng.normal(0, 1, labels.shape)))) for _ in range(2)]
    members = np.stack([*noisy, np.full(labels.shape, 0.4)])

    def mean(own, weights):
        return METHODS["logit"].combine(own, weights, own)

    weights = climb(members, labels, np.ones(1), mean)
    assert weights.sum() == pytest.approx(1)
    assert abs(weights[0] - weights[1]) < 0.2
    assert weights[2] < 0.1
    assert climb(members[[0, 2]], labels, np.ones(1), mean)[0] > 0.9


# the command


def test_a_blend_is_the_weighted_mean_out_of_fold_and_of_each_fold_on_the_test_split(work):
    make_blend(work, "one", "two", weights=[3, 1], name="mine")
    expected = 0.75 * run_table(work, "one") + 0.25 * run_table(work, "two")
    own = table(work, "mine")[COLUMNS].to_numpy(np.float64)
    kept = coherent_rows(expected)
    assert kept.sum() > 100
    assert np.allclose(own[kept], expected[kept], atol=2e-6)
    assert is_coherent(own)
    make_blend(work, "one", "two", weights=[3, 1], method="logit", name="odds")
    for split in ("test", "cq500"):
        one, two = (np.log(p) - np.log1p(-p) for p in (run_table(work, run, split) for run in ("one", "two")))
        expected = (1 / (1 + np.exp(-(0.75 * one + 0.25 * two)))).mean(0)
        found = table(work, "odds", split)
        kept = coherent_rows(expected)
        assert np.allclose(found[COLUMNS].to_numpy(np.float64)[kept], expected[kept], atol=2e-6)
        assert (found.fold == -1).all()


def test_evaluate_scores_a_blend_beside_its_members_and_it_is_outdated_when_one_changes(work):
    make_blend(work, "one", "one+two-fusion", name="mine")
    do(evaluate, CONFIG, work)
    assert {"one", "two", "one+two-fusion", "mine-hand"} == set(read(work).source)
    assert blend.plan(CONFIG, work, blend.BlendOptions(["one", "one+two-fusion"], name="mine")).is_idle
    changed = read_table(work.fold("one", 0) / "oof.parquet")
    changed.loc[0, "p_any"] = np.float32(0.123)
    rewrite_tables(work.fold("one", 0), {"oof.parquet": changed})
    plan = evaluate.plan_scores(CONFIG, work)
    assert {source.name for source in plan.sources if source.is_outdated} >= {"mine-hand"}


def test_selected_weights_of_a_fold_do_not_depend_on_its_labels(work):
    before = make_blend(work, "one", "two", selects=True, name="before").facts["weights"]
    flip_labels(work, 0)
    after = make_blend(work, "one", "two", selects=True, name="after").facts["weights"]
    assert after["0"] == before["0"]
    assert (after["1"], after["2"]) != (before["1"], before["2"])
    held = [table(work, name).query("fold == 0") for name in ("before", "after")]
    assert held[0].equals(held[1])


def test_what_would_leak_or_cannot_be_blended_is_refused(work):
    for sources, options, message in (
        (["one"], {}, "expected two or more different sources"),
        (["one", "one"], {}, "expected two or more different sources"),
        (["one", "tow"], {}, 'Did you mean "two"'),
        (["one", "two"], {"weights": [1]}, "expected 2 numbers of 0 or more"),
        (["one", "two"], {"weights": [0, 0]}, "expected 2 numbers of 0 or more"),
        (["one", "two"], {"weights": [2, -1]}, "expected 2 numbers of 0 or more"),
        (["one", "two"], {"method": "median"}, "blend --method: unknown"),
        (["one", "two"], {"weights": [1, 1], "selects": True}, "found both"),
        (["one", "one+two-fusion"], {"selects": True}, "would leak"),
    ):
        with pytest.raises(ConfigError) as caught:
            make_blend(work, *sources, **options)
        assert message in str(caught.value)
    with pytest.raises(ArtifactError, match="is a stack with second stages, which is kept"):
        make_blend(work, "one", "two", name="one+two")
    make_blend(work, "one", "two", name="mine")
    with pytest.raises(ConfigError, match="mine-hand is a blend by hand. Name its members"):
        make_blend(work, "one", "mine-hand")


def test_predict_refuses_a_blend_and_takes_the_best_source_with_models_instead(work, tmp_path):
    from ichkit.stages.predict.model import find_model
    from ichkit.stages.scores.submit import choose_source

    manifest = make_blend(work, "one", "two", name="mine")
    assert read_manifest(work.stacks / "mine").files == manifest.files
    with pytest.raises(ConfigError, match="mine-hand is a blend by hand, which has tables and no models"):
        find_model(work, "mine-hand", TASK)
    with pytest.raises(ConfigError, match="mine-hand is a blend by hand"):
        find_model(work, str(work.stacks / "mine"), TASK)
    do(evaluate, CONFIG, work)
    scoring = evaluate.plan_scores(CONFIG, work)
    assert choose_source(scoring, has_models=True).name != "mine-hand"
    printed = call("blend", "one", "two", "--weights", "2,1", "--work", work.root)
    assert "Blend one+two-mean-hand" in printed
    assert "0.667" in printed
    assert "expected numbers such as 2,1,1" in call(
        "blend", "one", "two", "--weights", "x", "--work", work.root, code=2
    )


def test_the_command_says_that_any_is_made_coherent_and_prints_selected_weights_once(work):
    printed = " ".join(call("blend", "one", "two", "--weights", "1,0", "--work", work.root).split())
    assert "rows with a class above the one that covers it (any) are made coherent" in printed
    assert "even with weight 1 for a run, these rows differ" in printed
    printed = call("blend", "one", "two", "--select", "--name", "picked", "--work", work.root)
    assert len([line for line in printed.splitlines() if "two" in line and "0." in line]) == 1
    assert "fold 0:" not in printed


@pytest.mark.slow
def test_the_report_of_a_work_folder_whose_best_source_is_a_blend(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_blend(work, "one", "two", name="mine")
    call("report", "--work", work.root, "--set", "evaluate.num_draws=40")
    assert "mine-hand" in (work.root / "report.html").read_text()
