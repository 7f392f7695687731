from dataclasses import replace

import numpy as np
import pytest
import torch

from ichkit.core.config import load_config
from ichkit.core.errors import ConfigError
from ichkit.engine.heat import find_layer, heat_maps
from ichkit.engine.inference import ModelCard, Predictor
from ichkit.imaging.windows import pad_to_square
from ichkit.models.descriptor import DescriptorNetwork, find_backbone

SMALL_SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2), "img_size": 224}
NETWORKS = {
    "test_resnet": 224,  # the last stage is looked at
    "test_byobnet": 64,  # the demo's, looked at before its last stages
    "test_convnext": 160,
    "test_efficientnet": 160,
    "test_vit": 160,  # tokens and a class token
    "swin_tiny_patch4_window7_224": 224,  # channels last
    "cnn4": 64,  # its linear layers see every place
}


def make_predictor(name, size, **changes):
    config = load_config("default", (f"train.backbone={name}", f"train.image_size={size}", "train.pretrained=none"))
    torch.manual_seed(0)
    row = find_backbone(name)
    options = SMALL_SWIN if name.startswith("swin") else {"img_size": size} if row.has_fixed_size else {}
    backbone = row.constructor(in_chans=3, num_classes=6, **options)
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


def heat_by_definition(predictor, image, index):
    """Grad-CAM of one slice at the size of the image: every feature map, weighted with what raising all of it does."""
    backbone, size = predictor.network.backbone, predictor.card.image_size
    place, num_channels = find_layer(backbone, size)
    raised = torch.zeros(num_channels, requires_grad=True)
    seen = {}

    def raise_maps(_module, _inputs, output):
        if output.ndim == 3:  # a class token, then the patches of 16 pixels
            seen["maps"] = output[0, 1:].T.unflatten(1, (size // 16, size // 16))
            return torch.cat([output[:, :1], output[:, 1:] + raised], 1)
        is_channels_first = output.shape[1] == num_channels
        seen["maps"] = output[0] if is_channels_first else output[0].permute(2, 0, 1)
        return output + (raised[:, None, None] if is_channels_first else raised)

    handle = place.register_forward_hook(raise_maps)
    predictor.network(image[None]).slices[0, 0, index].backward()
    handle.remove()
    maps = seen["maps"].detach()
    assert maps.shape[1] >= 7
    positive = torch.einsum("c,chw->hw", raised.grad / maps[0].numel(), maps).clamp(min=0)
    scaled = positive / positive.max()
    return torch.nn.functional.interpolate(scaled[None, None], (size, size), mode="bilinear")[0, 0].numpy()


@pytest.mark.parametrize(("name", "size"), NETWORKS.items())
def test_heat_is_the_sum_of_feature_maps_weighted_with_what_each_does_to_the_logit(name, size):
    predictor, volume = make_predictor(name, size), make_volume(1, (size, size))
    image = torch.from_numpy(predictor.rendering.render(volume, np.array([0])))
    heat = heat_maps(predictor, volume, np.array([0]), range(6))[0]
    warm = [index for index in range(6) if heat[index].any()]
    assert len(warm) >= 3
    for index in warm[:3]:
        np.testing.assert_allclose(heat[index], heat_by_definition(predictor, image, index), atol=2e-3)


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


def test_heat_is_that_of_the_plain_view_whatever_the_augmentation():
    plain, volume = make_predictor("test_byobnet", 64), make_volume(2, (64, 64))
    augmented = make_predictor("test_byobnet", 64, tta="flip-scale-rotate")
    assert abs(augmented.predict_volume(volume) - plain.predict_volume(volume)).max() > 1e-3
    heat = [heat_maps(predictor, volume, np.arange(2), [0]) for predictor in (plain, augmented)]
    np.testing.assert_array_equal(*heat)


def test_heat_leaves_the_network_and_its_probabilities_as_they_were():
    predictor, volume = make_predictor("test_byobnet", 64), make_volume(3)
    before = predictor.predict_volume(volume)
    heat_maps(predictor, volume, np.arange(3), [0])
    np.testing.assert_array_equal(predictor.predict_volume(volume), before)
    assert all(parameter.grad is None for parameter in predictor.network.parameters())


def test_a_backbone_without_stages_is_refused():
    with pytest.raises(ConfigError, match="expected a backbone that describes its feature maps"):
        find_layer(torch.nn.Linear(2, 2), 64)
