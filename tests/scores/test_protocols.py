"""`--protocols`: the same predictions under every protocol, against scores worked out from the tables."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from support.commands import call
from support.reports import CONFIG
from support.scored import pick, read
from support.simulated import TASK, make_stack, make_work, rewrite_tables

from ichkit.core.errors import ArtifactError
from ichkit.imaging.store import Prepared
from ichkit.stages.scores import evaluate, protocols
from ichkit.stages.scores.protocol_tables import describe, render, select
from ichkit.validation.agreement import fleiss_kappa
from ichkit.validation.catalog import find_sources
from ichkit.validation.delong import delong_test
from ichkit.validation.protocols import REFERENCES, Protocol, list_protocols, paper_protocol
from ichkit.validation.scope import Scope
from ichkit.work.artifacts import ArtifactWriter, read_manifest, read_table
from ichkit.work.folder import WorkFolder
from ichkit.work.looks import read_looks

PAPER = {"studies": "scanned", "aggregation": "maximum", "series": "cq500", "reference": "labels"}


def write_tables(folder, tables):
    """The same artifact with these tables, new or in place of its own."""
    old = read_manifest(folder)
    writer = ArtifactWriter(folder, old.kind)
    for name in old.files.keys() - tables.keys():
        writer.write_bytes(name, (folder / name).read_bytes())
    for name, table in tables.items():
        writer.write_table(name, table)
    writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)


def pool_of(table):
    """A table of pooled studies: the mean of each study's slices."""
    columns = TASK.probability_columns
    return table[["study_id", "slice_index"]].join(table.groupby("study_id")[columns].transform("mean"))


def run(work):
    return protocols.run(protocols.plan(CONFIG, work))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a pool, a stack and a baseline on 40 studies of CQ500; two more have labels alone."""
    work = make_work(
        tmp_path_factory.mktemp("protocols") / "work",
        num_folds=2,
        folds=(0, 1),
        num_patients=24,
        cq500_studies=40,
        cq500_missing=2,
        positive_rate=0.8,
    )
    make_stack(work, kinds=("fusion",))
    for fold in (0, 1):
        table = read_table(work.fold("base", fold) / "cq500.parquet")
        write_tables(work.fold("base", fold), {"study_cq500.parquet": pool_of(table)})
    studies = read_table(work.prepared / "studies.parquet")
    ids = studies.study_id[studies.dataset == "cq500"]
    rng = np.random.default_rng(0)
    baseline = pd.DataFrame(rng.random((len(ids), TASK.num_classes)), columns=TASK.probability_columns)
    baseline.insert(0, "study_id", ids.to_numpy())
    write_tables(work.prepared, {"cq500_baseline.csv": baseline.iloc[5:]})
    evaluate.run(evaluate.plan_scores(CONFIG, work))
    run(work)
    return work


@pytest.fixture
def work(made, tmp_path):
    shutil.copytree(made.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work")


@pytest.fixture(scope="module")
def table(made):
    return read_table(made.protocols / "protocols.parquet")


def own_probabilities(work, source):
    """(N, C) study maxima of a source, by study_id."""
    if source == "base-fusion":
        slices = read_table(work.stacks / "base" / "fusion_cq500.parquet")
        return slices.groupby("study_id")[TASK.probability_columns].max()
    parts = [read_table(work.fold("base", k) / "cq500.parquet") for k in (0, 1)]
    slices = parts[0].assign(**{name: (parts[0][name] + parts[1][name]) / 2 for name in TASK.probability_columns})
    return slices.groupby("study_id")[TASK.probability_columns].max()


def reads_of(work, studies):
    reads = pd.read_csv(work.prepared / "cq500_reads.csv")
    return [own.set_index("study_id").loc[studies, list(TASK.classes)].to_numpy() for _, own in reads.groupby("reader")]


def test_the_protocol_of_the_paper_is_the_score_of_the_leaderboard_with_its_interval(made, table):
    scores = read(made)
    for source in ("base", "base-fusion"):
        for name in (*TASK.classes, "mean"):
            asked = {"source": source, "aggregation": "maximum", "class": name}
            own = pick(table, **{**PAPER, **asked})
            board = pick(scores, dataset="cq500", metric="roc_auc", **asked)
            np.testing.assert_array_equal(*(row[["value", "low", "high", "n"]].astype(float) for row in (own, board)))


def note_of(table):
    return render(table, pd.DataFrame(columns=["dataset", "studies", "series"]), "base", "cq500", TASK, "rsna").note


def test_the_note_names_the_readers_where_their_reads_are_known_and_what_is_resampled(table):
    assert "majority of the readers)" in note_of(table)
    assert "bootstrap intervals over patients" in note_of(table)


def test_studies_of_one_patient_are_drawn_together_as_in_the_scores(work):
    slices, studies = (read_table(work.prepared / f"{name}.parquet") for name in ("slices", "studies"))
    names = sorted(studies.study_id[studies.dataset == "cq500"])
    twins = {name: names[number // 2 * 2] for number, name in enumerate(names)}  # two studies of each patient
    for table in (slices, studies):
        table["patient_id"] = table.study_id.map(twins).fillna(table.patient_id)
    write_tables(work.prepared, {"slices.parquet": slices, "studies.parquet": studies})
    evaluate.run(evaluate.plan_scores(CONFIG, work))
    own = pick(run(work), source="base", class_="any", **PAPER)
    board = pick(read(work), dataset="cq500", metric="roc_auc", source="base", aggregation="maximum", class_="any")
    np.testing.assert_array_equal(*(row[["value", "low", "high", "n"]].astype(float) for row in (own, board)))


def test_every_reference_is_that_of_the_single_reads(made, table):
    p = own_probabilities(made, "base-fusion")
    first, second, third = reads_of(made, p.index)
    votes = first + second + third
    for c, name in enumerate(TASK.classes):
        any_reader = pick(table, source="base-fusion", class_=name, **PAPER | {"reference": "any_reader"})
        assert any_reader.value == pytest.approx(roc_auc_score(votes[:, c] > 0, p.iloc[:, c]), abs=1e-9)
        assert (any_reader.n, any_reader.n_positive) == (40, (votes[:, c] > 0).sum())
        agreed = np.isin(votes[:, c], (0, 3))
        unanimity = pick(table, source="base-fusion", class_=name, **PAPER | {"reference": "unanimity"})
        assert unanimity.value == pytest.approx(roc_auc_score(votes[agreed, c] == 3, p.iloc[agreed, c]), abs=1e-9)
        assert (unanimity.n, unanimity.n_positive) == (agreed.sum(), (votes[:, c] == 3).sum())
        assert unanimity.n < 40


def test_the_pool_of_a_run_is_one_more_aggregation_and_a_stack_has_none(made, table):
    assert set(table.aggregation[table.source == "base-fusion"]) == {"maximum", "top_mean", "noisy_or"}
    means = [read_table(made.fold("base", k) / "cq500.parquet") for k in (0, 1)]
    p = sum(one.groupby("study_id")[TASK.probability_columns].mean() for one in means) / 2
    studies = read_table(made.prepared / "studies.parquet").set_index("study_id").loc[p.index]
    for c, name in enumerate(TASK.classes):
        row = pick(table, source="base", class_=name, **PAPER | {"aggregation": "pooled"})
        assert row.value == pytest.approx(roc_auc_score(studies[name].astype(int), p.iloc[:, c]), abs=1e-9)


def test_the_baseline_is_tested_on_the_studies_and_the_reference_of_each_protocol(made, table):
    p = own_probabilities(made, "base")
    baseline = pd.read_csv(made.prepared / "cq500_baseline.csv").set_index("study_id")
    both = p.index.intersection(baseline.index)
    assert len(both) < len(p)
    votes = sum(reads_of(made, both))[:, TASK.classes.index("subdural")]
    agreed = np.isin(votes, (0, 3))
    own, other = (of.loc[both, "p_subdural"].to_numpy()[agreed] for of in (p, baseline))
    expected = delong_test((votes[agreed] == 3).astype(float), own, other, 0.95)
    row = pick(table, source="base", class_="subdural", **PAPER | {"reference": "unanimity"})
    assert row.p_value == pytest.approx(expected.p_value)
    assert 0 < row.p_value < 1
    assert (row.baseline, row.difference) == pytest.approx((expected.other_auc, expected.difference))
    assert (row.difference_low, row.difference_high) == pytest.approx((expected.low, expected.high))


def test_studies_without_a_series_are_named(made):
    left_out = protocols.read_left_out(made)
    assert left_out.study_id[left_out.studies == "scanned"].tolist() == ["CQ500-CT-40", "CQ500-CT-41"]
    assert set(left_out.reason) == {"no usable series"}


def test_another_protocol_of_the_same_predictions_is_no_further_look(work):
    before = read_looks(work)
    assert len(before) == 2
    shutil.rmtree(work.protocols)
    run(work)
    assert len(read_looks(work)) == 2
    work.looks.unlink()
    shutil.rmtree(work.protocols)
    run(work)
    assert read_looks(work).command.unique().tolist() == [protocols.MADE_BY]


def test_the_tables_are_kept_until_reads_or_predictions_change(work, table):
    plan = protocols.plan(CONFIG, work)
    assert plan.is_idle
    pd.testing.assert_frame_equal(protocols.run(plan), table)
    prepared, sources = Prepared.open(work.prepared, TASK), find_sources(work, TASK)
    assert protocols.read_protocols(work, prepared, sources) is not None
    reads = pd.read_csv(work.prepared / "cq500_reads.csv")
    rewrite_tables(work.prepared, {"cq500_reads.csv": reads.assign(any=1)})
    assert not protocols.plan(CONFIG, work).is_idle
    assert protocols.read_protocols(work, Prepared.open(work.prepared, TASK), sources) is None
    changed = pick(run(work), source="base", class_="any", **PAPER | {"reference": "any_reader"})
    assert (changed.n_positive, np.isnan(changed.value)) == (40, True)


def test_a_store_without_single_reads_keeps_its_labels_alone_and_names_no_reader(work):
    old = read_manifest(work.prepared)
    writer = ArtifactWriter(work.prepared, old.kind)
    for name in old.files.keys() - {"cq500_reads.csv"}:
        writer.write_bytes(name, (work.prepared / name).read_bytes())
    writer.commit(settings=old.settings, inputs=old.inputs, facts=old.facts)
    table = run(work)
    assert set(table.reference) == {"labels"}
    assert "labels of the set)" in note_of(table)
    assert "reader" not in note_of(table)
    assert set(table.aggregation[table.source == "base"]) == {"maximum", "top_mean", "noisy_or", "pooled"}


def test_the_command_prints_each_source_and_every_row_on_request(made):
    words = ["evaluate", "--protocols", "--work", made.root, "--set", "evaluate.num_draws=60", "--quiet"]
    text = call(*words)
    for shown in (
        "base on CQ500",
        "base-fusion on CQ500",
        "aggregation: pooled",
        "reference: any reader",
        "Fleiss' kappa",
    ):
        assert shown in text
    assert "CQ500-CT-40, CQ500-CT-41" in " ".join(text.split())
    whole = call(*words, "--all", "--source", "base")
    assert "base-fusion" not in whole
    assert "unanimity" in whole


def test_the_readers_are_those_of_the_single_reads(made):
    readers = protocols.read_readers(made)
    reads = pd.read_csv(made.prepared / "cq500_reads.csv")
    ids = reads.study_id.unique()
    first, second, third = reads_of(made, ids)
    for c, name in enumerate(TASK.classes):
        votes = (first + second + third)[:, c]
        kappa = pick(readers, class_=name, measure="fleiss_kappa")
        assert kappa.value == pytest.approx(fleiss_kappa(np.stack([3 - votes, votes], 1)))
        assert (kappa.n, kappa.n_positive) == (len(ids), (votes >= 2).sum()) == (42, (votes >= 2).sum())
        agreed = second[:, c] == third[:, c]
        for measure, truth in (("sensitivity", 1), ("specificity", 0)):
            of_truth = agreed & (second[:, c] == truth)
            own = pick(readers, class_=name, measure=measure, reader=1)
            expected = (first[of_truth, c] == truth).mean() if of_truth.any() else np.nan
            np.testing.assert_allclose(own.value, expected)
            assert own.n == agreed.sum()


def test_sets_of_the_same_scans_stand_side_by_side_and_once_more_on_the_studies_they_share(work):
    lost = [f"CQ500-CT-{i}" for i in range(10)]
    for name in ("slices.parquet", "studies.parquet"):
        table = read_table(work.prepared / name)
        own = table[(table.dataset == "cq500") & ~table.study_id.isin(lost)].assign(dataset="cq500-thin")
        rewrite_tables(work.prepared, {name: pd.concat([table, own], ignore_index=True)})
    old = read_manifest(work.prepared)
    writer = ArtifactWriter(work.prepared, old.kind)
    for name in old.files:
        writer.write_bytes(name, (work.prepared / name).read_bytes())
    for suffix in ("_reads.csv", "_baseline.csv"):
        writer.write_bytes(f"cq500-thin{suffix}", (work.prepared / f"cq500{suffix}").read_bytes())
    facts = {**old.facts, "cq500-thin": {"scans": "cq500", "missing_studies": lost}}
    writer.commit(settings=old.settings, inputs=old.inputs, facts=facts)
    for folder, prefix in [(work.fold("base", 0), ""), (work.fold("base", 1), ""), (work.stacks / "base", "fusion_")]:
        table = read_table(folder / f"{prefix}cq500.parquet")
        table = table[~table.study_id.isin(lost)].reset_index(drop=True)
        write_tables(folder, {f"{prefix}cq500-thin.parquet": table})
    table = run(work)
    assert set(table.dataset) == {"cq500"}
    place = {"source": "base-fusion", "class_": "any", **PAPER}
    wide, thin, shared = (
        pick(table, **place | changes)
        for changes in ({}, {"series": "cq500-thin"}, {"series": "cq500", "studies": "shared"})
    )
    assert (wide.n, thin.n, shared.n) == (len(own_probabilities(work, "base-fusion")), wide.n - 10, wide.n - 10)
    # The same predictions on the same studies, and the same draws of them.
    assert (thin.value, thin.low, thin.high) == (shared.value, shared.low, shared.high)
    left_out = protocols.read_left_out(work).query("series == 'cq500' and studies == 'shared' and study_id in @lost")
    assert set(left_out.reason) == {"not in every set of these scans"}
    assert len(left_out) == 10
    shown = [describe(one, "cq500") for one in select(table, "base-fusion", "cq500")]
    assert {"studies: shared", "series: cq500-thin", "studies: shared, series: cq500-thin"} <= set(shown)


def test_what_a_source_is_not_asked_stays_unknown_under_every_reference(work):
    shutil.rmtree(work.protocols)
    plan = protocols.plan(CONFIG, work)
    scope = Scope.of(TASK, ("subdural", "any"), given="any")
    table = protocols.run(replace(plan, sources=[replace(plan.sources[0], scope=scope)]))
    studies = read_table(work.prepared / "studies.parquet").query("dataset == 'cq500' and num_slices > 0")
    for reference in REFERENCES:
        rows = table[(table.reference == reference) & (table.studies == "scanned")].set_index("class")
        assert (rows.n["epidural"] == 0).all()
        assert (rows.n["subdural"] <= (studies["any"] == 1).sum()).all()
    majority = pick(table, class_="subdural", **PAPER)
    assert majority.n == (studies["any"] == 1).sum()


def test_without_an_external_set_there_is_one_message(tmp_path):
    work = make_work(tmp_path / "work", num_patients=8, num_folds=2, folds=(0,), cq500_studies=0)
    with pytest.raises(ArtifactError, match=r"expected an external set.*ichkit prepare --cq500 PATH"):
        protocols.plan(CONFIG, work)


def test_the_shown_protocols_change_one_thing_of_the_papers(table):
    shown = list(select(table, "base", "cq500"))
    assert shown[0] == paper_protocol("cq500")
    assert [describe(one, "cq500") for one in shown] == [
        "as in the paper",
        "aggregation: top mean",
        "aggregation: noisy or",
        "aggregation: pooled",
        "reference: unanimity",
        "reference: any reader",
    ]


def test_every_combination_there_are_data_for_is_listed_once():
    found = list(list_protocols(("a", "b"), has_reads=True, has_pool=True))
    assert len(found) == len(set(found)) == 2 * 2 * 3 * 4
    assert Protocol("shared", "pooled", "b", "unanimity") in found
    assert {one.reference for one in list_protocols(("a",), has_reads=False, has_pool=False)} == {"labels"}


def test_a_study_on_which_readers_differ_is_left_out_by_class():
    labels, reads = np.array([[1.0, 0.0]]), np.array([[[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]])
    assert REFERENCES["labels"].label(labels, reads).tolist() == [[1, 0]]
    assert REFERENCES["any_reader"].label(labels, reads).tolist() == [[1, 1]]
    agreed = REFERENCES["unanimity"].label(labels, reads)
    assert agreed[0, 0] == 1
    assert np.isnan(agreed[0, 1])
