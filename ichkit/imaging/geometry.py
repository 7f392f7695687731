"""Where a slice lies in the patient: order along the slice normal, gaps, tilt."""

import numpy as np


def slice_normals(orientations: np.ndarray) -> np.ndarray:
    """(N, 3) unit normals of slices, each turned so that its z is positive (towards the head).

    Args:
        orientations: (N, 6) direction cosines of rows and columns.

    Source: DICOM PS3.3 C.7.6.2.1.1, ImageOrientationPatient. Where z is zero (a sagittal or coronal image) the first
        component that is not zero is made positive, so that the order is still defined.
    """
    orientations = np.asarray(orientations, np.float64)
    normals = np.cross(orientations[:, :3], orientations[:, 3:])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    normals = np.where(np.abs(normals) < 1e-9, 0.0, normals)
    leading = normals[:, ::-1]  # z first
    first = np.argmax(leading != 0, axis=1)
    sign = np.sign(leading[np.arange(len(leading)), first])
    return normals * np.where(sign == 0, 1.0, sign)[:, None]


def is_axial(orientations: np.ndarray, tolerance_degrees: float = 45.0) -> np.ndarray:
    """(N,) True where the slice normal is within the tolerance of the body's long axis.

    Source: chosen here: gantry tilts reach 30 degrees; a sagittal or coronal reformat stands at 90.
    """
    return slice_normals(orientations)[:, 2] >= np.cos(np.radians(tolerance_degrees))


def slab_groups(positions_mm: np.ndarray, thickness_mm: float) -> np.ndarray:
    """(N,) number of the slab each slice falls in, counted from the first slice in steps of `thickness_mm`.

    Args:
        positions_mm: (N,) ascending.
        thickness_mm: the wanted distance between slab centres.

    A last slab thinner than half of the others joins the one before it.
    """
    if not len(positions_mm):
        return np.empty(0, np.int64)
    groups = np.floor((positions_mm - positions_mm[0]) / thickness_mm + 1e-6).astype(np.int64)
    groups = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(groups)
    if len(counts) > 1 and counts[-1] * 2 < counts[0]:
        groups[groups == len(counts) - 1] -= 1
    return groups
