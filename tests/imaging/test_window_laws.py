"""Laws of windows and channels, tried on drawn HU, levels and widths."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ichkit.core.config import ChannelsConfig
from ichkit.imaging.windows import (
    TABLE_HIGH_HU,
    TABLE_LOW_HU,
    make_rendering,
    pad_to_square,
    resize_volume,
    window_table,
)

LEVELS, WIDTHS = st.integers(-1500, 3500), st.integers(1, 5000)
WINDOWS = st.lists(st.tuples(LEVELS, WIDTHS), min_size=1, max_size=4)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
VOLUMES = arrays.arrays(np.int16, SHAPES)  # all of int16, beyond what the tables hold too


def by_hand(values, level, width):
    """Grey levels of HU by the linear rule, one at a time."""
    clipped = np.clip(values.astype(np.float64), TABLE_LOW_HU, TABLE_HIGH_HU)
    return np.floor(np.clip((clipped - (level - width / 2)) / width * 255, 0, 255) + 0.5)


@given(VOLUMES, WINDOWS, st.data())
def test_each_channel_shows_its_slice_through_its_window_whatever_the_values(volume, windows, data):
    kind = data.draw(st.sampled_from(["windows", "neighbours"])) if len(windows) == 1 else "windows"
    rendering = make_rendering(ChannelsConfig(kind=kind, windows=tuple(windows)))
    rows = np.array(data.draw(st.lists(st.integers(0, len(volume) - 1), max_size=4)), np.int64)
    images = rendering.render(volume, rows)
    assert images.shape == (len(rows), *volume.shape[1:], rendering.num_channels)
    shown = [(0, window) for window in windows] if kind == "windows" else [(o, windows[0]) for o in (-1, 0, 1)]
    for channel, (offset, window) in enumerate(shown):
        sources = volume[np.clip(rows + offset, 0, len(volume) - 1)]
        np.testing.assert_array_equal(images[..., channel], by_hand(sources, *window))


@given(LEVELS, WIDTHS)
def test_more_hounsfield_units_are_never_darker_and_the_ends_of_a_window_are_black_and_white(level, width):
    table = window_table(level, width).astype(int)
    assert (np.diff(table) >= 0).all()
    hu = np.arange(TABLE_LOW_HU, TABLE_HIGH_HU + 1)
    assert set(table[hu <= level - width / 2]) <= {0}
    assert set(table[hu >= level + width / 2]) <= {255}


@given(st.integers(-300, 300), st.integers(1, 500).map(lambda half: 2 * half), st.integers(-200, 200))
def test_a_window_moved_with_the_values_shows_the_same(level, width, moved):
    hu = np.arange(level - width, level + width)
    hu = hu[(np.minimum(hu, hu + moved) >= TABLE_LOW_HU) & (np.maximum(hu, hu + moved) <= TABLE_HIGH_HU)]
    here, there = window_table(level, width), window_table(level + moved, width)
    np.testing.assert_array_equal(here[hu - TABLE_LOW_HU], there[hu + moved - TABLE_LOW_HU])


@given(VOLUMES, st.lists(st.integers(0, 100), min_size=1, max_size=3))
def test_the_images_of_some_slices_are_those_of_all_slices_at_these_places(volume, places):
    rendering = make_rendering(ChannelsConfig())
    rows = np.array(places) % len(volume)
    np.testing.assert_array_equal(
        rendering.render(volume, rows), rendering.render(volume, np.arange(len(volume)))[rows]
    )


@given(VOLUMES)
def test_a_padded_slice_is_the_slice_in_the_middle_of_air_and_a_square_one_stays(volume):
    square = pad_to_square(volume)
    height, width = volume.shape[1:]
    size = max(height, width)
    assert square.shape == (len(volume), size, size)
    top, left = (size - height) // 2, (size - width) // 2
    np.testing.assert_array_equal(square[:, top : top + height, left : left + width], volume)
    is_added = np.ones((size, size), bool)
    is_added[top : top + height, left : left + width] = False
    assert (square[:, is_added] == TABLE_LOW_HU).all()
    np.testing.assert_array_equal(pad_to_square(square), square)


@given(arrays.arrays(np.int16, SHAPES, elements=st.integers(-1024, 3071)), st.integers(1, 12))
def test_a_resized_slice_holds_no_value_beyond_those_it_was_made_of(volume, size):
    resized = resize_volume(volume, size)
    assert resized.shape == (len(volume), size, size)
    for before, after in zip(volume, resized, strict=True):
        assert before.min() <= after.min()
        assert after.max() <= before.max()
