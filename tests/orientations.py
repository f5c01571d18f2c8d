"""The 48 orders and flips of the axes of a volume, made with SimpleITK: another way to the same images than nnssl's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from typing import Any

import numpy as np
import SimpleITK as sitk

Orientation = tuple[tuple[int, ...], tuple[bool, ...]]

ORIENTATIONS: list[Orientation] = list(product(permutations(range(3)), product((False, True), repeat=3)))
SAME: Orientation = ((0, 1, 2), (False, False, False))
OBLIQUE = (0.36, 0.48, -0.8, -0.8, 0.6, 0.0, 0.48, 0.64, 0.6)  # a rotation that no permutation comes close to
SIZES = {"volume": (7, 6, 5), "thin x": (1, 6, 5), "thin y": (7, 1, 5), "thin z": (7, 6, 1)}  # x, y, z
FILE_SIZES = {name: SIZES[name] for name in ("volume", "thin y")}  # for the slower tests that write files


def name_of(orientation: Orientation) -> str:
    """Return a short name for a test."""
    order, flips = orientation
    return "".join("xyz"[axis] + ("-" if flip else "+") for axis, flip in zip(order, flips, strict=True))


def image_with_corner(size: Sequence[int], *, dtype: Any = np.uint8) -> sitk.Image:
    """Return an oblique image with a box that no flip and no order of the axes brings to itself."""
    array = np.zeros(tuple(size), dtype)
    array[tuple(slice(0, max(1, length // 3 + place)) for place, length in enumerate(size))] = 1
    array[(0,) * len(size)] = 2
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing((0.7, 1.1, 2.9))
    image.SetOrigin((-12.5, 33.0, 140.0))
    image.SetDirection(OBLIQUE)
    return image


def reorient(image: sitk.Image, orientation: Orientation) -> sitk.Image:
    """Return the image with other axes: every voxel keeps its place in space."""
    order, flips = orientation
    permuted = sitk.PermuteAxes(image, order)
    return permuted[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
