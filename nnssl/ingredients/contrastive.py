"""Losses that move features together or apart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.ingredients.pseudo_labels import fuse_labels
from nnssl.ingredients.supervised import promote_to_fp32
from nnssl.ingredients.uncertainty import class_percentiles, entropy, entropy_ignore_mask, masked_percentile

MOST_SAMPLES = 20_000  # of each class
MILLION = 1_000_000  # a share is rounded to six decimals, so that counts are exact


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the normalised, temperature-scaled cross-entropy of finding each image's other view among all views.

    ℓ(x_i, y_i) = −log( exp(x_i·y_i/τ) / (Σ_{j≠i} exp(x_i·x_j/τ) + Σ_j exp(x_i·y_j/τ)) )
    L = 1/(2B)·Σ_i (ℓ(a_i, b_i) + ℓ(b_i, a_i)),   rows divided by their length

    Args:
        a: (B, F), features of B images; receives the gradient. Half precision is converted to fp32.
        b: (B, F), features of the other view of each image; receives the gradient. Half precision is converted to fp32.
        temperature: τ > 0.

    Returns:
        0-d tensor, >= 0; 0 for a single image. A row of zeros stays zero and passes no gradient.

    Raises:
        ValueError: `temperature` is not positive.

    Reference: Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020, eq. 1;
    Mi et al., PLoS One 21(4): e0342567, 2026, eq. 13–14.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.autocast(a.device.type, enabled=False):
        views = _normalise(promote_to_fp32(torch.cat([a, b])))
        count = len(views)
        itself = torch.eye(count, dtype=torch.bool, device=views.device)
        logits = (views @ views.T / temperature).masked_fill(itself, -torch.inf)
        other = (torch.arange(count, device=views.device) + len(a)) % count  # row i + B is the other view of row i
        return functional.cross_entropy(logits, other)


def prototype_contrast(  # noqa: PLR0913, PLR0917 - the formula has ten parts
    features: Tensor,
    probs_a: Tensor,
    probs_b: Tensor,
    percentile: float,
    third_term: float | Literal["repel"] = 1.0,
    sample_fraction: float | None = None,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
    reliable: Literal["agreement", "filtered"] = "agreement",
    by_class: bool = False,
) -> Tensor:
    """Return how far the features of uncertain voxels are from the prototype of their class.

    R(v) = 1[ŷ_A = ŷ_B ∧ H_A ≤ δ ∧ H_B ≤ δ],   δ = the percentile of all entropies of both predictions
    P_c = mean of z(v) over R(v) = 1, ŷ(v) = c;   V_u^c = {v: R(v) = 0, ŷ_A(v) = c}
    L = mean_{c>0} mean_{V_u^c} d(z, P_c) + mean_{V_u^0} d(z, P_0) + s·mean_{c<c'} d(P_c, P_c')

    d(a, b) is the distance of a/‖a‖ and b/‖b‖. The mean over classes takes the classes that have a prototype and
    uncertain voxels; the mean over pairs takes the pairs that have two prototypes. For two classes this is the paper's
    formula. The host never waits for the device.

    Args:
        features: (B, F, *S); receives the gradient, through voxels and prototypes. Half precision is converted to fp32.
        probs_a: (B, C, *S), in [0, 1], the prediction of the network with these features; receives no gradient.
        probs_b: (B, C, *S), in [0, 1], the prediction of the other network; receives no gradient.
        percentile: 0 to 100, for δ.
        third_term: s, the weight of the distance between prototypes; "repel" adds the mean of 2 − d(P_c, P_c') instead.
        sample_fraction: share of V_u^c, rounded to six decimals, that is drawn without replacement: ⌊share·|V_u^c|⌋
            voxels, at least one and at most 20,000. None = every uncertain voxel, in memory linear in B·F·S.
        generator: draws the sample, on the device of the features; None = torch's global generator.
        mask: (B, 1, *S), True = the voxel counts; None = every voxel counts.
        reliable: `agreement` = R as above. `filtered` = R is 0 where both entropies exceed their own percentiles, and
            prototypes take the fused labels instead of ŷ_A.
        by_class: a δ for each predicted class: the percentile of the entropies, of both predictions, with this class.

    Returns:
        0-d tensor; a term without voxels or without prototypes is 0.

    Raises:
        ValueError: `reliable` is neither agreement nor filtered.

    Reference: Lu et al., Enhancing dual network based semi-supervised medical image segmentation with
    uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025, eq. 16–20, for two classes.
    The rule for more classes is an extension.
    """
    if reliable not in {"agreement", "filtered"}:
        raise ValueError(f"reliable must be agreement or filtered, got {reliable!r}")
    labels, groups = _split_voxels(probs_a, probs_b, percentile, mask, reliable, by_class)
    classes = torch.arange(probs_a.shape[1], device=features.device).view(1, -1, 1)
    with torch.autocast(features.device.type, enabled=False):
        voxels = promote_to_fp32(features).flatten(2)  # (B, F, N)
        members = labels == classes
        sums = torch.bmm(members.to(voxels.dtype), voxels.transpose(1, 2)).sum(0)
        sizes = members.sum((0, 2))
        prototypes = _normalise(sums / sizes.clamp_min(1).unsqueeze(1))  # (C, F)
        if sample_fraction is None:
            attraction, numbers = _attraction(voxels, prototypes, groups == classes)
        else:
            attraction, numbers = _sampled_attraction(voxels, prototypes, groups, sample_fraction, generator)
        known = sizes > 0
        drawn = known & (numbers > 0)
        attraction = attraction * drawn
        foreground = attraction[1:].sum() / drawn[1:].sum().clamp_min(1)
        return attraction[0] + foreground + _separation(prototypes, known, third_term)


@torch.no_grad()
def _split_voxels(
    probs_a: Tensor, probs_b: Tensor, percentile: float, mask: Tensor | None, reliable: str, by_class: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the classes of the reliable voxels and of the uncertain voxels, (B, 1, N) each.

    A voxel outside a group has the number C in this group's tensor, which is no class.
    """
    guess, peer, no_class = probs_a.max(1).indices, probs_b.max(1).indices, probs_a.shape[1]
    counts = torch.ones_like(guess, dtype=torch.bool) if mask is None else mask[:, 0].bool()
    if reliable == "agreement":
        entropies = torch.stack([entropy(probs_a), entropy(probs_b)])
        counted = None if mask is None else counts.expand_as(entropies)
        if by_class:
            both = torch.stack([guess, peer])
            low = entropies <= class_percentiles(entropies, both, no_class, percentile, counted)[both]
        else:
            low = entropies <= masked_percentile(entropies, percentile, counted)
        certain, labels = low.all(0) & (guess == peer), guess
    else:
        ignored = entropy_ignore_mask(probs_a, probs_b, percentile, mask, by_class)
        certain, labels = ~ignored, fuse_labels(probs_a, probs_b)
    of_reliable = labels.masked_fill(~(certain & counts), no_class)
    of_uncertain = guess.masked_fill(certain | ~counts, no_class)
    return of_reliable.flatten(1).unsqueeze(1), of_uncertain.flatten(1).unsqueeze(1)


def _attraction(voxels: Tensor, prototypes: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each class, the mean distance of its voxels to its prototype, and the number of its voxels.

    Args:
        voxels: features (B, F, N).
        prototypes: (C, F), length 1 or 0.
        members: BoolTensor (B, C, N), True = the voxel belongs to the class.

    Returns:
        Two tensors (C,).
    """
    weights = members.to(voxels.dtype).transpose(1, 2)  # (B, N, C)
    distances = _distance(_normalise(voxels.transpose(1, 2)), weights @ prototypes)
    numbers = members.sum((0, 2))
    return (weights * distances.unsqueeze(2)).sum((0, 1)) / numbers.clamp_min(1), numbers


def _sampled_attraction(
    voxels: Tensor, prototypes: Tensor, groups: Tensor, fraction: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return `_attraction` over a random sample of each class, and the sizes of the samples: (C,), (C,).

    The class sizes are unknown on the host. So the sample of every class has a row of the same length, and the entries
    beyond the class's own number have weight 0.
    """
    flat, num_classes = groups.flatten(), len(prototypes)
    classes = torch.arange(num_classes, device=flat.device).unsqueeze(1)
    sizes = (flat == classes).sum(1)
    share = round(fraction * MILLION)
    numbers = torch.minimum((sizes * share // MILLION).clamp(1, MOST_SAMPLES), sizes)
    # keys of class c lie in [2c, 2c + 1), so this order has the classes one after the other, each shuffled
    order = (2 * flat + torch.rand(len(flat), generator=generator, device=flat.device)).argsort()
    most = min(MOST_SAMPLES, max(1, len(flat) * share // MILLION))
    rank = torch.arange(most, device=flat.device)
    first = (sizes.cumsum(0) - sizes).unsqueeze(1)  # where each class begins in the order
    drawn = order[(first + rank).clamp_max(len(flat) - 1)]  # (C, most)
    samples = voxels[drawn // voxels.shape[2], :, drawn % voxels.shape[2]]
    distances = _distance(_normalise(samples), prototypes.unsqueeze(1))
    return (distances * (rank < numbers.unsqueeze(1))).sum(1) / numbers.clamp_min(1), numbers


def _separation(prototypes: Tensor, known: Tensor, weight: float | str) -> Tensor:
    """Return the third term, 0-d: the weighted mean distance of all pairs of known prototypes (C, F)."""
    first, second = torch.triu_indices(len(known), len(known), 1, device=known.device)
    both = known[first] & known[second]
    distances = _distance(prototypes[first], prototypes[second])
    values = 2 - distances if weight == "repel" else float(weight) * distances
    return (values * both).sum() / both.sum().clamp_min(1)


def _normalise(vectors: Tensor) -> Tensor:
    """Return vectors of length 1 along the last axis; a zero vector stays zero and passes no gradient."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.masked_fill(length <= 1e-12, torch.inf)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distance along the last axis; 1e-12 keeps the gradient of the root finite at 0."""
    distance: Tensor = ((a - b).square().sum(-1) + 1e-12).sqrt()
    return distance
