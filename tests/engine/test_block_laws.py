"""Laws of blocks and windows of neighbours, tried on drawn studies, against every block that could be drawn."""

import numpy as np
import pandas as pd
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ichkit.core.train_config import TrainConfig
from ichkit.engine.blocks import Block, stack_blocks
from ichkit.engine.inference import window_starts
from ichkit.engine.sampling import CENTRES, EpochBatches, SliceIndex, count_blocks, plan_epoch
from ichkit.stacking.neighbours import neighbour_rows, neighbour_stacks, running_means, study_bounds

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)
SIZES = st.sampled_from([1, 3, 5, 7, 9])


def index_of(lengths, is_known=None):
    """An index of studies of these lengths whose one class is 0, or unknown."""
    count = sum(lengths)
    labels = np.zeros(count) if is_known is None else np.where(is_known, 0.0, np.nan)
    study = np.repeat(np.arange(len(lengths)), lengths)
    slices = pd.DataFrame({"volume": [f"v{number}" for number in study], "any": labels})
    slices["slice_index"] = np.concatenate([np.arange(length) for length in lengths])
    slices["position_mm"] = slices["slice_index"] * 5.0
    return SliceIndex.of(slices, ("any",))


def possible_blocks(lengths, size, reach):
    """(rows, is_real) of the block around every centre, `reach` places beyond the ends of a study too."""
    found, start = set(), 0
    for length in lengths:
        for centre in range(-reach, length + reach):
            places = [centre + step - size // 2 for step in range(size)]
            rows = tuple(start + min(max(place, 0), length - 1) for place in places)
            found.add((rows, tuple(0 <= place < length for place in places)))
        start += length
    return found


def as_pairs(plan):
    return [(tuple(r), tuple(i)) for r, i in zip(plan.rows.tolist(), plan.is_real.tolist(), strict=True)]


@given(LENGTHS, SIZES, st.sampled_from(sorted(CENTRES)), st.integers(0, 99))
def test_a_block_is_a_slice_with_its_neighbours_in_the_study_and_padding_repeats_the_ends(lengths, size, centres, seed):
    config = TrainConfig(block_size=size, sampling="blocks", centres=centres)
    drawn = as_pairs(plan_epoch(index_of(lengths), config, seed, 0, 0))
    reach = size // 2 if CENTRES[centres].reaches_beyond else 0
    assert set(drawn) <= possible_blocks(lengths, size, reach)
    assert len(drawn) == count_blocks(config, sum(lengths), len(lengths))
    if centres == "uniform" and size > 1:  # of one slice, padding alone would tell blocks apart
        assert len(set(drawn)) == len(drawn)


@given(LENGTHS, SIZES, st.integers(0, 99), st.data())
def test_a_slice_without_a_known_label_is_a_neighbour_and_never_a_centre(lengths, size, seed, data):
    is_known = np.array(data.draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths))))
    assume(is_known.any())
    config = TrainConfig(block_size=size, sampling="blocks")
    plan = plan_epoch(index_of(lengths, is_known), config, seed, 0, 0)
    assert is_known[plan.rows[:, size // 2]].all()
    assert set(as_pairs(plan)) <= possible_blocks(lengths, size, size // 2)


@given(LENGTHS, st.integers(2, 15), st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 99))
def test_an_epoch_of_studies_has_each_study_once_in_one_direction(lengths, longest, in_batch, chance, seed):
    augment = {"every_second_probability": chance, "reversed_probability": chance}
    config = TrainConfig(sampling="studies", max_slices=longest, batch_blocks=in_batch, augment=augment)
    index = index_of(lengths)
    plan = plan_epoch(index, config, seed, 0, 0)
    firsts = []
    for rows, is_real in zip(plan.rows, plan.is_real, strict=True):
        own = rows[is_real]
        assert is_real[: len(own)].all()
        assert (rows[len(own) :] == own[-1]).all()
        (first,), (last,) = np.unique(index.first[own]), np.unique(index.last[own])
        firsts.append(first)
        steps = set(np.diff(own).tolist())
        assert len(steps) <= 1
        assert steps <= {1, 2, -1, -2}
        whole = last - first + 1
        taken = {whole, *([whole // 2, -(-whole // 2)] if whole > 1 else [])}
        assert len(own) in {min(number, longest) for number in taken}
        if chance == 0.0:
            assert len(own) == min(whole, longest)
            assert steps <= {1}
    assert sorted(firsts) == np.unique(index.first).tolist()


@given(LENGTHS, SIZES, st.integers(0, 99))
def test_the_windows_of_the_second_stage_are_the_blocks_of_the_first(lengths, size, seed):
    codes = np.repeat(np.random.default_rng(seed).permutation(len(lengths)), lengths)
    rows = neighbour_rows(codes, size)
    assert {tuple(row) for row in rows.tolist()} == {block for block, _ in possible_blocks(lengths, size, 0)}
    assert (rows[:, size // 2] == np.arange(len(codes))).all()
    values = np.random.default_rng(seed).normal(size=(len(codes), 2)).astype(np.float32)
    np.testing.assert_array_equal(neighbour_stacks(values, codes, size), values[rows])
    missing = neighbour_stacks(values, codes, size, beyond=np.nan)
    real = np.isfinite(missing[..., 0])
    np.testing.assert_array_equal(missing[real], values[rows][real])
    (first, last), reach = study_bounds(codes), size // 2
    places = np.arange(len(codes))
    expected = np.minimum(last, places + reach) - np.maximum(first, places - reach) + 1
    assert real.sum(axis=1).tolist() == expected.tolist()
    np.testing.assert_allclose(running_means(values, codes, reach), np.nanmean(missing, axis=1), rtol=1e-4, atol=1e-5)


@given(LENGTHS, SIZES)
def test_turning_every_study_round_turns_its_windows_round(lengths, size):
    codes = np.repeat(np.arange(len(lengths)), lengths)
    first, last = study_bounds(codes)
    mirror = first + last - np.arange(len(codes))
    rows = neighbour_rows(codes, size)
    np.testing.assert_array_equal(mirror[rows][mirror][:, ::-1], rows)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_a_batch_holds_every_block_and_then_its_last_slice(lengths):
    torch.manual_seed(0)
    blocks = [
        Block(torch.randint(0, 255, (n, 2, 2, 1), dtype=torch.uint8), torch.rand(n, 3), torch.rand(n)) for n in lengths
    ]
    for own, batched in zip(blocks, zip(*stack_blocks(blocks), strict=True), strict=True):
        for part, padded in zip(own, batched, strict=True):
            assert len(padded) == max(lengths)
            assert torch.equal(padded[: len(part)], part)
            assert (padded[len(part) :] == part[-1]).all()


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 3))
def test_batches_hold_every_block_once_over_all_processes_and_evenly(num_blocks, in_batch, world):
    assume(num_blocks // -(-num_blocks // in_batch) >= world)
    ranks = [EpochBatches(num_blocks, in_batch, rank, world) for rank in range(world)]
    steps = [np.concatenate([rank.own(step) for rank in ranks]) for step in range(ranks[0].steps_per_epoch)]
    assert sorted(np.concatenate(steps).tolist()) == list(range(num_blocks))
    sizes = [len(step) for step in steps]
    assert max(sizes) <= in_batch
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 120), st.integers(1, 120))
def test_overlapping_windows_cover_every_slice_and_none_beyond(num_slices, size):
    size = min(size, num_slices)
    starts = window_starts(num_slices, size)
    covered = np.unique(starts[:, None] + np.arange(size))
    assert covered.tolist() == list(range(num_slices))
    assert (np.diff(starts) <= max(size // 2, 1)).all()
