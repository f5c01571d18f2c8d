"""Making one training image out of two."""

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
    """Return a mask that is 0 in one randomly placed box and 1 outside it.

    Along an axis of length n the box has length b = ⌊ratio·n⌋ and starts at a whole number drawn from 0 ≤ o < n − b
    (o = 0 where b = n), so that a box shorter than its axis never touches the far border, as in the authors' code.

    Args:
        spatial_shape: lengths *S of the patch, in voxels.
        ratio: length of the box / length of the patch, in [0, 1].
        generator: CPU generator that draws one number per axis; None = torch's global one.
        device: where the mask is made; None = the CPU.

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
    """Return `outside` with the box of the mask taken from `inside`.

    M ⊙ outside + (1 − M) ⊙ inside

    Args:
        outside: (B, C, *S), kept where the mask is 1; the gradient goes through.
        inside: (B, C, *S), pasted where the mask is 0; the gradient goes through.
        mask: (B or 1, 1, *S), 0 or 1. For labels (B, *S) give the mask without its channel axis.

    Returns:
        (B, C, *S) in the type of `outside`; with an empty mask (all 0) `inside`.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, eq. 1–2; Su, Sun, Adamyk, DSMT-Net, Comput. Biol.
    Chem. 119 (2025) 108579, eq. 1.
    """
    weights = mask.to(outside.dtype)
    return weights * outside + (1 - weights) * inside


def predominant_mixup(
    unlabelled: Tensor, labelled: Tensor, alpha: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return mixes that are mostly unlabelled, and their weights.

    w·u + (1 − w)·l  with w = max(λ, 1 − λ), λ ~ Beta(α, α), one number a sample, the same for all its channels

    Args:
        unlabelled: (B, C, *S), floating point; the gradient goes through.
        labelled: (B, C, *S), row i for row i of `unlabelled`; the gradient goes through.
        alpha: both parameters of the Beta distribution, > 0.
        generator: draws one number a sample on its own device; None = torch's global one on the device of the images.

    Returns:
        mixed: (B, C, *S) in the type of `unlabelled`.
        weights: (B,), fp32 (fp64 for fp64 images), in [0.5, 1], of the unlabelled images.

    Raises:
        ValueError: `alpha` is not positive.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956, eq. 1–3.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    device = unlabelled.device if generator is None else generator.device
    dtype = torch.promote_types(unlabelled.dtype, torch.float32)
    pairs = torch.full((len(unlabelled), 2), float(alpha), dtype=dtype, device=device)
    weights = torch._sample_dirichlet(pairs, generator).amax(1)  # λ and 1 − λ, and the larger of them
    weights = weights.to(unlabelled.device, non_blocking=True)
    factors = weights.view(-1, *[1] * (unlabelled.ndim - 1)).to(unlabelled.dtype)
    return factors * unlabelled + (1 - factors) * labelled, weights
