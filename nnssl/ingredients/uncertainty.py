"""Measures of how uncertain predictions are."""

from __future__ import annotations

import torch
from torch import Tensor

from nnssl.ingredients.supervised import promote_to_fp32

PERCENTILE_STEPS = 10_000  # a percentile is rounded to four decimals, so that its position is exact in whole numbers


def entropy(probs: Tensor) -> Tensor:
    """Return the entropy of every voxel in nats.

    H_v = −Σ_c p_vc · log p_vc,  0 · log 0 = 0

    Args:
        probs: (B, C, *S), in [0, 1], sums to 1 over C; receives the gradient, which stays finite where p = 0.

    Returns:
        (B, *S), in [0, log C], in fp32 or fp64.

    Reference: Lu et al., Enhancing dual network based semi-supervised medical image segmentation with
    uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025, eq. 9.
    """
    probs = promote_to_fp32(probs)
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(1)


def masked_percentile(values: Tensor, percentile: float, mask: Tensor | None = None) -> Tensor:
    """Return a percentile of the values that count, with linear interpolation, as numpy's default.

    Sort the n values that count, v_0 ≤ … ≤ v_{n−1}, and let t = (n − 1)·percentile/100. The percentile is
    v_⌊t⌋ + (t − ⌊t⌋)·(v_⌊t⌋₊₁ − v_⌊t⌋).

    The number of values is not limited (`torch.quantile` stops at 2^24). Memory is linear in the values. On a CPU the
    two values are selected; on other devices all values are sorted, because a selection would make the host wait for n.

    Args:
        values: any shape, floating point; the two values v_⌊t⌋ and v_⌊t⌋₊₁ receive the gradient.
        percentile: 0 to 100; rounded to four decimals.
        mask: shape of `values`, True = the value counts; None = every value counts.

    Returns:
        0-d tensor; infinite or not a number when the mask is empty.

    Raises:
        ValueError: `percentile` is outside [0, 100].
    """
    if not 0.0 <= percentile <= 100.0:
        raise ValueError(f"percentile must be in [0, 100], got {percentile}")
    values = promote_to_fp32(values)
    counted = (values if mask is None else values.masked_fill(~mask, torch.inf)).flatten()
    number = torch.full((), counted.numel(), device=values.device) if mask is None else mask.sum()
    last = (number - 1).clamp_min(0)
    position, whole = last * round(percentile * PERCENTILE_STEPS), 100 * PERCENTILE_STEPS
    below = position // whole
    above = torch.minimum(below + 1, last)
    if values.device.type == "cpu":
        lower, upper = (counted.kthvalue(int(k) + 1).values for k in (below, above))
    else:
        lower, upper = counted.sort().values.gather(0, torch.stack((below, above)))
    result: Tensor = lower + (upper - lower) * ((position % whole).to(values.dtype) / whole)
    return result


@torch.no_grad()
def class_percentiles(
    values: Tensor, classes: Tensor, num_classes: int, percentile: float, mask: Tensor | None = None
) -> Tensor:
    """Return, for each class, the percentile of the values of its voxels, as `masked_percentile` defines it.

    Two sorts serve all classes; the host does not wait for the device.

    Args:
        values: any shape, floating point; receives no gradient.
        classes: LongTensor of the shape of `values`, 0 .. num_classes − 1.
        num_classes: number of classes.
        percentile: 0 to 100; rounded to four decimals.
        mask: shape of `values`, True = the value counts; None = every value counts.

    Returns:
        (num_classes,), in fp32 or fp64; infinite for a class without values that count.

    Raises:
        ValueError: `percentile` is outside [0, 100].
    """
    if not 0.0 <= percentile <= 100.0:
        raise ValueError(f"percentile must be in [0, 100], got {percentile}")
    flat = promote_to_fp32(values).flatten()
    groups = (classes if mask is None else classes.masked_fill(~mask, num_classes)).flatten()
    by_value = flat.argsort()
    ranked = flat[by_value[groups[by_value].argsort(stable=True)]]  # the classes one after the other, each in order
    numbers = (groups == torch.arange(num_classes, device=flat.device).unsqueeze(1)).sum(1)
    first, last = numbers.cumsum(0) - numbers, (numbers - 1).clamp_min(0)
    position, whole = last * round(percentile * PERCENTILE_STEPS), 100 * PERCENTILE_STEPS
    below = position // whole
    lower, upper = (
        ranked[(first + rank).clamp_max(len(ranked) - 1)] for rank in (below, torch.minimum(below + 1, last))
    )
    result = lower + (upper - lower) * ((position % whole).to(flat.dtype) / whole)
    return torch.where(numbers > 0, result, torch.inf)


@torch.no_grad()
def entropy_ignore_mask(
    probs_a: Tensor, probs_b: Tensor, percentile: float, mask: Tensor | None = None, by_class: bool = False
) -> Tensor:
    """Return the voxels of which both predictions are uncertain.

    H_A(v) > δ_A  and  H_B(v) > δ_B,  δ_m = the percentile of H_m over the whole batch
    by_class: δ_m(v) = the percentile of H_m over the voxels to which m gives the same class as to v

    Entropy is high at and around structures, so that one percentile for all voxels ignores mostly foreground. With
    `by_class`, no class of either prediction loses more than (100 − percentile) % of its voxels.

    At most (100 − percentile) % of the voxels are ignored. The comparison is strict: where predictions are saturated,
    δ can be 0, and a voxel with entropy 0 is certain.

    Args:
        probs_a: (B, C, *S), in [0, 1]; receives no gradient.
        probs_b: (B, C, *S), in [0, 1]; receives no gradient.
        percentile: 0 to 100.
        mask: (B, 1, *S), True = the voxel counts. The other voxels do not enter δ and are False in the result. None =
            every voxel counts.
        by_class: a percentile for each predicted class.

    Returns:
        BoolTensor (B, *S), True = ignore the voxel; all False when the mask is empty.

    Reference: Lu et al., Knowledge-Based Systems 2025, eq. 10, whose mask is 1 − this one; `by_class` is an
    addition to the paper.
    """
    counts = None if mask is None else mask[:, 0].bool()
    high = []
    for probs in (probs_a, probs_b):
        values = entropy(probs)
        if by_class:
            guess = probs.max(1).indices
            high.append(values > class_percentiles(values, guess, probs.shape[1], percentile, counts)[guess])
        else:
            high.append(values > masked_percentile(values, percentile, counts))
    ignored = high[0] & high[1]
    return ignored if counts is None else ignored & counts
