"""Box filters with one or several side lengths, as sums of shifted slices along one axis after the other.

A sum over `side` values is built by doubling: O(log side) passes over the voxels for each axis. Memory is linear in the
voxels, because windows are never unfolded.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Border: TypeAlias = Literal["replicate", "zero", "valid"]
Windows: TypeAlias = list[tuple[int, Tensor]]


def spatial_axes(tensor: Tensor) -> tuple[int, ...]:
    """Return the numbers of the axes *S of (B, C, *S)."""
    return tuple(range(2, tensor.dim()))


def pad(values: Tensor, before: int, after: int, border: str) -> Tensor:
    """Return (B, C, *S) with more voxels at the two ends of every axis.

    Args:
        values: (B, C, *S); receives the gradient.
        before: number of voxels added at the low end of every axis.
        after: number of voxels added at the high end of every axis.
        border: `replicate` repeats the border voxel; any other value adds zeros.
    """
    mode = "replicate" if border == "replicate" else "constant"
    return nn.functional.pad(values, (before, after) * (values.dim() - 2), mode=mode)


def running_sum(values: Tensor, axis: int, width: int) -> Tensor:
    """Return the sums of `width` consecutive values along an axis; the axis becomes width − 1 shorter.

    The sum of w values is the sum of the first w/2 and of the next w/2 values, plus the last value when w is odd.
    """
    if width == 1:
        return values
    step, odd = width // 2, width % 2
    half, size = running_sum(values, axis, step), values.shape[axis] - width + 1
    total = half.narrow(axis, 0, size) + half.narrow(axis, step, size)
    return total.add_(values.narrow(axis, width - 1, size)) if odd else total


def box_sum(padded: Tensor, size: int) -> Tensor:
    """Return the sums over boxes of side `size`; every spatial axis becomes size − 1 shorter."""
    for axis in spatial_axes(padded):
        padded = running_sum(padded, axis, size)
    return padded


def voxel_count(size: int, image: Tensor, border: Border) -> Tensor:
    """Return the number of voxels that the mean over a window divides by.

    Args:
        size: side of the window.
        image: (B, C, *S); only shape, type and device are used.
        border: `valid` counts the voxels inside the image; the other borders count all voxels of the window.

    Returns:
        0-d tensor, or (1, 1, *S) for `valid`.
    """
    if border != "valid":
        return image.new_full((), size ** (image.dim() - 2))
    return box_sum(pad(torch.ones_like(image[:1, :1]), size // 2, (size - 1) // 2, "zero"), size)


def list_windows(window: int | Tensor, image: Tensor, border: Border, window_range: tuple[int, int]) -> Windows:
    """Return the side lengths in use with the weights of their sums.

    Args:
        window: one side for all voxels, >= 1, taken literally; or integers (B, 1, *S), made odd by adding 1 to even
            sides.
        image: (B, C, *S); only shape, type and device are used.
        border: see `voxel_count`.
        window_range: least and greatest side of a tensor `window`. On a CPU the sides are read from the tensor. On
            other devices reading would wait for the device, so all odd sides of this range are used.

    Returns:
        Pairs (side, weight), smallest side first. The weight is 1/number of voxels where a voxel has this side, else
        0; it broadcasts to (B, 1, *S).

    Raises:
        ValueError: an integer `window` is below 1.
    """
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
    # eq_ on a copy writes 0 and 1 as integers; == would make a bool tensor, whose conversion is slower
    return [(s, odd.clone().eq_(s).to(image.dtype) / voxel_count(s, image, border)) for s in sizes]


def box_mean(values: Tensor, windows: Windows, border: Border = "replicate") -> Tensor:
    """Return the mean over each voxel's window.

    Args:
        values: (B, C, *S); receives the gradient.
        windows: `list_windows` for the same voxels and the same border.
        border: what lies outside the image: `replicate` = the border voxel, `zero` = zeros that count, `valid` =
            nothing.

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
