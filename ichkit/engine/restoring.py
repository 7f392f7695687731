"""Self-supervised pretraining: an encoder of volumes learns to restore distorted studies, without labels."""

import numpy as np
import pandas as pd
import torch

from ichkit.core.errors import ConfigError
from ichkit.core.seeding import make_generator
from ichkit.engine.blocks import Block, BlockDataset
from ichkit.engine.sampling import SliceIndex
from ichkit.engine.step import Batch, Stepper
from ichkit.imaging.distort import distort
from ichkit.models.descriptor import BlockLogits, DescriptorNetwork, VolumeNetwork
from ichkit.models.volume import VolumeDecoder

_HIGHEST = 255
_NOTHING = "nothing"


class RestoringNetwork(VolumeNetwork):
    """The backbone of a network of volumes and a decoder: from distorted studies to restored ones.

    Its "logits" of a slice are the grey levels of the restored slice in [0, 1]. Gates and head of the backbone are not
    part of it and do not change.

    Args:
        network: shares its backbone.

    Raises:
        ConfigError: its backbone does not see volumes.

    Source: Zhou et al., Models Genesis, MICCAI 2019, section 2.
    """

    def __init__(self, network: DescriptorNetwork) -> None:
        if not isinstance(network, VolumeNetwork):
            raise ConfigError(
                "train.phases: a phase of kind restore pretrains a backbone of volumes. "
                "Use --set train.backbone=unet3d, or leave out the phase."
            )
        super().__init__(network.backbone, (), ())
        self.mean, self.std = network.mean, network.std
        self.backbone.gates.requires_grad_(False)
        self.backbone.get_classifier().requires_grad_(False)
        self.decoder = VolumeDecoder(self.backbone.num_channels, len(self.mean))

    def forward(
        self,
        images: torch.Tensor,
        is_real: torch.Tensor | None = None,
        positions_mm: torch.Tensor | None = None,
    ) -> BlockLogits:
        """(B, P, H, W, C) uint8 distorted images to the grey levels (B, P, H * W * C) of the restored ones."""
        restored: torch.Tensor = self.decoder(self.backbone.encode_levels(self.as_volumes(images, is_real)))
        return BlockLogits(restored.permute(0, 2, 3, 4, 1).flatten(2))


class RestoringDataset(BlockDataset):
    """Distorted studies, with the studies themselves in the place of labels.

    Args: see `BlockDataset`; the index is that of `index_without_labels`.
    """

    def __getitem__(self, key: tuple[int, int]) -> Block:
        whole = super().__getitem__(key)
        rng = make_generator(self.seed, "distort", self.fold, *key)
        distorted = torch.from_numpy(distort(whole.images.numpy(), rng))
        return Block(distorted, whole.images, whole.positions_mm)


class RestoringStepper(Stepper):
    """A stepper whose loss compares restored studies with the studies themselves."""

    def _mix(self, batch: Block, place: tuple[int, ...], is_real: np.ndarray) -> Batch:
        wanted = batch.labels.flatten(2).float() / _HIGHEST
        return Batch(batch.images, wanted, wanted[:, 0, :1], batch.positions_mm, torch.from_numpy(is_real))


def index_without_labels(slices: pd.DataFrame) -> SliceIndex:
    """The index of slices whose labels are never read."""
    return SliceIndex.of(slices.assign(**{_NOTHING: 0.0}), (_NOTHING,))


def restoration_loss(restored: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The mean squared difference of grey levels in [0, 1]."""
    return (restored.float() - wanted).square().mean()
