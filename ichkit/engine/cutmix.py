"""CutMix over blocks: a box of one study's seven slices is pasted, slice for slice, into another's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ichkit.core.train_config import CutMixConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Cut:
    """One draw of CutMix for a batch of B blocks.

    Attributes:
        partners: (B,) int64, the block that each block receives pixels from.
        top, bottom, left, right: the box in pixels, clipped to the image; bottom and right are outside it.
        share: part of the image that stays the block's own, from the clipped box.
    """

    partners: np.ndarray
    top: int
    bottom: int
    left: int
    right: int
    share: float


def draw_cut(
    num_blocks: int, height: int, width: int, config: CutMixConfig, generator: np.random.Generator
) -> Cut | None:
    """A box and a permutation of the blocks, or None where this batch is left alone.

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
    return Cut(generator.permutation(num_blocks), top, bottom, left, right, share)


def apply_cut(images: "torch.Tensor", labels: "torch.Tensor", cut: Cut) -> "tuple[torch.Tensor, torch.Tensor]":
    """Images with the box of their partners, position s cut with position s, and labels mixed by the share.

    A padded position holds its study's end slice again, with that slice's own labels. It is never trained on, but a
    real slice may be cut with it: pixels and labels then still belong together.

    Args:
        images: (B, P, H, W, C) blocks of P slices.
        labels: (B, P, K) float, K classes.

    Returns:
        New tensors of the same shapes.
    """
    mixed = images.clone()
    rows, columns = slice(cut.top, cut.bottom), slice(cut.left, cut.right)
    mixed[:, :, rows, columns] = images[cut.partners][:, :, rows, columns]
    return mixed, labels * cut.share + labels[cut.partners] * (1 - cut.share)
