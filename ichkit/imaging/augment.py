"""Augmentation of training slices by albumentations, reseeded at every use so that nothing ever repeats by accident."""

import os
from types import ModuleType
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ichkit.core.config import AugmentConfig
from ichkit.imaging.windows import TABLE_HIGH_HU, TABLE_LOW_HU

if TYPE_CHECKING:
    import albumentations

_SPAN_HU = np.float32(TABLE_HIGH_HU - TABLE_LOW_HU)
_AIR = 0.0  # TABLE_LOW_HU on the scale below


class Augmenter:
    """Crops, flips, rotates and distorts slices in HU, and adds noise to the images made of them.

    albumentations 2.0.8 makes its generator once, in the constructor, so that forked workers and later epochs would
    repeat each other's augmentations; here every use is preceded by `set_random_seed`, and the same seed gives the
    same result in any process.

    Slices that share their geometry go through it together, as the channels of one image: at 128 px that is 2.4 times
    as fast as one after another, and before the windows there is one channel a slice instead of three.

    Args:
        config: what is drawn, how strongly and how often.
        image_size: height and width of the slices that come out.
    """

    def __init__(self, config: AugmentConfig, image_size: int) -> None:
        self._geometry = _make_geometry(config, image_size)
        self._noise = _make_noise(config)

    def warp(self, slices_hu: np.ndarray, seed: int) -> np.ndarray:
        """The slices after one draw of geometry, the same for all of them.

        Args:
            slices_hu: (n, H, W) int16 HU, H equal to W.
            seed: non-negative.

        Returns:
            (n, image_size, image_size) int16 HU; what comes in from outside is air.
        """
        # albumentations knows float images in [0, 1] only; 12 bits of HU survive the way there and back exactly.
        scaled = (np.clip(slices_hu, TABLE_LOW_HU, TABLE_HIGH_HU) - np.float32(TABLE_LOW_HU)) / _SPAN_HU
        self._geometry.set_random_seed(seed)
        image = self._geometry(image=np.ascontiguousarray(scaled.transpose(1, 2, 0)))["image"]  # (size, size, n)
        warped = image.reshape(*image.shape[:2], len(slices_hu)).transpose(2, 0, 1)
        return np.rint(warped * _SPAN_HU + np.float32(TABLE_LOW_HU)).astype(np.int16)

    def add_noise(self, images: np.ndarray, seed: int) -> np.ndarray:
        """The images with Gaussian noise, or unchanged where the draw says so.

        Whether and how strong is one draw for all images; the noise itself is another in every pixel of every image,
        as a scanner's is: the same pattern on seven slices would be something to learn.

        Args:
            images: (n, H, W, C) uint8.
            seed: non-negative.

        Returns:
            (n, H, W, C) uint8.
        """
        if self._noise is None:
            return images
        num_images, height, width, num_channels = images.shape
        self._noise.set_random_seed(seed)
        together = np.ascontiguousarray(images.transpose(1, 2, 0, 3)).reshape(height, width, -1)  # (H, W, n * C)
        noisy = self._noise(image=together)["image"].reshape(height, width, num_images, num_channels)
        return noisy.transpose(2, 0, 1, 3)


def _make_geometry(config: AugmentConfig, image_size: int) -> "albumentations.Compose":
    library = _import_albumentations()
    size = (image_size, image_size)
    steps: list[albumentations.BasicTransform] = []
    if config.crop_probability > 0:
        crop = library.RandomResizedCrop(
            size=size,
            scale=config.crop_scale,
            ratio=(0.8, 1.25),  # chosen here: the range between the narrowest and the broadest heads
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
    if config.rotation_probability > 0:
        rotation = library.Affine(
            rotate=(-config.rotation_degrees, config.rotation_degrees),
            translate_percent=(-config.shift_fraction, config.shift_fraction),
            interpolation=cv2.INTER_LINEAR,
            border_mode=cv2.BORDER_CONSTANT,
            fill=_AIR,
            p=config.rotation_probability,
        )
        steps.append(rotation)
    if config.distortion_probability > 0 and config.distortion_limit > 0:
        distortion = library.GridDistortion(
            num_steps=5,
            distort_limit=(-config.distortion_limit, config.distortion_limit),
            interpolation=cv2.INTER_LINEAR,
            border_mode=cv2.BORDER_CONSTANT,
            fill=_AIR,
            p=config.distortion_probability,
        )
        steps.append(distortion)
    return library.Compose(steps)


def _make_noise(config: AugmentConfig) -> "albumentations.Compose | None":
    if config.noise_probability == 0 or max(config.noise_std) == 0:
        return None
    library = _import_albumentations()
    return library.Compose([library.GaussNoise(std_range=config.noise_std, p=config.noise_probability)])


def _import_albumentations() -> ModuleType:
    """The library, imported at first use since that takes seconds, and kept from asking the network for a newer one."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    # A worker is one core's share already; threads of OpenCV inside it would only compete with its neighbours.
    cv2.setNumThreads(0)
    return albumentations
