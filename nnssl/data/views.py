"""Weak and strong views of unlabelled patches, made of nnU-Net's own augmentations."""

from __future__ import annotations

import copy
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

GEOMETRIC = (Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform, MirrorTransform)


class TwoViews(BasicTransform):
    """Turn one patch (C, *S) into a weak and a strong view of the same geometry, stacked as (2C, *S).

    Both views share rotation, scaling and mirroring; the strong one also gets the intensity augmentations. The
    segmentation keeps -1 where the voxel is padding, so it serves as the map of voxels that count.

    Args:
        geometric: transforms of image and segmentation.
        intensity: transforms of the image alone.
        masking: transforms that set voxels outside the body to zero, after both.
    """

    def __init__(
        self, geometric: list[BasicTransform], intensity: list[BasicTransform], masking: list[BasicTransform]
    ) -> None:
        super().__init__()
        self.geometric, self.intensity, self.masking = map(ComposeTransforms, (geometric, intensity, masking))

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:  # noqa: ANN401, ARG002
        """Return image (2C, *S) = weak, strong; segmentation (1, *S)."""
        weak = self.geometric(**data_dict)
        strong = self.intensity(image=weak["image"].clone())
        segmentation = weak["segmentation"]
        views = [self.masking(image=view["image"], segmentation=segmentation)["image"] for view in (weak, strong)]
        return {"image": torch.cat(views, dim=0), "segmentation": segmentation}


def two_views(training: ComposeTransforms, strong_probability: float) -> TwoViews:
    """Return the view maker that fits nnU-Net's training transforms of the same configuration.

    Args:
        training: what `nnUNetTrainer.get_training_transforms` returned.
        strong_probability: each intensity augmentation of the strong view happens with at least this probability,
            in [0, 1] (nnU-Net's own lie between 0.1 and 0.3).
    """
    parts = copy.deepcopy(training.transforms)
    geometric = [part for part in parts if isinstance(part, GEOMETRIC)]
    intensity = [part for part in parts if isinstance(part, RandomTransform)]
    for part in intensity:
        part.apply_probability = max(part.apply_probability, strong_probability)
    return TwoViews(geometric, intensity, [part for part in parts if isinstance(part, MaskImageTransform)])


def make_reproducible(transforms: ComposeTransforms) -> ComposeTransforms:
    """Return the transforms with nnU-Net's blur no longer choosing its algorithm by timing it.

    The two algorithms round differently, so that the same seed would give different patches from run to run.
    """
    for part in transforms.transforms:
        inner = part.transform if isinstance(part, RandomTransform) else part
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
    return transforms
