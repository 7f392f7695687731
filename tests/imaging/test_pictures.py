import cv2
import numpy as np

from ichkit.imaging.pictures import (
    CODE_KNOTS,
    brain_picture,
    caption_picture,
    draw_scale,
    encode_hounsfield,
    encode_png,
    enlarge_picture,
    fit_picture,
    paint_heat,
    picture_volume,
    tile_pictures,
)


def test_the_brain_window_shows_40_hu_as_middle_grey_and_clips_at_0_and_80():
    picture = brain_picture(np.array([[-3000, 0, 40, 80, 3000]], np.int16))
    assert picture[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert (picture == picture[..., :1]).all()


def test_cold_places_stay_as_they_are_and_hot_ones_turn_yellow():
    hounsfield, heat = np.full((4, 4), 20, np.int16), np.zeros((4, 4), np.float32)
    heat[1, 2] = 1
    painted = paint_heat(hounsfield, heat)
    is_cold = heat == 0
    np.testing.assert_array_equal(painted[is_cold], brain_picture(hounsfield)[is_cold])
    red, green, blue = painted[1, 2].astype(int)
    assert red > 150
    assert green > 150
    assert blue < 150


def test_a_low_map_that_is_not_faded_is_seen_and_its_colour_is_that_of_its_height():
    hounsfield, heat = np.full((8, 8), 40, np.int16), np.zeros((8, 8), np.float32)
    heat[2, 3] = 0.1
    faded, whole = (paint_heat(hounsfield, heat, is_faded=is_faded)[2, 3].astype(int) for is_faded in (True, False))
    assert abs(faded - 128).max() < 10
    assert abs(whole - 128).max() > 50
    assert whole.max() < 128  # dark, as low values of the map are
    np.testing.assert_array_equal(paint_heat(hounsfield, 0 * heat, is_faded=False), brain_picture(hounsfield))


def test_only_a_small_picture_is_enlarged_by_a_whole_number():
    small = np.random.default_rng(0).integers(0, 256, (100, 128, 3), dtype=np.uint8)
    assert enlarge_picture(small, 512).shape == (400, 512, 3)
    assert enlarge_picture(small, 300).shape == (300, 384, 3)
    assert enlarge_picture(small, 128) is small


def test_a_png_holds_the_picture_it_was_made_from():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    read = cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(cv2.cvtColor(read, cv2.COLOR_BGR2RGB), picture)


def test_a_picture_is_fitted_without_bending_it():
    fitted = fit_picture(np.full((10, 20, 3), 200, np.uint8), 40)
    assert fitted.shape == (40, 40, 3)
    assert np.flatnonzero(fitted[:, 20, 0]).tolist() == list(range(10, 30))
    assert (fitted[20] == 200).all()


def test_a_long_picture_keeps_a_row_or_a_column_of_pixels():
    wide = fit_picture(np.full((1, 100, 3), 200, np.uint8), 10)
    assert (wide[:, :, 0] > 0).sum(axis=0).tolist() == [1] * 10
    tall = fit_picture(np.full((100, 1, 3), 200, np.uint8), 10)
    assert (tall[:, :, 0] > 0).sum(axis=1).tolist() == [1] * 10


def test_tiles_stand_from_left_to_right_and_the_last_row_is_filled_up():
    tiles = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = tile_pictures(tiles, 2)
    assert sheet[::2, ::3, 0].tolist() == [[10, 20], [30, 0]]


def test_a_caption_stands_below_and_a_long_one_is_made_to_fit():
    picture = np.full((20, 60, 3), 7, np.uint8)
    captioned = caption_picture(picture, ["x" * 80])
    np.testing.assert_array_equal(captioned[:20], picture)
    assert captioned[20:, :].max() > 0
    assert captioned[20:, -2:].max() == 0


def test_a_picture_of_several_sequences_shows_the_first_over_the_whole_brain_window():
    volume = np.zeros((1, 2, 1, 3), np.int16)
    volume[0, 0], volume[0, 1] = [0, 1500, 3000], 700
    assert picture_volume(volume).tolist() == [[[0, 40, 80]]]
    np.testing.assert_array_equal(picture_volume(volume[:, 0]), volume[:, 0])


def test_codes_lie_on_the_lines_between_the_knots_and_keep_brain_to_a_hounsfield_unit():
    slices_hu = np.arange(-3000, 5000, dtype=np.int16).reshape(10, -1)
    hounsfield, codes = zip(*CODE_KNOTS, strict=True)
    found = encode_hounsfield(slices_hu)
    assert found.shape == slices_hu.shape
    np.testing.assert_array_equal(found, np.interp(slices_hu, hounsfield, codes).round())
    shown = np.interp(found, codes, hounsfield)
    is_brain = (slices_hu >= -15) & (slices_hu <= 90)
    assert abs(shown - slices_hu)[is_brain].max() <= 0.5


def test_the_scale_shows_the_colours_that_a_map_has_on_middle_grey():
    scale = draw_scale(200, "heat")
    assert scale.shape == (22, 200, 3)
    brain, heat = np.full((1, 100), 40, np.int16), np.linspace(0, 1, 100)[None]
    np.testing.assert_array_equal(scale[10, 16:116], paint_heat(brain, heat)[0])


def test_a_slice_of_air_gets_no_colour():
    air = np.full((6, 6), -1000, np.int16)
    np.testing.assert_array_equal(paint_heat(air, np.ones((6, 6))), brain_picture(air))


def test_a_picture_without_captions_is_left_as_it_is():
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(caption_picture(picture, []), picture)
