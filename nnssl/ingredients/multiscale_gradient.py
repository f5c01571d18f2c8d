"""Value and hand-written gradient of the multiscale consistency, beside the same formula in plain autograd.

`multiscale_consistency_reference` is the definition. `multiscale_value_and_gradients` computes the same value and its
gradient in place, in less time and memory than autograd needs. `consistency.multiscale_consistency` is the loss that
methods call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.ingredients.supervised import masked_mean, promote_to_fp32

ConsistencyPreset: TypeAlias = Literal["paper", "urpc", "code"]
LEAST_MEAN = 1e-8  # of P̂ inside the logarithm


def multiscale_consistency_reference(
    logits: Sequence[Tensor], preset: ConsistencyPreset, mask: Tensor | None, regions: bool
) -> Tensor:
    """Return the consistency of several scales, in plain autograd.

    Args:
        logits: as in `consistency.multiscale_consistency`.
        preset: as in `consistency.multiscale_consistency`.
        mask: as in `consistency.multiscale_consistency`.
        regions: as in `consistency.multiscale_consistency`.

    Returns:
        0-d tensor; 0 when the mask is empty.
    """
    logs = torch.stack([_log_probs(z, regions) for z in logits])  # (scales, B, K, R, *S)
    probs, m = logs.exp(), _counts(logs[0], mask).flatten()
    mean = probs.mean(0)
    error, ratio = (probs - mean).pow(3 if preset == "code" else 2), logs - mean.clamp_min(LEAST_MEAN).log()
    error = error.sum(2) if preset == "paper" else error.mean(2)
    divergence = ((probs if preset == "paper" else -mean) * ratio).sum(2)
    e, d = error.mean(2).flatten(1), divergence.mean(2).flatten(1)  # means over R, (scales, voxels)
    w, least = m * (-d).exp(), torch.finfo(logs.dtype).tiny
    certain = (e * w).sum(1) / (w.sum(1) + 1e-8 * m.sum()).clamp_min(least)
    return (certain + (d * m).sum(1) / m.sum().clamp_min(least)).mean()


@torch.no_grad()
def multiscale_value_and_gradients(
    logits: Sequence[Tensor], preset: ConsistencyPreset, mask: Tensor | None, regions: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return `multiscale_consistency_reference` and its gradients by the logits.

    With L the value, P_s the probabilities of scale s and P̂ their mean over the S scales, the chain rule gives
    dL/dz_s = J_s(∂L/∂P_s + (1/S)·∂L/∂P̂) + (what the preset adds), where J_s(g) = P_s·(g − Σ_k P_sk·g_k) is the
    derivative of the softmax. J_s maps a constant to 0, so constants in ∂L/∂P are left out. Where P̂ is below 1e-8 the
    derivative of the clamp is left out as well; its share of the gradient is below 1e-8.

    Args:
        logits: as in `consistency.multiscale_consistency`.
        preset: as in `consistency.multiscale_consistency`.
        mask: as in `consistency.multiscale_consistency`.
        regions: as in `consistency.multiscale_consistency`.

    Returns:
        The value, 0-d; and one gradient for each scale, of the shape of its logits, in fp32 or fp64.
    """
    logs = [_log_probs(z.detach(), regions) for z in logits]
    probs = [log.exp() for log in logs]
    mean = torch.stack(probs).mean(0)
    likely = mean.clamp_min(LEAST_MEAN)
    log_mean, counts = likely.log(), _counts(mean, mask)
    by_mean = torch.zeros_like(mean)
    values: list[Tensor] = []
    slopes: list[tuple[Tensor, Tensor | None]] = []
    for p, log in zip(probs, logs, strict=True):
        distance, ratio = p - mean, log.sub_(log_mean)  # P_s − P̂, log P_s/P̂
        if preset == "paper":
            scale = _derive_paper(p, distance, ratio, likely, counts, len(logs))
        else:
            scale = _derive_urpc(3 if preset == "code" else 2, mean, distance, ratio, counts, len(logs))
        by_mean -= scale.minus_by_mean
        values.append(scale.value)
        slopes.append((scale.by_probs, scale.by_logits))
    by_mean /= len(logs)
    gradients = []
    for p, (by_probs, by_logits) in zip(probs, slopes, strict=True):
        gradient = by_probs.add_(by_mean).mul_(p)  # P_s·g with g = ∂L/∂P_s + (1/S)·∂L/∂P̂
        gradient.addcmul_(p, gradient.sum(1, True), value=-1)  # J_s(g) = P_s·g − P_s·Σ_k P_sk·g_k
        if by_logits is not None:
            gradient.add_(by_logits)
        gradients.append(gradient[:, 1] if regions else gradient[:, :, 0])
    return torch.stack(values).sum(), gradients


class _Scale(NamedTuple):
    """One scale's share of the value L_s (0-d) and of its derivatives, (B, K, R, *S)."""

    value: Tensor
    by_probs: Tensor  # ∂L_s/∂P_s without constants
    minus_by_mean: Tensor  # −∂L_s/∂P̂ without constants
    by_logits: Tensor | None  # derivative by z_s that does not pass through J_s


def _derive_paper(p: Tensor, distance: Tensor, ratio: Tensor, likely: Tensor, counts: Tensor, scales: int) -> _Scale:
    """Return the derivatives for e_s = Σ_c (P_s − P̂)² and D_s = Σ_c P_s·log P_s/P̂; `distance` is overwritten."""
    error, divergence = distance.square().sum(1, True), (p * ratio).sum(1, True)
    value, by_error, by_divergence = _derive_certain_mean(error, divergence, counts, scales)
    by_probs = distance.mul_(2 * by_error)  # ∂e/∂P_s = 2·(P_s − P̂)
    minus_by_mean = (p * by_divergence).div_(likely).add_(by_probs)  # −∂D/∂P̂ = P_s/P̂, −∂e/∂P̂ = ∂e/∂P_s
    by_probs.addcmul_(by_divergence, ratio)  # ∂D/∂P_s = log P_s/P̂ + 1, the constant 1 left out
    return _Scale(value, by_probs, minus_by_mean, None)


def _derive_urpc(power: int, mean: Tensor, distance: Tensor, ratio: Tensor, counts: Tensor, scales: int) -> _Scale:
    """Return the derivatives for e_s = mean_c (P_s − P̂)^n, D_s = −Σ_c P̂·log P_s/P̂; overwrites `distance`, `ratio`."""
    error, divergence = distance.pow(power).mean(1, True), -(mean * ratio).sum(1, True)
    value, by_error, by_divergence = _derive_certain_mean(error, divergence, counts, scales)
    by_probs = distance.pow(power - 1).mul_(by_error * power / distance.shape[1])  # ∂e/∂P_s = n·(P_s − P̂)^(n−1)/C
    minus_by_mean = ratio.mul_(by_divergence).add_(by_probs)  # −∂D/∂P̂ = log P_s/P̂ − 1, −∂e/∂P̂ = ∂e/∂P_s
    by_logits = distance.mul_(by_divergence)  # ∂D/∂z_s = P_s − P̂ at constant P̂
    return _Scale(value, by_probs, minus_by_mean, by_logits)


def _derive_certain_mean(
    error: Tensor, divergence: Tensor, counts: Tensor, scales: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one scale's share of the value and its derivatives by e_s and D_s, by autograd on single-channel maps.

    Args:
        error: e_s, (B, 1, R, *S).
        divergence: D_s, (B, 1, R, *S).
        counts: (B, 1, 1, *S), 1 = the voxel counts.
        scales: number of scales.

    Returns:
        0-d tensor; two tensors (B, 1, R, *S).
    """
    least = torch.finfo(error.dtype).tiny
    with torch.enable_grad():
        maps = error.requires_grad_(), divergence.requires_grad_()
        e, d = (part.mean(2, keepdim=True) for part in maps)
        weights = counts * (-d).exp()
        certain = (e * weights).sum() / (weights.sum() + 1e-8 * counts.sum()).clamp_min(least)
        value = (certain + masked_mean(d, counts)) / scales
    by_error, by_divergence = torch.autograd.grad(value, maps)
    return value.detach(), by_error, by_divergence


def _counts(probs: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B, 1, 1, *S) in the type of (B, K, R, *S), 1 where a voxel counts."""
    ones = torch.ones_like(probs[:, :1, :1])
    return ones if mask is None else mask.unsqueeze(2).to(probs.dtype).expand_as(ones)


def _log_probs(logits: Tensor, regions: bool) -> Tensor:
    """Return log-probabilities (B, K, R, *S): C classes of one region, or two classes of R regions."""
    z = promote_to_fp32(logits)
    if regions:
        return torch.stack([functional.logsigmoid(-z), functional.logsigmoid(z)], dim=1)
    return z.log_softmax(1).unsqueeze(2)
