"""Exponential moving average of a network's weights (the teacher of Mean Teacher and its descendants)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float, buffers: bool = True) -> None:
    """Move the teacher's weights towards the student's, in place.

    θ' ← decay·θ' + (1 − decay)·θ  for parameters and floating-point buffers; integer buffers are copied.

    Args:
        teacher: network whose tensors are changed; same architecture as the student.
        student: network to follow; unchanged, no gradient flows.
        decay: weight of the old value, in [0, 1].
        buffers: also take the buffers; False = parameters only.

    Raises:
        ValueError: `decay` is outside [0, 1], or the two networks differ in names or shapes.

    Reference: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, section 2.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    ours, theirs = _tensors(teacher, buffers), _tensors(student, buffers)
    if [(name, tensor.shape) for name, tensor in ours] != [(name, tensor.shape) for name, tensor in theirs]:
        raise ValueError("teacher and student differ in architecture")
    pairs = [(a, b.to(a.dtype)) for (_, a), (_, b) in zip(ours, theirs, strict=True) if a.is_floating_point()]
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        if not a.is_floating_point():
            a.copy_(b)
    if pairs:
        old, new = [list(side) for side in zip(*pairs, strict=True)]
        # one fused call for all tensors: old + (1 - decay)·(new - old)
        torch._foreach_lerp_(old, new, 1.0 - decay)


@torch.no_grad()
def shrink(network: nn.Module, share: float) -> None:
    """Multiply parameters and floating-point buffers by 1 − share, in place.

    θ ← (1 − share)·θ: weight decay that neither momentum nor learning rate scales, of running statistics, too.

    Args:
        network: network whose tensors are changed.
        share: in [0, 1].

    Reference: the public code of Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956: 0.0002.
    """
    tensors = [tensor for _, tensor in _tensors(network, buffers=True) if tensor.is_floating_point()]
    torch._foreach_mul_(tensors, 1.0 - share)


def warmed_up_decay(step: int, decay: float) -> float:
    """Return min(1 − 1/(step + 1), decay): the average starts as a plain mean and forgets the first steps.

    Args:
        step: number of updates so far, >= 0; 0 takes the student's weights as they are.
        decay: the value reached in the end, in [0, 1].
    """
    return min(1.0 - 1.0 / (step + 1), decay)


def _tensors(network: nn.Module, buffers: bool) -> list[tuple[str, torch.Tensor]]:
    return [*network.named_parameters(), *(network.named_buffers() if buffers else ())]
