"""Overlap and surface metrics of label maps, exact and in millimetres.

Conventions. The surface of a mask is the mask minus its erosion by face neighbours; the image border counts as outside.
A structure in neither mask has no value (NaN). A structure in only one mask has the worst value: Dice, Jaccard and NSD
are 0, distances are the image diagonal. Voxels with the ignore label belong to no mask.

Image axes of one voxel do not count, wherever they stand and whatever their spacing: an image of one slice is measured
in its plane, an image of one row on its line. An image of one voxel is measured along its axis of the smallest spacing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from nnssl.data.labels import Label
from nnssl.errors import DataError
from nnssl.evaluation.masks import Mask, MaskPair, mask_pairs

Distances = NDArray[np.float64]

ROUNDING = 1e-9  # relative; a distance of 5 · 0.2 mm is within 1 mm


class StructureMetrics(TypedDict):
    """One structure of one case: `dice`, `jaccard`, `nsd` in [0, 1], distances in mm; NaN if both masks are empty."""

    dice: float
    jaccard: float
    hd95_mm: float
    assd_mm: float
    nsd: float
    missed: bool
    spurious: bool


class VoxelMetrics(TypedDict):
    """The distances of the semi-supervised papers, in voxels."""

    hd95_vox_pooled: float
    asd_vox: float


class OverlapCounts(TypedDict):
    """nnU-Net's numbers under nnU-Net's names: fractions in [0, 1], counts in voxels."""

    Dice: float
    IoU: float
    FP: int
    TP: int
    FN: int
    TN: int
    n_pred: int
    n_ref: int


def segmentation_metrics(
    prediction: ArrayLike,
    reference: ArrayLike,
    spacing_mm: Sequence[float],
    labels: Iterable[Label],
    *,
    nsd_tolerance_mm: float = 1.0,
    ignore_label: int | None = None,
) -> dict[Label, StructureMetrics]:
    """Return overlap and surface metrics for each label.

    With D_pr the distances from the prediction's surface voxels to the reference's surface, and D_rp the reverse:
    HD95 = max(P95(D_pr), P95(D_rp)), percentiles interpolated linearly; ASSD = mean(D_pr ∪ D_rp);
    NSD = share of D_pr ∪ D_rp that is at most `nsd_tolerance_mm`.

    Args:
        prediction: label map, (*S) with 2 or 3 axes.
        reference: label map of the same shape.
        spacing_mm: voxel size along each array axis, in array axis order, mm; along an axis of one voxel the value does
            not matter.
        labels: label values; a tuple of values is a region, their union.
        nsd_tolerance_mm: tolerance of the normalised surface distance, mm, >= 0.
        ignore_label: voxels with this value in the reference belong to neither mask.

    Returns:
        label -> `dice`, `jaccard`, `hd95_mm`, `assd_mm`, `nsd`, `missed` (the structure is only in the reference) and
        `spurious` (only in the prediction). A structure in neither mask: NaN, and both flags False. A structure in one
        mask: Dice, Jaccard and NSD are 0, HD95 and ASSD are the image diagonal, the norm of shape · spacing over the
        axes of several voxels.

    Raises:
        DataError: the shapes differ, the values hold NaN or fractions, or the spacing or a label is not valid.
    """
    spacing = _checked_spacing(spacing_mm, np.shape(reference))
    if not 0 <= nsd_tolerance_mm < math.inf:
        raise DataError(f"the NSD tolerance is {nsd_tolerance_mm} mm", why="a tolerance is a number of mm, 0 or larger")
    return {
        label: _structure_metrics(pair, spacing, nsd_tolerance_mm)
        for label, pair in mask_pairs(prediction, reference, labels, ignore_label)
    }


def voxel_metrics(
    prediction: ArrayLike, reference: ArrayLike, labels: Iterable[Label], *, ignore_label: int | None = None
) -> dict[Label, VoxelMetrics]:
    """Return the distances that semi-supervised papers report: `medpy`'s definitions without a spacing, in voxels.

    `hd95_vox_pooled` = P95(D_pr ∪ D_rp); `asd_vox` = mean(D_pr), from prediction to reference only, so not symmetric.
    medpy raises an error for an empty mask, and the papers' code then writes 0, the best score. Here a structure in one
    mask has the image diagonal in voxels, and a structure in neither mask has NaN.

    Args:
        prediction: label map, (*S) with 2 or 3 axes.
        reference: label map of the same shape.
        labels: label values; a tuple of values is a region.
        ignore_label: voxels with this value in the reference belong to neither mask.

    Raises:
        DataError: the shapes differ, or the values are not labels.
    """
    results: dict[Label, VoxelMetrics] = {}
    for label, whole in mask_pairs(prediction, reference, labels, ignore_label):
        pair, spacing = _without_thin_axes(whole, (1.0,) * len(whole.image_shape))
        worst = _distance_without_surface(pair, spacing)
        if worst is not None:
            results[label] = {"hd95_vox_pooled": worst, "asd_vox": worst}
            continue
        to_reference, to_prediction = surface_distances(pair.prediction, pair.reference, spacing)
        pooled = np.concatenate((to_reference, to_prediction))
        results[label] = {
            "hd95_vox_pooled": float(np.percentile(pooled, 95)),
            "asd_vox": float(to_reference.mean()),
        }
    return results


def overlap_counts(
    prediction: ArrayLike, reference: ArrayLike, labels: Iterable[Label], *, ignore_label: int | None = None
) -> dict[Label, OverlapCounts]:
    """Return nnU-Net's numbers for each label; Dice and IoU are NaN if neither mask has the structure.

    Args:
        prediction: label map, (*S) with 2 or 3 axes.
        reference: label map of the same shape.
        labels: label values; a tuple of values is a region.
        ignore_label: voxels with this value in the reference do not count.

    Raises:
        DataError: the shapes differ, or the values are not labels.
    """
    results: dict[Label, OverlapCounts] = {}
    for label, pair in mask_pairs(prediction, reference, labels, ignore_label):
        both, n_pred, n_ref = pair.counts
        union = n_pred + n_ref - both
        results[label] = {
            "Dice": 2 * both / (n_pred + n_ref) if union else math.nan,
            "IoU": both / union if union else math.nan,
            "FP": n_pred - both,
            "TP": both,
            "FN": n_ref - both,
            "TN": pair.num_counted - union,
            "n_pred": n_pred,
            "n_ref": n_ref,
        }
    return results


def surface(mask: Mask) -> Mask:
    """Return the voxels of the mask that have a face neighbour outside; the image border is outside. Shape (*S)."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for start in (0, 2):
            starts = [start if other == axis else 1 for other in range(mask.ndim)]
            inner &= padded[tuple(slice(first, first + size) for first, size in zip(starts, mask.shape, strict=True))]
    return mask & ~inner


def surface_distances(first: Mask, second: Mask, spacing: Sequence[float]) -> tuple[Distances, Distances]:
    """Return the distance of each surface voxel of one mask to the surface of the other mask, in both directions.

    Args:
        first: a mask that is not empty, (*S).
        second: a mask of the same shape that is not empty.
        spacing: voxel size along each axis; the distances have the same unit.

    Returns:
        (from `first` to `second`, from `second` to `first`), each of shape (number of surface voxels,).
    """
    first_surface, second_surface = surface(first), surface(second)
    return _directed(first_surface, second_surface, spacing), _directed(second_surface, first_surface, spacing)


def _directed(source: Mask, target: Mask, spacing: Sequence[float]) -> Distances:
    nearest = ndimage.distance_transform_edt(~target, sampling=spacing, return_distances=False, return_indices=True)
    points = np.nonzero(source)
    squared = np.zeros(points[0].size)
    for axis, (coordinates, size) in enumerate(zip(points, spacing, strict=True)):
        squared += ((nearest[axis][points] - coordinates) * size) ** 2
    return np.asarray(np.sqrt(squared))


def _without_thin_axes(pair: MaskPair, spacing: Sequence[float]) -> tuple[MaskPair, tuple[float, ...]]:
    """Return masks and spacing without the image axes of one voxel, along which every voxel would be surface."""
    kept = _axes_that_count(pair.image_shape, spacing)
    masks = [mask.reshape([mask.shape[axis] for axis in kept]) for mask in (pair.prediction, pair.reference)]
    shape = tuple(pair.image_shape[axis] for axis in kept)
    return MaskPair(masks[0], masks[1], shape, pair.num_counted), tuple(spacing[axis] for axis in kept)


def _axes_that_count(shape: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """Return the axes of several voxels; in an image of one voxel the axis of the smallest spacing."""
    return [axis for axis, size in enumerate(shape) if size != 1] or [int(np.argmin(spacing))]


def _structure_metrics(whole: MaskPair, spacing_mm: Sequence[float], tolerance: float) -> StructureMetrics:
    pair, spacing = _without_thin_axes(whole, spacing_mm)
    both, n_pred, n_ref = pair.counts
    worst = _distance_without_surface(pair, spacing)
    if worst is None:
        to_reference, to_prediction = surface_distances(pair.prediction, pair.reference, spacing)
        pooled = np.concatenate((to_reference, to_prediction))
        hd95 = float(max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95)))
        assd = float(pooled.mean())
        overlap = 2 * both / (n_pred + n_ref), both / (n_pred + n_ref - both)
        nsd = float(np.count_nonzero(pooled <= tolerance * (1 + ROUNDING)) / pooled.size)
    else:
        hd95 = assd = worst
        nsd = math.nan if math.isnan(worst) else 0.0
        overlap = nsd, nsd
    return {
        "dice": overlap[0],
        "jaccard": overlap[1],
        "hd95_mm": hd95,
        "assd_mm": assd,
        "nsd": nsd,
        "missed": n_ref > 0 and n_pred == 0,
        "spurious": n_pred > 0 and n_ref == 0,
    }


def _distance_without_surface(pair: MaskPair, spacing: Sequence[float]) -> float | None:
    """Return the distance by convention if a mask is empty: NaN for both, the image diagonal for one; else None."""
    if pair.prediction.any() and pair.reference.any():
        return None
    if not pair.prediction.any() and not pair.reference.any():
        return math.nan
    return float(np.linalg.norm(np.multiply(pair.image_shape, spacing)))


def _checked_spacing(spacing_mm: Sequence[float], shape: Sequence[int]) -> tuple[float, ...]:
    """Return the spacing as numbers.

    Raises:
        DataError: the spacing has not one number for each axis, or a number that counts is not positive and finite.
    """
    try:
        spacing = tuple(float(size) for size in spacing_mm)
    except (TypeError, ValueError):
        spacing = ()
    complete = len(spacing) == len(shape)
    if not complete or (shape and not all(0 < spacing[axis] < math.inf for axis in _axes_that_count(shape, spacing))):
        raise DataError(
            f"the spacing is {spacing_mm!r}",
            why=f"a spacing is one positive number of mm for each of the {len(shape)} axes",
        )
    return spacing
