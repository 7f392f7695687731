"""Small convolutional networks of early work, whose linear layers read every place of the last map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class FlatCNN(nn.Module):
    """Convolutions with ReLU, a max-pool after each stage, and linear layers on the flattened maps.

    The first linear layer has a weight for every place of the last map, so a network is for one image size. Batch
    normalisation of the linear layers needs two images or more per step.

    Args:
        stages: for each stage the channels of its convolutions.
        kernel: side of the convolutions, which have no padding, so that each takes `kernel - 1` rows and columns.
        hidden: widths of the linear layers between the maps and the head.
        norm: batch normalisation before the ReLU of these layers.
        in_chans, num_classes, drop_rate: as of timm's models; dropout comes before the head.
        img_size: height and width of the images.
        pretrained: there are no published weights.

    Raises:
        ValueError: `pretrained`, or images too small for the stages.

    Example:
        >>> network = FlatCNN(((8, 8), (16, 16)), kernel=3, hidden=(32,), img_size=32, num_classes=2)
        >>> network.forward_head(network.forward_features(torch.zeros(5, 3, 32, 32))).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        *,
        kernel: int,
        hidden: Sequence[int],
        norm: bool = False,
        in_chans: int = 3,
        num_classes: int = 1,
        drop_rate: float = 0.0,
        img_size: int = 224,
        pretrained: bool = False,
    ) -> None:
        if pretrained:
            raise ValueError("no weights of this network are published; use --set train.pretrained=none")
        super().__init__()
        size, channels, layers = img_size, in_chans, []
        self.feature_info: list[dict[str, Any]] = []
        for stage in stages:
            for width in stage:
                layers += [nn.Conv2d(channels, width, kernel), nn.ReLU()]
                channels, size = width, size - kernel + 1
            layers.append(nn.MaxPool2d(2))
            size //= 2
            if size < 1:
                raise ValueError(f"images of {img_size} pixels are too small for {len(stages)} stages")
            reduction = 2 ** (1 + len(self.feature_info))
            self.feature_info.append({"module": f"maps.{len(layers) - 1}", "reduction": reduction, "num_chs": channels})
        self.maps = nn.Sequential(*layers)
        widths, linear = [channels * size**2, *hidden], []
        for before, after in zip(widths, hidden, strict=False):
            linear += [nn.Linear(before, after), nn.BatchNorm1d(after) if norm else nn.Identity(), nn.ReLU()]
        self.linear = nn.Sequential(nn.Flatten(), *linear)
        self.dropout = nn.Dropout(drop_rate)
        self.fc = nn.Linear(widths[-1], num_classes)
        # Grey levels scaled to [0, 1] are standardised around their middle.
        self.pretrained_cfg = {"mean": (0.5,) * in_chans, "std": (0.5,) * in_chans}

    def get_classifier(self) -> nn.Linear:
        """The linear head."""
        return self.fc

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Parameter groups as of timm's models: the convolutions, then the linear layers."""
        return {"blocks": r"^(?:maps|linear)" if coarse else r"^(?:maps|linear)\.(\d+)"}

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, C, H, W) images to the maps (n, F, h, w) of the last stage."""
        maps: torch.Tensor = self.maps(images)
        return maps

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The maps of `forward_features` to (n, K) logits, or to the (n, F) input of the head."""
        features: torch.Tensor = self.linear(maps)
        return features if pre_logits else self.fc(self.dropout(features))


def make_cnn2(**options: Any) -> FlatCNN:
    """Two convolutions of 8 x 8 pixels with 16 and 32 channels and three linear layers.

    Source: Alqnatri, bachelor thesis, FIIT STU Bratislava 2021, section 6.2. The widths of the linear layers are only
        in a figure; 128 and 64 are chosen here.
    """
    return FlatCNN(((16, 32),), kernel=8, hidden=(128, 64), norm=True, **options)


def make_cnn4(**options: Any) -> FlatCNN:
    """Four convolutions of 3 x 3 pixels in two stages and two linear layers.

    Source: Castro et al., as described by Alqnatri 2021, section 5.3. Channels and widths are not given; 32, 64 and
        128 are chosen here.
    """
    return FlatCNN(((32, 32), (64, 64)), kernel=3, hidden=(128,), **options)
