"""Losses that ask two predictions for the same scan to agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.ingredients.eager_gradient import with_gradients
from nnssl.ingredients.pseudo_labels import sharpen
from nnssl.ingredients.supervised import at_least_fp32, masked_dice, masked_mean

ConsistencyPreset: TypeAlias = Literal["paper", "urpc", "code"]


def probability_mse(probs: Tensor, target_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of two predictions over the voxels that count.

    Σ_v m_v · (1/C)·Σ_c (p_vc − q_vc)² / Σ_v m_v

    Args:
        probs: (B, C, *S), in [0, 1]; the gradient goes here. Half precision is taken to fp32.
        target_probs: (B, C, *S), in [0, 1]; detached.
        mask: (B, 1, *S), 1 = counts; None counts every voxel.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Reference: Tarvainen and Valpola, NeurIPS 2017, J(θ) of section 2 with mean squared error as the distance.
    """
    difference = (at_least_fp32(probs) - target_probs.detach()).square().mean(dim=1, keepdim=True)
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


def robust_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy against pseudo-labels, each voxel by its weight, mean over all voxels that count.

    −Σ_v m_v·γ_v·log softmax(z_v/τ)[ĉ_v] / Σ_v m_v

    Args:
        logits: (B, C, *S); the gradient goes here. Half precision is taken to fp32.
        labels: LongTensor (B, *S), ĉ, 0 .. C−1.
        weights: (B, 1, *S), γ, in [0, 1]; detached.
        temperature: τ > 0; below 1 it sharpens the prediction.
        mask: (B, 1, *S), 1 = counts; None counts every voxel.

    Returns:
        0-d tensor; 0 when all weights are 0, and when the mask is empty.

    Raises:
        ValueError: `temperature` is not positive.

    Reference: Mi et al., PLoS One 21(4): e0342567, 2026, eq. 11–12.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    losses = functional.cross_entropy(at_least_fp32(logits) / temperature, labels, reduction="none").unsqueeze(1)
    return masked_mean(weights.detach() * losses, mask)


def entropy_filtered_loss(logits: Tensor, target: Tensor, ignore: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the cross-entropy over the voxels that are not ignored, larger the fewer they are.

    (N / N_kept) · (1 / N_kept) · Σ_{v kept} −log softmax(z_v)[y_v]

    Args:
        logits: (B, C, *S); the gradient goes here. Half precision is taken to fp32.
        target: LongTensor (B, *S), 0 .. C−1; any value where `ignore` is True.
        ignore: BoolTensor (B, *S), True = left out, see `uncertainty.entropy_ignore_mask`.
        mask: (B, 1, *S), True = counts, for N as well; None counts every voxel.

    Returns:
        0-d tensor; 0 when nothing is kept.

    Reference: Lu et al., Enhancing dual network based semi-supervised medical image segmentation with
    uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025, eq. 11.
    """
    counts = torch.ones_like(ignore) if mask is None else mask[:, 0].bool()
    kept = counts & ~ignore
    losses = functional.cross_entropy(at_least_fp32(logits), target.masked_fill(~kept, 0), reduction="none")
    number = kept.sum().clamp_min(1)
    return (losses * kept).sum() * counts.sum() / number / number


def confident_disagreement_mse(  # noqa: PLR0913, PLR0917 - the formula has that many parts
    probs_a: Tensor,
    probs_b: Tensor,
    target: Tensor | None,
    threshold: float,
    operator: Literal["xor", "or"] = "xor",
    mask: Tensor | None = None,
    distance: Literal["mse", "kl"] = "mse",
) -> tuple[Tensor, Tensor]:
    """Return each prediction's squared error where exactly one of the two is confident of a foreground class.

    M_c(v) = [ŷ_A(v) = c ∧ p_A^c(v) ≥ γ] ⊕ [ŷ_B(v) = c ∧ p_B^c(v) ≥ γ],  c > 0
    L_m = Σ_cv M_c(v) · (p_m^c(v) − y^c(v))² / (Σ_cv M_c(v) + 1e-16)

    Args:
        probs_a: (B, C, *S), in [0, 1]; the gradient of the first value goes here. Half precision is taken to fp32.
        probs_b: (B, C, *S), in [0, 1]; the gradient of the second value goes here, as `probs_a`.
        target: LongTensor (B, *S), 0 .. C−1; None: each other's probabilities, detached.
        threshold: γ, least confidence, in [0, 1], itself included.
        operator: ⊕ as exclusive or, or as or.
        mask: (B, 1, *S), True = counts; None counts every voxel.
        distance: squared error, or −log(1 − |p − y|), the divergence KL(y‖p) of hard labels, with 1 − |p − y| ≥ 1e-7.

    Returns:
        Two 0-d tensors, for a and for b; 0 when M is empty.

    Raises:
        ValueError: `operator` or `distance` is none of the two.

    Reference: Lu et al., Knowledge-Based Systems 2025, eq. 4–6, and its table 5 for the divergence.
    """
    if operator not in {"xor", "or"} or distance not in {"mse", "kl"}:
        raise ValueError(f"operator must be xor or or, distance mse or kl, got {operator!r} and {distance!r}")
    probs_a, probs_b = at_least_fp32(probs_a), at_least_fp32(probs_b)
    classes = torch.arange(1, probs_a.shape[1], device=probs_a.device).view(-1, *[1] * (probs_a.ndim - 2))
    sure_a, sure_b = [(p.max(1, keepdim=True).indices == classes) & (p[:, 1:] >= threshold) for p in (probs_a, probs_b)]
    chosen = sure_a ^ sure_b if operator == "xor" else sure_a | sure_b
    chosen = chosen if mask is None else chosen & mask.bool()
    number = chosen.sum() + 1e-16
    truth = None if target is None else (target.unsqueeze(1) == classes).to(probs_a.dtype)
    losses = []
    for probs, peer in ((probs_a, probs_b), (probs_b, probs_a)):
        error = (probs[:, 1:] - (peer[:, 1:].detach() if truth is None else truth)).abs()
        distances = error.square() if distance == "mse" else -(1 - error).clamp_min(1e-7).log()
        losses.append((distances * chosen).sum() / number)
    return losses[0], losses[1]


def kl_weighted_cross_entropy(
    student_logits: Tensor,
    peer_logits: Tensor,
    temperature: float,
    mask: Tensor | None = None,
    hard: bool = False,
) -> Tensor:
    """Return the cross-entropy against a sharpened peer, weaker where the two diverge, plus their divergence.

    mean_v e^(−D_v) · ℓ_v + mean_v D_v,   D = KL(p_peer‖p_student),   ℓ = −Σ_c softmax(z_peer / T)_c · log p_student^c

    Args:
        student_logits: (B, C, *S); the gradient goes here, through the weight e^(−D) as well. Half precision is taken
            to fp32.
        peer_logits: (B, C, *S); detached.
        temperature: T > 0; D is not tempered.
        mask: (B, 1, *S), True = counts; None counts every voxel.
        hard: the target is the peer's likeliest class, so that T has no effect.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Raises:
        ValueError: `temperature` is not positive.

    Reference: Lu et al., Knowledge-Based Systems 2025, eq. 13–15; the form is that of Zheng and Yang, Rectifying
    pseudo label learning via uncertainty estimation, IJCV 2021.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.no_grad():
        peer = at_least_fp32(peer_logits)
        log_p, log_q = at_least_fp32(student_logits).log_softmax(1), peer.log_softmax(1)
        p, q = log_p.exp(), log_q.exp()
        divergence = (q * log_q.sub_(log_p)).sum(1, keepdim=True)
        if hard:
            target = torch.zeros_like(p).scatter_(1, peer.max(1, keepdim=True).indices, 1.0)
        else:
            target = (peer / temperature).softmax(1)
        losses, weights = -(target * log_p).sum(1, keepdim=True), (-divergence).exp()
        value = masked_mean(weights * losses, mask) + masked_mean(divergence, mask)
        # dℓ/dz = p − target, dD/dz = p − q
        counts = torch.ones_like(losses) if mask is None else mask.to(p.dtype).expand_as(losses)
        counts = counts / counts.sum().clamp_min(torch.finfo(p.dtype).tiny)
        gradient = target.sub_(p).mul_(-weights * counts).addcmul_(p.sub_(q), (1 - weights * losses) * counts)
    return with_gradients(value, [student_logits], [gradient])


def cosine_distance(probs_a: Tensor, probs_b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return 1 − the cosine of two predictions, mean over the voxels.

    mean_v 1 − (p_A(v) · p_B(v)) / (‖p_A(v)‖ · ‖p_B(v)‖)

    Args:
        probs_a: (B, C, *S), in [0, 1]; the gradient goes here. Half precision is taken to fp32.
        probs_b: (B, C, *S), in [0, 1]; the gradient goes here, too.
        mask: (B, 1, *S), True = counts; None counts every voxel.

    Returns:
        0-d tensor, in [0, 1]; 0 when the mask is empty.

    Reference: Lu et al., Knowledge-Based Systems 2025, public code only.
    """
    cosine = functional.cosine_similarity(at_least_fp32(probs_a), at_least_fp32(probs_b), dim=1)
    return masked_mean(1 - cosine.unsqueeze(1), mask)


def multiscale_consistency(
    logits: list[Tensor],
    preset: ConsistencyPreset = "paper",
    mask: Tensor | None = None,
    regions: bool = False,
) -> Tensor:
    """Return how far the predictions of several scales are from their mean, certain voxels counting more.

    With P_s = softmax z_s, P̂ = (1/S)·Σ_s P_s, w_s = exp(−D_s), and M the voxels that count:
    (1/S)·Σ_s [ Σ_v e_s·w_s / (Σ_v w_s + 1e-8·|M|) + mean_v D_s ],  sums and mean over M

    paper: e_s = Σ_c (P_s − P̂)², D_s = KL(P_s‖P̂)
    urpc: e_s = mean_c (P_s − P̂)², D_s = KL(P̂‖P_s)
    code: as urpc with the cube, which is 0 for two classes and may be negative for more

    Args:
        logits: one (B, C, *S) a scale, all of full resolution; the gradient goes here, also through P̂ and w_s. Half
            precision is taken to fp32.
        preset: which of the three.
        mask: (B or 1, 1, *S), 1 = counts; None counts every voxel.
        regions: each channel is a two-class problem of its own (sigmoid); e_s and D_s are their means.

    Returns:
        0-d tensor, >= 0 but for rounding (and for `code`); 0 for one scale, and when the mask is empty.

    Raises:
        ValueError: `preset` is none of the three.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956, eq. 6–8; Luo et al., URPC,
    Medical Image Analysis 80 (2022), 102517.
    """
    if preset not in ("paper", "urpc", "code"):
        raise ValueError(f"preset must be paper, urpc or code, got {preset!r}")
    value, gradients = _consistency([_log_probs(z.detach(), regions) for z in logits], preset, mask)
    by_logits = [gradient[:, 1] if regions else gradient[:, :, 0] for gradient in gradients]
    return with_gradients(value, logits, by_logits)


def sharpening_loss(
    probs: Tensor, temperature: float, detach: bool = True, binary: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Return the mean squared difference of a prediction to its own sharpened form.

    mean_bcv (p − sharpen_T(p))²

    Args:
        probs: (B, C, *S), in [0, 1]; the gradient goes here. Half precision is taken to fp32.
        temperature: T > 0 of `nnssl.ingredients.pseudo_labels.sharpen`.
        detach: no gradient through the sharpened form, so that p moves towards it; with it, uncertain predictions
            (0.41 < p < 0.59 for T = 0.1 and two classes) are drawn to 0.5 instead, as in the authors' code.
        binary: sharpen each channel on its own, for regions.
        mask: (B or 1, 1, *S), 1 = counts; None counts every voxel.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Raises:
        ValueError: `temperature` is not positive.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956, eq. 4–5.
    """
    p = at_least_fp32(probs)
    target = sharpen(p.detach() if detach else p, temperature, binary)
    return masked_mean((p - target).square(), mask)


@torch.no_grad()
def _consistency(logs: Sequence[Tensor], preset: ConsistencyPreset, mask: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Return the value and its gradients by the logits, from log-probabilities (B, K, R, *S), which are overwritten.

    By hand and in place, in half the time that autograd takes. With e' and D' the value's derivatives by e_s and D_s,
    dz_s = J(e'·∂e_s/∂P_s + G) + D'·∂D_s/∂z_s; G is what all scales send through P̂, J(g) = P_s·(g − Σ_k P_s·g), and
    ∂D_s/∂z_s is J(log P_s/P̂) in `paper`, P_s − P̂ in the others.
    """
    probs, scales, power = [log.exp() for log in logs], len(logs), 3 if preset == "code" else 2
    mean = torch.stack(probs).mean(0)
    likely, by_mean = mean.clamp_min(1e-8), torch.zeros_like(mean)
    log_mean, counts = likely.log(), torch.ones_like(mean[:, :1, :1])
    counts = counts if mask is None else mask.unsqueeze(2).to(mean.dtype).expand_as(counts)
    values, gradients, others = [], [], []
    for p, log in zip(probs, logs, strict=True):
        distance, ratio = p - mean, log.sub_(log_mean)
        if preset == "paper":
            error, divergence = distance.square().sum(1, True), (p * ratio).sum(1, True)
            value, by_error, by_divergence = _certain_mean(error, divergence, counts, scales)
            slope = distance.mul_(2 * by_error)
            by_mean -= (p * by_divergence).div_(likely).add_(slope)
            slope.addcmul_(by_divergence, ratio)
        else:
            error, divergence = distance.pow(power).mean(1, True), -(mean * ratio).sum(1, True)
            value, by_error, by_divergence = _certain_mean(error, divergence, counts, scales)
            slope = distance.pow(power - 1).mul_(by_error * power / p.shape[1])
            by_mean -= ratio.mul_(by_divergence).add_(slope)
            others.append(distance.mul_(by_divergence))
        values.append(value)
        gradients.append(slope)
    by_mean /= scales
    for p, gradient in zip(probs, gradients, strict=True):
        gradient.add_(by_mean).mul_(p).addcmul_(p, gradient.sum(1, True), value=-1)
    for gradient, other in zip(gradients, others, strict=False):
        gradient.add_(other)
    return torch.stack(values).sum(), gradients


def _certain_mean(error: Tensor, divergence: Tensor, counts: Tensor, scales: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return one scale's share of the value and its derivatives by e_s and D_s, all maps (B, 1, R or 1, *S)."""
    least = torch.finfo(error.dtype).tiny
    with torch.enable_grad():
        maps = error.requires_grad_(), divergence.requires_grad_()
        e, d = (part.mean(2, keepdim=True) for part in maps)
        weights = counts * (-d).exp()
        certain = (e * weights).sum() / (weights.sum() + 1e-8 * counts.sum()).clamp_min(least)
        value = (certain + masked_mean(d, counts)) / scales
    by_error, by_divergence = torch.autograd.grad(value, maps)
    return value.detach(), by_error, by_divergence


def _log_probs(logits: Tensor, regions: bool) -> Tensor:
    """Return log-probabilities (B, K, R, *S): of C classes and one region, or of two classes and R regions."""
    z = at_least_fp32(logits)
    if regions:
        return torch.stack([functional.logsigmoid(-z), functional.logsigmoid(z)], dim=1)
    return z.log_softmax(1).unsqueeze(2)
