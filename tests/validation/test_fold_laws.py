"""Laws of folds, tried on drawn patients: each in one fold, the same for any order of rows, and never moved."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ichkit.core.errors import FoldError
from ichkit.validation.folds import assign_folds, check_folds, deal_patients, lock_patients

CLASSES = ("epidural", "subdural", "any")
IDS = st.text(min_size=1, max_size=6)
STUDIES = st.tuples(*[st.integers(0, 3) for _ in CLASSES], st.integers(1, 40))
PATIENTS = st.dictionaries(IDS, st.lists(STUDIES, min_size=1, max_size=3), min_size=6, max_size=14)
NUM_FOLDS = st.integers(2, 5)


def studies_of(patients):
    rows = [(name, *study) for name, of_patient in patients.items() for study in of_patient]
    return pd.DataFrame(rows, columns=["patient_id", *CLASSES, "num_slices"])


@given(PATIENTS, NUM_FOLDS, st.integers(0, 9))
def test_every_patient_has_one_fold_and_no_fold_is_empty(patients, num_folds, seed):
    folds = assign_folds(studies_of(patients), num_folds, CLASSES, seed)
    assert folds["patient_id"].tolist() == sorted(patients)
    assert set(folds["fold"]) == set(range(num_folds))
    check_folds(studies_of(patients).merge(folds))


@given(PATIENTS, NUM_FOLDS, st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_the_order_of_the_studies_changes_no_fold(patients, num_folds, seed, shuffle):
    studies = studies_of(patients)
    shuffled = studies.sample(frac=1, random_state=shuffle)
    expected = assign_folds(studies, num_folds, CLASSES, seed)
    pd.testing.assert_frame_equal(assign_folds(shuffled, num_folds, CLASSES, seed), expected)


@given(PATIENTS, PATIENTS, NUM_FOLDS, st.integers(0, 9), st.integers(0, 9))
def test_more_studies_of_old_and_new_patients_move_nobody(patients, more, num_folds, seed, later_seed):
    first = assign_folds(studies_of(patients), num_folds, CLASSES, seed)
    both = pd.concat([studies_of(patients), studies_of(more)], ignore_index=True)
    second = assign_folds(both, num_folds, CLASSES, later_seed, existing=first)
    assert second["patient_id"].tolist() == sorted({*patients, *more})
    kept = second[second["patient_id"].isin(patients)].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, first)
    # Fewer studies move nobody either, and nobody is forgotten.
    again = assign_folds(studies_of(more), num_folds, CLASSES, later_seed, existing=second)
    pd.testing.assert_frame_equal(again, second)


@given(PATIENTS, PATIENTS, st.sampled_from([0.2, 0.25, 0.5]), st.integers(0, 9))
def test_a_lock_once_set_stays_and_holds_whole_patients(patients, more, share, seed):
    first = lock_patients(studies_of(patients), share, CLASSES, seed)
    assert first["patient_id"].tolist() == sorted(patients)
    assert 0 < first["is_locked"].sum() < len(first)
    both = pd.concat([studies_of(patients), studies_of(more)], ignore_index=True)
    second = lock_patients(both, share, CLASSES, seed, existing=first)
    assert second["patient_id"].tolist() == sorted({*patients, *more})
    pd.testing.assert_frame_equal(second[second["patient_id"].isin(patients)].reset_index(drop=True), first)


@given(PATIENTS, NUM_FOLDS, st.integers(0, 9))
def test_all_slices_of_a_patient_are_dealt_to_one_part(patients, num_parts, seed):
    studies = studies_of(patients)
    slices = studies.assign(study_id=range(len(studies)))
    slices = slices.loc[slices.index.repeat(2)].sample(frac=1, random_state=seed).reset_index(drop=True)
    slices["part"] = deal_patients(slices, num_parts, CLASSES, seed)
    assert len(slices[["patient_id", "part"]].drop_duplicates()) == len(patients)
    assert set(slices["part"]) == set(range(num_parts))


@given(PATIENTS, NUM_FOLDS, st.data())
def test_one_study_in_another_fold_than_its_patient_is_always_noticed(patients, num_folds, data):
    studies = studies_of(patients)
    split = studies.merge(assign_folds(studies, num_folds, CLASSES, seed=0))
    split = pd.concat([split, split], ignore_index=True)
    row = data.draw(st.integers(0, len(split) - 1))
    split.loc[row, "fold"] = (split.loc[row, "fold"] + 1) % num_folds
    with pytest.raises(FoldError, match="a patient has one"):
        check_folds(split)
