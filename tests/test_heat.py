from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from ichkit.core.config import load_config
from ichkit.core.errors import ConfigError
from ichkit.engine.heat import find_place, heat_maps
from ichkit.engine.inference import ModelCard, Predictor
from ichkit.imaging.windows import pad_to_square
from ichkit.models.descriptor import DescriptorNetwork

SMALL_SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2), "img_size": 224}
NETWORKS = {
    "test_resnet": 224,
    "test_byobnet": 64,  # the demo's, looked at before its last stages
    "test_convnext": 160,
    "test_efficientnet": 160,
    "test_vit": 160,  # tokens and a class token
    "swin_tiny_patch4_window7_224": 224,  # channels last
}


def make_predictor(name, size, **changes):
    config = load_config("default", (f"train.backbone={name}", f"train.image_size={size}", "train.pretrained=none"))
    torch.manual_seed(0)
    options = SMALL_SWIN if name.startswith("swin") else {}
    backbone = timm.create_model(name, in_chans=3, num_classes=6, **options)
    with torch.no_grad():
        # Some networks start with a head of zeros, which would look nowhere.
        backbone.get_classifier().weight.normal_(0, 0.5)
    card = replace(ModelCard.of(config, None, (-800, 2000)), **changes)
    network = DescriptorNetwork(backbone, (0.45,) * 3, (0.22,) * 3)
    return Predictor(card, network, torch.device("cpu"))


def make_volume(num_slices=3, shape=(96, 96), seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(40, 30, (num_slices, *(side // 8 for side in shape)))
    return coarse.repeat(8, 1).repeat(8, 2).round().astype(np.int16)


def heat_by_differences(predictor, image, index, step=1e-2):
    """Grad-CAM from its definition: raise a whole feature map a little and see what the logit does."""
    backbone, size = predictor.network.backbone, predictor.card.image_size
    place, num_channels = find_place(backbone, size)
    seen = {}

    def spatial(output):  # (C, h, w)
        if output.ndim == 3:
            side = size // 16
            return output[0, 1:].T.reshape(num_channels, side, side)
        return output[0] if output.shape[1] == num_channels else output[0].permute(2, 0, 1)

    def shift(channel, amount):
        def hook(_module, _inputs, output):
            seen["maps"] = spatial(output)
            changed = output.clone()
            if output.ndim == 3:
                changed[:, 1:, channel] += amount
            elif output.shape[1] == num_channels:
                changed[:, channel] += amount
            else:
                changed[..., channel] += amount
            return changed

        handle = place.register_forward_hook(hook)
        with torch.no_grad():
            logit = float(predictor.network(image)[0, index])
        handle.remove()
        return logit

    slopes = np.array([(shift(c, step) - shift(c, -step)) / (2 * step) for c in range(num_channels)])
    maps = seen["maps"].numpy()
    positive = np.maximum(np.tensordot(slopes / maps[0].size, maps, 1), 0)
    return positive / max(positive.max(), 1e-12)


@pytest.mark.parametrize(("name", "size"), NETWORKS.items())
def test_heat_is_the_sum_of_feature_maps_weighted_with_what_each_does_to_the_logit(name, size):
    predictor, volume = make_predictor(name, size), make_volume(1, (size, size))
    image = torch.from_numpy(predictor.rendering.render(volume, np.array([0])))
    for index in (0, 5):
        expected = heat_by_differences(predictor, image, index)
        assert expected.shape[0] >= 7
        heat = heat_maps(predictor, volume, np.array([0]), [index])
        assert heat.shape == (1, 1, size, size)
        # The middle of a cell of an odd factor is a pixel of the picture; of an even one the mean of four.
        factor = size // expected.shape[0]
        cells = heat[0, 0].reshape(expected.shape[0], factor, expected.shape[1], factor)
        low, high = (factor - 1) // 2, factor // 2
        middles = cells[:, [low, high]][..., [low, high]].mean((1, 3))
        np.testing.assert_allclose(middles, expected, atol=0.03 + 0.5 / factor)
        assert np.corrcoef(middles.ravel(), expected.ravel())[0, 1] > 0.995


def test_of_a_network_with_a_linear_head_it_is_the_class_activation_map():
    predictor, volume = make_predictor("test_resnet", 224), make_volume(1, (224, 224))
    backbone = predictor.network.backbone
    with torch.no_grad():
        image = torch.from_numpy(predictor.rendering.render(volume, np.array([0])))
        maps = backbone.forward_features(predictor.network.normalise(image))[0]
        activation = torch.tensordot(backbone.fc.weight[2], maps, 1).clamp(min=0)
    heat = heat_maps(predictor, volume, np.array([0]), [2])[0, 0]
    np.testing.assert_allclose(heat[16::32, 16::32], activation / activation.max(), atol=0.05)


def test_a_slice_that_is_not_square_has_the_heat_of_its_square():
    predictor, volume = make_predictor("test_byobnet", 64), make_volume(2, (64, 96))
    heat = heat_maps(predictor, volume, np.array([0, 1]), [1, 4])
    square = heat_maps(predictor, pad_to_square(volume), np.array([0, 1]), [1, 4])
    assert heat.shape == (2, 2, 64, 96)
    np.testing.assert_array_equal(heat, square[:, :, 16:80])
    assert heat.min() >= 0
    assert heat.max() <= 1


def test_some_slices_have_the_heat_they_have_among_all():
    channels = {"kind": "neighbours", "windows": [[40.0, 80.0]]}
    predictor, volume = make_predictor("test_byobnet", 64, channels=channels), make_volume(6)
    every = heat_maps(predictor, volume, np.arange(6), range(6))
    few = heat_maps(predictor, volume, np.array([4, 1]), [3])
    np.testing.assert_allclose(few[:, 0], every[[4, 1], 3], atol=1e-5)


def test_with_mirrored_augmentation_the_heat_of_a_mirrored_head_is_mirrored():
    predictor, volume = make_predictor("test_byobnet", 64, tta="hflip"), make_volume(2, (64, 64))
    heat = heat_maps(predictor, volume, np.arange(2), [0])
    mirrored = heat_maps(predictor, volume[..., ::-1].copy(), np.arange(2), [0])
    np.testing.assert_allclose(mirrored, heat[..., ::-1], atol=1e-4)
    plain = heat_maps(make_predictor("test_byobnet", 64), volume, np.arange(2), [0])
    assert np.abs(plain - heat).max() > 0.05


def test_heat_leaves_the_network_and_its_probabilities_as_they_were():
    predictor, volume = make_predictor("test_byobnet", 64), make_volume(3)
    before = predictor.predict_volume(volume)
    heat_maps(predictor, volume, np.arange(3), [0])
    np.testing.assert_array_equal(predictor.predict_volume(volume), before)
    assert all(parameter.grad is None for parameter in predictor.network.parameters())


def test_a_backbone_without_stages_is_refused():
    with pytest.raises(ConfigError, match="names its stages"):
        find_place(torch.nn.Linear(2, 2), 64)
