import numpy as np
import pytest

from ichkit.imaging import distort as module
from ichkit.imaging.distort import DISTORTIONS, bend, distort, paint_inside, paint_outside, shuffle, shuffle_windows


def volume(shape=(12, 40, 30, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_every_row_of_distortions_keeps_its_contract(name):
    row, whole = DISTORTIONS[name], volume()
    kept = whole.copy()
    one, two = (row.function(whole.copy(), np.random.default_rng(3)) for _ in range(2))
    assert (row.name, row.description[-1], bool(row.source)) == (name, ".", True)
    assert one.shape == whole.shape
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)
    assert not np.array_equal(one, kept)


def test_bending_keeps_or_turns_the_order_of_grey_levels_of_each_channel():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None, None], 3, 3)
    rises = set()
    for seed in range(20):
        bent = bend(ramp, np.random.default_rng(seed))[:, 0, 0].astype(int)
        for channel in bent.T:
            steps = np.diff(channel)
            assert (steps >= 0).all() or (steps <= 0).all()
            assert {channel[0], channel[-1]} == {0, 255}
            rises.add(bool(channel[0] == 0))
    assert rises == {True, False}


def test_shuffling_keeps_the_voxels_and_moves_none_farther_than_a_few_windows():
    whole = np.zeros((20, 40, 40, 2), np.uint8)
    whole[:, 20:] = 200
    whole[..., 1] = 255 - whole[..., 0]
    shuffled = shuffle(whole.copy(), np.random.default_rng(0))
    assert np.array_equal(np.bincount(shuffled[..., 0].ravel()), np.bincount(whole[..., 0].ravel()))
    assert np.array_equal(shuffled[..., 1], 255 - shuffled[..., 0])  # channels move together
    moved = np.flatnonzero((shuffled != whole).any((0, 2, 3)))
    assert 0 < len(moved) < 30
    assert abs(moved.mean() - 19.5) < 4


def test_the_compiled_shuffle_is_the_python_one():
    one, two, largest = volume((4, 9, 8, 2)), volume((4, 9, 8, 2)), np.array([2, 3, 3])
    shuffle_windows(one, largest, 50, np.random.default_rng(5))
    shuffle_windows.py_func(two, largest, 50, np.random.default_rng(5))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, volume((4, 9, 8, 2)))


def test_painting_inside_leaves_most_and_painting_outside_leaves_some():
    whole = np.full((12, 36, 30, 3), 100, np.uint8)
    for seed in range(10):
        inside, outside = (
            (paint(whole, np.random.default_rng(seed)) == 100).all(3).mean() for paint in (paint_inside, paint_outside)
        )
        assert 0.7 < inside < 1
        assert 0.05 < outside < 0.6


def test_distortions_are_drawn_as_often_as_their_source_says(monkeypatch):
    drawn = dict.fromkeys(DISTORTIONS, 0)
    for name, row in DISTORTIONS.items():

        def count(whole, rng, name=name):
            drawn[name] += 1
            return whole

        monkeypatch.setitem(module.DISTORTIONS, name, type(row)(name, count, row.description, row.source))
    whole = volume((2, 4, 4, 1))
    for seed in range(2000):
        assert distort(whole, np.random.default_rng(seed)) is not whole
    shares = {name: count / 2000 for name, count in drawn.items()}
    wanted = {"bend": 0.9, "shuffle": 0.5, "paint-inside": 0.18, "paint-outside": 0.72}
    assert shares == pytest.approx(wanted, abs=0.04)
