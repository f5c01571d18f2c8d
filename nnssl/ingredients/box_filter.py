"""Box filters of one or several sides: sums of shifted slices, one axis after the other, built by doubling.

O(log side) passes over the voxels an axis, memory linear in the voxels; no unfolding of windows.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Border: TypeAlias = Literal["replicate", "zero", "valid"]
Windows: TypeAlias = list[tuple[int, Tensor]]


def spatial_axes(tensor: Tensor) -> tuple[int, ...]:
    """Return the axes *S of (B, C, *S)."""
    return tuple(range(2, tensor.dim()))


def pad(values: Tensor, before: int, after: int, border: str) -> Tensor:
    """Return (B, C, *S) with that many voxels more at the two ends of every axis: the border's own, or zeros."""
    mode = "replicate" if border == "replicate" else "constant"
    return nn.functional.pad(values, (before, after) * (values.dim() - 2), mode=mode)


def running_sum(values: Tensor, axis: int, width: int) -> Tensor:
    """Return the sums of `width` values in a row along an axis, by doubling; the axis gets width − 1 shorter."""
    if width == 1:
        return values
    step, odd = width // 2, width % 2
    half, size = running_sum(values, axis, step), values.shape[axis] - width + 1
    total = half.narrow(axis, 0, size) + half.narrow(axis, step, size)
    return total.add_(values.narrow(axis, width - 1, size)) if odd else total


def box_sum(padded: Tensor, size: int) -> Tensor:
    """Return the sums over boxes of side `size`; every axis gets size − 1 shorter."""
    for axis in spatial_axes(padded):
        padded = running_sum(padded, axis, size)
    return padded


def voxel_count(size: int, image: Tensor, border: Border) -> Tensor:
    """Return the number of voxels that a window's mean divides by, 0-d or (1, 1, *S)."""
    if border != "valid":
        return image.new_full((), size ** (image.dim() - 2))
    return box_sum(pad(torch.ones_like(image[:1, :1]), size // 2, (size - 1) // 2, "zero"), size)


def sided_windows(window: int | Tensor, image: Tensor, border: Border, window_range: tuple[int, int]) -> Windows:
    """Return the window sides in use, each with its weight: 1/voxels where a voxel has that side, else 0."""
    if isinstance(window, int):
        if window < 1:
            raise ValueError(f"a window has at least 1 voxel, got {window}")
        return [(window, voxel_count(window, image, border).reciprocal())]
    odd = window.to(torch.int16) | 1
    if window.device.type == "cpu":
        sizes = torch.bincount(odd.flatten()).nonzero().flatten().tolist()
    else:
        sizes = list(range(window_range[0] | 1, (window_range[1] | 1) + 1, 2))
        odd = odd.clamp_(sizes[0], sizes[-1])
    return [(s, odd.clone().eq_(s).to(image.dtype) / voxel_count(s, image, border)) for s in sizes]


def box_mean(values: Tensor, windows: Windows, border: Border = "replicate") -> Tensor:
    """Return the mean over each voxel's window.

    Args:
        values: (B, C, *S); the gradient goes here.
        windows: `sided_windows` of the same voxels and border.
        border: voxels outside: `replicate` the border, `zero`, or `valid` = they do not count.

    Returns:
        (B, C, *S).
    """
    largest = windows[-1][0]
    padded = pad(values, largest // 2, (largest - 1) // 2, border)
    mean = torch.zeros_like(values)
    for size, weight in windows:
        total = padded
        for axis in spatial_axes(values):
            total = total.narrow(axis, largest // 2 - size // 2, values.shape[axis] + size - 1)
        mean = mean.addcmul_(box_sum(total, size), weight)
    return mean
