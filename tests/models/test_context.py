import numpy as np
import pytest
import torch

from ichkit.core.errors import ConfigError
from ichkit.core.train_config import ContextConfig
from ichkit.models.context import CONTEXTS, centre_positions, make_context
from ichkit.models.descriptor import build_network

KINDS = [name for name in CONTEXTS if name != "none"]
FEATURES, SLICES = 12, 9


def make(kind, seed=0, **changes):
    torch.manual_seed(seed)
    return make_context(FEATURES, ContextConfig(kind=kind, width=16, **changes)).double().eval()


def draw(num_blocks=3, num_slices=SLICES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_blocks, num_slices, FEATURES, generator=generator, dtype=torch.float64)
    positions = torch.arange(num_slices, dtype=torch.float64).mul(5).sub(20).repeat(num_blocks, 1)
    return features, torch.ones(num_blocks, num_slices, dtype=torch.bool), positions


@pytest.mark.parametrize("kind", CONTEXTS)
def test_every_row_of_contexts_is_described(kind):
    row = CONTEXTS[kind]
    assert row.name == kind
    assert row.description.endswith(".")
    assert row.source
    assert (row.constructor is None) == (kind == "none")


@pytest.mark.parametrize("kind", KINDS)
def test_padding_before_and_after_changes_nothing(kind):
    module = make(kind)
    features, is_real, positions = draw()
    expected = module(features, is_real, positions)
    for before, after in ((0, 4), (3, 0), (2, 5)):
        size = before + SLICES + after
        padded, places, mask = torch.full((3, size, FEATURES), 7.0).double(), torch.full((3, size), 99.0), None
        mask = torch.zeros(3, size, dtype=torch.bool)
        own = slice(before, before + SLICES)
        padded[:, own], mask[:, own] = features, True
        places = places.double()
        places[:, own] = positions
        torch.testing.assert_close(module(padded, mask, places)[:, own], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_do_not_see_each_other_and_slices_of_a_block_do(kind):
    module = make(kind)
    features, is_real, positions = draw()
    before = module(features, is_real, positions)
    other = features.clone()
    other[1, 4] += 1
    after = module(other, is_real, positions)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=1e-12, atol=1e-12)
    assert all((after[1, place] - before[1, place]).abs().max() > 1e-6 for place in (3, 4, 5))
    order = [2, 0, 1]
    permuted = module(features[order], is_real[order], positions[order])
    torch.testing.assert_close(permuted, before[order], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_distance_of_slices_is_seen(kind):
    features, is_real, positions = draw()
    module = make(kind)
    near, far = module(features, is_real, positions), module(features, is_real, positions * 2)
    assert (near - far).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_inference_compute_the_same_without_dropout(kind):
    features, is_real, positions = draw()
    is_real[0, 6:] = False
    module = make(kind, dropout=0.0)
    trained = module.train()(features, is_real, positions)
    with torch.inference_mode():
        told = module.eval()(features, is_real, positions)
    torch.testing.assert_close(trained.detach()[is_real], told[is_real], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_a_network_with_context_gets_a_gradient(kind):
    torch.manual_seed(0)
    config = ContextConfig(kind=kind, width=16, dropout=0.0)
    network = build_network("test_resnet", num_channels=3, num_classes=6, image_size=32, context=config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randint(0, 256, (2, 5, 32, 32, 3), dtype=torch.uint8)
    is_real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    logits = network(images, is_real, torch.arange(5.0).repeat(2, 1))
    logits.series[is_real].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_context_adds_nothing_to_the_logits_of_the_slices(kind):
    torch.manual_seed(0)
    context = ContextConfig(kind=kind, width=16)
    network = build_network("test_resnet", num_channels=3, num_classes=6, image_size=32, context=context).eval()
    images = torch.randint(0, 256, (2, 5, 32, 32, 3), dtype=torch.uint8)
    is_real = torch.tensor([[True] * 5, [False] + [True] * 4])
    logits = network(images, is_real, torch.zeros(2, 5))
    assert torch.equal(logits.series[is_real], logits.slices[is_real])
    torch.testing.assert_close(logits.slices.flatten(0, 1)[is_real.flatten()], network.encode(images[is_real])[1])
    assert logits.descriptor is logits.series


def test_positions_are_millimetres_from_the_middle_also_turned_round_and_with_wide_gaps():
    assert centre_positions(np.array([7.0])).tolist() == [0.0]
    assert centre_positions(np.array([0.0, 1.0, 30.0])).tolist() == [-15.0, -14.0, 15.0]
    # Two slices of one position are real; a study that goes back down is two series, or nonsense.
    assert centre_positions(np.array([0.0, 0.0, 10.0])).tolist() == [-5.0, -5.0, 5.0]
    for odd in ([0.0, 50.0, 10.0], [0.0, np.nan, 10.0], [0.0, np.inf, 10.0], [3.0, 3.0, 3.0]):
        assert centre_positions(np.array(odd)).tolist() == [-5.0, 0.0, 5.0]


def test_an_unknown_context_gets_the_nearest_spelling():
    with pytest.raises(ConfigError, match=r'train\.context: unknown "transformr"\. Did you mean "transformer"'):
        make_context(8, ContextConfig(kind="transformr"))
