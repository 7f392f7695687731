import numpy as np
import pytest

from ichkit.core.config import ChannelsConfig
from ichkit.core.errors import ConfigError
from ichkit.imaging.windows import (
    CHANNELS,
    TABLE_HIGH_HU,
    TABLE_LOW_HU,
    make_rendering,
    pad_to_square,
    resize_volume,
    window_table,
)

WINDOWS_OF = {
    "windows": ((40, 80), (75, 215), (600, 2800)),
    "neighbours": ((40, 80),),
    "sequences": ((1500, 3000),),
}


def render_plainly(volume_hu, rows, offsets, windows):
    """The NumPy twin: every channel a slice, clipped to its window, scaled, rounded half up."""
    images = np.empty((len(rows), *volume_hu.shape[1:], len(offsets)), np.uint8)
    for image, row in enumerate(rows):
        for channel, (offset, (level, width)) in enumerate(zip(offsets, windows, strict=True)):
            source = volume_hu[min(max(row + offset, 0), len(volume_hu) - 1)].astype(np.float64)
            grey = np.clip((source - (level - width / 2)) / width, 0, 1) * 255
            images[image, :, :, channel] = np.floor(grey + 0.5)
    return images


@pytest.mark.parametrize("kind", CHANNELS)
def test_the_table_look_up_shows_what_the_linear_rule_says(kind):
    windows = WINDOWS_OF[kind]
    volume = np.random.default_rng(0).integers(-1024, 3071, (5, 9, 7)).astype(np.int16)
    rendering = make_rendering(ChannelsConfig(kind=kind, windows=windows))
    rows = np.array([0, 4, 2])
    twin = render_plainly(volume, rows, rendering.offsets, [windows[table] for table in rendering.table_of])
    np.testing.assert_array_equal(rendering.render(volume, rows), twin)


@pytest.mark.parametrize("kind", CHANNELS)
def test_every_row_of_channels_keeps_its_contract(kind):
    row = CHANNELS[kind]
    rendering = row.constructor(ChannelsConfig(kind=kind, windows=WINDOWS_OF[kind]))
    images = rendering.render(np.zeros((2, 3, 4), np.int16), np.array([1]))
    assert row.name == kind
    assert row.description.endswith(".")
    assert row.source
    assert images.shape == (1, 3, 4, rendering.num_channels)
    assert images.dtype == np.uint8
    assert rendering.reach == max(map(abs, rendering.offsets))


def test_windows_agree_with_values_worked_out_by_hand():
    at = np.array([-1, 0, 20, 40, 60, 80, 81]) - TABLE_LOW_HU
    assert window_table(40, 80)[at].tolist() == [0, 0, 64, 128, 191, 255, 255]
    bone = window_table(600, 2800)
    assert [int(bone[hu - TABLE_LOW_HU]) for hu in (-1000, -800, 600, 2000, 3000)] == [0, 0, 128, 255, 255]


def test_values_beyond_the_tables_take_their_ends():
    volume = np.array([[[-32768, 32767]]], np.int16)
    rendering = make_rendering(ChannelsConfig(windows=((1000, 5000),)))
    edges = rendering.tables[0, [0, -1]]
    assert rendering.render(volume, np.array([0])).ravel().tolist() == edges.tolist()
    assert 0 < edges[0] < edges[1] < 255
    assert len(rendering.tables[0]) == TABLE_HIGH_HU - TABLE_LOW_HU + 1


def test_neighbours_show_the_slices_before_and_after_and_repeat_the_ends():
    volume = np.array([0, 40, 80], np.int16)[:, None, None]
    rendering = make_rendering(ChannelsConfig(kind="neighbours", windows=((40, 80),)))
    assert rendering.render(volume, np.arange(3))[:, 0, 0].tolist() == [[0, 0, 128], [0, 128, 255], [128, 255, 255]]


def test_an_unknown_kind_of_channels_gets_the_nearest_spelling():
    with pytest.raises(ConfigError, match=r'unknown "neighbors".*Did you mean "neighbours"\? Choices: neighb'):
        make_rendering(ChannelsConfig(kind="neighbors"))


def test_neighbours_refuse_more_than_one_window():
    with pytest.raises(ConfigError, match=r"shows one window of three slices, found 3 windows"):
        make_rendering(ChannelsConfig(kind="neighbours"))


def test_no_window_at_all_is_refused():
    with pytest.raises(ConfigError, match=r"at least one \(level, width\), found none"):
        make_rendering(ChannelsConfig(kind="windows", windows=()))


def test_shrinking_takes_the_mean_of_the_hounsfield_units_under_a_pixel():
    volume = np.arange(32, dtype=np.int16).reshape(2, 4, 4) * 100
    mean = volume.reshape(2, 2, 2, 2, 2).mean((2, 4))
    np.testing.assert_array_equal(resize_volume(volume, 2), mean)
    assert resize_volume(volume, 4) is volume


def test_a_slice_that_is_not_square_is_centred_in_air():
    volume = np.full((1, 2, 4), 50, np.int16)
    square = pad_to_square(volume)
    assert square.shape == (1, 4, 4)
    assert square[0, :, 0].tolist() == [TABLE_LOW_HU, 50, 50, TABLE_LOW_HU]
    np.testing.assert_array_equal(pad_to_square(volume.transpose(0, 2, 1)), square.transpose(0, 2, 1))
    assert pad_to_square(square) is square


def test_images_stretched_by_their_own_values_are_those_of_numpy_and_a_blank_one_is_black():
    rng = np.random.default_rng(0)
    volume = rng.integers(-200, 300, (4, 9, 7)).astype(np.int16)
    volume[1] = 20
    volume[2] = rng.integers(30, 50, (9, 7))
    config = ChannelsConfig(windows=((40, 80), (80, 200), (40, 380)), stretch="image")
    images = make_rendering(config).render(volume, np.arange(4))
    for row in range(4):
        for channel, (level, width) in enumerate(config.windows):
            clipped = np.clip(volume[row].astype(np.float64), level - width / 2, level + width / 2)
            spread = clipped.max() - clipped.min()
            grey = (clipped - clipped.min()) / spread if spread else np.zeros_like(clipped)
            np.testing.assert_array_equal(images[row, :, :, channel], np.floor(grey * 255 + 0.5))
    assert not images[1].any()
    assert images[2].max() == 255
    # Between the windows' ends the two stretches are the same.
    whole = np.tile(np.linspace(-400, 500, 80, dtype=np.int16), (1, 2, 1))
    by_window = make_rendering(config.model_copy(update={"stretch": "window"})).render(whole, np.array([0]))
    np.testing.assert_array_equal(make_rendering(config).render(whole, np.array([0])), by_window)


def test_one_window_of_neighbours_is_stretched_by_the_slice_that_a_channel_shows():
    volume = np.stack([np.full((4, 4), 10), np.arange(16).reshape(4, 4), np.arange(16).reshape(4, 4) * 3]).astype(
        np.int16
    )
    config = ChannelsConfig(kind="neighbours", windows=((40, 80),), stretch="image")
    image = make_rendering(config).render(volume, np.array([1]))[0]
    assert image[..., 0].max() == 0
    assert (image[..., 1] == image[..., 2]).all()
    assert image[..., 1].max() == 255


def test_each_channel_is_its_sequence_through_its_window():
    volume = np.random.default_rng(3).integers(-100, 3200, (4, 3, 5, 6)).astype(np.int16)
    windows = ((1500, 3000), (1000, 500), (200, 400))
    images = make_rendering(ChannelsConfig(kind="sequences", windows=windows)).render(volume, np.array([3, 0, 1]))
    for number, window in enumerate(windows):
        alone = render_plainly(volume[:, number], [3, 0, 1], (0,), (window,))
        np.testing.assert_array_equal(images[..., number : number + 1], alone)


def test_sequences_that_a_volume_does_not_have_are_refused():
    rendering = make_rendering(ChannelsConfig(kind="sequences", windows=((1500, 3000),) * 3))
    with pytest.raises(ConfigError, match=r"expected volumes of 3 sequences.*found 2"):
        rendering.render(np.zeros((4, 2, 5, 5), np.int16), np.array([0]))
    with pytest.raises(ConfigError, match=r"expected volumes of 3 sequences.*found 1"):
        rendering.render(np.zeros((4, 5, 5), np.int16), np.array([0]))


def test_a_volume_of_several_sequences_is_padded_and_resized_as_each_alone():
    volume = np.random.default_rng(4).integers(0, 3000, (2, 3, 20, 12)).astype(np.int16)
    done = resize_volume(pad_to_square(volume), 16)
    assert done.shape == (2, 3, 16, 16)
    for number in range(3):
        np.testing.assert_array_equal(done[:, number], resize_volume(pad_to_square(volume[:, number]), 16))
