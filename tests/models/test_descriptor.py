import dataclasses
import re
import socket
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ichkit.core.errors import ConfigError
from ichkit.core.train_config import PoolConfig
from ichkit.models.descriptor import BACKBONES, build_network, find_backbone, set_prior_bias

SHAPE = {"num_channels": 3, "num_classes": 6, "image_size": 64}
IMAGES = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(name="test_resnet", seed=0, **changes):
    torch.manual_seed(seed)
    return build_network(name, **{**SHAPE, **changes})


def features_of(network, images):
    return network.encode(images)[0]


def logits_of(network, images):
    """Logits of images that are blocks of their own."""
    return network(images[:, None]).slices[:, 0]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_row_of_backbones_keeps_its_contract(name):
    row = BACKBONES[name]
    # The meta device has shapes and no numbers: a large network costs nothing there.
    with torch.device("meta"):
        network = build(name, image_size=224, pool=PoolConfig(kind="mean" if row.sees_volumes else "none"))
        images = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
        logits, features = logits_of(network, images), features_of(network, images)
    assert row.name == name
    assert row.description.endswith(".")
    assert row.source
    assert logits.shape == (2, 6)
    assert features.shape == (2, network.backbone.get_classifier().in_features)


def test_every_parameter_gets_a_gradient():
    network = build()
    for p in network.parameters():  # some start at zero and would hold back the gradient of others
        torch.nn.init.normal_(p, std=0.1)
    logits_of(network, IMAGES).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_images_are_scaled_by_the_mean_and_deviation_of_the_weights():
    network = build("resnet10t")
    image = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    imagenet = [(1 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert network.normalise(image)[0, :, 0, 0].tolist() == pytest.approx(imagenet, rel=1e-5)


def test_the_head_on_the_features_is_the_whole_network():
    network = build().eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            network.backbone.get_classifier()(features_of(network, IMAGES)), logits_of(network, IMAGES)
        )


@pytest.mark.parametrize("num_channels", [1, 2, 4])
def test_any_number_of_channels_will_do(num_channels):
    network = build(num_channels=num_channels)
    assert logits_of(network, torch.zeros(2, 64, 64, num_channels, dtype=torch.uint8)).shape == (2, 6)


def test_the_prior_bias_starts_every_class_at_its_prevalence():
    network, prevalence = build().eval(), np.array([0.0, 0.05, 0.04, 0.05, 0.06, 1.0])
    set_prior_bias(network, prevalence)
    torch.nn.init.zeros_(network.backbone.get_classifier().weight)
    with torch.inference_mode():
        started = logits_of(network, IMAGES).sigmoid().numpy()
    np.testing.assert_allclose(started, np.tile([1e-4, 0.05, 0.04, 0.05, 0.06, 1 - 1e-4], (4, 1)), rtol=1e-4)


def test_further_arguments_reach_the_constructor_of_timm():
    network = build("test_convnext", backbone_args={"depths": [1, 1, 1, 3]}, drop_path_rate=0.3)
    assert len(network.backbone.stages[3].blocks) == 3
    assert network.backbone.stages[3].blocks[2].drop_path.drop_prob == pytest.approx(0.3)
    network.eval()
    assert torch.equal(logits_of(network, IMAGES), logits_of(network, IMAGES))


def test_stochastic_depth_changes_no_initial_weight():
    plain, deep = build("test_convnext").state_dict(), build("test_convnext", drop_path_rate=0.3).state_dict()
    assert all(torch.equal(plain[name], deep[name]) for name in plain | deep)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "test_resnet",
            {"backbone_args": {"depths": [1, 1]}},
            r"does not take depths=\[1, 1\] \(.*unexpec",
        ),
        (
            "vgg11",
            {"drop_path_rate": 0.1},
            r"vgg11 does not take drop_path_rate=0\.1 .*needs a backbone",
        ),
    ],
)
def test_arguments_that_a_backbone_does_not_take_are_refused_in_one_message(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **changes)


def test_an_unknown_backbone_gets_the_nearest_spelling():
    with pytest.raises(
        ConfigError, match=r'unknown "resnet5O"\. Did you mean "resnet5\d"\? Choices: cnn2, cnn4, convnext_tiny'
    ):
        find_backbone("resnet5O")


def test_a_hub_out_of_reach_names_the_local_file_option(monkeypatch):
    def unreachable(**_):
        raise OSError("connection refused\nlong story")

    monkeypatch.setattr("ichkit.models.hub.why_unreachable", lambda: "")
    monkeypatch.setitem(
        BACKBONES, "test_resnet", dataclasses.replace(BACKBONES["test_resnet"], constructor=unreachable)
    )
    with pytest.raises(ConfigError, match=r"\(connection refused\).*--set train\.pretrained=/path/model\.safetensors"):
        build(pretrained="hub")


@pytest.fixture
def no_cache(monkeypatch):
    monkeypatch.setattr("ichkit.models.hub.find_cached", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_without_a_network_one_message_comes_within_seconds(monkeypatch, no_cache, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        build(pretrained="hub")
    assert time.monotonic() - began < 10
    assert re.fullmatch(
        r"train\.pretrained: could not download the test_resnet weights from the Hugging Face Hub \(.*refused.*\)\. "
        r"Download the file .* --set train\.pretrained=/path/model\.safetensors; .* --set train\.pretrained=none\.",
        str(caught.value),
    )
    assert caplog.messages == []


def test_a_hub_that_takes_the_call_and_never_answers_is_not_waited_for(monkeypatch, no_cache):
    monkeypatch.setattr("ichkit.models.hub.PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ConfigError, match=r"Hugging Face Hub \((no answer within 0 s|timed out)\)"):
            build(pretrained="hub")


def test_being_offline_on_purpose_is_said(monkeypatch, no_cache):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"Hugging Face Hub \(HF_HUB_OFFLINE is set\)"):
        build(pretrained="hub")


def test_weights_that_were_downloaded_before_need_no_network(monkeypatch, tmp_path):
    taught = build(num_classes=1000, seed=1).backbone
    save_file(taught.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("ichkit.models.hub.find_cached", lambda _: tmp_path / "model.safetensors")
    monkeypatch.setattr("ichkit.models.hub.why_unreachable", lambda: "the network must not be asked")
    found = build(seed=2, pretrained="hub").backbone.state_dict()
    assert torch.equal(found["conv1.0.weight"], taught.state_dict()["conv1.0.weight"])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_come_from_a_local_file_all_but_the_head(tmp_path, suffix):
    taught, path = build(num_classes=1000, seed=1), tmp_path / f"weights.{suffix}"
    state = taught.backbone.state_dict()
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    network = build(seed=2, pretrained=str(path))
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, state[name]) != name.startswith("fc.")
    assert logits_of(network, IMAGES).shape == (4, 6)


def test_a_file_of_another_network_is_refused(tmp_path):
    save_file(build("test_byobnet").backbone.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"weights\.safetensors holds no weights of test_resnet"):
        build(pretrained=str(tmp_path / "weights.safetensors"))


def test_a_file_that_is_no_weights_is_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match=r"weights\.pth holds no weights of test_resnet"):
        build(pretrained=str(tmp_path / "weights.pth"))


def test_weights_of_a_run_are_refused_as_a_leak(tmp_path):
    save_file(build().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"comes from a run of ichkit, which may have seen the labels of this fold"):
        build(pretrained=str(tmp_path / "model.safetensors"))


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r'"none" or a file of weights, found no file /nowhere/x\.pth'):
        build(pretrained="/nowhere/x.pth")
