"""Statistics of a slice: noise is that which was added, whatever lies below it."""

import numpy as np
import pytest

from ichkit.imaging.slice_statistics import STATISTICS, measure_slice


def draw_head(sigma, size=128):
    """Soft tissue with a gradient and an edge, bone around it, air outside."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(y, x) / size
    tissue = np.where(x > 0, 30, 45) + 0.05 * y
    image = np.where(radius < 0.4, tissue, np.where(radius < 0.45, 900, -1000))
    return np.rint(image + np.random.default_rng(0).normal(0, sigma, image.shape)).astype(np.int16)


@pytest.mark.parametrize("sigma", [2, 4, 7])
def test_the_noise_is_that_which_was_added_at_an_edge_and_on_a_gradient_too(sigma):
    found = dict(zip(STATISTICS, measure_slice(draw_head(sigma)), strict=True))
    assert found["noise_hu"] == pytest.approx(sigma, rel=0.1)
    assert 35 < found["soft_tissue_hu"] < 40
    y, x = np.mgrid[:128, :128] - 63.5
    radius = np.hypot(y, x) / 128
    assert found["air_share"] == pytest.approx((radius >= 0.45).mean())
    assert found["bone_share"] == pytest.approx(((radius >= 0.4) & (radius < 0.45)).mean())


@pytest.mark.parametrize("image", [np.full((64, 64), -1000), np.full((2, 2), 40), np.full((64, 64), 2000)])
def test_a_slice_without_soft_tissue_has_no_noise(image):
    noise, median, air, bone = measure_slice(image.astype(np.int16))
    assert np.isnan(noise)
    assert np.isnan(median)
    assert (air, bone) == ((image < -200).mean(), (image > 300).mean())
