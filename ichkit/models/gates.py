"""Soft attention gates: which places of a feature map are pooled, and ResNets with a gate at their third stage."""

from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.models.resnet import BasicBlock, ResNet
from torch import nn
from torch.nn import functional

GATES = ("fc", "gates")
"""Modules of a gated ResNet that no file of weights of a plain one has."""
_STRIDE_BETWEEN = 2  # of a stage of a ResNet to the stage before


class AttentionGate(nn.Module):
    """A soft attention gate for maps of two or three dimensions: weights of the places of a map, by a deeper map.

    The last convolution starts at zero, so that an untrained gate weighs all places equally: its pooled output is the
    mean of the map.

    Args:
        num_features: channels of the map.
        num_gating: channels of the deeper map.
        dims: 2 or 3, the dimensions of the maps.

    Source: Schlemper et al., Medical Image Analysis 53, 2019, section 3.1, additive attention with a sigmoid; the
        weights are divided by their sum, so that the gated sum is a mean and no number of pixels enters it.
    """

    def __init__(self, num_features: int, num_gating: int, dims: int = 2) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        width = max(num_features // 2, 1)
        self._mode = "bilinear" if dims == 2 else "trilinear"
        self.features = conv(num_features, width, 1, bias=False)
        self.gating = conv(num_gating, width, 1)
        self.score = conv(width, 1, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, maps: torch.Tensor, deeper: torch.Tensor) -> torch.Tensor:
        """The weights (n, 1, ...) of the places of maps (n, C, ...), which sum to 1 for each map.

        Args:
            deeper: (n, G, ...) of lower resolution.
        """
        gating = functional.interpolate(self.gating(deeper), maps.shape[2:], mode=self._mode, align_corners=False)
        scores: torch.Tensor = self.score(functional.relu(self.features(maps) + gating)).sigmoid()
        return scores / scores.sum(tuple(range(1, scores.ndim)), keepdim=True)


class GatedResNet(ResNet):
    """A ResNet whose head sees the last stage, pooled, beside the third stage, pooled by a soft attention gate.

    The last maps are those of both stages side by side, the gated ones summed over squares of 2 x 2 pixels and scaled
    so that their mean is the gated sum; pooling, head and heat maps are those of any ResNet.

    Args:
        options: of `timm.models.resnet.ResNet`.

    Source: Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2.2 and figure 4. The figure prints
        the gated map as 256 x 28 x 14; the stage with 256 channels has 14 x 7, so that is the gated one, by stage 4.
    """

    def __init__(self, **options: Any) -> None:
        num_classes, drop_rate = options.pop("num_classes", 1000), options.get("drop_rate", 0.0)
        super().__init__(num_classes=0, **options)
        stages: list[Any] = self.feature_info
        third, fourth = (int(stage["num_chs"]) for stage in stages[-2:])
        self.gates = AttentionGate(third, fourth)
        self.num_features = self.head_hidden_size = third + fourth
        self.reset_classifier(num_classes)
        self.drop_rate = drop_rate

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(n, C, H, W) images to (n, F, H / 32, W / 32) maps of both stages."""
        early: list[Any] = [self.layer1, self.layer2, self.layer3]
        last: Any = self.layer4
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        third = checkpoint_seq(early, x) if self.grad_checkpointing else nn.Sequential(*early)(x)
        fourth: torch.Tensor = last(third)
        gated = third * self.gates(third, fourth)
        (rows, columns), (high, wide) = fourth.shape[2:], third.shape[2:]
        padding = (0, _STRIDE_BETWEEN * columns - wide, 0, _STRIDE_BETWEEN * rows - high)
        squares = functional.avg_pool2d(functional.pad(gated, padding), _STRIDE_BETWEEN) * _STRIDE_BETWEEN**2
        return torch.cat([fourth, squares * (rows * columns)], 1)


def make_gated_resnet18(pretrained: bool = False, **options: Any) -> nn.Module:
    """A ResNet-18 with an attention gate; weights of timm's ResNet-18 where `pretrained`, head and gate random.

    Args:
        options: of `timm.models.resnet.ResNet`; `layers` and `channels` make it smaller.
    """
    layers = tuple(options.pop("layers", (2, 2, 2, 2)))
    if "channels" in options:
        options["channels"] = tuple(options["channels"])
    network: nn.Module = build_model_with_cfg(
        GatedResNet, "resnet18", pretrained, pretrained_strict=False, block=BasicBlock, layers=layers, **options
    )
    configured: Any = network
    configured.pretrained_cfg = {**configured.pretrained_cfg, "classifier": GATES}
    return network
