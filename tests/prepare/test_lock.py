"""`prepare --lock`: who is locked, that it stays so, and that every run predicts them without having seen them."""

import pandas as pd
import pytest
from support.commands import do, phantom_options

from ichkit.core.errors import ArtifactError
from ichkit.core.tasks import find_task
from ichkit.imaging.store import Prepared
from ichkit.stages.prepare import run as prepare
from ichkit.stages.train.fold_inputs import Parts, identify
from ichkit.work.artifacts import read_table
from ichkit.work.folder import WorkFolder

TASK = find_task("hemorrhage")


@pytest.fixture(scope="module")
def locked_work(phantom_root, tiny_config, tmp_path_factory):
    work = WorkFolder(tmp_path_factory.mktemp("lock"))
    do(prepare, tiny_config, work, phantom_options(phantom_root, lock=0.25))
    return work


def test_locked_patients_are_an_external_set_with_labels_and_without_folds(locked_work):
    prepared = Prepared.open(locked_work.prepared, TASK)
    locked, train = prepared.split("locked"), prepared.split("train")
    assert (locked.study_id.nunique(), train.study_id.nunique()) == (4, 12)
    assert not set(locked.patient_id) & set(train.patient_id)
    assert not set(locked.patient_id) & set(prepared.folds.patient_id)
    assert locked.fold.isna().all()
    assert locked[list(TASK.classes)].notna().all(axis=None)


def test_a_run_predicts_them_and_trains_on_nothing_of_them(locked_work, tiny_config):
    prepared = Prepared.open(locked_work.prepared, TASK)
    parts = Parts.of(prepared, 0)
    locked = set(prepared.split("locked").patient_id)
    assert set(parts.external["locked"].patient_id) == locked
    assert not locked & (set(parts.train.patient_id) | set(parts.heldout.patient_id))
    before = identify(tiny_config, prepared, locked_work, 0)
    rows = prepared.slices.dataset == "locked"
    prepared.slices.loc[rows, list(TASK.classes)] = 1 - prepared.slices.loc[rows, list(TASK.classes)]
    assert identify(tiny_config, prepared, locked_work, 0) == before


def test_the_lock_stays_without_being_named_again_and_after_fresh_and_new_folds(locked_work, tiny_config, phantom_root):
    before = read_table(locked_work.prepared / "locked.csv")
    assert prepare.plan(tiny_config, locked_work, phantom_options(phantom_root)).current is not None
    do(prepare, tiny_config, locked_work, phantom_options(phantom_root, fresh=True, new_folds=True))
    pd.testing.assert_frame_equal(read_table(locked_work.prepared / "locked.csv"), before)
    with pytest.raises(ArtifactError, match=r"made from other settings \(lock: 0.25, now 0.1\)"):
        prepare.plan(tiny_config, locked_work, phantom_options(phantom_root, lock=0.1))


def test_a_store_that_was_trained_on_is_not_locked_by_a_later_call(prepared_work, tiny_config, phantom_root):
    with pytest.raises(ArtifactError, match=r"made from other settings \(lock"):
        prepare.plan(tiny_config, prepared_work, phantom_options(phantom_root, lock=0.25))
