"""Grad-CAM: where in a slice a network found what speaks for a class.

Written here because the two libraries for it do not fit. captum (BSD) requires NumPy below 2, and its LayerGradCam
takes axis 1 for the channels, which mixes up the maps of Swin (channels last) and the tokens of a vision transformer;
grad-cam 1.5.7 (MIT) runs the network once for each class where once is enough for all, and importing it loads
matplotlib, scikit-learn, scipy and ttach, for which `predict` would wait. What is needed is one hook and one gradient
per class.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from ichkit.core.errors import ConfigError
from ichkit.engine.inference import Predictor
from ichkit.imaging.windows import pad_to_square, resize_volume
from ichkit.models.descriptor import BACKBONES

# A network of stride 32 on images of 224 pixels, as Grad-CAM was published on, has 7 x 7 cells in its last map.
_MIN_CELLS = 7


def heat_maps(predictor: Predictor, volume: np.ndarray, rows: np.ndarray, class_indices: Sequence[int]) -> np.ndarray:
    """For some slices of one study and some classes, how much each place speaks for the class.

    Each map is divided by its own maximum, so that it says where, not how sure: read it beside the probability. It is 0
    everywhere if nothing speaks for the class. Of a test-time augmentation the mean is taken, as of the probabilities.

    Args:
        predictor: the network of a fold.
        volume: (S, H, W) int16 HU, as the store holds it.
        rows: (n,) positions in the volume.
        class_indices: (K,) which of the task's classes.

    Returns:
        (n, K, H, W) float32 in [0, 1], of the size of the slices.

    Raises:
        ConfigError: the backbone has no map of features that could be found.

    Source: Selvaraju et al., ICCV 2017, section 3: each feature map weighted with the mean of its gradient, summed, cut
        at 0. Taken at the deepest stage with at least 7 x 7 cells: of 103 true positives of the demo's fold 0 the
        hottest pixel lay in the bleed in 71 %, at the last stage, of 2 x 2 cells, in 5 %, by chance in 4 %, which is
        the bleed's share of the head. Of a vision transformer it is taken before its last block's attention, behind
        which only the class token counts.
    """
    size, reach = predictor.card.image_size, predictor.rendering.reach
    low = max(int(np.min(rows)) - reach, 0)
    slab = resize_volume(pad_to_square(volume[low : int(np.max(rows)) + reach + 1]), size)
    images = predictor.rendering.render(slab, np.asarray(rows) - low)  # (n, size, size, C)
    step = predictor.card.batch_size
    cells = np.concatenate(
        [_heat_of_images(predictor, images[i : i + step], class_indices) for i in range(0, len(images), step)]
    )
    return _fit_to_slices(cells, *volume.shape[1:])


def find_place(backbone: Any, image_size: int) -> tuple[nn.Module, int]:
    """The module whose output is looked at, and how many channels it has.

    Args:
        backbone: any of timm.
        image_size: height and width of the images in pixels.

    Raises:
        ConfigError: the backbone does not say where its stages are.
    """
    if hasattr(backbone, "patch_embed") and hasattr(backbone, "blocks") and hasattr(backbone.blocks[-1], "norm1"):
        return backbone.blocks[-1].norm1, backbone.num_features
    stages: list[dict[str, Any]] = list(getattr(backbone, "feature_info", None) or [])
    if not stages:
        raise _no_map(backbone)
    fine = [stage for stage in stages if image_size // stage["reduction"] >= _MIN_CELLS]
    stage = fine[-1] if fine else stages[0]
    return backbone.get_submodule(stage["module"]), stage["num_chs"]


def _heat_of_images(predictor: Predictor, images: np.ndarray, class_indices: Sequence[int]) -> np.ndarray:
    """(n, S, S, C) uint8 to (n, K, h, w) float32 in [0, 1], in cells of the feature map."""
    batch = torch.from_numpy(images).to(predictor.device)
    heat = _cut_and_scale(_weighted_sums(predictor, batch, class_indices))
    if predictor.card.tta == "hflip":
        mirrored = _cut_and_scale(_weighted_sums(predictor, batch.flip(2), class_indices)).flip(3)
        heat = _cut_and_scale(heat + mirrored)
    return heat.cpu().numpy()


def _weighted_sums(predictor: Predictor, images: torch.Tensor, class_indices: Sequence[int]) -> torch.Tensor:
    """(n, K, h, w): feature maps weighted with the mean of each one's gradient, and summed."""
    backbone = predictor.network.backbone
    place, num_channels = find_place(backbone, predictor.card.image_size)
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
            raise _no_map(backbone)
        kept.append(output.detach().requires_grad_())
        return kept[0]

    hook = place.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = predictor.network(images).float()
    finally:
        hook.remove()
    features = _channels_first(kept[0].detach(), num_channels, backbone)
    sums = []
    for index in class_indices:
        # Slices do not meet inside the network, so the gradient of their sum is that of each.
        (gradient,) = torch.autograd.grad(logits[:, index].sum(), kept[0], retain_graph=True)
        weights = _channels_first(gradient, num_channels, backbone).mean((2, 3), keepdim=True)
        sums.append((weights * features).sum(1))
    return torch.stack(sums, 1).float()


def _channels_first(output: torch.Tensor, num_channels: int, backbone: Any) -> torch.Tensor:
    """(n, C, h, w) of maps in either order, or of the tokens of an image without those that stand for all of it."""
    if output.ndim == 3:
        patches = output[:, getattr(backbone, "num_prefix_tokens", 0) :]
        rows, columns = backbone.patch_embed.grid_size
        if patches.shape[1] != rows * columns:
            raise _no_map(backbone)
        maps: torch.Tensor = patches.transpose(1, 2).unflatten(2, (rows, columns))
        return maps
    return output if output.shape[1] == num_channels else output.permute(0, 3, 1, 2)


def _no_map(backbone: nn.Module) -> ConfigError:
    return ConfigError(
        "heat maps: expected a backbone that says where its feature maps are, in planes or in tokens of a grid; "
        f"{type(backbone).__name__} does not. Those of {', '.join(sorted(BACKBONES))} do."
    )


def _cut_and_scale(sums: torch.Tensor) -> torch.Tensor:
    """(n, K, h, w) without what speaks against the class, divided by each map's maximum."""
    positive = sums.clamp(min=0)
    return positive / positive.amax((2, 3), keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)


def _fit_to_slices(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """(n, K, h, w) of padded squares to (n, K, height, width) of the slices inside them."""
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    maps = np.empty((*cells.shape[:2], height, width), np.float32)
    for image in range(cells.shape[0]):
        for of_class in range(cells.shape[1]):
            square = cv2.resize(cells[image, of_class], (side, side), interpolation=cv2.INTER_LINEAR)
            maps[image, of_class] = square[top : top + height, left : left + width]
    return np.clip(maps, 0, 1)
