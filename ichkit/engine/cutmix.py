"""CutMix between blocks: a box of one study's slices is pasted, position by position, into another study's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ichkit.core.train_config import CutMixConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Mix:
    """Parameters of CutMix for a batch of B blocks.

    Attributes:
        partners: (B,) int64, the block from which each block receives pixels.
        top, bottom, left, right: the box in pixels, clipped to the image; bottom and right are exclusive.
        share: share of the image outside the clipped box, which keeps its own pixels.
    """

    partners: np.ndarray
    top: int
    bottom: int
    left: int
    right: int
    share: float


def draw_mix(
    num_blocks: int, height: int, width: int, config: CutMixConfig, generator: np.random.Generator
) -> Mix | None:
    """A random box and permutation of the blocks, or None for a batch without CutMix.

    Source: Yun et al., ICCV 2019, section 3.1: lambda from Beta(alpha, alpha), sides sqrt(1 - lambda) of the image's,
        a uniform centre; the share is taken from the clipped box. One box for all slices of a block is chosen here.
    """
    if num_blocks < 2 or generator.random() >= config.probability:
        return None
    side = np.sqrt(1 - generator.beta(config.alpha, config.alpha))
    cut_height, cut_width = int(height * side), int(width * side)
    centre_y, centre_x = int(generator.integers(height)), int(generator.integers(width))
    top, bottom = (int(np.clip(centre_y + sign * cut_height // 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(centre_x + sign * cut_width // 2, 0, width)) for sign in (-1, 1))
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Mix(generator.permutation(num_blocks), top, bottom, left, right, share)


def apply_mix(images: "torch.Tensor", labels: "torch.Tensor", mix: Mix) -> "tuple[torch.Tensor, torch.Tensor]":
    """Images with the box of their partners, position s mixed with position s, and labels mixed by the share.

    A padded position repeats the end slice of its study, with that slice's labels. The loss ignores it, but a real
    slice may receive its pixels; pixels and labels then still match.

    Args:
        images: (B, P, H, W, C) blocks of P slices.
        labels: (B, P, K) float, K classes.

    Returns:
        New tensors of the same shapes.
    """
    mixed = images.clone()
    rows, columns = slice(mix.top, mix.bottom), slice(mix.left, mix.right)
    mixed[:, :, rows, columns] = images[mix.partners][:, :, rows, columns]
    return mixed, labels * mix.share + labels[mix.partners] * (1 - mix.share)
