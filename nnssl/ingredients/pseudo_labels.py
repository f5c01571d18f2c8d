"""Labels derived from predictions."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from nnssl.ingredients.supervised import promote_to_fp32


def largest_component(labels: Tensor, num_classes: int, exempt: tuple[int, ...] = ()) -> Tensor:
    """Return the labels with only the largest connected component of each foreground class; the rest is background.

    Voxels that share a face, an edge or a corner are connected (8 neighbours in 2-D, 26 in 3-D). Of components of
    equal size the first in raster order (last axis fastest) stays. The function runs on the CPU, within the bounding
    box of each class.

    Args:
        labels: LongTensor (B, *S); unchanged. For region maps (B, R, *S) pass `maps.flatten(0, 1)` and two classes.
        num_classes: number of classes with background, >= 2; labels outside 1 .. num_classes − 1 stay as they are.
        exempt: classes that keep all their components, for structures that consist of several pieces.

    Returns:
        LongTensor (B, *S) on the device of `labels`.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, the teacher's pseudo-labels; Su, Sun, Adamyk,
    DSMT-Net, Comput. Biol. Chem. 119 (2025) 108579, the targets of eq. 15–17.
    """
    cleaned = labels.detach().to("cpu", copy=True)
    for image in cleaned.numpy():
        for label, box in enumerate(ndimage.find_objects(image, num_classes - 1), start=1):
            if box is None or label in exempt:
                continue
            region = image[box]
            components, _ = ndimage.label(region == label, structure=np.ones([3] * region.ndim))
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            region[(components > 0) & (components != sizes.argmax())] = 0
    return cleaned.to(labels.device)


def confident_voxels(probs: Tensor, least: float, regions: bool = False) -> Tensor:
    """Return the voxels whose likeliest class has at least a given probability.

    max_c p_vc ≥ least;  regions: min_r max(p_vr, 1 − p_vr) ≥ least

    Args:
        probs: (B, C, *S), in [0, 1]; receives no gradient.
        least: the least probability, in [0, 1]; 0 takes every voxel.
        regions: the channels are independent probabilities (sigmoid heads); every channel must be confident.

    Returns:
        BoolTensor (B, 1, *S).
    """
    if regions:
        return torch.maximum(probs, 1 - probs).amin(1, keepdim=True) >= least
    return probs.amax(1, keepdim=True) >= least


def sharpen(probs: Tensor, temperature: float, binary: bool = False) -> Tensor:
    """Return the probabilities raised to the power 1/T and normalised again, computed in log space.

    p_c^{1/T} / Σ_j p_j^{1/T}
    binary: p^{1/T} / (p^{1/T} + (1 − p)^{1/T}), the same formula for the two classes p and 1 − p

    Args:
        probs: (B, C, *S), in [0, 1]; receives the gradient. Half precision is converted to fp32.
        temperature: T > 0; a value below 1 sharpens, 1 changes nothing, a value above 1 flattens.
        binary: sharpen each channel against its complement, for regions (sigmoid heads).

    Returns:
        (B, C, *S), fp32 or fp64.

    Raises:
        ValueError: `temperature` is not positive.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956, eq. 4, for two classes.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    p = promote_to_fp32(probs)
    tiny = torch.finfo(p.dtype).tiny
    logs = p.clamp_min(tiny).log()
    if binary:
        return ((logs - (1 - p).clamp_min(tiny).log()) / temperature).sigmoid()
    return (logs / temperature).softmax(1)


def cross_pseudo_labels(
    probs: Tensor, threshold: float, below: Literal["background", "ignore"] = "background"
) -> Tensor:
    """Return the labels that one network teaches the other: its likeliest class where that class is likely enough.

    q_v = argmax_c p_vc  where  max_c p_vc > threshold,  else 0 (background) or −1 (ignore)

    Args:
        probs: (B, C, *S), in [0, 1]; receives no gradient.
        threshold: probability that a label must exceed, in [0, 1].
        below: value of the voxels that do not exceed the threshold.

    Returns:
        LongTensor (B, *S).

    Raises:
        ValueError: `below` is neither background nor ignore.

    Reference: Lu et al., Enhancing dual network based semi-supervised medical image segmentation with
    uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025, eq. 7.
    """
    if below not in {"background", "ignore"}:
        raise ValueError(f"below must be background or ignore, got {below!r}")
    confidence, labels = probs.max(1)
    return labels.masked_fill(confidence <= threshold, 0 if below == "background" else -1)


def fuse_labels(probs_a: Tensor, probs_b: Tensor) -> Tensor:
    """Return one label for each voxel from two predictions; a voxel is foreground where either prediction says so.

    Where one prediction is background, the label is the class of the other. Where both are foreground, the label is
    the class with the larger probability, or the class of a on a tie. For two classes the result is the OR of the
    foregrounds.

    Args:
        probs_a: (B, C, *S), in [0, 1], channel 0 is background; receives no gradient.
        probs_b: (B, C, *S), as `probs_a`.

    Returns:
        LongTensor (B, *S).

    Reference: Lu et al., Knowledge-Based Systems 2025, target of eq. 11, for two classes. The rule for more classes is
    an extension.
    """
    (confidence_a, a), (confidence_b, b) = probs_a.max(1), probs_b.max(1)
    return torch.where((b == 0) | ((a != 0) & (confidence_a >= confidence_b)), a, b)


def entropy_weighted_ensemble(probs_1: Tensor, probs_2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of two predictions, in which the more certain one has the larger weight in each voxel.

    ω·p_1 + (1 − ω)·p_2,  ω = e^(−H_1) / (e^(−H_1) + e^(−H_2)) = σ(H_2 − H_1),  H = −Σ_c p_c·log_2(p_c + 1e-10)

    Args:
        probs_1: (B, C, *S), in [0, 1]; receives the gradient. Half precision is converted to fp32.
        probs_2: (B, C, *S), as `probs_1`.

    Returns:
        probs: (B, C, *S), sums to 1 over C where both predictions do, in fp32 or fp64.
        weight_1: (B, 1, *S), ω, in (0, 1).

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 8–10: the entropy is in bits and the exponent natural. The
    form is that of Zhao et al., AD-MT, ECCV 2024.
    """
    p, q = promote_to_fp32(probs_1), promote_to_fp32(probs_2)
    bits_p, bits_q = [-(x * (x + 1e-10).log2()).sum(1, keepdim=True) for x in (p, q)]
    weight = (bits_q - bits_p).sigmoid()
    return weight * p + (1 - weight) * q, weight
