"""The papers' augmentation in place of nnU-Net's: random crops, flips, turns by 90° and rotations up to 20°."""

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
SPACING_TOLERANCE = 0.1  # voxels of axes whose sizes differ by less are turned into each other


def use_paper_augmentation(transforms: ComposeTransforms, patch_size: Sequence[int], spacing: Sequence[float]) -> None:
    """Change nnU-Net's training transforms into those of the semi-supervised papers, in place.

    Crops and flips are nnU-Net's. Rotations reach 20° and happen in every second patch, scaling never. Patches are
    turned by 0, 90, 180 or 270° in one plane of equal axes. No intensity changes.

    Args:
        transforms: what `nnUNetTrainer.get_training_transforms` returned.
        patch_size: voxels an axis.
        spacing: voxel size an axis in mm.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, and the papers that took over its augmentation.
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
    """Return the axes that can be turned into each other: of equal size and voxel size; empty where no two are."""
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
