"""Losses against labels, restricted to the voxels of a mask."""

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
        values: (B, C, *S); receives the gradient.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.

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
        logits: (B, C, *S); receives the gradient. Half precision is converted to fp32.
        target: LongTensor (B, *S), 0 .. C−1.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, the cross-entropy of L_seg.
    """
    losses = functional.cross_entropy(promote_to_fp32(logits), target, reduction="none")
    return masked_mean(losses.unsqueeze(1), mask)


def masked_dice(
    probs: Tensor,
    target_probs: Tensor,
    mask: Tensor | None = None,
    dice: DiceForm = "squared_batch",
    epsilon: float | None = None,
) -> Tensor:
    """Return 1 − the soft Dice overlap over the voxels that count, averaged over all classes.

    squared_batch: 1 − mean_c (2·Σ m·p·q + ε) / (Σ m·p² + Σ m·q² + ε), sums over batch and voxels, ε = 1e-10
    linear_sample: 1 − mean_bc (2·Σ m·p·q + ε) / (Σ m·p + Σ m·q + ε), sums over voxels, ε = 1e-5
    halved_batch: (1 + squared_batch) / 2, which is squared_batch without its factor 2: the value is at least ½, and
    the gradient is half as large

    Args:
        probs: (B, C, *S), in [0, 1]; receives the gradient. Half precision is converted to fp32.
        target_probs: (B, C, *S), in [0, 1], or one-hot labels of any type; receives no gradient.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.
        dice: one of the forms above. The authors of copy-paste use squared_batch in 2-D and linear_sample in 3-D; the
            authors of PLGDF use halved_batch.
        epsilon: ε; None = the value of the form.

    Returns:
        0-d tensor, in [0, 1], background included. An empty mask, or a class that neither side has, gives the least
        value: 0, or ½ for halved_batch.

    Raises:
        ValueError: `dice` is not one of the three forms.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, the Dice loss of L_seg; the squares are those of
    Milletari et al., V-Net, 3DV 2016, section 3; Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025)
    107956, eq. 10.
    """
    p = promote_to_fp32(probs)
    q = target_probs.detach().to(p.dtype)
    axes = list(range(2, p.ndim))
    weights = 1.0 if mask is None else mask.to(p.dtype)
    counted = q * weights
    if dice in ("squared_batch", "halved_batch"):
        axes = [0, *axes]
        default_epsilon = 1e-10
        size_p, size_q = p.square() * weights, counted * q
    elif dice == "linear_sample":
        default_epsilon = 1e-5
        size_p, size_q = p * weights, counted
    else:
        raise ValueError(f"dice must be squared_batch, linear_sample or halved_batch, got {dice!r}")
    e = default_epsilon if epsilon is None else epsilon
    overlap, size = (p * counted).sum(axes), size_p.sum(axes) + size_q.sum(axes)
    factor = 0.5 if dice == "halved_batch" else 1.0
    return 1 - factor * ((2 * overlap + e) / (size + e)).mean()


def foreground_dice(probs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return 1 − the soft Dice overlap with labels over the voxels that count, averaged over the foreground classes.

    masked_dice(p_c, [y = c], m) for c > 0, in the form squared_batch with ε = 1e-5

    Args:
        probs: (B, C, *S), in [0, 1], channel 0 is background; receives the gradient. Half precision is converted to
            fp32.
        target: LongTensor (B, *S), 0 .. C−1.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.

    Returns:
        0-d tensor, in [0, 1]; 0 when the mask is empty.

    Reference: Milletari et al., V-Net, 3DV 2016, section 3; Lu et al., Enhancing dual network based semi-supervised
    medical image segmentation, Knowledge-Based Systems 2025, eq. 2.
    """
    one_hot = target.unsqueeze(1) == class_numbers(probs, first=1)
    return masked_dice(probs[:, 1:], one_hot, mask, epsilon=1e-5)


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
        logits: (B, C, *S); receives the gradient. Half precision is converted to fp32.
        target: LongTensor (B, *S), 0 .. C−1 or the ignore label.
        mask: (B or 1, 1, *S), 1 = the voxel counts.
        dice: form of the Dice loss, see `masked_dice`.
        ignore_label: voxels with this label do not count; None = the data have no such label.

    Returns:
        0-d tensor; 0 when no voxel counts.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, L_seg; Su, Sun, Adamyk, DSMT-Net, Comput. Biol.
    Chem. 119 (2025) 108579, eq. 15–17. In both papers the box and its outside are two such terms with two weights.
    """
    if ignore_label is not None:
        ignored = target == ignore_label
        target = target.masked_fill(ignored, 0)
        mask = mask.masked_fill(ignored.unsqueeze(1), 0)
    z = promote_to_fp32(logits)
    one_hot, log_probs = (target.unsqueeze(1) == class_numbers(z)).to(z.dtype), z.log_softmax(1)
    cross_entropy = masked_mean(-(log_probs * one_hot).sum(1, keepdim=True), mask)
    return 0.5 * (masked_dice(log_probs.exp(), one_hot, mask, dice) + cross_entropy)


def masked_dice_bce(logits: Tensor, target: Tensor, mask: Tensor, dice: DiceForm = "squared_batch") -> Tensor:
    """Return half the sum of Dice loss and binary cross-entropy, for regions that may overlap (sigmoid heads).

    ½·(masked_dice(σ(z), y, m) + Σ_v m_v·(1/R)·Σ_r BCE(σ(z_vr), y_vr) / Σ_v m_v)

    Args:
        logits: (B, R, *S), one channel for each region; receives the gradient. Half precision is converted to fp32.
        target: (B, R, *S), 0 or 1; receives no gradient.
        mask: (B or 1, 1, *S), 1 = the voxel counts.
        dice: form of the Dice loss, see `masked_dice`.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Reference: as `masked_dice_ce`, with each region as a separate two-class problem.
    """
    z = promote_to_fp32(logits)
    cross_entropy = functional.binary_cross_entropy_with_logits(z, target.detach().to(z.dtype), reduction="none")
    mean_over_regions = cross_entropy.mean(dim=1, keepdim=True)
    return 0.5 * (masked_dice(z.sigmoid(), target, mask, dice) + masked_mean(mean_over_regions, mask))


def class_numbers(probs: Tensor, first: int = 0) -> Tensor:
    """Return the numbers of the classes as a tensor that broadcasts against labels (B, 1, *S).

    Args:
        probs: (B, C, *S); only the shape and the device are used.
        first: first class number.

    Returns:
        LongTensor (C − first, 1, ..., 1) with the values first .. C−1 and one axis of length 1 for each axis of *S.
    """
    numbers = torch.arange(first, probs.shape[1], device=probs.device)
    return numbers.view(-1, *[1] * (probs.ndim - 2))


def promote_to_fp32(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32; a tensor in fp64 stays in fp64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def dice_ce(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    mask: Tensor | None = None,
    form: Literal["normalised", "literal"] = "normalised",
) -> Tensor:
    """Return half the sum of cross-entropy and foreground Dice loss, in which classes can have weights.

    normalised: ½·[ Σ_v w_y·CE_v / Σ_v w_y + mean_{c ≥ 1} w_c·(1 − D_c) ]
    literal: mean over all classes of w_c·½·[ mean_v 1[y = c]·CE_v + 1 − D_c ]
    D_c = (2·Σ p_c·y_c + 1) / (Σ p_c + Σ y_c + 1 + 1e-8), sums over batch and voxels

    Args:
        logits: (B, C, *S); receive the gradient. Half precision is converted to fp32.
        target: LongTensor (B, *S), 0 .. C−1.
        class_weights: (C,), w >= 0; receive no gradient; None = all 1.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.
        form: one of the two forms above.

    Returns:
        0-d tensor, >= 0; 0 when the mask is empty.

    Raises:
        ValueError: `form` has an unknown value.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 2–3 (literal), and the public code of Wang and Li, A&D,
    NeurIPS 2023 (normalised; the code minimises CE − D, which is twice this loss minus a constant).
    """
    if form not in {"normalised", "literal"}:
        raise ValueError(f"form must be normalised or literal, got {form!r}")
    z = promote_to_fp32(logits)
    log_probs, classes = z.log_softmax(1), z.shape[1]
    weights = z.new_ones(classes) if class_weights is None else class_weights.detach().to(z)
    counts = torch.ones_like(z[:, :1]) if mask is None else mask.to(z.dtype).expand_as(z[:, :1])
    one_hot = (target.unsqueeze(1) == class_numbers(z)).to(z.dtype)
    axes = [0, *range(2, z.ndim)]
    entropies = -(log_probs * one_hot * counts).sum(axes)  # of the voxels of each class
    probs, counted = log_probs.exp() * counts, one_hot * counts
    overlap, voxels = (probs * one_hot).sum(axes), counted.sum(axes)
    dice_loss = 1 - (2 * overlap + 1) / (probs.sum(axes) + voxels + 1 + 1e-8)
    least = torch.finfo(z.dtype).tiny
    if form == "literal":
        return 0.5 * (weights * (entropies / voxels.sum().clamp_min(least) + dice_loss)).mean()
    cross_entropy = (weights * entropies).sum() / (weights * voxels).sum().clamp_min(least)
    return 0.5 * (cross_entropy + (weights * dice_loss)[1:].mean())


def dice_of_labels(labels: Tensor, target: Tensor, num_classes: int, mask: Tensor | None = None) -> Tensor:
    """Return the Dice of each class between predicted labels and labels over the whole batch.

    Args:
        labels: LongTensor (B, *S), 0 .. C−1.
        target: LongTensor (B, *S), 0 .. C−1.
        num_classes: C.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.

    Returns:
        (C,), fp32, in [0, 1]; NaN for a class that is in neither.
    """
    counts = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask[:, 0].bool().expand_as(labels)
    values = []
    for c in range(num_classes):  # one class after the other, so that memory does not grow with C
        ours, theirs = (labels == c) & counts, (target == c) & counts
        values.append(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
    return torch.stack(values)
