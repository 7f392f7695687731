import numpy as np
import pytest
import torch
from torch import nn

from ichkit.core.errors import ConfigError
from ichkit.core.train_config import PoolConfig
from ichkit.models.pooling import POOLS, make_pool

KINDS = [name for name in POOLS if name != "none"]
FEATURES, CLASSES, SLICES = 10, 4, 8


def make(kind, **changes):
    torch.manual_seed(0)
    pool = make_pool(FEATURES, CLASSES, PoolConfig(kind=kind, **{"positions": 5, "width": 6, **changes}))
    for parameter in pool.parameters():
        nn.init.normal_(parameter)
    return pool.double()


def draw(num_blocks=3, num_slices=SLICES):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(num_blocks, num_slices, FEATURES, generator=generator, dtype=torch.float64)
    logits = torch.randn(num_blocks, num_slices, CLASSES, generator=generator, dtype=torch.float64)
    return features, logits, torch.ones(num_blocks, num_slices, dtype=torch.bool)


@pytest.mark.parametrize("kind", POOLS)
def test_every_row_of_pools_is_described(kind):
    row = POOLS[kind]
    assert row.name == kind
    assert row.description.endswith(".")
    assert row.source
    assert (row.constructor is None) == (kind == "none")


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_and_has_no_weight(kind):
    pool, (features, logits, is_real) = make(kind), draw()
    expected = pool(features, logits, is_real)
    torch.testing.assert_close(expected.weights.sum(1), torch.ones(3, CLASSES).to(expected.weights), rtol=1e-5, atol=0)
    extra = torch.full((3, 5, 1), 50.0, dtype=torch.float64)
    padded = [torch.cat([part, extra.expand(3, 5, part.shape[2])], 1) for part in (features, logits)]
    found = pool(*padded, torch.cat([is_real, torch.zeros(3, 5, dtype=torch.bool)], 1))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.weights[:, :SLICES], expected.weights, rtol=1e-6, atol=1e-9)
    assert not found.weights[:, SLICES:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_studies_are_pooled_alone_and_a_study_of_one_slice_is_that_slice(kind):
    pool, (features, logits, is_real) = make(kind), draw()
    whole = pool(features, logits, is_real).logits
    order = [2, 0, 1]
    torch.testing.assert_close(pool(features[order], logits[order], is_real[order]).logits, whole[order])
    single = pool(features[:, :1], logits[:, :1], is_real[:, :1])
    torch.testing.assert_close(single.logits.double(), logits[:, 0], rtol=1e-5, atol=1e-6)
    assert (single.weights == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_and_the_logits_get_a_gradient(kind):
    pool, (features, logits, is_real) = make(kind), draw()
    logits.requires_grad_()
    pool(features, logits, is_real).logits.square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in pool.parameters())
    assert (logits.grad != 0).any(1).all()


def test_the_pools_without_parameters_are_their_definitions():
    features, logits, is_real = draw()
    ranked = np.sort(logits.numpy(), axis=1)
    np.testing.assert_allclose(make("max")(features, logits, is_real).logits, ranked[:, -1])
    np.testing.assert_allclose(make("top-mean", top=3)(features, logits, is_real).logits, ranked[:, -3:].mean(1))
    few = make("top-mean", top=100)(features, logits, is_real)
    np.testing.assert_allclose(few.logits, ranked.mean(1))
    none_positive = (1 - 1 / (1 + np.exp(-logits.numpy()))).prod(1)
    pooled = make("noisy-or")(features, logits, is_real).logits
    np.testing.assert_allclose(pooled, np.log((1 - none_positive) / none_positive), rtol=1e-5)
    extreme = make("noisy-or")(features, logits * 0 + torch.tensor([-60.0, -5, 5, 60]), is_real).logits
    assert torch.isfinite(extreme).all()
    np.testing.assert_allclose(extreme[0], [-60 + np.log(SLICES), -5 + np.log(SLICES), 40, 480], rtol=0.01)


def test_attention_is_the_linear_head_on_the_weighted_mean_of_the_features():
    pool, (features, _, is_real) = make("attention"), draw()
    head = nn.Linear(FEATURES, CLASSES).double()
    pooled = pool(features, head(features), is_real)
    for k in range(CLASSES):
        mean = (features * pooled.weights[:, :, k : k + 1]).sum(1)
        torch.testing.assert_close(pooled.logits[:, k], head(mean)[:, k])


def test_slice_weights_depend_on_the_relative_position_alone():
    pool = make("slice-weights", positions=3)
    pool.scores.data = torch.log(torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64))
    features, logits, is_real = draw(1, 5)
    weights = pool(features, logits, is_real).weights[0, :, 0]
    np.testing.assert_allclose(weights.detach(), np.array([1, 2, 4, 2, 1]) / 10)
    np.testing.assert_allclose(pool(features * 9, -logits, is_real).weights[0, :, 0].detach(), weights.detach())


def test_an_unknown_pool_gets_the_nearest_spelling():
    with pytest.raises(ConfigError, match=r'train\.pool: unknown "attenion"\. Did you mean "attention"'):
        make_pool(8, 2, PoolConfig(kind="attenion"))
