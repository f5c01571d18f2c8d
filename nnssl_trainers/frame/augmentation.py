"""The augmentation of the semi-supervised papers: random crops, flips, turns by 90° and rotations up to 20°."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

GEOMETRIC = (SpatialTransform, Convert2DTo3DTransform, MirrorTransform)
LARGEST_ROTATION, ROTATION_PROBABILITY = math.radians(20), 0.5
SPACING_TOLERANCE = 0.1  # relative; a turn by 90° may exchange two axes whose voxel sizes differ by no more


def use_paper_augmentation(transforms: ComposeTransforms, patch_size: Sequence[int], spacing: Sequence[float]) -> None:
    """Replace nnU-Net's training transforms by those of the semi-supervised papers, in place.

    Crops and flips stay nnU-Net's. Every second patch is rotated by up to 20°; no patch is scaled. Each patch is turned
    by 0, 90, 180 or 270° in one plane whose axes are equal. Intensities stay as they are.

    Args:
        transforms: the result of `nnUNetTrainer.get_training_transforms`; this function changes it.
        patch_size: number of voxels along each axis.
        spacing: voxel size along each axis in mm.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023; later papers use the same augmentation.
    """
    kept = [part for part in transforms.transforms if not isinstance(part, RandomTransform)]
    (spatial,) = (part for part in kept if isinstance(part, SpatialTransform))
    spatial.rotation = (-LARGEST_ROTATION, LARGEST_ROTATION)
    spatial.p_rotation, spatial.p_scaling = ROTATION_PROBABILITY, 0.0
    axes = equal_axes(patch_size, spacing)
    if axes:
        last_geometric = max(i for i, part in enumerate(kept) if isinstance(part, GEOMETRIC))
        kept.insert(last_geometric + 1, Rot90Transform(1, (0, 1, 2, 3), axes))
    transforms.transforms = kept


def equal_axes(patch_size: Sequence[int], spacing: Sequence[float]) -> set[int]:
    """Return the largest set of axes with equal patch size and voxel size; empty where all axes differ."""
    groups = [
        {
            axis
            for axis, (size, mm) in enumerate(zip(patch_size, spacing, strict=True))
            if size == patch_size[first] and abs(mm - spacing[first]) <= SPACING_TOLERANCE * spacing[first]
        }
        for first in range(len(patch_size))
    ]
    largest = max(groups, key=len)
    return largest if len(largest) > 1 else set()
