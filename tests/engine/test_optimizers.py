import numpy as np
import pytest
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

from ichkit.core.errors import ConfigError
from ichkit.core.train_config import PhaseConfig, RateFactors, TrainConfig
from ichkit.engine.optimizers import OPTIMIZERS, AdaBound, make_groups, make_optimizer, set_rate
from ichkit.models.descriptor import DescriptorNetwork, build_network


def network(name="test_vit"):
    torch.manual_seed(0)
    return build_network(name, num_channels=3, num_classes=6, image_size=160)


def phase(**changes):
    return TrainConfig(**changes).resolve_phases(())[0]


def names_by(network, groups, key):
    """Name of each parameter in its backbone to the value of its group."""
    names = {id(parameter): name.removeprefix("backbone.") for name, parameter in network.named_parameters()}
    return {names[id(parameter)]: group[key] for group in groups for parameter in group["params"]}


def test_an_unknown_optimizer_gets_the_nearest_spelling():
    for wrong, right in (("adamm", "adam"), ("adabond", "adabound")):
        with pytest.raises(ConfigError, match=rf'train\.optimizer: unknown "{wrong}". Did you mean "{right}'):
            make_optimizer(network("test_resnet"), phase(optimizer=wrong))


def test_the_default_is_one_group_of_every_parameter_in_order_as_timm_makes_it():
    whole = network()
    ours, theirs = make_optimizer(whole, phase()), create_optimizer_v2(whole, opt="adam", lr=5e-4)
    assert type(ours) is type(theirs)
    (group,), (expected,) = ours.param_groups, theirs.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in expected["params"]]
    assert {name: group[name] for name in ("betas", "eps", "weight_decay")} == {
        name: expected[name] for name in ("betas", "eps", "weight_decay")
    }


def test_weight_decay_leaves_out_norms_biases_and_what_timm_lists():
    whole = network()
    decays = names_by(whole, make_groups(whole, phase(weight_decay=0.1)), "weight_decay")
    parameters = dict(whole.backbone.named_parameters())
    assert set(decays) == set(parameters)
    listed = whole.backbone.no_weight_decay()
    assert {"pos_embed", "cls_token"} <= listed
    assert decays == {n: 0.0 if p.ndim <= 1 or n in listed else 0.1 for n, p in parameters.items()}
    everywhere = names_by(whole, make_groups(whole, phase(weight_decay=0.1, weight_decay_on="all")), "weight_decay")
    assert set(everywhere.values()) == {0.1}


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_layer_decay_is_that_of_timm(name):
    whole = network(name)
    ours = names_by(whole, make_groups(whole, phase(layer_decay=0.7)), "lr_scale")
    groups = param_groups_layer_decay(whole.backbone, layer_decay=0.7)
    assert ours == pytest.approx(names_by(whole, groups, "lr_scale"))
    assert len(set(ours.values())) > 3


def test_parts_have_their_own_rates_which_follow_the_schedule():
    whole = network("test_resnet")
    whole.context = nn.Linear(6, 6)
    settings = phase(rate_factors=RateFactors(backbone=0.1, context=2.0), learning_rate=0.5)
    optimizer = make_optimizer(whole, settings)
    set_rate(optimizer, 0.25)
    found = names_by(whole, optimizer.param_groups, "lr")
    head = {f"{n}" for n, p in whole.backbone.named_parameters() if any(p is q for q in whole.backbone.fc.parameters())}
    assert {found[n] for n in head} == {0.25}
    assert {found[n] for n in ("context.weight", "context.bias")} == {0.5}
    assert {rate for n, rate in found.items() if n not in head and "context" not in n} == {0.025}


def test_frozen_parameters_are_in_no_group():
    whole = network("test_resnet")
    whole.backbone.conv1.requires_grad_(False)
    inside = names_by(whole, make_groups(whole, phase(layer_decay=0.5, weight_decay=0.1)), "lr_scale")
    frozen = {f"conv1.{name}" for name, _ in whole.backbone.conv1.named_parameters()}
    assert set(inside) == {name for name, _ in whole.backbone.named_parameters()} - frozen


def test_layer_decay_is_refused_for_a_backbone_that_does_not_name_its_layers():
    class Plain(nn.Sequential):
        def get_classifier(self):
            return self[0]

    with pytest.raises(ConfigError, match=r"train\.layer_decay: this backbone does not name its layers"):
        make_groups(DescriptorNetwork(Plain(nn.Linear(2, 2)), (0.5,), (0.5,)), phase(layer_decay=0.9))


def test_adabound_takes_the_steps_of_the_paper():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=5), rng.normal(size=(30, 5))
    parameter = nn.Parameter(torch.tensor(start))
    optimizer = AdaBound([{"params": [parameter], "weight_decay": 0.01}], lr=0.01, final_rate=0.1, gamma=0.1)
    weight, mean, square = start.copy(), np.zeros(5), np.zeros(5)
    clipped = 0
    for step, gradient in enumerate(gradients, 1):
        rate = 0.01 * (0.5 if step > 15 else 1.0)
        set_rate(optimizer, rate)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        full = gradient + 0.01 * weight
        mean, square = 0.9 * mean + 0.1 * full, 0.999 * square + 0.001 * full**2
        final = 0.1 * rate / 0.01
        low, high = final * (1 - 1 / (0.1 * step + 1)), final * (1 + 1 / (0.1 * step))
        plain = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step) / (np.sqrt(square) + 1e-8)
        clipped += np.sum((plain < low) | (plain > high))
        weight -= np.clip(plain, low, high) * mean
    np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-9)
    assert 0 < clipped < 150


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_own_optimizer_lowers_a_loss_and_resumes_from_its_state(name):
    row = OPTIMIZERS[name]

    def begin():
        torch.manual_seed(0)
        layer = nn.Linear(4, 1)
        return layer, row.constructor([{"params": list(layer.parameters()), "weight_decay": 0.0}], lr=0.05)

    def take(layer, optimizer, count):
        x = torch.linspace(-1, 1, 40).reshape(10, 4)
        for _ in range(count):
            optimizer.zero_grad()
            loss = (layer(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    layer, optimizer = begin()
    first = take(layer, optimizer, 1)
    assert take(layer, optimizer, 29) < 0.5 * first
    other, again = begin()
    take(other, again, 10)
    state = again.state_dict()
    third, resumed = begin()
    third.load_state_dict(other.state_dict())
    resumed.load_state_dict(state)
    take(third, resumed, 20)
    assert torch.equal(third.weight, layer.weight)


def test_arguments_of_a_phase_reach_the_optimizer_and_others_are_refused():
    whole = network("test_resnet")
    bounded = make_optimizer(whole, with_arguments("adabound", final_rate=0.01))
    assert isinstance(bounded, AdaBound)
    assert bounded.param_groups[0]["final_rate"] == 0.01
    sgd = make_optimizer(whole, with_arguments("momentum", momentum=0.5))
    assert sgd.param_groups[0]["momentum"] == 0.5
    for optimizer, argument in (("adabound", "final_rat"), ("adam", "momentun"), ("adabound", "lr")):
        with pytest.raises(ConfigError, match=f'optimizer_args has "{argument}", which {optimizer} does not take'):
            make_optimizer(whole, with_arguments(optimizer, **{argument: 0.1}))


def with_arguments(optimizer, **arguments):
    return TrainConfig(phases=(PhaseConfig(optimizer=optimizer, optimizer_args=arguments),)).resolve_phases(())[0]
