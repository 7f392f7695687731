import numpy as np
import pytest
import torch

from ichkit.core.config import load_config
from ichkit.core.train_config import CutMixConfig, MixupConfig, TrainConfig
from ichkit.engine.mixes import MIXES, Mix, apply_mix, draw_mix

NEVER = {"cutmix": CutMixConfig(probability=0.0), "mixup": MixupConfig(probability=0.0)}


def always(name, **changes):
    """A config that mixes every batch by one row of the table."""
    section = NEVER[name].model_copy(update={"probability": 1.0, **changes})
    return TrainConfig(**{**NEVER, name: section})


def draw(seed, num_blocks=5, height=12, width=16, config=None):
    return draw_mix(num_blocks, height, width, config or always("cutmix"), np.random.default_rng(seed))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (5, 7, 12, 16, 3)).astype(np.uint8))
    return images, torch.from_numpy(rng.integers(0, 2, (5, 7, 6)).astype(np.float32))


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("seed", range(10))
def test_each_mix_takes_the_same_share_of_pixels_and_labels_from_the_partner(name, seed):
    mix = draw(seed, config=always(name))
    values = torch.arange(5) * 50
    images = values[:, None, None, None, None].expand(5, 7, 12, 16, 3).to(torch.uint8)
    mixed, labels = apply_mix(images, values[:, None, None].expand(5, 7, 6).float(), mix)
    assert sorted(mix.partners.tolist()) == list(range(5))
    assert 0 <= mix.share <= 1
    # Averaged pixels are rounded to a grey level.
    torch.testing.assert_close(mixed.float().mean((2, 3, 4)), labels.mean(2), rtol=0, atol=0.5)
    wanted = mix.share * values + (1 - mix.share) * values[mix.partners]
    torch.testing.assert_close(labels, wanted[:, None, None].expand(5, 7, 6).float())


@pytest.mark.parametrize("name", MIXES)
def test_each_mix_leaves_its_inputs_alone_and_comes_from_its_generator_alone(name, batch):
    images, labels = batch
    before = images.clone(), labels.clone()
    mixed, soft = apply_mix(images, labels, draw(3, config=always(name)))
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    assert mixed.dtype == images.dtype
    assert not torch.equal(mixed, images)
    again = apply_mix(images, labels, draw(3, config=always(name)))
    assert torch.equal(mixed, again[0])
    assert torch.equal(soft, again[1])
    assert not torch.equal(apply_mix(images, labels, draw(4, config=always(name)))[0], mixed)


@pytest.mark.parametrize("name", MIXES)
def test_each_mix_keeps_positions_apart(name, batch):
    images, labels = batch
    mix = draw(3, config=always(name))
    mixed, soft = apply_mix(images, labels, mix)
    for position in range(7):
        alone = apply_mix(images[:, position : position + 1], labels[:, position : position + 1], mix)
        assert torch.equal(mixed[:, position : position + 1], alone[0])
        assert torch.equal(soft[:, position : position + 1], alone[1])


def test_every_pixel_of_cutmix_comes_from_where_it_should(batch):
    images, labels = batch
    mix = draw(3)
    top, bottom, left, right = mix.box
    mixed, soft = apply_mix(images, labels, mix)
    for block in range(5):
        partner = mix.partners[block]
        for position in range(7):
            for y in range(12):
                for x in range(16):
                    inside = top <= y < bottom and left <= x < right
                    source = images[partner if inside else block, position, y, x]
                    assert torch.equal(mixed[block, position, y, x], source)
            wanted = mix.share * labels[block, position] + (1 - mix.share) * labels[partner, position]
            torch.testing.assert_close(soft[block, position], wanted)


@pytest.mark.parametrize("seed", range(30))
def test_the_share_is_that_of_the_clipped_box(seed):
    mix = draw(seed)
    top, bottom, left, right = mix.box
    own = np.ones((12, 16))
    own[top:bottom, left:right] = 0
    assert mix.share == pytest.approx(own.mean())
    assert 0 <= top <= bottom <= 12
    assert 0 <= left <= right <= 16


def test_the_mean_share_of_cutmix_is_near_that_of_the_beta_distribution():
    shares = [draw(seed, height=64, width=64).share for seed in range(2000)]
    # Uniform lambda has mean 1/2; clipping at the border leaves more to the block itself.
    assert 0.6 < np.mean(shares) < 0.75


def test_every_pixel_of_mixup_is_the_rounded_average(batch):
    images, labels = batch
    mix = Mix(np.array([1, 2, 3, 4, 0]), 0.3)
    mixed, soft = apply_mix(images, labels, mix)
    own, partner = images.double().numpy(), images[mix.partners].double().numpy()
    # Where the average is halfway between two grey levels, float32 may fall on either.
    np.testing.assert_allclose(mixed.numpy(), 0.3 * own + 0.7 * partner, rtol=0, atol=0.5001)
    np.testing.assert_allclose(soft.numpy(), 0.3 * labels.numpy() + 0.7 * labels[mix.partners].numpy(), rtol=1e-6)


def test_the_share_of_mixup_has_the_spread_of_its_beta_distribution():
    shares = [draw(seed, config=always("mixup", alpha=0.2)).share for seed in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.var(shares) == pytest.approx(0.25 / (2 * 0.2 + 1), rel=0.05)


def test_mixes_can_be_switched_off_and_need_two_blocks():
    assert draw(0, config=TrainConfig(**NEVER)) is None
    assert draw(0, num_blocks=1) is None


def test_the_probability_is_that_of_a_batch_and_mixup_takes_batches_without_cutmix():
    both = TrainConfig(cutmix=CutMixConfig(probability=0.3), mixup=MixupConfig(probability=0.5))
    drawn = [draw(seed, config=both) for seed in range(2000)]
    boxed = np.array([mix is not None and mix.box is not None for mix in drawn])
    averaged = np.array([mix is not None and mix.box is None for mix in drawn])
    assert boxed.mean() == pytest.approx(0.3, abs=0.04)
    assert averaged.mean() == pytest.approx(0.35, abs=0.04)


@pytest.mark.parametrize("name", ["default", "resnet50-midl", "demo"])
def test_mixup_changes_nothing_where_it_is_off(name):
    """The draw of 0.1.0, written out: the same numbers in the same order from the generator."""
    config = load_config(name).train
    for seed in range(50):
        generator, mix = np.random.default_rng(seed), draw(seed, config=config)
        if generator.random() >= config.cutmix.probability:
            assert mix is None
            continue
        side = np.sqrt(1 - generator.beta(config.cutmix.alpha, config.cutmix.alpha))
        sides, centre = (int(12 * side), int(16 * side)), (int(generator.integers(12)), int(generator.integers(16)))
        ends = [
            np.clip(c + sign * s // 2, 0, n)
            for c, s, n in zip(centre, sides, (12, 16), strict=True)
            for sign in (-1, 1)
        ]
        assert mix.box == tuple(ends)
        assert mix.partners.tolist() == generator.permutation(5).tolist()


def test_a_mix_is_unknown_where_either_side_is():
    labels = torch.tensor([[[1.0, torch.nan]], [[0.0, 1.0]], [[torch.nan, 0.0]]])
    images = torch.zeros((3, 1, 4, 4, 1), dtype=torch.uint8)
    _, mixed = apply_mix(images, labels, Mix(np.array([1, 2, 0]), 0.75))
    assert mixed.isnan().flatten().tolist() == [False, True, True, False, True, True]
    assert mixed[0, 0, 0] == 0.75
    assert mixed[1, 0, 1] == 0.75
