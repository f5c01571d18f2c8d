"""Splits two label maps into one pair of masks for each structure, cropped to the voxels that the pair occupies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from nnssl.data.labels import Label
from nnssl.errors import DataError

Mask = NDArray[np.bool_]
Box = tuple[slice, ...]

LARGEST_INDEXED_VALUE = 65535  # find_objects allocates one entry a value


@dataclass(frozen=True)
class MaskPair:
    """One structure in prediction and reference.

    Attributes:
        prediction: mask of the prediction, cropped to the joint bounding box; shape (*S), zero-sized if both are empty.
        reference: mask of the reference in the same crop.
        image_shape: shape of the uncropped label maps.
        num_counted: number of voxels of the whole image that are not ignored.
    """

    prediction: Mask
    reference: Mask
    image_shape: tuple[int, ...]
    num_counted: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """Voxels in both masks, in the prediction and in the reference."""
        both = int(np.count_nonzero(self.prediction & self.reference))
        return both, int(np.count_nonzero(self.prediction)), int(np.count_nonzero(self.reference))


def label_map(array: ArrayLike, name: str) -> NDArray[np.integer[Any]]:
    """Return `array` as integers.

    Args:
        array: label values, (*S) with 2 or 3 axes; integers, booleans, or whole numbers stored as floats.
        name: what the array is, for messages.

    Raises:
        DataError: NaN, infinity, fractions, another kind of values, or another number of axes.
    """
    values = np.asarray(array)
    if values.ndim not in (2, 3):
        raise DataError(
            f"the {name} has {values.ndim} axes", why=f"a label map has 2 or 3; this shape is {values.shape}"
        )
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DataError(f"the {name} holds NaN or infinity", why="label values are whole numbers")
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int32)
        if not np.array_equal(whole, values):
            raise DataError(f"the {name} holds no labels", why="label values are whole numbers, not probabilities")
        return whole
    if values.dtype.kind not in "iu":
        raise DataError(f"the {name} holds values of type {values.dtype}", why="label values are whole numbers")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def mask_pairs(
    prediction: ArrayLike, reference: ArrayLike, labels: Iterable[Label], ignore_label: int | None = None
) -> Iterator[tuple[Label, MaskPair]]:
    """Yield each label with its two masks.

    Args:
        prediction: label map, (*S) with 2 or 3 axes.
        reference: label map of the same shape.
        labels: label values; a tuple of values is a region, their union.
        ignore_label: voxels with this value in the reference belong to no mask and do not count.

    Raises:
        DataError: the shapes differ, the values are not labels, or a label is not a whole number.
    """
    predicted, wanted = label_map(prediction, "prediction"), label_map(reference, "reference")
    if predicted.shape != wanted.shape:
        raise DataError(
            "prediction and reference differ in shape", why=f"prediction {predicted.shape}, reference {wanted.shape}"
        )
    checked = [_checked_label(label, ignore_label) for label in labels]
    values = {value for label in checked for value in _values(label)}
    predicted_boxes, wanted_boxes = _boxes(predicted, values), _boxes(wanted, values)
    num_counted = wanted.size - (0 if ignore_label is None else int(np.count_nonzero(wanted == ignore_label)))
    for label in checked:
        box = _joint([boxes[value] for boxes in (predicted_boxes, wanted_boxes) for value in _values(label)])
        crop = (slice(0, 0),) * wanted.ndim if box is None else box
        masks = [_mask(array[crop], label) for array in (predicted, wanted)]
        if ignore_label is not None:
            masks = [mask & (wanted[crop] != ignore_label) for mask in masks]
        yield label, MaskPair(masks[0], masks[1], wanted.shape, num_counted)


def _values(label: Label) -> tuple[int, ...]:
    return label if isinstance(label, tuple) else (label,)


def _checked_label(label: Any, ignore_label: int | None) -> Label:  # noqa: ANN401 - callers pass anything
    values = tuple(label) if isinstance(label, tuple | list) else (label,)
    if not values or not all(isinstance(value, int | np.integer) for value in values):
        raise DataError(f"{label!r} is not a label", why="a label is a whole number, or a tuple of them for a region")
    if ignore_label is not None and ignore_label in values:
        raise DataError(f"label {label!r} holds the ignore label {ignore_label}", why="ignored voxels are not scored")
    whole = tuple(int(value) for value in values)
    return whole if isinstance(label, tuple | list) else whole[0]


def _mask(crop: NDArray[np.integer[Any]], label: Label) -> Mask:
    return np.isin(crop, label) if isinstance(label, tuple) else np.asarray(crop == label)


def _boxes(array: NDArray[np.integer[Any]], values: Iterable[int]) -> dict[int, Box | None]:
    """Return the bounding box of each value, None for absent values; values too large for the index get the image."""
    whole = tuple(slice(0, size) for size in array.shape)
    boxes: dict[int, Box | None] = dict.fromkeys(values, whole)
    indexed = [value for value in boxes if 0 < value <= LARGEST_INDEXED_VALUE]
    found = ndimage.find_objects(array, max(indexed)) if indexed else []
    return boxes | {value: found[value - 1] for value in indexed}


def _joint(boxes: Iterable[Box | None]) -> Box | None:
    present = [box for box in boxes if box is not None]
    if not present:
        return None
    return tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*present, strict=True)
    )
