"""Slices of other sizes and shapes brought to one size."""

import cv2
import numpy as np


def fit_to_square(
    hounsfield: np.ndarray, spacing_row_mm: float, spacing_col_mm: float, size: int, fill_hu: int
) -> np.ndarray:
    """(size, size) int16 HU: the slice scaled so that its longer side fills the square, pixels made square, centred.

    Args:
        hounsfield: (H, W) int16.
        spacing_row_mm: between rows.
        spacing_col_mm: between columns.
        fill_hu: beside a slice that is not square.

    Source: chosen here. INTER_AREA averages all pixels under a new one, so that thin bleeds are not skipped over.
    """
    rows, columns = hounsfield.shape
    height_mm, width_mm = rows * spacing_row_mm, columns * spacing_col_mm
    longest = max(height_mm, width_mm)
    height, width = max(1, round(size * height_mm / longest)), max(1, round(size * width_mm / longest))
    shrinks = height <= rows and width <= columns
    scaled = cv2.resize(hounsfield, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return place_in_centre(scaled, (size, size), fill_hu)


def place_in_centre(hounsfield: np.ndarray, shape: tuple[int, int], fill_hu: int) -> np.ndarray:
    """The slice in the middle of a larger (H, W) int16 frame of `fill_hu`."""
    if hounsfield.shape == shape:
        return hounsfield
    frame = np.full(shape, fill_hu, np.int16)
    top, left = (shape[0] - hounsfield.shape[0]) // 2, (shape[1] - hounsfield.shape[1]) // 2
    frame[top : top + hounsfield.shape[0], left : left + hounsfield.shape[1]] = hounsfield
    return frame
