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


def cutmix_rectangle(
    spatial_shape: Sequence[int],
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    generator: torch.Generator | None = None,
    sides: Sequence[int] | None = None,
) -> Tensor:
    """Return a mask that is 0 in a random box and 1 outside the box.

    Share a ~ U(area) of the patch, ratios ρ_i ~ U(aspect) of all axes but the last (whose ratio is 1): the side along
    axis i of length n_i is n_i · a^(1/n) · ρ_i / (Πρ)^(1/n) voxels, rounded. Sides that do not fit are drawn again.

    Args:
        spatial_shape: lengths *S of the patch, in voxels.
        probability: of a box; without one the mask is 1 everywhere.
        area: least and largest share of the box in the patch, in (0, 1).
        aspect: least and largest ratio of a side to the last side, relative to the patch; > 0.
        generator: CPU generator; None = torch's global generator.
        sides: the box's sides in voxels instead of drawn ones.

    Returns:
        (1, 1, *S), fp32, on the CPU.

    Reference: Yang et al., UniMatch, CVPR 2023, whose public code for medical images draws the box; in 2-D and 3-D the
    same formula.
    """
    mask = torch.ones(1, 1, *spatial_shape)
    if torch.rand((), generator=generator).item() < probability:
        while sides is None:
            drawn = cutmix_sides(
                spatial_shape,
                _uniform(area, generator),
                [_uniform(aspect, generator) for _ in spatial_shape[1:]],
            )
            sides = drawn if all(side <= n for side, n in zip(drawn, spatial_shape, strict=True)) else None
        starts = [
            int(torch.randint(n - side + 1, (), generator=generator))
            for side, n in zip(sides, spatial_shape, strict=True)
        ]
        box = [slice(start, start + side) for start, side in zip(starts, sides, strict=True)]
        mask[(slice(None), slice(None), *box)] = 0
    return mask


def cutmix_sides(spatial_shape: Sequence[int], area: float, ratios: Sequence[float]) -> list[int]:
    """Return the sides in voxels of a box with a share of the patch; see `cutmix_rectangle`.

    Args:
        spatial_shape: lengths *S of the patch, in voxels.
        area: share of the box in the patch, in (0, 1).
        ratios: side of each axis but the last relative to the last side, in units of the patch; > 0.
    """
    count, factors = len(spatial_shape), [*ratios, 1.0]
    mean = math.prod(factors) ** (1 / count)
    pairs = zip(spatial_shape, factors, strict=True)
    return [max(1, int(n * area ** (1 / count) * factor / mean)) for n, factor in pairs]


def _uniform(bounds: tuple[float, float], generator: torch.Generator | None) -> float:
    low, high = bounds
    return low + (high - low) * torch.rand((), generator=generator).item()


def cutmix_box(spatial_shape: Sequence[int], lam: float, centre: Sequence[int]) -> list[slice]:
    """Return the box of CutMix around a centre, clipped to the image.

    The side along an axis of length n is s = ⌊n·√(1 − λ)⌋; the box is [c − ⌊s/2⌋, c + ⌊s/2⌋).

    Args:
        spatial_shape: lengths *S of the patch, in voxels.
        lam: λ, in [0, 1].
        centre: c, a voxel along each axis.

    Returns:
        One slice for each axis; an empty slice where the side is below 2 voxels.

    Raises:
        ValueError: `lam` is outside [0, 1].

    Reference: Yun et al., CutMix, ICCV 2019, eq. 2, for n axes as in Zhao et al., AD-MT, ECCV 2024; Li et al.,
    DTLP-Net, arXiv 2508.08549, eq. 12.
    """
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lam must be in [0, 1], got {lam}")
    box = []
    for length, middle in zip(spatial_shape, centre, strict=True):
        half = math.floor(length * math.sqrt(1 - lam)) // 2
        box.append(slice(max(0, middle - half), min(length, max(0, middle + half))))
    return box


def draw_cutmix_boxes(
    spatial_shape: Sequence[int], count: int, generator: torch.Generator | None = None
) -> list[list[slice]]:
    """Return random boxes of CutMix: one λ ~ Beta(4, 4) for all, and a centre for each, see `cutmix_box`.

    The centre along an axis of length n is a whole number, uniform in ⌊n/8⌋ ≤ c < n. In the mean a box has 22 % of the
    voxels in 3-D and 35 % in 2-D.

    Args:
        spatial_shape: lengths *S of the patch, in voxels.
        count: number of boxes.
        generator: CPU generator; None = torch's global generator.

    Reference: as `cutmix_box`.
    """
    parameters = torch.full((1, 2), 4.0)
    lam = float(torch._sample_dirichlet(parameters, generator)[0, 0])  # Beta(4, 4), see predominant_mixup
    return [
        cutmix_box(spatial_shape, lam, [int(torch.randint(n // 8, n, (), generator=generator)) for n in spatial_shape])
        for _ in range(count)
    ]


def block_mask(
    spatial_shape: Sequence[int],
    ratio: float,
    blocks: int = 16,
    uniform: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a mask that is 0 in random blocks and 1 in the others.

    The patch has G = min(blocks, n) blocks along an axis of length n; voxel i belongs to block ⌊i·G/n⌋. A block is kept
    where its draw v ~ U(0, 1) exceeds the ratio.

    Args:
        spatial_shape: lengths *S of the patch, in voxels.
        ratio: probability that a block is masked, in [0, 1].
        blocks: largest number of blocks along an axis, >= 1.
        uniform: the draws v, one for each block, for tests; None = draw them.
        generator: CPU generator; None = torch's global generator.

    Returns:
        (1, 1, *S), fp32, on the CPU or the device of `uniform`; 1 = kept.

    Raises:
        ValueError: `ratio` is outside [0, 1], or `blocks` below 1.

    Reference: Hoyer et al., MIC, CVPR 2023, eq. 3; Li et al., DTLP-Net, arXiv 2508.08549, eq. 14.
    """
    if not 0.0 <= ratio <= 1.0 or blocks < 1:
        raise ValueError(f"ratio must be in [0, 1], blocks at least 1, got {ratio} and {blocks}")
    grid = [min(blocks, length) for length in spatial_shape] if uniform is None else list(uniform.shape)
    draws = torch.rand(grid, generator=generator) if uniform is None else uniform
    kept = (draws > ratio).float()
    for axis, length in enumerate(spatial_shape):
        kept = kept.index_select(axis, torch.arange(length, device=kept.device) * grid[axis] // length)
    return kept[None, None]
