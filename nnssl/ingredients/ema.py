"""Exponential moving average of a network's weights: the teacher of Mean Teacher and of the methods built on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float, buffers: bool = True) -> None:
    """Move the teacher's weights towards the student's, in place.

    θ' ← decay·θ' + (1 − decay)·θ  for parameters and floating-point buffers; integer buffers are copied.

    Args:
        teacher: network whose tensors are changed; it has the architecture of the student.
        student: network that the teacher follows; unchanged, receives no gradient.
        decay: weight of the old value, in [0, 1].
        buffers: update the buffers as well; False = parameters only.

    Raises:
        ValueError: `decay` is outside [0, 1], or the two networks differ in names or shapes.

    Reference: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, section 2.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    of_teacher, of_student = _named_tensors(teacher, buffers), _named_tensors(student, buffers)
    shapes_teacher, shapes_student = ([(n, t.shape) for n, t in tensors] for tensors in (of_teacher, of_student))
    if shapes_teacher != shapes_student:
        raise ValueError("teacher and student differ in architecture")
    old: list[Tensor] = []
    new: list[Tensor] = []
    for (_, target), (_, source) in zip(of_teacher, of_student, strict=True):
        if target.is_floating_point():
            old.append(target)
            new.append(source.to(target.dtype))
        else:
            target.copy_(source)
    if old:
        # one call for all tensors instead of one for each: old + (1 − decay)·(new − old)
        torch._foreach_lerp_(old, new, 1.0 - decay)


@torch.no_grad()
def shrink(network: nn.Module, share: float) -> None:
    """Multiply parameters and floating-point buffers by 1 − share, in place.

    θ ← (1 − share)·θ. Unlike an optimiser's weight decay, this depends on neither momentum nor learning rate, and
    shrinks the running statistics of batch normalisation as well.

    Args:
        network: network whose tensors are changed.
        share: in [0, 1].

    Reference: the public code of Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956: 0.0002.
    """
    tensors = [tensor for _, tensor in _named_tensors(network, buffers=True) if tensor.is_floating_point()]
    torch._foreach_mul_(tensors, 1.0 - share)


@torch.no_grad()
def aggregate(target: nn.Module, sources: Sequence[nn.Module], decay: float) -> None:
    """Move a network's parameters towards the mean of other networks, in place.

    θ ← decay·θ + (1 − decay)·mean of the sources, for every parameter that all networks have under one name.

    Args:
        target: network whose parameters are changed.
        sources: networks that stay unchanged.
        decay: weight of the old value, in [0, 1].

    Raises:
        ValueError: `decay` is outside [0, 1].

    Reference: the public code of Wang and Li, A&D, NeurIPS 2023, which moves its third decoder to the other two.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    own, others = dict(target.named_parameters()), [dict(source.named_parameters()) for source in sources]
    shared = [name for name in own if all(name in each and each[name].shape == own[name].shape for each in others)]
    if shared:
        means = [torch.stack([each[name] for each in others]).mean(0) for name in shared]
        torch._foreach_lerp_([own[name] for name in shared], means, 1.0 - decay)


def warmed_up_decay(step: int, decay: float) -> float:
    """Return min(1 − 1/(step + 1), decay): the average starts as a plain mean, then forgets the first steps.

    Args:
        step: number of updates so far, >= 0; step 0 copies the student's weights.
        decay: largest decay, in [0, 1].
    """
    return min(1.0 - 1.0 / (step + 1), decay)


def _named_tensors(network: nn.Module, buffers: bool) -> list[tuple[str, Tensor]]:
    tensors: list[tuple[str, Tensor]] = list(network.named_parameters())
    if buffers:
        tensors += network.named_buffers()
    return tensors
