"""Registration and correction of the coil's field by SimpleITK, on small grids of one thread, so that bytes repeat."""

import contextlib
from typing import Any

import numpy as np
import scipy

from ichkit.core.errors import DataError
from ichkit.imaging.sequences import Image, grid_affine

_FIELD_MM = 8.0
_FIELD_ITERATIONS = (12, 12, 6)
_BINS = 32
_STEPS = 60
_SEED = 1
"""Of the samples: without one SimpleITK takes the time, and no result would come again."""
_LEAST_FIELD, _MOST_FIELD = 0.2, 5.0


def import_simpleitk() -> Any:
    """The package SimpleITK, set to one thread.

    Raises:
        DataError: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise DataError("registration needs SimpleITK; pip install 'ichkit[mr]'") from error
    itk: Any = SimpleITK
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    return itk


def correct_field(image: Image) -> Image:
    """The image without the smooth field of its coil, estimated on a coarse grid."""
    itk = import_simpleitk()
    extent = image.spacing_mm * image.values.shape
    rows, columns = (max(8, round(size / _FIELD_MM)) for size in extent[1:])
    shape = (image.values.shape[0], rows, columns)
    spacing = tuple(size / n for size, n in zip(extent, shape, strict=True))
    to_own = _from_grid(image, shape)
    coarse = scipy.ndimage.affine_transform(image.values, *_as_map(to_own), output_shape=shape, order=1, mode="nearest")
    coarse = np.maximum(coarse, 0)
    top = float(np.percentile(coarse, 99))
    mask = coarse > 0.15 * top
    if top <= 0 or mask.sum() < 100:
        return image
    corrector = itk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(_FIELD_ITERATIONS)
    given = _to_itk(itk, coarse + 1e-3 * top, spacing)
    with _as_data_error("the correction of the bias field"):
        corrected = corrector.Execute(given, _to_itk(itk, mask.astype(np.uint8), spacing))
    field = (coarse + 1e-3 * top) / np.maximum(itk.GetArrayFromImage(corrected), 1e-6 * top)
    field = np.clip(field, _LEAST_FIELD, _MOST_FIELD)
    back = np.linalg.inv(to_own)
    fine = scipy.ndimage.affine_transform(
        field, *_as_map(back), output_shape=image.values.shape, order=1, mode="nearest"
    )
    return Image((image.values / fine).astype(np.float32), image.affine)


def _from_grid(image: Image, shape: tuple[int, ...]) -> np.ndarray:
    """(4, 4) from (slice, row, column) of a grid with the same edges as an image to that of the image."""
    ratio = np.array(image.values.shape) / np.array(shape)
    found = np.diag([*ratio, 1.0])
    found[:3, 3] = (ratio - 1) / 2
    return found


def _as_map(transform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return transform[:3, :3], transform[:3, 3]


def find_rigid(fixed: np.ndarray, moving: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """(4, 4) rigid movement from the frame of `fixed` to that of `moving`, both (S, H, W) on one centred grid.

    It is found for the images and for their mirror images, and the mean is taken: mirroring both mirrors the result.
    """
    itk = import_simpleitk()
    one = _optimise(itk, fixed, moving, spacing_mm, itk.Euler3DTransform())
    two = _optimise(itk, fixed[..., ::-1], moving[..., ::-1], spacing_mm, itk.Euler3DTransform())
    # Mirrored across: turns about the other two axes and the shift across change their sign.
    parameters = (np.array(one.GetParameters()) + np.array([1, -1, -1, -1, 1, 1]) * two.GetParameters()) / 2
    mean = itk.Euler3DTransform()
    mean.SetParameters(parameters.tolist())
    return _to_matrix(mean)


def find_affine(fixed: np.ndarray, moving: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """(4, 4) affine map from the frame of `fixed` to that of `moving`, both (S, H, W) on one centred grid."""
    itk = import_simpleitk()
    rigid = _optimise(itk, fixed, moving, spacing_mm, itk.Euler3DTransform())
    start = itk.AffineTransform(3)
    start.SetMatrix(rigid.GetMatrix())
    start.SetTranslation(rigid.GetTranslation())
    return _to_matrix(_optimise(itk, fixed, moving, spacing_mm, start))


def _optimise(itk: Any, fixed: np.ndarray, moving: np.ndarray, spacing_mm: tuple[float, ...], start: Any) -> Any:
    """The transform of the class of `start` with the highest mutual information."""
    method = itk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.5, _SEED)
    method.SetInterpolator(itk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, _STEPS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2.0, 0.0])
    method.SetInitialTransform(start, inPlace=True)
    images = (_to_itk(itk, np.ascontiguousarray(one), spacing_mm) for one in (fixed, moving))
    with _as_data_error("the registration of its sequences"):
        method.Execute(*images)
    return start


@contextlib.contextmanager
def _as_data_error(what: str) -> Any:
    try:
        yield
    except RuntimeError as error:  # SimpleITK raises no other; its message has paths and line numbers of C++
        raise DataError(f"{what} failed") from error


def _to_itk(itk: Any, values: np.ndarray, spacing_mm: tuple[float, ...]) -> Any:
    """An image of SimpleITK, centred at the origin."""
    image = itk.GetImageFromArray(values if values.dtype == np.uint8 else values.astype(np.float32))
    image.SetSpacing([float(size) for size in spacing_mm[::-1]])
    image.SetOrigin(grid_affine(values.shape, spacing_mm)[:3, 3].tolist())
    return image


def _to_matrix(transform: Any) -> np.ndarray:
    """(4, 4) of a transform about a centre at the origin."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return matrix
