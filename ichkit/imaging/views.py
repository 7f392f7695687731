"""Views of test-time augmentation: the same slices flipped, shifted, magnified or rotated, in HU."""

from dataclasses import dataclass

import cv2
import numpy as np

from ichkit.imaging.augment import AIR, CHANNELS, from_channels, to_channels
from ichkit.imaging.windows import as_slices


@dataclass(frozen=True)
class View:
    """One view of every slice of a study.

    Attributes:
        is_flipped: mirrored left to right, after the rest.
        zoom: linear magnification about the centre.
        degrees: rotation about the centre, counter-clockwise.
        down, right: shift as a share of the image's side.
    """

    is_flipped: bool = False
    zoom: float = 1.0
    degrees: float = 0.0
    down: float = 0.0
    right: float = 0.0

    def show(self, volume_hu: np.ndarray) -> np.ndarray:
        """The slices transformed by the view; pixels from outside the image are air.

        Args:
            volume_hu: (S, H, W) or (S, M, H, W) int16 HU, H equal to W; returned as it is by the plain view.

        Returns:
            int16 HU of the same shape.
        """
        shown = volume_hu
        if (self.zoom, self.degrees, self.down, self.right) != (1.0, 0.0, 0.0, 0.0):
            side = volume_hu.shape[-1]
            matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), self.degrees, self.zoom)
            matrix[:, 2] += self.right * side, self.down * side
            slices = as_slices(volume_hu)
            parts = [slices[i : i + CHANNELS] for i in range(0, len(slices), CHANNELS)]
            shown = np.stack([slice_hu for part in parts for slice_hu in _warp(part, matrix)]).reshape(volume_hu.shape)
        return np.ascontiguousarray(shown[..., ::-1]) if self.is_flipped else shown


@dataclass(frozen=True)
class TtaSet:
    """A row of `TTA_SETS`.

    Attributes:
        name: key in the table.
        views: every slice is predicted once for each; the plain view is the first.
        phases: above 1, a network with a context or a pool also reads a study as every n-th slice, n times, each from
            another first slice.
        description: one sentence.
        source: where it was proposed.
    """

    name: str
    views: tuple[View, ...]
    description: str
    source: str
    phases: int = 1


def _warp(slices_hu: np.ndarray, matrix: np.ndarray) -> list[np.ndarray]:
    """A few slices after an affine map, the same way as in augmentation."""
    size = slices_hu.shape[:0:-1]
    warped = cv2.warpAffine(
        to_channels(slices_hu),
        matrix,
        size,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(AIR,) * CHANNELS,
    )
    return from_channels(warped)


def _also_flipped(*views: View) -> tuple[View, ...]:
    return (*views, *(View(True, view.zoom, view.degrees, view.down, view.right) for view in views))


_PLAIN = View()
_SHIFTED = tuple(View(down=down, right=right) for down, right in ((-0.03, 0), (0.03, 0), (0, -0.03), (0, 0.03)))
_ZOOMED = (View(zoom=0.9), View(zoom=1.1))
_ROTATED = (View(degrees=-10.0), View(degrees=10.0))
_CHOSEN = "; strengths chosen here, inside the range of the training's augmentation"

TTA_SETS = {
    "none": TtaSet("none", (_PLAIN,), "The slice as it is.", "MIDL 2020 names no test-time augmentation"),
    "hflip": TtaSet(
        name="hflip",
        views=_also_flipped(_PLAIN),
        description="The slice and its mirror image.",
        source="common among the first ten of the RSNA 2019 competition",
    ),
    "shift": TtaSet(
        name="shift",
        views=(_PLAIN, *_SHIFTED),
        description="The slice, and shifted by 3 % of its side up, down, left and right.",
        source="ten-crop testing, Krizhevsky et al., NeurIPS 2012, section 4.1" + _CHOSEN,
    ),
    "scale": TtaSet(
        name="scale",
        views=(_PLAIN, *_ZOOMED),
        description="The slice, and magnified by 0.9 and 1.1.",
        source="multi-scale testing, Simonyan and Zisserman, ICLR 2015, section 3.2" + _CHOSEN,
    ),
    "zoom": TtaSet(
        name="zoom",
        views=(View(zoom=1.12),),
        description="The slice magnified by 1.12, as the default's random crops magnify on average.",
        source="Touvron et al., NeurIPS 2019 (FixRes), section 3; the factor is measured (docs/training.md)",
    ),
    "rotate": TtaSet(
        name="rotate",
        views=(_PLAIN, *_ROTATED),
        description="The slice, and rotated by 10 degrees either way.",
        source="common among the winners of head CT competitions" + _CHOSEN,
    ),
    "flip-scale-rotate": TtaSet(
        name="flip-scale-rotate",
        views=_also_flipped(_PLAIN, *_ZOOMED, *_ROTATED),
        description="The slice, magnified by 0.9 and 1.1 and rotated by 10 degrees either way, each also mirrored.",
        source="the union of hflip, scale and rotate",
    ),
    "phases": TtaSet(
        name="phases",
        views=(_PLAIN,),
        description="The slice, among all of its study and among every second one; for a context or a pool.",
        source="as train.augment.every_second_probability trains; chosen here",
        phases=2,
    ),
}
