"""Patient-wise folds: whole patients, balance, and that nobody ever moves."""

import logging
import time

import numpy as np
import pandas as pd
import pytest

from ichkit.core.errors import FoldError
from ichkit.core.tasks import find_task
from ichkit.validation.folds import assign_folds, check_folds, deal_patients, lock_patients, tally_studies

CLASSES = find_task("hemorrhage").classes
RATES = {"epidural": 0.014, "intraparenchymal": 0.16, "intraventricular": 0.12, "subarachnoid": 0.17, "subdural": 0.17}


def draw_studies(num_studies: int, num_patients: int, seed: int = 0) -> pd.DataFrame:
    """One row per study with the competition's rates; some patients have several."""
    rng = np.random.default_rng(seed)
    owner = np.r_[np.arange(num_patients), rng.integers(0, num_patients, num_studies - num_patients)]
    frame = pd.DataFrame({"patient_id": [f"ID_{i:08x}" for i in owner]})
    frame["num_slices"] = rng.integers(20, 61, num_studies)
    for name, rate in RATES.items():
        frame[name] = np.where(rng.random(num_studies) < rate, rng.integers(1, 15, num_studies), 0)
    frame["any"] = frame[list(RATES)].max(axis=1)
    return frame


def fold_sums(patients: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """Per fold: studies, slices, positive studies of each class."""
    merged = patients.merge(folds, validate="many_to_one")
    positive = (merged[list(CLASSES)].fillna(0) > 0).groupby(merged.fold).sum()
    return positive.assign(studies=merged.groupby("fold").size())


def test_every_class_is_as_frequent_in_each_fold_as_on_average_when_it_has_200_positive_studies():
    patients = draw_studies(21744, 18938)
    began = time.process_time()
    folds = assign_folds(patients, 5, CLASSES, seed=0)
    assert time.process_time() - began < 20
    sums = fold_sums(patients, folds)
    share = sums[list(CLASSES)].div(sums.studies, axis=0)
    assert (sums[list(CLASSES)].sum() >= 200).all()
    assert ((share / share.mean() - 1).abs() < 0.02).all(axis=None)
    merged = patients.merge(folds)
    slices = merged.groupby("fold").num_slices.sum()
    assert (slices / slices.mean() - 1).abs().max() < 0.01


def test_two_studies_of_one_patient_share_a_fold():
    patients = draw_studies(300, 200)
    folds = assign_folds(patients, 5, CLASSES, seed=1)
    assert folds.patient_id.is_unique
    assert set(folds.patient_id) == set(patients.patient_id)
    assert sorted(folds.fold.unique()) == [0, 1, 2, 3, 4]


def test_a_patient_weighs_as_much_as_all_of_its_studies_together():
    several = pd.DataFrame({"patient_id": ["a"] * 4, "num_slices": 30, "any": 3})
    single = pd.DataFrame({"patient_id": list("bcde"), "num_slices": 30, "any": 3})
    for seed in range(5):
        folds = assign_folds(pd.concat([several, single]), 2, ["any"], seed=seed).set_index("patient_id").fold
        # Four studies on either side; by the largest study of each it would be two patients and three.
        assert set(folds[list("bcde")]) == {1 - folds["a"]}


def test_the_order_of_the_rows_changes_nothing_and_the_seed_does():
    patients = draw_studies(120, 100)
    folds = assign_folds(patients, 5, CLASSES, seed=3)
    shuffled = patients.sample(frac=1, random_state=0).reset_index(drop=True)
    pd.testing.assert_frame_equal(assign_folds(shuffled, 5, CLASSES, seed=3), folds)
    assert not assign_folds(patients, 5, CLASSES, seed=4).equals(folds)


def test_known_patients_never_move_and_new_ones_restore_the_balance():
    patients = draw_studies(1000, 900)
    known_ids = pd.Index(patients.patient_id.unique()[:400])
    early = patients[patients.patient_id.isin(known_ids)]
    existing = assign_folds(early, 5, CLASSES, seed=0)
    # An unlucky start: everybody of fold 4 came to fold 0.
    existing["fold"] = existing.fold.replace(4, 0)
    folds = assign_folds(patients, 5, CLASSES, seed=0, existing=existing)
    kept = folds.merge(existing, on="patient_id", suffixes=("", "_before"))
    assert len(kept) == len(existing)
    assert (kept.fold == kept.fold_before).all()
    sums = fold_sums(patients, folds)
    assert (sums["any"] / sums["any"].mean() - 1).abs().max() < 0.05
    assert (sums.studies / sums.studies.mean() - 1).abs().max() < 0.05


def test_a_known_patient_without_a_study_today_keeps_the_row():
    patients = draw_studies(60, 50)
    existing = pd.DataFrame({"patient_id": ["ID_gone"], "fold": [3]})
    folds = assign_folds(patients, 5, CLASSES, seed=0, existing=existing)
    assert folds[folds.patient_id == "ID_gone"].fold.tolist() == [3]
    assert folds.patient_id.is_monotonic_increasing


def test_each_fold_gets_one_when_a_class_has_as_many_positive_patients_as_folds():
    patients = draw_studies(100, 100).assign(epidural=0)
    patients.loc[[3, 20, 41, 77, 90], "epidural"] = 4
    sums = fold_sums(patients, assign_folds(patients, 5, CLASSES, seed=0))
    assert sums.epidural.tolist() == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("num_patients", [5, 6, 7])
def test_one_slice_studies_without_any_positive_still_get_full_folds_with_a_warning(num_patients, caplog):
    names = [f"ID_{i}" for i in range(num_patients)]
    patients = pd.DataFrame({"patient_id": names, "num_slices": 1, **dict.fromkeys(CLASSES, 0)})
    with caplog.at_level(logging.WARNING, logger="ichkit"):
        folds = assign_folds(patients, 5, CLASSES, seed=0)
    assert folds.fold.nunique() == 5
    assert folds.fold.value_counts().max() <= 2
    assert "fewer than 5 patients are positive" in caplog.text
    assert "ID_" not in caplog.text


def test_the_warning_names_the_classes_with_fewer_positive_patients_than_folds_and_counts_patients(caplog):
    patients = draw_studies(100, 100).assign(epidural=0, subdural=0, subarachnoid=0)
    patients.loc[[3, 20, 41, 77], "epidural"] = [1, 4, 1, 9]
    patients.loc[[3, 20, 41, 77, 90], "subdural"] = 1
    twice = patients.loc[[5]].assign(subarachnoid=2)  # two studies of one patient
    with caplog.at_level(logging.WARNING, logger="ichkit"):
        assign_folds(pd.concat([patients, twice, twice]), 5, CLASSES, seed=0)
    (record,) = [record for record in caplog.records if "positive" in record.getMessage()]
    assert "fewer than 5 patients are positive for: epidural 4, subarachnoid 1;" in record.getMessage()


def test_unknown_labels_count_as_negative():
    patients = draw_studies(40, 40)
    unknown = patients.astype(dict.fromkeys(CLASSES, "Int8"))
    unknown.loc[unknown["any"] == 0, list(CLASSES)] = pd.NA
    pd.testing.assert_frame_equal(assign_folds(unknown, 4, CLASSES, seed=0), assign_folds(patients, 4, CLASSES, seed=0))


def test_fewer_patients_than_folds_is_refused_with_both_numbers():
    with pytest.raises(FoldError, match=r"expected at least 5 patients, one for each fold, found 3"):
        assign_folds(draw_studies(3, 3), 5, CLASSES, seed=0)


def test_a_fold_outside_the_range_is_refused_by_name():
    existing = pd.DataFrame({"patient_id": ["ID_x"], "fold": [7]})
    with pytest.raises(FoldError, match=r"expected folds 0 to 4, found fold 7 \(patient ID_x\).*--new-folds"):
        assign_folds(draw_studies(30, 30), 5, CLASSES, seed=0, existing=existing)


def test_a_patient_that_stands_twice_in_the_given_folds_is_refused_by_name():
    existing = pd.DataFrame({"patient_id": ["ID_x", "ID_x"], "fold": [1, 2]})
    with pytest.raises(FoldError, match=r"patient ID_x has 2 rows"):
        assign_folds(draw_studies(30, 30), 5, CLASSES, seed=0, existing=existing)


def make_slices(folds: list[int | None], split: str = "train") -> pd.DataFrame:
    patients = [f"ID_{i // 2}" for i in range(len(folds))]
    return pd.DataFrame({"patient_id": patients, "split": split, "fold": pd.array(folds, dtype="Int16")})


def test_a_patient_in_two_folds_is_refused_in_one_sentence():
    with pytest.raises(FoldError) as caught:
        check_folds(make_slices([1, 1, 0, 3, 2, 2]))
    expected = "folds: patient ID_1 has folds 0 and 3; a patient has one. Run `ichkit prepare --new-folds`."
    assert str(caught.value) == expected


def test_a_training_slice_without_a_fold_is_refused_and_a_test_slice_is_not():
    with pytest.raises(FoldError, match=r"patient ID_0 has no fold \(with 1 of 2 training slices\)"):
        check_folds(make_slices([None, 1]))
    check_folds(pd.concat([make_slices([1, 1]), make_slices([None, None], split="test")]))


def test_parts_are_dealt_by_patient_and_hold_every_class(caplog):
    rng = np.random.default_rng(0)
    slices = draw_studies(80, 60).drop(columns="num_slices")
    slices["study_id"] = [f"S{i}" for i in range(80)]
    slices = slices.loc[slices.index.repeat(4)].reset_index(drop=True)
    slices[list(CLASSES)] = (slices[list(CLASSES)] > 0).astype("Int8")
    parts = deal_patients(slices, 3, CLASSES, seed=0)
    assert pd.Series(parts).groupby(slices.patient_id).nunique().eq(1).all()
    assert slices.groupby(parts)["subdural"].sum().gt(0).all()
    assert slices[slices.epidural > 0].patient_id.nunique() < 3
    assert "fewer than" not in caplog.text
    order = rng.permutation(len(slices))
    np.testing.assert_array_equal(deal_patients(slices.iloc[order], 3, CLASSES, seed=0), parts[order])


def test_studies_are_tallied_by_their_positive_slices():
    slices = pd.DataFrame({"patient_id": ["a", "a", "a"], "study_id": ["s", "s", "t"], "any": [1, 1, 0]})
    tally = tally_studies(slices, ["any"])
    assert tally[["patient_id", "any", "num_slices"]].to_numpy().tolist() == [["a", 2, 2], ["a", 0, 1]]


def test_the_last_swap_and_move_leave_nothing_to_gain():
    """Oracle: no single move or swap lowers the squared imbalance any more, computed from the definition."""
    patients = draw_studies(30, 30, seed=5)
    folds = assign_folds(patients, 3, CLASSES, seed=0)
    merged = patients.merge(folds)
    columns = [pd.Series(1, merged.index), merged.num_slices]
    columns += [(merged[name] > 0).astype(int) for name in CLASSES] + [merged[name] for name in CLASSES]
    x = np.stack(columns, 1).astype(float)
    x = x / np.where(x.sum(0) > 0, x.sum(0) / 3, 1)

    def imbalance(fold: np.ndarray) -> float:
        return sum(((x[fold == k].sum(0) - x.sum(0) / 3) ** 2).sum() for k in range(3))

    fold = merged.fold.to_numpy().copy()
    best = imbalance(fold)
    for i in range(30):
        for k in range(3):
            moved = fold.copy()
            moved[i] = k
            assert imbalance(moved) >= best - 1e-7
        for j in range(i):
            swapped = fold.copy()
            swapped[[i, j]] = swapped[[j, i]]
            assert imbalance(swapped) >= best - 1e-7


def test_a_lock_takes_whole_patients_a_part_of_every_class_and_never_moves_anyone():
    patients = draw_studies(800, 700)
    locks = lock_patients(patients, 0.2, CLASSES, seed=0)
    assert locks.patient_id.tolist() == sorted(set(patients.patient_id))
    inside = patients.patient_id.isin(locks.patient_id[locks.is_locked])
    positive = patients[["intraparenchymal", "subdural", "any"]] > 0
    np.testing.assert_allclose(positive[inside].mean(), positive[~inside].mean(), atol=0.02)
    assert inside.mean() == pytest.approx(0.2, abs=0.01)
    flipped = patients.assign(**{name: 1 - (patients[name] > 0) for name in CLASSES})
    pd.testing.assert_frame_equal(lock_patients(flipped, 0.2, CLASSES, seed=0, existing=locks), locks)
    more = pd.concat([patients, draw_studies(300, 300, seed=1).assign(patient_id=lambda t: "new" + t.patient_id)])
    both = lock_patients(more, 0.2, CLASSES, seed=0, existing=locks).set_index("patient_id").is_locked
    assert both[locks.patient_id].tolist() == locks.is_locked.tolist()
    assert both[both.index.str.startswith("new")].mean() == pytest.approx(0.2, abs=0.02)


def test_few_new_patients_are_not_locked_and_too_few_at_first_are_refused():
    patients = draw_studies(20, 20)
    locks = lock_patients(patients, 0.25, CLASSES, seed=0)
    more = pd.concat([patients, draw_studies(2, 2, seed=1).assign(patient_id=["x", "y"])])
    assert (
        not lock_patients(more, 0.25, CLASSES, seed=0, existing=locks)
        .set_index("patient_id")
        .is_locked[["x", "y"]]
        .any()
    )
    with pytest.raises(FoldError, match=r"--lock 0.02: expected at least 50 patients.*found 20"):
        lock_patients(patients, 0.02, CLASSES, seed=0)
