import numpy as np
import pytest
import torch

from ichkit.core.train_config import CutMixConfig
from ichkit.engine.cutmix import Mix, apply_mix, draw_mix

ALWAYS = CutMixConfig(probability=1.0)


def draw(seed, num_blocks=5, height=12, width=16, config=ALWAYS):
    return draw_mix(num_blocks, height, width, config, np.random.default_rng(seed))


def test_every_pixel_and_label_comes_from_where_it_should():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (5, 7, 12, 16, 3)).astype(np.uint8))
    labels = torch.from_numpy(rng.integers(0, 2, (5, 7, 6)).astype(np.float32))
    mix = draw(3)
    mixed, soft = apply_mix(images, labels, mix)
    for block in range(5):
        partner = mix.partners[block]
        for position in range(7):
            for y in range(12):
                for x in range(16):
                    inside = mix.top <= y < mix.bottom and mix.left <= x < mix.right
                    source = images[partner if inside else block, position, y, x]
                    assert torch.equal(mixed[block, position, y, x], source)
            wanted = mix.share * labels[block, position] + (1 - mix.share) * labels[partner, position]
            torch.testing.assert_close(soft[block, position], wanted)


@pytest.mark.parametrize("seed", range(30))
def test_the_share_is_that_of_the_clipped_box(seed):
    mix = draw(seed)
    own = np.ones((12, 16))
    own[mix.top : mix.bottom, mix.left : mix.right] = 0
    assert mix.share == pytest.approx(own.mean())
    assert 0 <= mix.top <= mix.bottom <= 12
    assert 0 <= mix.left <= mix.right <= 16
    assert sorted(mix.partners.tolist()) == list(range(5))


def test_the_inputs_are_left_alone():
    images = torch.arange(2 * 7 * 4 * 4).reshape(2, 7, 4, 4, 1).to(torch.uint8)
    labels = torch.zeros(2, 7, 6)
    before = images.clone()
    mixed, _ = apply_mix(images, labels, Mix(np.array([1, 0]), 0, 2, 0, 4, 0.5))
    assert torch.equal(images, before)
    assert not torch.equal(mixed, before)


def test_the_mean_share_is_near_that_of_the_beta_distribution():
    shares = [draw(seed, height=64, width=64).share for seed in range(2000)]
    # Uniform lambda has mean 1/2; clipping at the border leaves more to the block itself.
    assert 0.6 < np.mean(shares) < 0.75


def test_it_can_be_switched_off_and_needs_two_blocks():
    assert draw(0, config=CutMixConfig(probability=0.0)) is None
    assert draw(0, num_blocks=1) is None


def test_the_probability_is_that_of_a_batch():
    drawn = [draw(seed, config=CutMixConfig(probability=0.3)) is not None for seed in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.04)
