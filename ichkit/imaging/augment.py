"""Augmentation of training slices by albumentations, reseeded at every use so that none repeats by accident."""

import os
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ichkit.core.train_config import AugmentConfig
from ichkit.imaging.windows import TABLE_HIGH_HU, TABLE_LOW_HU, as_slices

if TYPE_CHECKING:
    import albumentations

AIR = 0  # TABLE_LOW_HU, counted from there
CHANNELS = 4
"""Slices that go through OpenCV as the channels of one image."""


class Augmenter:
    """Crops, flips, rotates, distorts and masks slices in HU, and changes their values.

    albumentations 2.0.8 makes its generator once, in the constructor, so that forked workers and later epochs would
    repeat each other's augmentations; here every use is preceded by `set_random_seed`, and the same seed gives the
    same result in any process.

    All of it happens before the windows, where a slice is one channel instead of three. Slices that share their
    geometry go through it four at a time, as the channels of one image: that is what OpenCV is fast at.

    Args:
        config: what is drawn, how strongly and how often.
        image_size: height and width of the slices that come out.
    """

    def __init__(self, config: AugmentConfig, image_size: int) -> None:
        self._config = config
        self._geometry = make_geometry(config, image_size)

    def warp(self, slices_hu: np.ndarray, seed: int) -> np.ndarray:
        """The slices after one draw of geometry, the same for all of them.

        Args:
            slices_hu: (n, H, W) or (n, M, H, W) int16 HU, H equal to W.
            seed: non-negative.

        Returns:
            (n, image_size, image_size) or (n, M, image_size, image_size) int16 HU; what comes in from outside is air.
        """
        # As uint16, which albumentations passes on to OpenCV untouched: half the memory of the float it asks for.
        warped: list[np.ndarray] = []
        flat = as_slices(slices_hu)
        for start in range(0, len(flat), CHANNELS):
            self._geometry.set_random_seed(seed)
            image = self._geometry(image=to_channels(flat[start : start + CHANNELS]))["image"]
            warped.extend(from_channels(image))
        return np.stack(warped).reshape(*slices_hu.shape[:-2], *warped[0].shape)

    def change_values(self, slices_hu: np.ndarray, seed: int) -> np.ndarray:
        """The slices with Gaussian noise, then with another contrast and shift, each with its probability.

        Whether and how strong is one draw for all slices; the noise itself is another in every pixel of every slice,
        as a scanner's is: the same pattern on seven slices would be something to learn.

        Args:
            slices_hu: (n, H, W) or (n, M, H, W) int16 HU.
            seed: non-negative.

        Returns:
            int16 HU of the same shape.
        """
        config, generator = self._config, np.random.default_rng(seed)
        if generator.random() < config.noise_probability:
            # OpenCV's generator is twice as fast as NumPy's at this; its state is the thread's own, and seeded here.
            cv2.setRNGSeed(int(generator.integers(2**31)))
            noise = np.empty((slices_hu.size // slices_hu.shape[-1], slices_hu.shape[-1]), np.int16)
            cv2.randn(noise, np.zeros(1), np.array([generator.uniform(*config.noise_hu)]))
            slices_hu = slices_hu + noise.reshape(slices_hu.shape)
        if generator.random() < config.intensity_probability:
            factor = generator.uniform(*config.contrast)
            shift_hu = int(generator.integers(-config.shift_hu, config.shift_hu, endpoint=True))
            flat = slices_hu.reshape(-1, slices_hu.shape[-1])
            slices_hu = cv2.addWeighted(flat, factor, flat, 0.0, shift_hu).reshape(slices_hu.shape)
        return slices_hu


def to_channels(slices_hu: np.ndarray) -> np.ndarray:
    """(n, H, W) int16 HU to (H, W, n) uint16, relative to the low end of the windows' tables and clipped to them."""
    held = np.clip(slices_hu, TABLE_LOW_HU, TABLE_HIGH_HU) - np.int16(TABLE_LOW_HU)
    merged: np.ndarray = cv2.merge(list(held.view(np.uint16)))
    return merged


def from_channels(image: np.ndarray) -> list[np.ndarray]:
    """The inverse: (H, W, n) or (H, W) uint16 to n slices (H, W) int16 HU."""
    return [channel.view(np.int16) + np.int16(TABLE_LOW_HU) for channel in cv2.split(image)]


def make_geometry(config: AugmentConfig, image_size: int) -> "albumentations.Compose":
    """Crop, resize, flips, transposition, affine map, grid distortion and coarse dropout of an (H, W, C) image."""
    library = _import_albumentations()
    size = (image_size, image_size)
    steps: list[albumentations.BasicTransform] = []
    if config.crop_probability > 0:
        crop = library.RandomResizedCrop(
            size=size,
            scale=config.crop_scale,
            ratio=config.crop_ratio,
            interpolation=cv2.INTER_LINEAR,
            area_for_downscale="image",
            p=config.crop_probability,
        )
        steps.append(crop)
    # Leaves an image of the right size alone, so it acts where the crop did not.
    steps.append(library.Resize(*size, interpolation=cv2.INTER_LINEAR, area_for_downscale="image", p=1.0))
    if config.horizontal_flip_probability > 0:
        steps.append(library.HorizontalFlip(p=config.horizontal_flip_probability))
    if config.vertical_flip_probability > 0:
        steps.append(library.VerticalFlip(p=config.vertical_flip_probability))
    if config.transpose_probability > 0:
        steps.append(library.Transpose(p=config.transpose_probability))
    if config.rotation_probability > 0:
        rotation = library.Affine(
            scale=config.scale,
            keep_ratio=True,
            rotate=(-config.rotation_degrees, config.rotation_degrees),
            translate_percent=(-config.shift_fraction, config.shift_fraction),
            interpolation=cv2.INTER_LINEAR,
            border_mode=cv2.BORDER_CONSTANT,
            fill=AIR,
            p=config.rotation_probability,
        )
        steps.append(rotation)
    if config.distortion_probability > 0 and config.distortion_limit > 0:
        distortion = library.GridDistortion(
            num_steps=5,
            distort_limit=(-config.distortion_limit, config.distortion_limit),
            interpolation=cv2.INTER_LINEAR,
            border_mode=cv2.BORDER_CONSTANT,
            fill=AIR,
            p=config.distortion_probability,
        )
        steps.append(distortion)
    if config.dropout_probability > 0:
        dropout = library.CoarseDropout(
            num_holes_range=config.dropout_holes,
            hole_height_range=config.dropout_size,
            hole_width_range=config.dropout_size,
            fill=AIR,
            p=config.dropout_probability,
        )
        steps.append(dropout)
    return library.Compose(steps)


def _import_albumentations() -> Any:
    """The library, imported at first use because that takes seconds, with its online version check disabled."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    # A worker is one core's share already; threads of OpenCV inside it would only compete with its neighbours.
    cv2.setNumThreads(0)
    return albumentations
