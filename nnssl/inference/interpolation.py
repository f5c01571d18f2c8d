"""nnU-Net's resampling of scans and logits, axis by axis, so that any slab of the result is computed on its own.

Interpolation between voxels is a product of three interpolations along one axis each. nnU-Net computes the whole result
at once, in double precision and with several copies; here a slab takes only the planes that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import spline_filter1d

Array = np.ndarray[Any, Any]

NEAREST, LINEAR, CUBIC = 0, 1, 3
SPLINE_BORDER = 12  # voxels that SciPy repeats on each side before it fits splines
SLAB_BYTES = 67_108_864  # of the double-precision arrays of one slab


@dataclass(frozen=True)
class Taps:
    """Which voxels of one axis, with which weights, make the voxels of the new axis.

    Attributes:
        index: (T, new size), places on the old axis.
        weight: (T, new size), double precision; each column sums to 1.
    """

    index: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def between(cls, size: int, new_size: int, order: int) -> Taps:
        """Return the taps of an axis of `size` voxels that becomes `new_size` voxels of the same length together.

        Args:
            size: old number of voxels, at least 1.
            new_size: new number of voxels, at least 1.
            order: 0 for the nearest voxel, 1 for linear, 3 for cubic B-splines. The cubic taps are places in
                `spline_coefficients`.
        """
        place = (torch.arange(new_size, dtype=torch.float64) + 0.5) * (size / new_size) - 0.5
        if order != CUBIC:  # SciPy evaluates splines beyond the centre of the last voxel
            place.clamp_(0, size - 1)
        if order == NEAREST:
            return cls((place + 0.5).floor().long()[None], torch.ones(1, new_size, dtype=torch.float64))
        low = place.floor()
        t = place - low
        if order == LINEAR:
            index = torch.stack([low, (low + 1).clamp_(max=size - 1)]).long()
            return cls(index, torch.stack([1 - t, t]))
        steps = torch.arange(SPLINE_BORDER - 1, SPLINE_BORDER + 3)[:, None]
        weight = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
        return cls(low.long() + steps, torch.stack(weight) / 6)

    @property
    def is_identity(self) -> bool:
        """Whether the axis stays as it is."""
        places = torch.arange(self.index.shape[1])
        return torch.equal(self.index[0], places) and bool((self.weight[0] == 1).all())

    def part(self, start: int, stop: int) -> tuple[int, int, Taps]:
        """Return the first and the last place, plus 1, that some new voxels need, and their taps counted from there."""
        index = self.index[:, start:stop]
        low, high = int(index.min()), int(index.max()) + 1
        return low, high, Taps(index - low, self.weight[:, start:stop])

    def apply(self, data: torch.Tensor, axis: int) -> torch.Tensor:
        """Return data of double precision on the new axis; the other axes stay."""
        shape = [1] * data.ndim
        shape[axis] = -1
        total = data.index_select(axis, self.index[0])
        if len(self.index) > 1:
            total.mul_(self.weight[0].view(shape))
        for index, weight in zip(self.index[1:], self.weight[1:], strict=True):
            total.addcmul_(data.index_select(axis, index), weight.view(shape))
        return total


def interpolate(data: torch.Tensor, taps: Sequence[Taps], start: int, stop: int) -> torch.Tensor:
    """Return the planes `start` to `stop` along the first axis of a resampled volume, in double precision.

    Args:
        data: (z, y, x), of any floating type.
        taps: of the three axes.
        start: first new plane.
        stop: last new plane, plus 1.

    Returns:
        (stop - start, new y, new x).
    """
    low, high, first = taps[0].part(start, stop)
    planes = data[low:high].double()
    for axis in (2, 1):
        if not taps[axis].is_identity:
            planes = taps[axis].apply(planes, axis)
    return first.apply(planes, 0)


def planes_a_slab(shape: Sequence[int]) -> int:
    """Return how many planes of a new volume (z, y, x) are computed together, at least 1."""
    return max(1, SLAB_BYTES // (3 * 8 * int(shape[1]) * int(shape[2])))


def spline_coefficients(volume: Array) -> Array:
    """Return the coefficients of the cubic B-splines through the voxels of a volume, as SciPy's `zoom` fits them.

    Args:
        volume: (z, y, x).

    Returns:
        (z + 24, y + 24, x + 24), double precision: the border voxels are repeated on each side before the fit.
    """
    border = SPLINE_BORDER
    made = np.empty([size + 2 * border for size in volume.shape])
    made[border:-border, border:-border, border:-border] = volume
    for axis in range(3):
        view = np.moveaxis(made, axis, 0)
        view[:border] = view[border]
        view[-border:] = view[-border - 1]
    for axis in range(3):
        spline_filter1d(made, 3, axis, output=made, mode="nearest")
    return made


def resample_image(data: Array, new_shape: Sequence[int]) -> Array:
    """Return a scan on another grid, with cubic interpolation of all axes, as nnU-Net computes it.

    The largest array beside image and result is one channel in double precision; nnU-Net needs three of them.

    Args:
        data: (C, z, y, x), float32.
        new_shape: new (z, y, x).
    """
    if tuple(data.shape[1:]) == tuple(new_shape):
        return data
    result = np.empty((len(data), *new_shape), data.dtype)
    taps = [Taps.between(size, int(new), CUBIC) for size, new in zip(data.shape[1:], new_shape, strict=True)]
    step = planes_a_slab([0, *(max(pair) for pair in zip(data.shape[2:], new_shape[1:], strict=True))])
    for channel, image in enumerate(data):
        coefficients = torch.from_numpy(spline_coefficients(image))
        low, high = float(image.min()), float(image.max())
        for start in range(0, int(new_shape[0]), step):
            stop = min(start + step, int(new_shape[0]))
            slab = interpolate(coefficients, taps, start, stop).clamp_(low, high)
            result[channel, start:stop] = slab.numpy()
        del coefficients
    return result
