"""Surface metrics: which share of the contours of two masks lies close together, and how far apart they are at most.

Computed by DeepMind's `surface-distance` (https://github.com/google-deepmind/surface-distance), which divides contours
of images and surfaces of volumes into pieces between pixels. The sides of a pixel and the distance between slices are
1.
"""

import importlib.util
import warnings
from typing import Any

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.masks.geometry import IGNORE


def surface_counts(predicted: np.ndarray, true: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """Returns sizes of surfaces (4, C) float64: the parts of the true and of the predicted surface that lie within a
    tolerance of the other one, then the whole true and the whole predicted surface.

    Args:
        predicted: masks (C, h, w) of 0 and 1, or of all slices of a volume (C, n, h, w).
        true: true masks of the same shape, of 0, 1 and 255 (ignored).
        tolerance: maximum distance in pixels.

    Raises:
        PipelineError: `surface-distance` is not installed.
    """
    return np.stack([_close(*pair, tolerance) for pair in _pairs(predicted, true)], axis=1)


def surface_dice(true_close: np.ndarray, predicted_close: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> Any:
    """Returns the share of both surfaces that lies close to the other one; 1 if both masks are empty."""
    total = np.asarray(true, np.float64) + predicted
    close = np.asarray(true_close, np.float64) + predicted_close
    return np.where(total == 0, 1.0, close / np.where(total == 0, 1.0, total))


def hausdorff_counts(predicted: np.ndarray, true: np.ndarray, percentile: float = 100.0) -> np.ndarray:
    """Returns the Hausdorff distance of the surfaces (1, C) float64 in an image or volume with sides of length 1, as a
    share of its diagonal: 0 if both masks are empty, 1 if only one is.

    Args:
        predicted: as in surface_counts.
        true: as in surface_counts.
        percentile: the share of the surface, in percent, that lies within the distance.

    Raises:
        PipelineError: `surface-distance` is not installed.
    """
    return np.array([[_farthest(*pair, percentile) for pair in _pairs(predicted, true)]])


def hausdorff(distance: np.ndarray) -> np.ndarray:
    """Returns 1 minus a distance that is a share of the diagonal; 1 is perfect. UW-Madison GI Tract uses this score."""
    return 1.0 - np.asarray(distance, np.float64)


def _pairs(predicted: np.ndarray, true: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    counted = true != IGNORE
    return list(zip((predicted == 1) & counted, true == 1, strict=True))


def _close(predicted: np.ndarray, true: np.ndarray, tolerance: float) -> list[float]:
    spacing = (1.0,) * true.ndim
    if not predicted.any() or not true.any():  # version 0.1 of the library fails here with NumPy 2
        areas = [float(_distances(mask, mask, spacing)["surfel_areas_gt"].sum()) for mask in (true, predicted)]
        return [0.0, 0.0, *areas]
    distances = _distances(predicted, true, spacing)
    of_true, of_predicted = distances["surfel_areas_gt"], distances["surfel_areas_pred"]
    return [
        float(of_true[distances["distances_gt_to_pred"] <= tolerance].sum()),
        float(of_predicted[distances["distances_pred_to_gt"] <= tolerance].sum()),
        float(of_true.sum()),
        float(of_predicted.sum()),
    ]


def _farthest(predicted: np.ndarray, true: np.ndarray, percentile: float) -> float:
    if not predicted.any() or not true.any():
        return float(predicted.any() != true.any())
    spacing = tuple(1 / size for size in true.shape)
    distances = _distances(predicted, true, spacing)
    return min(1.0, float(_library().compute_robust_hausdorff(distances, percentile)) / true.ndim**0.5)


def _distances(predicted: np.ndarray, true: np.ndarray, spacing: tuple[float, ...]) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the library uses old names of SciPy
        distances: dict[str, np.ndarray] = _library().compute_surface_distances(true, predicted, spacing)
    return distances


def _library() -> Any:
    if importlib.util.find_spec("surface_distance") is None:
        raise PipelineError(
            "surface metrics need DeepMind's surface-distance, which is not installed: pip install surface-distance, "
            "or in a clone of the repository pip install '.[surface]'."
        )
    import surface_distance

    return surface_distance
