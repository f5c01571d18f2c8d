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
