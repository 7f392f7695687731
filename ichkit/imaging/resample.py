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
    height, width = fitted_shape(rows, columns, spacing_row_mm, spacing_col_mm, size)
    shrinks = height <= rows and width <= columns
    scaled = cv2.resize(hounsfield, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    frame = np.empty((size, size), np.int16)
    frame_centre(frame, (height, width), fill_hu)[:] = scaled
    return frame


def fitted_shape(rows: int, columns: int, spacing_row_mm: float, spacing_col_mm: float, size: int) -> tuple[int, int]:
    """(h, w) that a slice takes in a square of `size` pixels: its longer side fills it, its pixels become square."""
    height_mm, width_mm = rows * spacing_row_mm, columns * spacing_col_mm
    longest = max(height_mm, width_mm)
    return max(1, round(size * height_mm / longest)), max(1, round(size * width_mm / longest))


def frame_centre(frame: np.ndarray, shape: tuple[int, int], fill_hu: int) -> np.ndarray:
    """The (h, w) middle of an (H, W) int16 frame, as a view to be filled; the rest becomes `fill_hu`."""
    if frame.shape == shape:
        return frame
    frame[:] = fill_hu
    top, left = (frame.shape[0] - shape[0]) // 2, (frame.shape[1] - shape[1]) // 2
    return frame[top : top + shape[0], left : left + shape[1]]
