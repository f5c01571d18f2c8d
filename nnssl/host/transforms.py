"""The role of every transform that nnU-Net's training augmentation consists of."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal

from nnssl.errors import EnvironmentProblem

TransformRole = Literal["geometric", "intensity", "masking", "labels"]

PACKAGE = "batchgeneratorsv2.transforms"
KNOWN_TRANSFORMS: Mapping[str, TransformRole] = {
    # Geometric: image and segmentation change together; both views of a patch share these.
    "utils.pseudo2d.Convert3DTo2DTransform": "geometric",
    "utils.pseudo2d.Convert2DTo3DTransform": "geometric",
    "spatial.spatial.SpatialTransform": "geometric",
    "spatial.mirroring.MirrorTransform": "geometric",
    "spatial.rot90.Rot90Transform": "geometric",
    # Intensity: only the image changes, voxel by voxel; the strong view has these.
    "noise.gaussian_blur.GaussianBlurTransform": "intensity",
    "noise.median_filter.MedianFilterTransform": "intensity",
    "noise.rician.RicianNoiseTransform": "intensity",
    "noise.sharpen.SharpeningTransform": "intensity",
    "noise.blank_rectangle.BlankRectangleTransform": "intensity",
    "intensity.brightness.MultiplicativeBrightnessTransform": "intensity",
    "intensity.brightness.BrightnessAdditiveTransform": "intensity",
    "intensity.contrast.ContrastTransform": "intensity",
    "intensity.gamma.GammaTransform": "intensity",
    "intensity.gaussian_noise.GaussianNoiseTransform": "intensity",
    "intensity.inversion.InvertImageTransform": "intensity",
    "intensity.random_clip.CutOffOutliersTransform": "intensity",
    "local.brightness_gradient.BrightnessGradientAdditiveTransform": "intensity",
    "local.local_contrast.LocalContrastTransform": "intensity",
    "local.local_gamma.LocalGammaTransform": "intensity",
    "local.local_smoothing.LocalSmoothingTransform": "intensity",
    "spatial.low_resolution.SimulateLowResolutionTransform": "intensity",
    # Masking: voxels outside the body become zero; the last step of both views.
    "utils.nnunet_masking.MaskImageTransform": "masking",
    # Labels: only the segmentation changes; unlabelled patches do without these.
    "utils.remove_label.RemoveLabelTransform": "labels",
    "utils.seg_to_regions.ConvertSegmentationToRegionsTransform": "labels",
    "utils.deep_supervision_downsampling.DownsampleSegForDSTransform": "labels",
}
"""Class of a transform, as its path below batchgeneratorsv2.transforms, and its role."""


def transform_role(transform: Any) -> TransformRole:  # noqa: ANN401 - BasicTransform
    """Return the role of a transform; a `RandomTransform` has the role of the transform that it applies.

    Subclasses have the role of the class that they derive from.

    Raises:
        EnvironmentProblem: the class is not in `KNOWN_TRANSFORMS`.
    """
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    if isinstance(transform, RandomTransform):
        return transform_role(transform.transform)
    for ancestor in type(transform).__mro__:
        role = KNOWN_TRANSFORMS.get(f"{ancestor.__module__}.{ancestor.__qualname__}".removeprefix(f"{PACKAGE}."))
        if role is not None:
            return role
    raise EnvironmentProblem(
        f"nnssl does not know the transform {type(transform).__name__} of nnU-Net's training augmentation",
        where=f"{type(transform).__module__}.{type(transform).__qualname__}",
        why=f"nnunetv2 {version('nnunetv2')} with batchgeneratorsv2 {version('batchgeneratorsv2')} uses this class; "
        "nnssl must know whether both views of an unlabelled patch share the transform",
        run="install the nnU-Net that nnssl requires: pip install --upgrade nnssl-semi; "
        "for a transform of your own, add its class to KNOWN_TRANSFORMS in nnssl/host/transforms.py",
    )
