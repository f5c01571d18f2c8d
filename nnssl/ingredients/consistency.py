"""Losses that ask two predictions for the same scan to agree."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.ingredients.eager_gradient import attach_gradients
from nnssl.ingredients.multiscale_gradient import ConsistencyPreset, multiscale_value_and_gradients
from nnssl.ingredients.pseudo_labels import sharpen
from nnssl.ingredients.supervised import class_numbers, masked_dice, masked_mean, promote_to_fp32


def probability_mse(probs: Tensor, target_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of two predictions over the voxels that count.

    Σ_v m_v · (1/C)·Σ_c (p_vc − q_vc)² / Σ_v m_v

    Args:
        probs: (B, C, *S), in [0, 1]; receives the gradient. Half precision is converted to fp32.
        target_probs: (B, C, *S), in [0, 1]; receives no gradient.
        mask: (B, 1, *S), 1 = the voxel counts; None = every voxel counts.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Reference: Tarvainen and Valpola, NeurIPS 2017, J(θ) of section 2 with mean squared error as the distance.
    """
    difference = (promote_to_fp32(probs) - target_probs.detach()).square().mean(dim=1, keepdim=True)
    return masked_mean(difference, mask)


def soft_dice_distance(
    probs: Tensor,
    target_probs: Tensor,
    form: Literal["squared", "linear"] = "squared",
    mask: Tensor | None = None,
) -> Tensor:
    """Return 1 − the soft Dice overlap of two predictions over the voxels that count, averaged over all classes.

    squared: 1 − mean_c (2·Σ p·q + ε) / (Σ p² + Σ q² + ε), sums over batch and voxels, ε = 1e-10; least where p = q
    linear: 1 − mean_bc (2·Σ p·q + ε) / (Σ p + Σ q + ε), sums over voxels, ε = 1e-5; moves p towards one class per
    voxel, even where q is soft

    Args:
        probs: (B, C, *S), in [0, 1]; receives the gradient. Half precision is converted to fp32.
        target_probs: (B, C, *S), in [0, 1]; receives no gradient.
        form: one of the two forms above.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.

    Returns:
        0-d tensor, in [0, 1], background included; 0 when the mask is empty.

    Raises:
        ValueError: `form` is neither squared nor linear.

    Reference: Su, Sun, Adamyk, DSMT-Net, Comput. Biol. Chem. 119 (2025) 108579, eq. 18–19.
    """
    if form not in ("squared", "linear"):
        raise ValueError(f"form must be squared or linear, got {form!r}")
    return masked_dice(probs, target_probs, mask, "squared_batch" if form == "squared" else "linear_sample")


def robust_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return the weighted cross-entropy against pseudo-labels, averaged over all voxels that count.

    −Σ_v m_v·γ_v·log softmax(z_v/τ)[ĉ_v] / Σ_v m_v

    Args:
        logits: (B, C, *S); receives the gradient. Half precision is converted to fp32.
        labels: LongTensor (B, *S), ĉ, 0 .. C−1.
        weights: (B, 1, *S), γ, in [0, 1]; receives no gradient.
        temperature: τ > 0; a value below 1 sharpens the prediction.
        mask: (B, 1, *S), 1 = the voxel counts; None = every voxel counts.

    Returns:
        0-d tensor; 0 when all weights are 0, and when the mask is empty.

    Raises:
        ValueError: `temperature` is not positive.

    Reference: Mi et al., PLoS One 21(4): e0342567, 2026, eq. 11–12.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    losses = functional.cross_entropy(promote_to_fp32(logits) / temperature, labels, reduction="none").unsqueeze(1)
    return masked_mean(weights.detach() * losses, mask)


def entropy_filtered_loss(logits: Tensor, target: Tensor, ignore: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of the voxels that are kept, divided by the share of kept voxels.

    (N / N_kept) · (1 / N_kept) · Σ_{v kept} −log softmax(z_v)[y_v]

    Args:
        logits: (B, C, *S); receives the gradient. Half precision is converted to fp32.
        target: LongTensor (B, *S), 0 .. C−1; any value where `ignore` is True.
        ignore: BoolTensor (B, *S), True = leave the voxel out, see `uncertainty.entropy_ignore_mask`.
        mask: (B, 1, *S), True = the voxel counts; the other voxels enter neither N nor N_kept. None = every voxel
            counts.

    Returns:
        0-d tensor; 0 when no voxel is kept.

    Reference: Lu et al., Enhancing dual network based semi-supervised medical image segmentation with
    uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025, eq. 11.
    """
    counts = torch.ones_like(ignore) if mask is None else mask[:, 0].bool()
    kept = counts & ~ignore
    losses = functional.cross_entropy(promote_to_fp32(logits), target.masked_fill(~kept, 0), reduction="none")
    number = kept.sum().clamp_min(1)
    return (losses * kept).sum() * counts.sum() / number / number


def confident_disagreement_mse(  # noqa: PLR0913, PLR0917 - the formula has seven parts
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
        probs_a: (B, C, *S), in [0, 1]; receives the gradient of the first value. Half precision is converted to fp32.
        probs_b: (B, C, *S), in [0, 1]; receives the gradient of the second value. Half precision is converted to fp32.
        target: LongTensor (B, *S), 0 .. C−1; None compares each prediction with the other one, as a constant.
        threshold: γ, least confidence, in [0, 1]; equality is enough.
        operator: ⊕ is the exclusive or (`xor`), or the inclusive or (`or`).
        mask: (B, 1, *S), True = the voxel counts; None = every voxel counts.
        distance: `mse` = the squared error; `kl` = −log(1 − |p − y|), which is KL(y‖p) for hard labels, with
            1 − |p − y| not below 1e-7.

    Returns:
        Two 0-d tensors, for a and for b; 0 when M is empty.

    Raises:
        ValueError: `operator` or `distance` has an unknown value.

    Reference: Lu et al., Knowledge-Based Systems 2025, eq. 4–6, and table 5 for the divergence.
    """
    if operator not in {"xor", "or"} or distance not in {"mse", "kl"}:
        raise ValueError(f"operator must be xor or or, distance mse or kl, got {operator!r} and {distance!r}")
    probs_a, probs_b = promote_to_fp32(probs_a), promote_to_fp32(probs_b)
    classes = class_numbers(probs_a, first=1)
    sure_a, sure_b = [(p.max(1, keepdim=True).indices == classes) & (p[:, 1:] >= threshold) for p in (probs_a, probs_b)]
    chosen = sure_a ^ sure_b if operator == "xor" else sure_a | sure_b
    if mask is not None:
        chosen = chosen & mask.bool()
    number = chosen.sum() + 1e-16
    if target is None:
        target_a, target_b = probs_b[:, 1:].detach(), probs_a[:, 1:].detach()
    else:
        target_a = target_b = (target.unsqueeze(1) == classes).to(probs_a.dtype)
    losses = []
    for probs, truth in ((probs_a, target_a), (probs_b, target_b)):
        error = (probs[:, 1:] - truth).abs()
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

    The gradient is written by hand; `kl_weighted_cross_entropy_reference` is the definition.

    Args:
        student_logits: (B, C, *S); receives the gradient, also through the weight e^(−D). Half precision is converted
            to fp32.
        peer_logits: (B, C, *S); receives no gradient.
        temperature: T > 0; D is computed without a temperature.
        mask: (B, 1, *S), True = the voxel counts; None = every voxel counts.
        hard: use the peer's likeliest class as the target; T then has no effect.

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
        peer = promote_to_fp32(peer_logits)
        log_p, log_q = promote_to_fp32(student_logits).log_softmax(1), peer.log_softmax(1)
        p, q = log_p.exp(), log_q.exp()
        divergence = (q * log_q.sub_(log_p)).sum(1, keepdim=True)
        target = _peer_target(peer, temperature, hard)
        losses, weights = -(target * log_p).sum(1, keepdim=True), (-divergence).exp()
        value = masked_mean(weights * losses, mask) + masked_mean(divergence, mask)
        counts = torch.ones_like(losses) if mask is None else mask.to(p.dtype).expand_as(losses)
        counts = counts / counts.sum().clamp_min(torch.finfo(p.dtype).tiny)  # n_v, each voxel's share of the mean
        # L = Σ_v n·(w·ℓ + D) with w = e^(−D), so dL/dz = n·w·dℓ/dz + n·(1 − w·ℓ)·dD/dz
        by_loss = target.sub_(p).mul_(-weights * counts)  # n·w·dℓ/dz, and dℓ/dz = p − target
        gradient = by_loss.addcmul_(p.sub_(q), (1 - weights * losses) * counts)  # n·(1 − w·ℓ)·dD/dz, dD/dz = p − q
    return attach_gradients(value, [student_logits], [gradient])


def kl_weighted_cross_entropy_reference(
    student_logits: Tensor, peer_logits: Tensor, temperature: float, mask: Tensor | None = None, hard: bool = False
) -> Tensor:
    """Return `kl_weighted_cross_entropy`, in plain autograd.

    Args:
        student_logits: as in `kl_weighted_cross_entropy`.
        peer_logits: as in `kl_weighted_cross_entropy`.
        temperature: as in `kl_weighted_cross_entropy`.
        mask: as in `kl_weighted_cross_entropy`.
        hard: as in `kl_weighted_cross_entropy`.

    Returns:
        0-d tensor; 0 when the mask is empty.
    """
    peer = promote_to_fp32(peer_logits.detach())
    log_p, log_q = promote_to_fp32(student_logits).log_softmax(1), peer.log_softmax(1)
    divergence = (log_q.exp() * (log_q - log_p)).sum(1, keepdim=True)
    losses = -(_peer_target(peer, temperature, hard) * log_p).sum(1, keepdim=True)
    return masked_mean((-divergence).exp() * losses, mask) + masked_mean(divergence, mask)


def cosine_distance(probs_a: Tensor, probs_b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return 1 − the cosine of two predictions, averaged over the voxels.

    mean_v 1 − (p_A(v) · p_B(v)) / (‖p_A(v)‖ · ‖p_B(v)‖)

    Args:
        probs_a: (B, C, *S), in [0, 1]; receives the gradient. Half precision is converted to fp32.
        probs_b: (B, C, *S), in [0, 1]; receives the gradient. Half precision is converted to fp32.
        mask: (B, 1, *S), True = the voxel counts; None = every voxel counts.

    Returns:
        0-d tensor, in [0, 1]; 0 when the mask is empty.

    Reference: the public code of Lu et al., Knowledge-Based Systems 2025; the paper has no such term.
    """
    cosine = functional.cosine_similarity(promote_to_fp32(probs_a), promote_to_fp32(probs_b), dim=1)
    return masked_mean(1 - cosine.unsqueeze(1), mask)


def multiscale_consistency(
    logits: list[Tensor],
    preset: ConsistencyPreset = "paper",
    mask: Tensor | None = None,
    regions: bool = False,
) -> Tensor:
    """Return how far the predictions of several scales are from their mean; certain voxels have a larger weight.

    With P_s = softmax z_s, P̂ = (1/S)·Σ_s P_s, w_s = exp(−D_s), and M the voxels that count:
    (1/S)·Σ_s [ Σ_v e_s·w_s / (Σ_v w_s + 1e-8·|M|) + mean_v D_s ],  sums and mean over M

    paper: e_s = Σ_c (P_s − P̂)², D_s = KL(P_s‖P̂)
    urpc: e_s = mean_c (P_s − P̂)², D_s = KL(P̂‖P_s)
    code: as urpc with the cube in e_s, which is 0 for two classes and can be negative for more classes

    The gradient is written by hand; `multiscale_gradient.multiscale_consistency_reference` is the definition.

    Args:
        logits: one (B, C, *S) for each scale, all at full resolution; receive the gradient, also through P̂ and w_s.
            Half precision is converted to fp32.
        preset: one of the three presets above.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.
        regions: each channel is a separate two-class problem (sigmoid); e_s and D_s are the means over the channels.

    Returns:
        0-d tensor; >= 0 except for rounding and for the preset code. 0 for one scale, and when the mask is empty.

    Raises:
        ValueError: `preset` is not one of the three presets.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956, eq. 6–8; Luo et al., URPC,
    Medical Image Analysis 80 (2022), 102517.
    """
    if preset not in ("paper", "urpc", "code"):
        raise ValueError(f"preset must be paper, urpc or code, got {preset!r}")
    value, gradients = multiscale_value_and_gradients(logits, preset, mask, regions)
    return attach_gradients(value, logits, gradients)


def sharpening_loss(
    probs: Tensor, temperature: float, detach: bool = True, binary: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Return the mean squared difference between a prediction and its own sharpened form.

    mean_bcv (p − sharpen_T(p))²

    Args:
        probs: (B, C, *S), in [0, 1]; receives the gradient. Half precision is converted to fp32.
        temperature: T > 0 of `nnssl.ingredients.pseudo_labels.sharpen`.
        detach: True treats the sharpened form as a constant, so that p moves towards it. False sends the gradient
            through it as well, as the authors' code does; uncertain predictions (0.41 < p < 0.59 for T = 0.1 and two
            classes) then move to 0.5.
        binary: sharpen each channel against its complement, for regions.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.

    Returns:
        0-d tensor; 0 when the mask is empty.

    Raises:
        ValueError: `temperature` is not positive.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956, eq. 4–5.
    """
    p = promote_to_fp32(probs)
    target = sharpen(p.detach() if detach else p, temperature, binary)
    return masked_mean((p - target).square(), mask)


def _peer_target(peer_logits: Tensor, temperature: float, hard: bool) -> Tensor:
    """Return the distribution (B, C, *S) that the student learns: one-hot labels, or probabilities at a temperature."""
    if hard:
        return torch.zeros_like(peer_logits).scatter_(1, peer_logits.max(1, keepdim=True).indices, 1.0)
    return (peer_logits / temperature).softmax(1)


def relative_l2(logits: Tensor, target_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the squared distance from a target, relative to the target's size, averaged over the samples.

    mean_b Σ_cv m_v·(z_cv − z'_cv)² / (Σ_cv m_v·z'_cv² + 1e-8)

    Args:
        logits: (B, C, *S); receive the gradient. Half precision is converted to fp32.
        target_logits: (B, C, *S); receive no gradient.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.

    Returns:
        0-d tensor, >= 0; 0 when the mask is empty.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 16.
    """
    z = promote_to_fp32(logits)
    target = target_logits.detach().to(z.dtype)
    weights = torch.ones_like(z[:, :1]) if mask is None else mask.to(z.dtype)
    distance = ((z - target).square() * weights).flatten(1).sum(1)
    return (distance / ((target.square() * weights).flatten(1).sum(1) + 1e-8)).mean()


def soft_dice_distillation(probs: Tensor, target_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return 1 − the soft Dice overlap with a teacher's probabilities, averaged over all classes.

    mean_c 1 − (2·Σ p·q + 1e-5) / (Σ p² + Σ q² + 1e-5), sums over batch and voxels

    Args:
        probs: (B, C, *S), in [0, 1]; receives the gradient. Half precision is converted to fp32.
        target_probs: (B, C, *S), in [0, 1]; receives no gradient.
        mask: (B or 1, 1, *S), 1 = the voxel counts; None = every voxel counts.

    Returns:
        0-d tensor, in [0, 1]; 0 when the mask is empty.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 17; Milletari et al., V-Net, 3DV 2016, the squares.
    """
    return masked_dice(probs, target_probs, mask, "squared_batch", epsilon=1e-5)
