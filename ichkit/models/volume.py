"""A 3D U-Net: its encoder as a backbone that sees a study as one volume, and its decoder for pretraining."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ichkit.models.gates import AttentionGate

_NUM_LEVELS = 4
_GATED = (1, 2)
"""Levels whose output is pooled by an attention gate; with the published width those of 128 and 256 channels."""


class _Level(nn.Module):
    """Two convolutions over 3 x 3 x 3 voxels, each with batch normalisation and ReLU.

    Source: Cicek et al., MICCAI 2016, section 2: batch normalisation before each ReLU.
    """

    def __init__(self, num_in: int, num_between: int, num_out: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv3d(num_in, num_between, 3, padding=1), nn.BatchNorm3d(num_between)
        self.second, self.second_norm = nn.Conv3d(num_between, num_out, 3, padding=1), nn.BatchNorm3d(num_out)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, C, S, H, W) to (B, C', S, H, W)."""
        maps = functional.relu(self.first_norm(self.first(maps)))
        return functional.relu(self.second_norm(self.second(maps)))


class VolumeEncoder(nn.Module):
    """The downward path of a 3D U-Net with attention gates and a linear head.

    The features of a slice are those of its plane of voxels: the last level pooled over the plane, and each gated level
    summed over it with the weights of its gate. Their mean over the slices are the pooled vectors of the volume.

    Args:
        in_chans, num_classes, drop_rate: as of timm's models.
        pretrained: there are no published weights.
        width: channels of the first convolution; the published network has 32.

    Raises:
        ValueError: `pretrained`.

    Source: Zhang et al., Computerized Medical Imaging and Graphics 2021, section 2.2 (gates at 128 and 256 channels;
        gated by the last level, as in Schlemper et al. 2019); Cicek et al., MICCAI 2016, figure 2 (levels, channels).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1,
        drop_rate: float = 0.0,
        *,
        pretrained: bool = False,
        width: int = 32,
    ) -> None:
        if pretrained:
            raise ValueError("a 3D U-Net has no published weights here; pretrain it by a phase of kind restore")
        super().__init__()
        self.num_channels, self.drop_rate = [2 * width * 2**level for level in range(_NUM_LEVELS)], drop_rate
        inputs = [in_chans, *self.num_channels[:-1]]
        between = [width, *self.num_channels[:-1]]
        self.levels = nn.ModuleList(_Level(*sizes) for sizes in zip(inputs, between, self.num_channels, strict=True))
        last = self.num_channels[-1]
        self.gates = nn.ModuleList(AttentionGate(self.num_channels[level], last, dims=3) for level in _GATED)
        num_features = last + sum(self.num_channels[level] for level in _GATED)
        self.fc = nn.Linear(num_features, num_classes)
        # Grey levels scaled to [0, 1] are left as they are.
        self.pretrained_cfg = {"mean": (0.0,) * in_chans, "std": (1.0,) * in_chans}
        self.feature_info = [
            {"module": f"levels.{level}", "reduction": 2**level, "num_chs": channels}
            for level, channels in enumerate(self.num_channels)
        ]

    def get_classifier(self) -> nn.Linear:
        """The linear head."""
        return self.fc

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Parameter groups as of timm's models: the levels; gates and head are of none."""
        return {"blocks": r"^levels\.(\d+)" if coarse else r"^levels\.(\d+)\.(first|second)"}

    def encode_levels(self, volumes: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, S, H, W) to the output of each level, each of half the size of the one before.

        A volume of one slice is halved in its plane alone.
        """
        found: list[torch.Tensor] = []
        for level in self.levels:
            maps = volumes if not found else _halve(found[-1])
            found.append(level(maps))
        return found

    def forward_features(self, volumes: torch.Tensor) -> torch.Tensor:
        """(B, C, S, H, W) volumes to the features (B, S, F) of their slices."""
        levels = self.encode_levels(volumes)
        of_planes = [levels[-1].mean((3, 4))]
        for gate, level in zip(self.gates, _GATED, strict=True):
            weights = gate(levels[level], levels[-1])
            num_planes = weights.shape[2]
            of_planes.append((levels[level] * weights).sum((3, 4)) * num_planes)
        spread = [functional.interpolate(each, size=volumes.shape[2], mode="nearest-exact") for each in of_planes]
        return torch.cat(spread, 1).transpose(1, 2)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        """(..., F) features to (..., K) logits."""
        logits: torch.Tensor = self.fc(functional.dropout(features, self.drop_rate, self.training))
        return logits


class VolumeDecoder(nn.Module):
    """The upward path of a 3D U-Net, which restores the input of its encoder.

    Args:
        num_channels: of the encoder's levels.
        out_chans: channels of the restored volume.

    Source: Cicek et al., MICCAI 2016, figure 2; the sizes of levels with an odd number of voxels are met by
        interpolation instead of a transposed convolution, and the last layer is a sigmoid, for grey levels in [0, 1].
    """

    def __init__(self, num_channels: Sequence[int], out_chans: int) -> None:
        super().__init__()
        pairs = list(pairwise(num_channels))
        self.levels = nn.ModuleList(_Level(skipped + below, skipped, skipped) for skipped, below in reversed(pairs))
        self.last = nn.Conv3d(num_channels[0], out_chans, 1)

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """The outputs of `VolumeEncoder.encode_levels` to volumes (B, C, S, H, W) in [0, 1]."""
        maps = levels[-1]
        for level, skipped in zip(self.levels, reversed(levels[:-1]), strict=True):
            larger = functional.interpolate(maps, size=skipped.shape[2:], mode="trilinear", align_corners=False)
            maps = level(torch.cat([skipped, larger], 1))
        restored: torch.Tensor = self.last(maps).sigmoid()
        return restored


def _halve(maps: torch.Tensor) -> torch.Tensor:
    window: Any = tuple(2 if side > 1 else 1 for side in maps.shape[2:])
    return functional.max_pool3d(maps, window)
