"""Logits and labels as those of exclusive classes, for formulas that know only these."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Pair: TypeAlias = tuple[Tensor, Tensor]  # of two networks


def class_logits(logits: Tensor, regions: bool) -> Tensor:
    """Return logits of exclusive classes in full precision; a region becomes a problem of two classes.

    Args:
        logits: (B, C, *S), or (B, R, *S) for regions that may overlap.
        regions: the channels are regions; softmax(0, z) = (1 − σ(z), σ(z)).

    Returns:
        (B, C, *S), or (B·R, 2, *S), the regions of a sample one after the other.
    """
    z = logits.float()
    return torch.stack([torch.zeros_like(z), z], dim=2).flatten(0, 1) if regions else z


def class_labels(target: Tensor, num_heads: int, regions: bool, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """Return the labels that fit `class_logits`, and which of them count.

    Args:
        target: (B, 1, *S), or (B, R, *S) for regions, with an ignore label (B, R + 1, *S), as nnU-Net gives them.
        num_heads: C or R.
        regions: the channels are regions.
        ignore_label: the label that does not count, None where there is none.

    Returns:
        LongTensor (B, *S) or (B·R, *S), 0 where they do not count, and BoolTensor (B or B·R, 1, *S).
    """
    labels = target[:, :num_heads].flatten(0, 1).long() if regions else target[:, 0].long()
    if ignore_label is None or (regions and target.shape[1] == num_heads):
        return labels, torch.ones_like(labels, dtype=torch.bool).unsqueeze(1)
    known = (target[:, -1:] == 0).repeat_interleave(num_heads, 0) if regions else target != ignore_label
    return labels.masked_fill(~known[:, 0], 0), known


def softmax(logits: Pair) -> Pair:
    """Return the class probabilities of two networks for their logits (B, C, *S)."""
    return logits[0].softmax(1), logits[1].softmax(1)
