"""Losses against labels, on the voxels of a mask."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

DiceForm: TypeAlias = Literal["squared_batch", "linear_sample", "halved_batch"]


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean of the values that count.

    Σ_v m_v·a_v / Σ_v m_v

    Args:
        values: (B, C, *S); the gradient goes here.
        mask: (B or 1, 1, *S), 1 = counts; None counts every voxel.

    Returns:
        0-d tensor; 0 when the mask is empty.
    """
    if mask is None:
        return values.mean()
    weights = mask.to(values.dtype).expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)


def masked_cross_entropy(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy over the voxels that count.

    −Σ_v m_v·log softmax(z_v)[y_v] / Σ_v m_v

    Args:
        logits: (B, C, *S); the gradient goes here. Half precision is taken to fp32.
        target: LongTensor (B, *S), 0 .. C−1.
        mask: (B or 1, 1, *S), 1 = counts; None counts every voxel.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, the cross-entropy of L_seg.
    """
    return masked_mean(functional.cross_entropy(at_least_fp32(logits), target, reduction="none").unsqueeze(1), mask)


def masked_dice(
    probs: Tensor,
    target_probs: Tensor,
    mask: Tensor | None = None,
    dice: DiceForm = "squared_batch",
    epsilon: float | None = None,
) -> Tensor:
    """Return 1 − the soft Dice overlap over the voxels that count, mean over all classes.

    squared_batch: 1 − mean_c (2·Σ m·p·q + ε) / (Σ m·p² + Σ m·q² + ε), sums over batch and voxels, ε = 1e-10
    linear_sample: 1 − mean_bc (2·Σ m·p·q + ε) / (Σ m·p + Σ m·q + ε), sums over voxels, ε = 1e-5
    halved_batch: (1 + squared_batch) / 2, the first without its factor 2: at least ½, half the gradient

    Args:
        probs: (B, C, *S), in [0, 1]; the gradient goes here. Half precision is taken to fp32.
        target_probs: (B, C, *S), in [0, 1] or one-hot labels of any type; detached.
        mask: (B or 1, 1, *S), 1 = counts; None counts every voxel.
        dice: the form; the first is what the authors of copy-paste use in 2-D, the second what they use in 3-D, the
            third what the authors of PLGDF use.
        epsilon: another ε than the form's.

    Returns:
        0-d tensor, in [0, 1], background included; least (0, or ½ of `halved_batch`) when the mask is empty, and for
        a class that neither side has.

    Raises:
        ValueError: `dice` is none of the three forms.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, the Dice loss of L_seg; the squares are of
    Milletari et al., V-Net, 3DV 2016, section 3; Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025)
    107956, eq. 10.
    """
    p = at_least_fp32(probs)
    q, axes = target_probs.detach().to(p.dtype), list(range(2, p.ndim))
    weights = 1.0 if mask is None else mask.to(p.dtype)
    counted = q * weights
    if dice in ("squared_batch", "halved_batch"):
        axes, least, sizes = [0, *axes], 1e-10, (p.square() * weights, counted * q)
    elif dice == "linear_sample":
        least, sizes = 1e-5, (p * weights, counted)
    else:
        raise ValueError(f"dice must be squared_batch, linear_sample or halved_batch, got {dice!r}")
    overlap, size = (p * counted).sum(axes), sizes[0].sum(axes) + sizes[1].sum(axes)
    share, least = 0.5 if dice == "halved_batch" else 1.0, least if epsilon is None else epsilon
    return 1 - share * ((2 * overlap + least) / (size + least)).mean()


def foreground_dice(probs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return 1 − the soft Dice overlap with labels over the voxels that count, mean over the foreground classes.

    masked_dice(p_c, [y = c], m) for c > 0, with squares, sums over the batch, and ε = 1e-5

    Args:
        probs: (B, C, *S), in [0, 1], channel 0 is background; the gradient goes here. Half precision is taken to fp32.
        target: LongTensor (B, *S), 0 .. C−1.
        mask: (B or 1, 1, *S), 1 = counts; None counts every voxel.

    Returns:
        0-d tensor, in [0, 1]; 0 when the mask is empty.

    Reference: Milletari et al., V-Net, 3DV 2016, section 3; Lu et al., Enhancing dual network based semi-supervised
    medical image segmentation, Knowledge-Based Systems 2025, eq. 2.
    """
    classes = torch.arange(1, probs.shape[1], device=probs.device).view(-1, *[1] * (probs.ndim - 2))
    return masked_dice(probs[:, 1:], target.unsqueeze(1) == classes, mask, epsilon=1e-5)


def masked_dice_ce(
    logits: Tensor,
    target: Tensor,
    mask: Tensor,
    dice: DiceForm = "squared_batch",
    ignore_label: int | None = None,
) -> Tensor:
    """Return half the sum of Dice loss and cross-entropy over the voxels that count.

    ½·(masked_dice(softmax z, one-hot y, m) + masked_cross_entropy(z, y, m))

    Args:
        logits: (B, C, *S); the gradient goes here. Half precision is taken to fp32.
        target: LongTensor (B, *S), 0 .. C−1 or the ignore label.
        mask: (B or 1, 1, *S), 1 = counts.
        dice: form of the Dice loss, see `masked_dice`.
        ignore_label: voxels with this label do not count; None = there is no such label.

    Returns:
        0-d tensor; 0 when no voxel counts.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, L_seg; Su, Sun, Adamyk, DSMT-Net, Comput. Biol.
    Chem. 119 (2025) 108579, eq. 15–17. There the box and its outside are two such terms with their own weights.
    """
    if ignore_label is not None:
        ignored = target == ignore_label
        target = target.masked_fill(ignored, 0)
        mask = mask.masked_fill(ignored.unsqueeze(1), 0)
    z = at_least_fp32(logits)
    classes = torch.arange(z.shape[1], device=z.device).view(-1, *[1] * (z.ndim - 2))
    one_hot, log_probs = (target.unsqueeze(1) == classes).to(z.dtype), z.log_softmax(1)
    cross_entropy = masked_mean(-(log_probs * one_hot).sum(1, keepdim=True), mask)
    return 0.5 * (masked_dice(log_probs.exp(), one_hot, mask, dice) + cross_entropy)


def masked_dice_bce(logits: Tensor, target: Tensor, mask: Tensor, dice: DiceForm = "squared_batch") -> Tensor:
    """Return half the sum of Dice loss and binary cross-entropy, for regions that may overlap (sigmoid heads).

    ½·(masked_dice(σ(z), y, m) + Σ_v m_v·(1/R)·Σ_r BCE(σ(z_vr), y_vr) / Σ_v m_v)

    Args:
        logits: (B, R, *S), one channel for each region; the gradient goes here. Half precision is taken to fp32.
        target: (B, R, *S), 0 or 1; detached.
        mask: (B or 1, 1, *S), 1 = counts.
        dice: form of the Dice loss, see `masked_dice`.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Reference: as `masked_dice_ce`, each region a two-class problem of its own.
    """
    z = at_least_fp32(logits)
    cross_entropy = functional.binary_cross_entropy_with_logits(z, target.detach().to(z.dtype), reduction="none")
    mean_over_regions = cross_entropy.mean(dim=1, keepdim=True)
    return 0.5 * (masked_dice(z.sigmoid(), target, mask, dice) + masked_mean(mean_over_regions, mask))


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32, or in fp64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
