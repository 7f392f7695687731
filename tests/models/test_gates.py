import pytest
import torch

from ichkit.models.descriptor import build_network
from ichkit.models.gates import AttentionGate, GatedResNet

SMALL = {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64]}


def build(size=64, **changes):
    torch.manual_seed(0)
    return build_network(
        "resnet18-gated", num_channels=3, num_classes=2, image_size=size, backbone_args=SMALL, **changes
    )


def images(number=3, size=64):
    return torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(6, 10), (3, 5, 7)])
def test_the_weights_of_a_gate_sum_to_one_and_are_equal_before_training(shape):
    gate = AttentionGate(8, 12, len(shape))
    maps, deeper = torch.randn(2, 8, *shape), torch.randn(2, 12, *(side // 2 + 1 for side in shape))
    weights = gate(maps, deeper)
    assert weights.shape == (2, 1, *shape)
    assert torch.allclose(weights, torch.full_like(weights, 1 / weights[0].numel()))
    torch.nn.init.normal_(gate.score.weight)
    trained = gate(maps, deeper)
    assert torch.allclose(trained.flatten(1).sum(1), torch.ones(2))
    assert trained.std() > 1e-4


@pytest.mark.parametrize("size", [64, 72])  # the third stage has an even and an odd number of rows
def test_the_head_sees_the_mean_of_the_last_stage_beside_the_gated_sum_of_the_third(size):
    network = build(size).eval()
    torch.nn.init.normal_(network.backbone.gates.score.weight)
    kept = {}
    for name in ("layer3", "layer4"):
        getattr(network.backbone, name).register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out}))
    with torch.inference_mode():
        features, logits = network.encode(images(size=size))
        weights = network.backbone.gates(kept["layer3"], kept["layer4"])
        wanted = torch.cat([kept["layer4"].mean((2, 3)), (kept["layer3"] * weights).sum((2, 3))], 1)
        torch.testing.assert_close(features, wanted)
        torch.testing.assert_close(logits, network.backbone.fc(wanted))


def test_every_parameter_of_a_trained_gate_gets_a_gradient():
    network = build()
    torch.nn.init.normal_(network.backbone.gates.score.weight)
    network(images()[:, None]).slices.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.backbone.gates.parameters())


def test_the_last_layer_of_an_untrained_gate_learns_first():
    network = build()
    network(images()[:, None]).slices.square().sum().backward()
    assert network.backbone.gates.score.weight.grad.abs().sum() > 0


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for recomputes in (False, True):
        network = build()
        network.backbone.set_grad_checkpointing(recomputes)
        network(images()[:, None]).slices.square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert isinstance(network.backbone, GatedResNet)
