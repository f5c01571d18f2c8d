"""Losses that ask two predictions for the same scan to agree."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from nnssl.ingredients.supervised import masked_dice, masked_mean


def probability_mse(probs: Tensor, target_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of two predictions over the voxels that count.

    Σ_v m_v · (1/C)·Σ_c (p_vc − q_vc)² / Σ_v m_v

    Args:
        probs: (B, C, *S), in [0, 1]; the gradient goes here.
        target_probs: (B, C, *S), in [0, 1]; detached.
        mask: (B, 1, *S), 1 = counts; None counts every voxel.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Reference: Tarvainen and Valpola, NeurIPS 2017, J(θ) of section 2 with mean squared error as the distance.
    """
    difference = (probs - target_probs.detach()).square().mean(dim=1, keepdim=True)
    return masked_mean(difference, mask)


def soft_dice_distance(probs: Tensor, target_probs: Tensor, form: Literal["squared", "linear"] = "squared") -> Tensor:
    """Return 1 − the soft Dice overlap of two predictions, mean over all classes.

    squared: 1 − mean_c (2·Σ p·q + ε) / (Σ p² + Σ q² + ε), sums over batch and voxels, ε = 1e-10; least where p = q
    linear: 1 − mean_bc (2·Σ p·q + ε) / (Σ p + Σ q + ε), sums over voxels, ε = 1e-5; drives p towards one
    class per voxel, also where q is soft

    Args:
        probs: (B, C, *S), in [0, 1]; the gradient goes here. Half precision is taken to fp32.
        target_probs: (B, C, *S), in [0, 1]; detached.
        form: which of the two.

    Returns:
        0-d tensor, in [0, 1], background included.

    Raises:
        ValueError: `form` is none of the two.

    Reference: Su, Sun, Adamyk, DSMT-Net, Comput. Biol. Chem. 119 (2025) 108579, eq. 18–19.
    """
    if form not in ("squared", "linear"):
        raise ValueError(f"form must be squared or linear, got {form!r}")
    return masked_dice(probs, target_probs, dice="squared_batch" if form == "squared" else "linear_sample")
