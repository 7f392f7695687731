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


def index_of_lengths(lengths):
    """Studies with these numbers of slices, without labels."""
    begins = np.cumsum(lengths) - lengths
    count, codes = int(np.sum(lengths)), np.repeat(np.arange(len(lengths)), lengths)
    return SliceIndex(
        paths=np.array([str(i) for i in range(len(lengths))]),
        volume_of=codes.astype(np.int32),
        position=(np.arange(count) - begins[codes]).astype(np.int32),
        position_mm=np.zeros(count, np.float32),
        first=begins[codes],
        last=(begins + lengths - 1)[codes],
        labels=np.zeros((count, 6), np.float32),
    )


def test_an_epoch_of_studies_shows_each_slice_of_each_study_once(slices):
    index = SliceIndex.of(slices, TASK.classes)
    plan = plan_of(index, "studies")
    assert sorted(plan.rows[plan.is_real].tolist()) == list(range(len(index)))
    num_studies = slices.study_id.nunique()
    assert len(plan.rows) == num_studies == count_blocks(TrainConfig(sampling="studies"), len(index), num_studies)
    for rows, is_real in zip(plan.rows, plan.is_real, strict=True):
        assert len(set(index.first[rows].tolist())) == 1
        assert not (np.diff(is_real.astype(int)) > 0).any()  # padding comes last, and repeats the last slice
        assert set(rows[~is_real].tolist()) <= {rows[is_real][-1]}


@pytest.mark.parametrize("batch_blocks", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["rsna", "thin and thick", "two"])
def test_less_than_a_tenth_of_a_batch_of_studies_is_padding(batch_blocks, kind):
    rng = np.random.default_rng(0)
    lengths = {
        # Slices per study of RSNA 2019: most have 28 to 40, a tail reaches 60.
        "rsna": np.clip(np.rint(rng.normal(34, 6, 600)), 20, 60).astype(np.int64),
        "thin and thick": np.where(rng.random(600) < 0.3, rng.integers(80, 300, 600), rng.integers(24, 40, 600)),
        "two": np.array([30, 34]),
    }[kind]
    index, shares = index_of_lengths(lengths), []
    config = TrainConfig(sampling="studies", batch_blocks=batch_blocks)
    for epoch in range(3):
        plan = plan_epoch(index, config, 0, 0, epoch)
        batches = EpochBatches(len(plan.rows), batch_blocks).numbers
        shares.append(1 - plan.lengths.sum() / sum(len(own) * plan.lengths[own].max() for own in batches))
    assert max(shares) < 0.1
    # Batches of one length only would need no order; the share of the order drawn at random shows that it is needed.
    if kind == "rsna" and batch_blocks == 16:
        order = rng.permutation(np.minimum(lengths, 60))
        parts = np.array_split(order, len(batches))
        assert 1 - order.sum() / sum(len(part) * part.max() for part in parts) > 0.2


def test_the_studies_of_a_batch_change_from_epoch_to_epoch():
    index = index_of_lengths(np.random.default_rng(0).integers(20, 40, 80))
    config = TrainConfig(sampling="studies", batch_blocks=4)
    groups = []
    for epoch in range(2):
        plan = plan_epoch(index, config, 0, 0, epoch)
        groups.append({frozenset(plan.rows[own, 0].tolist()) for own in EpochBatches(80, 4).numbers})
    assert len(groups[0] & groups[1]) < 5


def test_long_studies_are_cut_and_slices_left_out_or_turned_round_as_often_as_asked():
    index = index_of_lengths(np.full(400, 50))
    augment = {"every_second_probability": 0.25, "reversed_probability": 0.4}
    config = TrainConfig(sampling="studies", max_slices=30, augment=augment)
    plan = plan_epoch(index, config, 0, 0, 0)
    strides = np.diff(plan.rows[:, :2], axis=1)[:, 0]
    assert np.abs(strides).tolist() == [1 if length == 30 else 2 for length in plan.lengths]
    assert set(plan.lengths.tolist()) == {30, 25}
    assert (np.abs(strides) == 2).mean() == pytest.approx(0.25, abs=0.07)
    assert (strides < 0).mean() == pytest.approx(0.4, abs=0.08)
    for rows, is_real, stride in zip(plan.rows, plan.is_real, strides, strict=True):
        assert (np.diff(rows[is_real]) == stride).all()
    starts = plan.rows[strides == 1, 0] % 50
    assert (starts.min(), starts.max()) == (0, 20)


def test_positions_are_those_of_the_study_and_missing_ones_are_counted(slices):
    first = slices.study_id.iloc[0]
    own = slices.study_id == first
    index = SliceIndex.of(slices, TASK.classes)
    expected = slices.position_mm[own] - (slices.position_mm[own].min() + slices.position_mm[own].max()) / 2
    np.testing.assert_allclose(index.position_mm[own], expected, atol=1e-3)
    broken = slices.assign(position_mm=slices.position_mm.mask(own & (slices.slice_index == 1)))
    fixed = SliceIndex.of(broken, TASK.classes).position_mm
    np.testing.assert_allclose(np.diff(fixed[own]), 5.0)
    np.testing.assert_array_equal(fixed[~own], index.position_mm[~own])
