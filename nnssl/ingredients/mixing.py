"""Mixtures of two training images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def copy_paste_mask(
    spatial_shape: Sequence[int],
    ratio: float = 2 / 3,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return a mask that is 0 in one randomly placed box and 1 outside the box.

    Along an axis of length n the box has length b = ⌊ratio·n⌋ and starts at a whole number drawn from 0 ≤ o < n − b
    (o = 0 where b = n). So a box that is shorter than its axis never touches the far border, as in the authors' code.

    Args:
        spatial_shape: lengths *S of the patch, in voxels.
        ratio: length of the box / length of the patch, in [0, 1].
        generator: CPU generator that draws one number for each axis; None = torch's global generator.
        device: device of the mask; None = the CPU.

    Returns:
        (1, 1, *S), fp32; the whole batch shares the box.

    Raises:
        ValueError: `ratio` is outside [0, 1].

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, the zero-centred mask M of eq. 1–2.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio must be in [0, 1], got {ratio}")
    box = [slice(None), slice(None)]
    for length in spatial_shape:
        side = math.floor(ratio * length)
        offset = int(torch.randint(max(length - side, 1), (), generator=generator))
        box.append(slice(offset, offset + side))
    mask = torch.ones(1, 1, *spatial_shape, device=device)
    mask[tuple(box)] = 0.0
    return mask


def copy_paste(outside: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
    """Return `outside` with the box of the mask replaced by the box of `inside`.

    M ⊙ outside + (1 − M) ⊙ inside

    Args:
        outside: (B, C, *S), kept where the mask is 1; receives the gradient of these voxels.
        inside: (B, C, *S), pasted where the mask is 0; receives the gradient of these voxels.
        mask: (B or 1, 1, *S), 0 or 1. Labels (B, *S) need the mask without its channel axis.

    Returns:
        (B, C, *S) in the type of `outside`; equal to `inside` when the mask is empty (all 0).

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, eq. 1–2; Su, Sun, Adamyk, DSMT-Net, Comput. Biol.
    Chem. 119 (2025) 108579, eq. 1.
    """
    weights = mask.to(outside.dtype)
    return weights * outside + (1 - weights) * inside


def predominant_mixup(
    unlabelled: Tensor, labelled: Tensor, alpha: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return mixtures that are mostly unlabelled, and the weights of the unlabelled images.

    w·u + (1 − w)·l  with w = max(λ, 1 − λ), λ ~ Beta(α, α); one w for each sample, shared by its channels

    Args:
        unlabelled: (B, C, *S), floating point; receives the gradient.
        labelled: (B, C, *S); row i is mixed with row i of `unlabelled`; receives the gradient.
        alpha: both parameters of the Beta distribution, > 0.
        generator: draws one number for each sample, on the generator's device; None = torch's global generator of the
            images' device.

    Returns:
        mixed: (B, C, *S) in the type of `unlabelled`.
        weights: (B,), w in [0.5, 1], fp32 (fp64 for fp64 images).

    Raises:
        ValueError: `alpha` is not positive.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956, eq. 1–3.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    device = unlabelled.device if generator is None else generator.device
    dtype = torch.promote_types(unlabelled.dtype, torch.float32)
    parameters = torch.full((len(unlabelled), 2), float(alpha), dtype=dtype, device=device)
    # a Dirichlet draw with two parameters is the pair λ, 1 − λ; torch.distributions takes no generator
    weights = torch._sample_dirichlet(parameters, generator).amax(1)
    weights = weights.to(unlabelled.device, non_blocking=True)
    factors = weights.view(-1, *[1] * (unlabelled.ndim - 1)).to(unlabelled.dtype)
    return factors * unlabelled + (1 - factors) * labelled, weights
