"""CutMix and mixup between blocks: each block takes pixels and labels of another, position by position."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ichkit.core.train_config import CutMixConfig, MixupConfig, TrainConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Mix:
    """Parameters of a mix for a batch of B blocks.

    Attributes:
        partners: (B,) int64, the block from which each block receives pixels.
        share: weight of a block's own labels.
        box: top, bottom, left and right in pixels, bottom and right exclusive: inside, the partner replaces the pixels;
            None if all pixels are averaged, with weight `share` for the block's own.
    """

    partners: np.ndarray
    share: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class MixKind:
    """A row of `MIXES`.

    Attributes:
        name: key in the table, and of its section in `train`.
        draw: number of blocks, height, width, its section of the config, and generator to a mix.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    draw: Callable[[int, int, int, CutMixConfig | MixupConfig, np.random.Generator], Mix]
    description: str
    source: str


def draw_mix(
    num_blocks: int, height: int, width: int, config: TrainConfig, generator: np.random.Generator
) -> Mix | None:
    """The mix of a batch: the first row of `MIXES` that its probability selects, else None.

    A batch of one block is never mixed.
    """
    if num_blocks < 2:
        return None
    for row in MIXES.values():
        section = getattr(config, row.name)
        if generator.random() < section.probability:
            return row.draw(num_blocks, height, width, section, generator)
    return None


def apply_mix(images: "torch.Tensor", labels: "torch.Tensor", mix: Mix) -> "tuple[torch.Tensor, torch.Tensor]":
    """Images with pixels of their partners, position s mixed with position s, and labels mixed by the share.

    A padded position repeats the end slice of its study, with that slice's labels. The loss ignores it, but a real
    slice may receive its pixels; pixels and labels then still match.

    Args:
        images: (B, P, H, W, C) uint8 blocks of P slices.
        labels: (B, P, K) float, K classes; NaN where unknown, and so is the mix with it.

    Returns:
        New tensors of the same shapes and types; averaged pixels are rounded.
    """
    partners = images[mix.partners]
    if mix.box is None:
        mixed = partners.float().lerp_(images.float(), mix.share).round_().to(images.dtype)
    else:
        mixed = images.clone()
        top, bottom, left, right = mix.box
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return mixed, labels * mix.share + labels[mix.partners] * (1 - mix.share)


def _draw_cutmix(
    num_blocks: int, height: int, width: int, config: CutMixConfig | MixupConfig, generator: np.random.Generator
) -> Mix:
    side = np.sqrt(1 - generator.beta(config.alpha, config.alpha))
    cut_height, cut_width = int(height * side), int(width * side)
    centre_y, centre_x = int(generator.integers(height)), int(generator.integers(width))
    top, bottom = (int(np.clip(centre_y + sign * cut_height // 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(centre_x + sign * cut_width // 2, 0, width)) for sign in (-1, 1))
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Mix(generator.permutation(num_blocks), share, (top, bottom, left, right))


def _draw_mixup(
    num_blocks: int, height: int, width: int, config: CutMixConfig | MixupConfig, generator: np.random.Generator
) -> Mix:
    share = float(generator.beta(config.alpha, config.alpha))
    return Mix(generator.permutation(num_blocks), share)


MIXES = {
    "cutmix": MixKind(
        name="cutmix",
        draw=_draw_cutmix,
        description="One box for all slices of a block is replaced by the partner's; labels by its clipped share.",
        source="Yun et al., ICCV 2019, section 3.1: lambda from Beta(alpha, alpha), sides sqrt(1 - lambda) of the "
        "image's, a uniform centre; one box for all slices of a block is chosen here",
    ),
    "mixup": MixKind(
        name="mixup",
        draw=_draw_mixup,
        description="Pixels and labels are averages of two blocks, with one share for the whole batch.",
        source="Zhang et al., ICLR 2018, section 2: lambda from Beta(alpha, alpha)",
    ),
}
