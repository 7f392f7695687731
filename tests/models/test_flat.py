import pytest
import torch
from torch.nn import functional

from ichkit.core.errors import ConfigError
from ichkit.models.descriptor import build_network
from ichkit.models.flat import FlatCNN, make_cnn2, make_cnn4


def images(size, channels=1, number=3):
    return torch.rand(number, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_cnn2_is_the_network_of_the_thesis_layer_by_layer():
    torch.manual_seed(0)
    network = make_cnn2(in_chans=1, img_size=32, num_classes=1, drop_rate=0.5).eval()
    tensors = dict(network.named_parameters())
    assert tensors["maps.0.weight"].shape == (16, 1, 8, 8)
    assert tensors["maps.2.weight"].shape == (32, 16, 8, 8)
    maps = images(32)
    for number in (0, 2):
        maps = functional.conv2d(maps, tensors[f"maps.{number}.weight"], tensors[f"maps.{number}.bias"]).relu()
    maps = functional.max_pool2d(maps, 2)
    assert maps.shape == (3, 32, 9, 9)
    torch.testing.assert_close(network.forward_features(images(32)), maps)
    linear = [part for part in network.modules() if isinstance(part, torch.nn.Linear)]
    assert [(part.in_features, part.out_features) for part in linear] == [(32 * 81, 128), (128, 64), (64, 1)]
    assert sum(isinstance(part, torch.nn.BatchNorm1d) for part in network.modules()) == 2
    features = network.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(
        network.forward_head(maps), functional.linear(features, network.fc.weight, network.fc.bias)
    )


def test_cnn4_has_two_stages_of_two_convolutions():
    network = make_cnn4(in_chans=1, img_size=36, num_classes=2)
    assert network.forward_features(images(36)).shape == (3, 64, 6, 6)  # 36, 34, 32, 16, 14, 12, 6
    assert [stage["reduction"] for stage in network.feature_info] == [2, 4]


def test_dropout_comes_before_the_head_alone():
    network = FlatCNN(((4,),), kernel=3, hidden=(16,), drop_rate=0.5, in_chans=1, img_size=12).train()
    torch.manual_seed(0)
    features = [network.forward_head(network.forward_features(images(12)), pre_logits=True) for _ in range(2)]
    assert torch.equal(*features)
    logits = [network.forward_head(network.forward_features(images(12))) for _ in range(2)]
    assert not torch.equal(*logits)


def test_images_too_small_and_weights_that_nobody_published_are_refused():
    with pytest.raises(ValueError, match="images of 12 pixels are too small for 2 stages"):
        make_cnn4(img_size=12)
    with pytest.raises(ConfigError, match="train.pretrained: could not download the cnn2 weights"):
        build_network("cnn2", num_channels=1, num_classes=1, image_size=32, pretrained="hub")
