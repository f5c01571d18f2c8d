"""Weak and strong views of unlabelled patches, built from nnU-Net's own augmentation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from nnssl.host.transforms import TransformRole, transform_role


class TwoViews(BasicTransform):
    """Turn one patch (C, *S) into a weak and n strong views with the same geometry, stacked as ((1 + n)·C, *S).

    All views share rotation, scaling and mirroring. Each strong view has an intensity augmentation of its own. The
    segmentation keeps -1 where a voxel is padding or lies outside the body, so a loss can tell which voxels count.

    Args:
        geometric: transforms of image and segmentation.
        intensity: transforms of the image alone.
        masking: transforms that set voxels outside the body to zero, after the others.
        strong_views: n, at least 0.
    """

    def __init__(
        self,
        geometric: list[BasicTransform],
        intensity: list[BasicTransform],
        masking: list[BasicTransform],
        strong_views: int = 1,
    ) -> None:
        super().__init__()
        self.strong_views = strong_views
        self.geometric, self.intensity, self.masking = map(ComposeTransforms, (geometric, intensity, masking))

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:  # noqa: ANN401, ARG002
        """Return the image ((1 + n)·C, *S), the weak view first, and the segmentation (1, *S)."""
        weak = self.geometric(**data_dict)
        strong = [self.intensity(image=weak["image"].clone()) for _ in range(self.strong_views)]
        segmentation = weak["segmentation"]
        views = [self.masking(image=view["image"], segmentation=segmentation)["image"] for view in (weak, *strong)]
        return {"image": torch.cat(views, dim=0), "segmentation": segmentation}


def two_views(training: ComposeTransforms, strong_probability: float, strong_views: int = 1) -> TwoViews:
    """Return the transform that makes the views from nnU-Net's training transforms of the same configuration.

    Transforms that change labels only are left out.

    Args:
        training: what `nnUNetTrainer.get_training_transforms` returned; stays as it is.
        strong_probability: least probability of each intensity augmentation in the strong view, in [0, 1] (nnU-Net's
            own probabilities lie between 0.1 and 0.3).
        strong_views: number of strong views.

    Raises:
        EnvironmentProblem: nnssl does not know the role of a transform.
    """
    by_role: dict[TransformRole, list[BasicTransform]] = {"geometric": [], "intensity": [], "masking": [], "labels": []}
    for part in copy.deepcopy(training.transforms):
        by_role[transform_role(part)].append(part)
    for part in by_role["intensity"]:
        if isinstance(part, RandomTransform):
            part.apply_probability = max(part.apply_probability, strong_probability)
    return TwoViews(by_role["geometric"], by_role["intensity"], by_role["masking"], strong_views)


def make_reproducible(transforms: ComposeTransforms) -> ComposeTransforms:
    """Stop nnU-Net's blur from choosing its algorithm by timing; return the same transforms.

    The two algorithms round differently, so the choice would make patches differ between runs with the same seed.
    """
    for part in transforms.transforms:
        inner = part.transform if isinstance(part, RandomTransform) else part
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False
    return transforms
