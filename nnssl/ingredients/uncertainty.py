"""How uncertain predictions are."""

from __future__ import annotations

import torch
from torch import Tensor

from nnssl.ingredients.supervised import at_least_fp32

PERCENTILE_STEPS = 10_000  # a percentile is taken to four decimals, so that its place is exact in whole numbers


def entropy(probs: Tensor) -> Tensor:
    """Return the entropy of every voxel in nats.

    H_v = −Σ_c p_vc · log p_vc,  0 · log 0 = 0

    Args:
        probs: (B, C, *S), in [0, 1], sums to 1 over C; the gradient goes here and stays finite where p = 0.

    Returns:
        (B, *S), in [0, log C], at least fp32.

    Reference: Lu et al., Enhancing dual network based semi-supervised medical image segmentation with
    uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025, eq. 9.
    """
    probs = at_least_fp32(probs)
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(1)


def percentile_of(values: Tensor, percentile: float, mask: Tensor | None = None) -> Tensor:
    """Return a percentile with linear interpolation, as numpy's default; of any number of values, without waiting.

    With the n values that count in order v_0 ≤ … ≤ v_{n−1} and place t = (n − 1)·percentile/100:
    v_⌊t⌋ + (t − ⌊t⌋)·(v_⌊t⌋₊₁ − v_⌊t⌋). Memory linear in the values. On a CPU the two values are selected, elsewhere
    the values are sorted, so that the host need not wait for n.

    Args:
        values: any shape, floating point; the gradient goes to the two values.
        percentile: 0 to 100, to four decimals.
        mask: shape of `values`, True = counts; None counts all.

    Returns:
        0-d tensor; not a number (or infinity) when the mask is empty.

    Raises:
        ValueError: `percentile` is outside [0, 100].
    """
    if not 0.0 <= percentile <= 100.0:
        raise ValueError(f"percentile must be in [0, 100], got {percentile}")
    values = at_least_fp32(values)
    counted = (values if mask is None else values.masked_fill(~mask, torch.inf)).flatten()
    last = torch.full((), counted.numel(), device=values.device) if mask is None else mask.sum()
    last = (last - 1).clamp_min(0)
    place, whole = last * round(percentile * PERCENTILE_STEPS), 100 * PERCENTILE_STEPS
    below = place // whole
    places = below, torch.minimum(below + 1, last)
    if values.device.type == "cpu":
        lower, upper = (counted.kthvalue(int(k) + 1).values for k in places)
    else:
        lower, upper = counted.sort().values.gather(0, torch.stack(places))
    result: Tensor = lower + (upper - lower) * ((place % whole).to(values.dtype) / whole)
    return result


@torch.no_grad()
def entropy_ignore_mask(probs_a: Tensor, probs_b: Tensor, percentile: float, mask: Tensor | None = None) -> Tensor:
    """Return which voxels neither of two predictions is certain of.

    H_A(v) > δ_A  and  H_B(v) > δ_B,  δ_m = the percentile of H_m over the whole batch

    At most (100 − percentile) % of the voxels. The comparison is strict: where predictions are saturated, δ can be 0
    and the voxels with entropy 0 are certain.

    Args:
        probs_a: (B, C, *S), in [0, 1]; no gradient.
        probs_b: (B, C, *S), in [0, 1]; no gradient.
        percentile: 0 to 100.
        mask: (B, 1, *S), True = counts; others take no part in δ and are False in the result. None counts all.

    Returns:
        BoolTensor (B, *S), True = ignore.

    Reference: Lu et al., Knowledge-Based Systems 2025, eq. 10 (there 1 − this).
    """
    counts = None if mask is None else mask[:, 0].bool()
    above = [h > percentile_of(h, percentile, counts) for h in (entropy(probs_a), entropy(probs_b))]
    ignored = above[0] & above[1]
    return ignored if counts is None else ignored & counts
