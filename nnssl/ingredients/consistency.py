"""Losses that ask two predictions for the same scan to agree."""

from __future__ import annotations

import torch
from torch import Tensor


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
    if mask is None:
        return difference.mean()
    weights = mask.to(difference.dtype)
    return (difference * weights).sum() / weights.sum().clamp_min(torch.finfo(difference.dtype).tiny)
