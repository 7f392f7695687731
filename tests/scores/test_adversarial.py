"""`evaluate --adversarial`: halves of one set, a noisier and thinner set, by facts and by a network, without labels."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from support.commands import call
from support.pixels import make_pixel_work, put_volumes
from support.reports import Page
from support.simulated import TASK, make_work, rewrite_slices

from ichkit.core.config import AdversarialConfig, Config, EvaluateConfig
from ichkit.core.errors import ArtifactError, ConfigError
from ichkit.imaging.store import Prepared
from ichkit.stages.report import checks
from ichkit.stages.report import run as report
from ichkit.stages.scores import adversarial
from ichkit.stages.scores.study_features import describe_scans, list_sets, pick_slices
from ichkit.work.artifacts import read_manifest, read_table

CONFIG = Config(evaluate=EvaluateConfig(num_draws=128), adversarial=AdversarialConfig(permutations=19))
SIZES = {"num_patients": 30, "num_folds": 2, "test_studies": 30, "cq500_studies": 24}


def find(table, first, other, kind="facts"):
    (row,) = table[(table.set == first) & (table.other == other) & (table.features == kind)].to_dict("records")
    return row


def best_of(features, first, other, kind="facts"):
    own = features[(features.set == first) & (features.other == other) & (features.features == kind)]
    return own.sort_values("value", ascending=False).feature.tolist()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Training data and test split of one kind; the scans of CQ500 have three times the noise."""
    work = make_pixel_work(tmp_path_factory.mktemp("adversarial") / "work", **SIZES)
    prepared = Prepared.open(work.prepared, TASK)
    rng = np.random.default_rng(0)
    noisy = {
        path: np.clip(prepared.read_volume(path) + rng.normal(0, 11, (len(own), 32, 32)), -800, 2000).astype(np.int16)
        for path, own in prepared.slices[prepared.slices.dataset == "cq500"].groupby("volume")
    }
    put_volumes(work, prepared.slices, noisy, read_manifest(work.prepared).settings)
    return work


@pytest.fixture(scope="module")
def found(store):
    table = adversarial.run(adversarial.plan(CONFIG, store))
    return table, read_table(store.adversarial / adversarial.FEATURES_NAME)


def test_two_halves_of_one_set_are_not_told_apart_and_a_noisier_set_is_by_its_noise(found):
    pairs, features = found
    half = find(pairs, "train", "test")
    assert half["low"] < 0.5 < half["high"]
    assert not adversarial.is_told_apart(half)
    for first in ("train", "test"):
        row = find(pairs, first, "cq500")
        assert row["low"] > 0.9
        assert row["p_value"] == 1 / 20
        assert adversarial.is_told_apart(row)
        assert best_of(features, first, "cq500")[0] == "noise_hu"
        assert adversarial.say_features(features, row).startswith("noise of soft tissue, HU (")
    noise = features[(features.feature == "noise_hu") & (features.other == "cq500")].iloc[0]
    assert noise["median"] == pytest.approx(4, rel=0.3)
    assert noise.median_other > 2 * noise["median"]
    assert (half["num_patients"], half["num_patients_other"], half["run"], half["fold"]) == (30, 30, "", -1)


def test_a_set_of_another_spacing_is_told_apart_by_it(tmp_path):
    work = make_pixel_work(tmp_path / "work", **SIZES)
    slices = Prepared.open(work.prepared, TASK).slices
    is_cq500 = slices.dataset == "cq500"
    spacing = np.where(is_cq500, 0.45, slices.spacing_row_mm)
    rewrite_slices(work, slices.assign(spacing_row_mm=spacing, spacing_col_mm=spacing))
    adversarial.run(adversarial.plan(CONFIG, work))
    pairs, features = adversarial.read_adversarial(work, Prepared.open(work.prepared, TASK))
    row = find(pairs, "train", "cq500")
    assert row["low"] > 0.9
    assert {"spacing_mm", "field_mm"} == set(best_of(features, "train", "cq500")[:2])
    spacing = features[(features.feature == "spacing_mm") & (features.other == "cq500")].iloc[0]
    assert (spacing["median"], spacing.median_other) == pytest.approx((0.488, 0.45))


def test_a_network_tells_sets_apart_whose_scans_it_reads_differently(tmp_path):
    work = make_work(tmp_path / "work", runs=("a", "b"), folds=(0, 1), embedding_size=12, **SIZES)
    plan = adversarial.plan(CONFIG, work)
    assert (plan.run, plan.fold) == ("a", 0)
    held = pick_slices(plan.prepared, "train", 400, 0, 0)
    assert set(held.fold) == {0}
    described = adversarial._describe(replace(plan, prepared=_without_pixels(plan.prepared)))
    assert set(described) == {"facts", "descriptors", "embeddings"}
    for kind in ("descriptors", "embeddings"):
        assert set(described[kind].study_id[described[kind].set == "train"]) == set(held.study_id)
        same, _ = adversarial._compare(plan, kind, described[kind], ("train", "test"))
        assert not adversarial.is_told_apart(same)
        assert (same["run"], same["fold"], same["num_patients"]) == ("a", 0, held.patient_id.nunique())
        moved = described[kind].copy()
        values = moved.columns[3:]
        moved.loc[moved.set == "cq500", values] = moved[values] + 3 * moved[values].std()
        row, _ = adversarial._compare(plan, kind, moved, ("train", "cq500"))
        assert row["low"] > 0.7
        assert adversarial.is_told_apart(row)
    table = read_table(work.fold("a", 0) / "oof.parquet")
    study = table[table.study_id == held.study_id.iloc[0]]
    p = study.p_subdural.to_numpy(float)
    row = described["descriptors"].set_index("study_id").loc[study.study_id.iloc[0]]
    assert row["highest logit, subdural"] == pytest.approx(np.log(p / (1 - p)).max(), rel=1e-5)
    assert row["mean logit, subdural"] == pytest.approx(np.log(p / (1 - p)).mean(), rel=1e-5)
    with pytest.raises(ConfigError, match='"c" is not a run'):
        adversarial.plan(CONFIG, work, "c")


def _without_pixels(prepared):
    """The store as one of MR, of whose values nothing is measured."""
    settings = {**prepared.manifest.settings, "sequences": {"names": ["a"]}}
    return replace(prepared, manifest=replace(prepared.manifest, settings=settings))


def test_no_label_is_read_and_the_same_call_gives_the_same_bytes(store, found, tmp_path):
    prepared = Prepared.open(store.prepared, TASK)
    flipped = prepared.slices.assign(**{name: 1 - prepared.slices[name] for name in TASK.classes})
    plan = adversarial.plan(CONFIG, store)
    assert plan.is_idle
    picked = {name: pick_slices(replace(prepared, slices=flipped), name, 400, 0) for name in list_sets(prepared)}
    own = describe_scans(prepared, picked, CONFIG.adversarial.slices)
    pd.testing.assert_frame_equal(own, read_table(store.adversarial / adversarial.STUDIES_NAME))
    row, _ = adversarial._compare(plan, "facts", own, ("train", "cq500"))
    assert row == find(found[0], "train", "cq500")


def test_the_sample_is_of_patients_and_a_larger_one_contains_the_smaller(store):
    prepared = Prepared.open(store.prepared, TASK)
    few, more = (pick_slices(prepared, "train", number, 0) for number in (5, 9))
    assert (few.patient_id.nunique(), more.patient_id.nunique()) == (5, 9)
    assert set(few.slice_id) < set(more.slice_id)
    assert set(few.slice_id) == set(prepared.split("train").query("patient_id in @few.patient_id").slice_id)


def test_every_study_has_its_likeness_to_the_other_set(store, found):
    likeness = read_table(store.adversarial / adversarial.LIKENESS_NAME)
    own = likeness[(likeness.set == "train") & (likeness.other == "cq500")]
    assert set(own.study_id[own.of == "cq500"]) == {f"CQ500-CT-{number}" for number in range(24)}
    assert set(own.study_id[own.of == "train"]) == set(Prepared.open(store.prepared, TASK).split("train").study_id)
    means = own.groupby("of")["rank"].mean()
    assert means["cq500"] > means["train"] + 0.4


def test_it_is_kept_until_the_store_changes_and_the_report_warns_of_the_set_that_is_told_apart(store, found, tmp_path):
    plan = report.plan(CONFIG, store, report.ReportOptions(tmp_path / "submissions"))
    given = report.collect(plan)
    (listed,) = checks.make_first(given).blocks
    verdicts = {check.what: (check.verdict, check.found) for check in listed.checks}
    assert verdicts["Adversarial validation: train and test"][0] == "pass"
    verdict, text = verdicts["Adversarial validation: train and CQ500"]
    assert verdict == "warn"
    assert text.startswith("told apart; facts AUC ")
    assert "noise of soft tissue" in text
    page = Page(report.run(plan).read_text())
    assert "Differences between the data sets" in page.headings
    row = find(found[0], "train", "cq500")
    shown = {tuple(cells[:2]): cells[2:] for cells in page.tables["Adversarial validation"]}
    assert shown["train and CQ500", "facts"][0].startswith(f"{row['value']:.3f}|")
    assert page.tables["train and CQ500: facts"][1][0] == "noise of soft tissue, HU"
    assert f"train and CQ500 by facts {row['value']:.2f}" in " ".join(one["aria-label"] for one in page.drawings)


def test_a_changed_store_is_compared_again_and_the_report_names_the_command(tmp_path):
    work = make_pixel_work(tmp_path / "work", **{**SIZES, "num_patients": 12, "test_studies": 12, "cq500_studies": 3})
    pairs = adversarial.run(adversarial.plan(CONFIG, work))
    few = find(pairs, "train", "cq500")
    assert np.isnan([few["value"], few["low"], few["high"]]).all()
    assert few["num_patients_other"] == 3
    slices = Prepared.open(work.prepared, TASK).slices
    rewrite_slices(work, slices.assign(padded=True))
    prepared = Prepared.open(work.prepared, TASK)
    assert adversarial.read_adversarial(work, prepared) is None
    assert not adversarial.plan(CONFIG, work).is_idle
    page = Page(report.run(report.plan(CONFIG, work, report.ReportOptions(tmp_path))).read_text())
    assert "Run ichkit evaluate --adversarial" in page.text
    assert "Adversarial validation: train" not in page.text


def test_one_set_alone_is_refused(tmp_path):
    work = make_pixel_work(tmp_path / "work", test_studies=0, cq500_studies=0)
    with pytest.raises(ArtifactError, match=r"expected two sets with slices to tell apart, found train.*--cq500 PATH"):
        adversarial.plan(CONFIG, work)


def test_the_command_prints_pairs_and_the_features_that_tell_them_apart(store, found):
    words = ["evaluate", "--adversarial", "--work", store.root, "--set", "evaluate.num_draws=128"]
    words += ["--set", "adversarial.permutations=19"]
    dry = call(*words, "--set", "adversarial.patients=20", "--dry-run")
    assert "at most 20 patients of each set" in dry
    text = call(*words, "--quiet")
    assert "train and CQ500: facts" in text
    assert "train and test: facts" not in text
    assert "noise of soft tissue" in text
