import pytest
import torch

from ichkit.core.errors import ConfigError
from ichkit.core.train_config import PoolConfig
from ichkit.models.descriptor import VolumeNetwork, build_network
from ichkit.models.freezing import list_stages

MEAN = PoolConfig(kind="mean")


def build(**changes):
    torch.manual_seed(0)
    settings = {"num_channels": 3, "num_classes": 2, "image_size": 16, "backbone_args": {"width": 2}, "pool": MEAN}
    return build_network("unet3d", **{**settings, **changes}).eval()


def studies(number=2, slices=13, size=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (number, slices, size, size, 3), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def test_the_logit_of_a_study_is_the_head_on_the_pooled_vectors_of_three_levels():
    network = build()
    for gate in network.backbone.gates:
        torch.nn.init.normal_(gate.score.weight)
    volumes = network.as_volumes(studies(slices=16))  # 16, 8, 4 and 2 planes: each stands for as many slices
    levels = network.backbone.encode_levels(volumes)
    assert [level.shape[1] for level in levels] == [4, 8, 16, 32]
    weights = [gate(levels[i], levels[3]) for gate, i in zip(network.backbone.gates, (1, 2), strict=True)]
    pooled = [levels[3].mean((2, 3, 4)), *((levels[i] * weights[i - 1]).sum((2, 3, 4)) for i in (1, 2))]
    wanted = network.backbone.fc(torch.cat(pooled, 1))
    torch.testing.assert_close(network(studies(slices=16)).study.logits, wanted)


@torch.inference_mode()
def test_a_slice_sees_the_others_of_its_study_and_no_other_study():
    network, whole = build(), studies()
    before, changed = network(whole).slices, whole.clone()
    changed[0, 3] = 255 - changed[0, 3]
    after = network(changed).slices
    assert not torch.equal(before[0, 8], after[0, 8])
    torch.testing.assert_close(before[1], after[1])


@torch.inference_mode()
def test_encoding_a_study_is_what_the_network_does_with_it():
    network, whole = build(), studies()
    features, logits = network.encode(whole[0])
    torch.testing.assert_close(logits, network(whole).slices[0])
    torch.testing.assert_close(network.backbone.fc(features), logits)


@torch.inference_mode()
def test_what_stands_at_padded_slices_has_no_influence():
    network, whole = build(), studies()
    is_real = torch.ones(2, 13, dtype=torch.bool)
    is_real[0, 9:] = False
    changed = whole.clone()
    changed[0, 9:] = 200
    one, two = network(whole, is_real).study.logits, network(changed, is_real).study.logits
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one[0], network(whole).study.logits[0])


@torch.inference_mode()
@pytest.mark.parametrize("slices", [1, 2, 5])
def test_studies_of_few_slices_are_valid(slices):
    assert build()(studies(slices=slices)).slices.isfinite().all()


def test_every_parameter_gets_a_gradient():
    network = build().train()
    for gate in network.backbone.gates:
        torch.nn.init.normal_(gate.score.weight)
    network(studies()).study.logits.square().sum().backward()
    dead = {name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert not {name for name in dead if not name.endswith(("first.bias", "second.bias"))}  # before a normalisation


def test_its_first_stages_are_the_first_levels_and_heads_and_gates_are_no_stage():
    stages = list_stages(build())
    assert len(stages) == 4
    assert all(name.startswith(f"levels.{i}.") for i, stage in enumerate(stages) for name in stage.parameters)


def test_it_needs_a_pool_and_has_no_published_weights():
    with pytest.raises(ConfigError, match=r"train\.pool: unet3d reads a study as one volume"):
        build(pool=PoolConfig())
    with pytest.raises(ConfigError, match="no published weights"):
        build(pretrained="hub")
    assert isinstance(build(), VolumeNetwork)
