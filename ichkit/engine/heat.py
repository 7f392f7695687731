"""Grad-CAM: heat maps of the image regions that contribute to the prediction of a class.

Implemented here because neither library fits. captum (BSD) requires NumPy below 2, and its LayerGradCam takes axis 1
for the channels, which is wrong for Swin (channels last) and for the tokens of a vision transformer. grad-cam 1.5.7
(MIT) runs one forward pass per class where one is enough, and its import loads matplotlib, scikit-learn, scipy and
ttach, which would slow the start of `predict`. One hook and one gradient per class are enough.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from ichkit.core.errors import ConfigError
from ichkit.engine.inference import Predictor
from ichkit.imaging.views import View
from ichkit.imaging.windows import pad_to_square, resize_volume
from ichkit.models.descriptor import BACKBONES

# A network of stride 32 on images of 224 pixels, as Grad-CAM was published on, has 7 x 7 cells in its last map.
_MIN_CELLS = 7


def heat_maps(
    predictor: Predictor,
    volume: np.ndarray,
    rows: np.ndarray,
    class_indices: Sequence[int],
    positions_mm: np.ndarray | None = None,
) -> np.ndarray:
    """The Grad-CAM heat maps of some slices of one study for some classes.

    Each map is divided by its own maximum: it shows the location, not the confidence, which is the probability. It is 0
    everywhere if no region contributes to the class. It is that of the plain view, also with test-time augmentation.
    Where slices see each other, it is what the slice contributes to its own logit, with the rest of the study fixed; in
    a volume, what its plane contributes to the mean logit of the slices.

    Args:
        predictor: the network of a fold.
        volume: (S, H, W) or (S, M, H, W) int16 HU, as in the store.
        rows: (n,) positions in the volume.
        class_indices: (K,) indices of the task's classes, which the network predicts.
        positions_mm: (S,), as for `Predictor.predict_volume`.

    Returns:
        (n, K, H, W) float32 in [0, 1], in the size of the slices.

    Raises:
        ConfigError: no feature maps are found in the backbone.

    Source: Selvaraju et al., ICCV 2017, section 3: the sum of the feature maps, each weighted with the mean of its
        gradient, after a ReLU. Computed at the deepest stage with at least 7 x 7 cells: for 103 true positives of the
        demo's fold 0 the maximum was inside the bleed in 71 %; at the last stage (2 x 2 cells) in 5 %; by chance (the
        bleed's share of the head) in 4 %. For a vision transformer it is computed before the attention of the last
        block, after which only the class token has a gradient.
    """
    known = predictor.classes
    outputs = [known.index(predictor.task.classes[index]) for index in class_indices]
    if predictor.network.sees_volumes:
        of_volume = _volume_sums(predictor, volume, outputs)
        planes = ((np.asarray(rows) + 0.5) * of_volume.shape[1] / len(volume)).astype(np.int64)
        of_planes = _relu_and_scale(of_volume[:, planes].transpose(0, 1))
        return _fit_to_slices(of_planes.cpu().numpy(), *volume.shape[-2:])
    size, reach, rows = predictor.card.image_size, predictor.rendering.reach, np.asarray(rows)
    positions = predictor.centre(len(volume), positions_mm)
    study = predictor.encode_study(volume, View()) if predictor.network.sees_blocks else None
    low = max(int(np.min(rows)) - reach, 0)
    slab = resize_volume(pad_to_square(volume[low : int(np.max(rows)) + reach + 1]), size)
    images = predictor.rendering.render(slab, rows - low)  # (n, size, size, C)
    step = predictor.card.batch_size
    parts = []
    for first in range(0, len(images), step):
        some = slice(first, first + step)
        batch = torch.from_numpy(images[some]).to(predictor.device)
        parts.append(_relu_and_scale(_weighted_sums(predictor, batch, outputs, rows[some], positions, study)))
    cells = torch.cat(parts).cpu().numpy()
    return _fit_to_slices(cells, *volume.shape[-2:])


def fade_heat(maps: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Heat maps as every picture shows them: each divided by its maximum, times the probability of its class.

    A map has its maximum also for an improbable class; the mean of maps that disagree is low everywhere.

    Args:
        maps: (..., H, W) in [0, 1].
        probabilities: (...).

    Returns:
        (..., H, W) float32 in [0, 1].

    Example:
        >>> fade_heat(np.array([[[0.5, 0.25]]]), np.array([0.75])).tolist()
        [[[0.75, 0.375]]]
    """
    highest = np.maximum(maps.max(axis=(-2, -1), keepdims=True), 1e-6)
    faded: np.ndarray = (maps / highest * np.asarray(probabilities)[..., None, None]).astype(np.float32)
    return faded


def find_layer(backbone: Any, image_size: int) -> tuple[nn.Module, int]:
    """The module whose output the heat maps are computed from, and its number of channels.

    Args:
        backbone: any timm model.
        image_size: height and width of the images in pixels.

    Raises:
        ConfigError: the backbone does not describe its stages.
    """
    if hasattr(backbone, "patch_embed") and hasattr(backbone, "blocks") and hasattr(backbone.blocks[-1], "norm1"):
        return backbone.blocks[-1].norm1, backbone.num_features
    stages: list[dict[str, Any]] = list(getattr(backbone, "feature_info", None) or [])
    if not stages:
        raise _no_map(backbone)
    fine = [stage for stage in stages if image_size // stage["reduction"] >= _MIN_CELLS]
    stage = fine[-1] if fine else stages[0]
    return backbone.get_submodule(stage["module"]), stage["num_chs"]


def _weighted_sums(
    predictor: Predictor,
    images: torch.Tensor,
    outputs: Sequence[int],
    rows: np.ndarray,
    positions: torch.Tensor,
    study: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """(n, K, h, w): the sum of the feature maps, each weighted with the mean of its gradient."""
    backbone = predictor.network.backbone
    layer, num_channels = find_layer(backbone, predictor.card.image_size)
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
            raise _no_map(backbone)
        kept.append(output.detach().requires_grad_())
        return kept[0]

    hook = layer.register_forward_hook(keep)
    try:
        # cuDNN's recurrent layers have no gradient at inference.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=study is None):
            encoded = predictor.network.encode(images)
            logits = encoded[1].float() if study is None else predictor.attend(encoded, study, rows, positions)
    finally:
        hook.remove()
    features = _channels_first(kept[0].detach(), num_channels, backbone)
    sums = []
    for index in outputs:
        # No slice's logit depends on another's images here, so the gradient of their sum holds the gradient of each.
        (gradient,) = torch.autograd.grad(logits[:, index].sum(), kept[0], retain_graph=True)
        weights = _channels_first(gradient, num_channels, backbone).mean((2, 3), keepdim=True)
        sums.append((weights * features).sum(1))
    return torch.stack(sums, 1).float()


def _volume_sums(predictor: Predictor, volume: np.ndarray, outputs: Sequence[int]) -> torch.Tensor:
    """(K, Z, h, w): the sum of the feature maps of a volume, each weighted with the mean of its gradient."""
    size, network = predictor.card.image_size, predictor.network
    slab = resize_volume(pad_to_square(volume), size)
    images = torch.from_numpy(predictor.rendering.render(slab, np.arange(len(slab)))).to(predictor.device)
    layer, _ = find_layer(network.backbone, size)
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())  # (1, C, Z, h, w)
        return kept[0]

    hook = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = network.encode(images)[1].float()
    finally:
        hook.remove()
    sums = []
    for index in outputs:
        (gradient,) = torch.autograd.grad(logits[:, index].mean(), kept[0], retain_graph=True)
        sums.append((gradient.mean((2, 3, 4), keepdim=True) * kept[0].detach()).sum(1)[0])
    return torch.stack(sums).float()


def _channels_first(output: torch.Tensor, num_channels: int, backbone: Any) -> torch.Tensor:
    """(n, C, h, w) from maps in either memory order, or from patch tokens; class and register tokens are dropped."""
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
        "heat maps: expected a backbone that describes its feature maps or patch tokens, "
        f"found {type(backbone).__name__}. Backbones that do: {', '.join(sorted(BACKBONES))}."
    )


def _relu_and_scale(sums: torch.Tensor) -> torch.Tensor:
    """(n, K, h, w) after a ReLU, divided by each map's maximum."""
    positive = sums.clamp(min=0)
    return positive / positive.amax((2, 3), keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)


def _fit_to_slices(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """(n, K, h, w) maps of square images, resized to (n, K, height, width) without the padding."""
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    maps = np.empty((*cells.shape[:2], height, width), np.float32)
    for image in range(cells.shape[0]):
        for of_class in range(cells.shape[1]):
            square = cv2.resize(cells[image, of_class], (side, side), interpolation=cv2.INTER_LINEAR)
            maps[image, of_class] = square[top : top + height, left : left + width]
    return np.clip(maps, 0, 1)
