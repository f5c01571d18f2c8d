"""Logits and labels of regions in the form of exclusive classes, for formulas that need exclusive classes."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Pair: TypeAlias = tuple[Tensor, Tensor]  # one tensor of each of two networks


def class_logits(logits: Tensor, regions: bool) -> Tensor:
    """Return logits of exclusive classes in fp32; each region becomes a problem with two classes.

    Args:
        logits: (B, C, *S), or (B, R, *S) for regions that may overlap; they keep their gradient.
        regions: True = the channels are regions; then softmax(0, z) = (1 − σ(z), σ(z)).

    Returns:
        (B, C, *S), or (B·R, 2, *S) with the regions of a sample one after the other.
    """
    z = logits.float()
    return torch.stack([torch.zeros_like(z), z], dim=2).flatten(0, 1) if regions else z


def class_labels(target: Tensor, num_heads: int, regions: bool, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """Return the labels that belong to `class_logits`, and the mask of the labels that count.

    Args:
        target: nnU-Net's labels (B, 1, *S), or regions (B, R, *S), or regions with an ignore label (B, R + 1, *S).
        num_heads: number of channels of the logits, C or R.
        regions: True = the channels are regions.
        ignore_label: the label that does not count; None where the data set has no such label.

    Returns:
        Labels, LongTensor (B, *S) or (B·R, *S), 0 where a label does not count.
        Mask, BoolTensor (B or B·R, 1, *S), True = the label counts.
    """
    labels = target[:, :num_heads].flatten(0, 1).long() if regions else target[:, 0].long()
    if ignore_label is None or (regions and target.shape[1] == num_heads):
        return labels, torch.ones_like(labels, dtype=torch.bool).unsqueeze(1)
    known = (target[:, -1:] == 0).repeat_interleave(num_heads, 0) if regions else target != ignore_label
    return labels.masked_fill(~known[:, 0], 0), known


def softmax(logits: Pair) -> Pair:
    """Return the class probabilities (B, C, *S) of two networks for their logits (B, C, *S)."""
    return logits[0].softmax(1), logits[1].softmax(1)
