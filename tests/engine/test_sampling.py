import numpy as np
import pytest
from support.pixels import make_pixel_work
from support.simulated import TASK

from ichkit.core.errors import ConfigError
from ichkit.core.train_config import TrainConfig
from ichkit.engine.sampling import CENTRAL_SHARE, CENTRES, EpochBatches, SliceIndex, count_blocks, plan_epoch
from ichkit.imaging.store import Prepared


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    work = make_pixel_work(tmp_path_factory.mktemp("work"))
    return Prepared.open(work.prepared, TASK).split("train")


def plan_of(index, sampling="blocks", fold=0, epoch=0, centres="uniform"):
    return plan_epoch(index, TrainConfig(sampling=sampling, centres=centres), 0, fold, epoch)


def blocks_of(plan):
    """What tells the blocks of a plan apart: the real slices of each, and which place in the block each has."""
    places = np.where(plan.is_real, plan.rows, -1)
    return [tuple(row) for row in places.tolist()]


def test_an_epoch_draws_one_block_in_seven_and_none_twice(slices):
    index = SliceIndex.of(slices, TASK.classes)
    blocks = blocks_of(plan_of(index, "blocks"))
    num_possible = len(index) + 6 * slices.study_id.nunique()  # n + 6 windows of 7 overlap a study of n
    assert len(blocks) == num_possible // 7
    assert len(set(blocks)) == len(blocks)
    assert all(max(block) >= 0 for block in blocks)
    assert blocks != blocks_of(plan_of(index, "blocks", 0, 1))
    assert blocks != blocks_of(plan_of(index, "blocks", 1, 0))


@pytest.mark.parametrize("size", [1, 5, 7])
def test_over_many_epochs_every_slice_is_seen_equally_often_the_ends_too(slices, size):
    index = SliceIndex.of(slices, TASK.classes)
    config, seen = TrainConfig(block_size=size, sampling="blocks"), np.zeros(len(index))
    for epoch in range(2000):
        plan = plan_epoch(index, config, 0, 0, epoch)
        np.add.at(seen, plan.rows[plan.is_real], 1)
    # By distance from the nearer end: each mean is of thousands of views.
    end = np.minimum(np.arange(len(index)) - index.first, index.last - np.arange(len(index)))
    expected = seen.sum() / len(index)
    for distance in range(4):
        assert seen[end == distance].mean() == pytest.approx(expected, rel=0.03), distance
    assert seen.min() > 0.85 * expected
    # Each epoch shows as many slices as there are, but for the blocks that do not go into it as a whole.
    assert seen.sum() / 2000 == pytest.approx(len(index), rel=0.05)
    prevalence = (seen[:, None] * index.labels).sum(0) / seen.sum()
    np.testing.assert_allclose(prevalence, index.labels.mean(0), rtol=0.03)


def test_blocks_stay_in_their_study_and_padding_repeats_its_end_slices(slices):
    index = SliceIndex.of(slices, TASK.classes)
    studies, positions = slices.study_id.to_numpy(), slices.slice_index.to_numpy()
    plan = plan_of(index, "blocks")
    for rows, is_real in zip(plan.rows, plan.is_real, strict=True):
        assert len(set(studies[rows])) == 1
        place = int(np.flatnonzero(is_real)[0])
        wanted = positions[rows[place]] - place + np.arange(7)  # beyond the ends too
        size = (studies == studies[rows[0]]).sum()
        assert -3 <= wanted[3] < size + 3
        np.testing.assert_array_equal(is_real, (wanted >= 0) & (wanted < size))
        np.testing.assert_array_equal(positions[rows], np.clip(wanted, 0, size - 1))
        assert len(set(rows[is_real].tolist())) == is_real.sum()


def test_single_slices_are_dealt_exactly_once_but_for_a_remainder(slices):
    index = SliceIndex.of(slices, TASK.classes)
    plan = plan_of(index, "slices")
    dealt = plan.rows[plan.is_real]
    assert len(set(dealt.tolist())) == len(dealt) == len(index) // 7 * 7


@pytest.mark.parametrize("sampling", ["blocks", "slices"])
def test_fewer_slices_than_a_block_make_one_block_in_which_none_counts_twice(slices, sampling):
    few = slices[slices.study_id == slices.study_id.iloc[0]].head(4)
    plan = plan_of(SliceIndex.of(few, TASK.classes), sampling)
    assert plan.rows.shape == (1, 7)
    real = plan.rows[plan.is_real].tolist()
    assert len(real) == len(set(real)) <= 4


def test_batches_share_an_epoch_evenly_and_begin_where_they_are_told():
    batches = EpochBatches(17, 8)
    assert [len(keys) for keys in batches] == [6, 6, 5]
    assert [key for keys in batches for key in keys] == [(0, number) for number in range(17)]
    whole = list(batches)
    batches.start(4, first_step=2)
    assert list(batches) == [[(4, number) for _, number in whole[2]]]
    assert len(batches) == 1


def test_processes_share_each_batch_without_a_block_twice():
    whole = list(EpochBatches(17, 8))
    shares = [list(EpochBatches(17, 8, rank, 2)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(parts[0] + parts[1]) == batch
        assert abs(len(parts[0]) - len(parts[1])) <= 1
    with pytest.raises(ConfigError, match="at least one block for each of 4 processes"):
        EpochBatches(17, 3, 0, 4)


def test_balanced_centres_show_every_class_equally_often(slices):
    index = SliceIndex.of(slices, TASK.classes)
    groups = np.column_stack([index.labels > 0.5, (index.labels <= 0.5).all(1)])
    # A slice has several labels, so what is equal is the part that each class asks for; rare ones must gain.
    drawn = np.concatenate([plan_of(index, epoch=epoch, centres="balanced").rows[:, 3] for epoch in range(600)])
    share, before = groups[drawn].mean(0), groups.mean(0)
    chosen = (groups / groups.sum(0)).mean(1)
    expected = (groups * chosen[:, None]).sum(0)
    np.testing.assert_allclose(share, expected, atol=0.03)
    rarest = before.argmin()
    assert share[rarest] > 1.5 * before[rarest]


def test_central_centres_leave_out_the_ends_of_every_study(slices):
    index = SliceIndex.of(slices, TASK.classes)
    drawn = np.concatenate([plan_of(index, epoch=epoch, centres="central").rows[:, 3] for epoch in range(50)])
    place = (slices.slice_index + 0.5) / slices.groupby("study_id").slice_index.transform("size")
    inside = set(np.flatnonzero(place.between(*CENTRAL_SHARE)).tolist())
    assert set(drawn.tolist()) == inside
    assert 0 < len(inside) < len(index)


@pytest.mark.parametrize("name", CENTRES)
@pytest.mark.parametrize("sampling", ["blocks", "slices"])
def test_every_sampler_gives_an_epoch_of_as_many_slices_as_there_are(slices, name, sampling):
    index = SliceIndex.of(slices, TASK.classes)
    plans = [plan_of(index, sampling, epoch=epoch, centres=name) for epoch in range(200)]
    config = TrainConfig(sampling=sampling, centres=name)
    assert {plan.rows.shape for plan in plans} == {(count_blocks(config, len(index), slices.study_id.nunique()), 7)}
    assert all(plan.is_real.any(1).all() for plan in plans)
    # Central blocks have few ends, balanced ones draw what is rare: neither promises more than this.
    seen = np.mean([plan.is_real.sum() for plan in plans])
    assert 0.7 * len(index) <= seen <= 1.1 * len(index)


def test_unknown_centres_get_the_nearest_spelling(slices):
    with pytest.raises(ConfigError, match='train.centres: unknown "balancd". Did you mean "balanced"'):
        plan_of(SliceIndex.of(slices, TASK.classes), centres="balancd")
