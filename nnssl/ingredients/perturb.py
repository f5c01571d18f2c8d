"""Random changes of images on the device, for views that a loss compares."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def augmented_copy(
    image: Tensor,
    least_side: float = 0.8,
    jitter: float = 0.3,
    noise: float = 0.1,
    cutout: float = 0.25,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each patch cropped and enlarged, with other contrast and brightness, noise, and a box cut out.

    Each patch has draws of its own. With its mean μ and standard deviation σ in each channel after the crop, its
    values become μ + a·(x − μ) + b·σ + noise·σ·ε, a − 1 and b uniform in ±jitter, ε normal; the box is μ.

    Args:
        image: (B, C, *S), any intensities. Half precision is taken to fp32.
        least_side: sides of the crop are uniform between this and 1, in units of the patch, each axis for itself.
        jitter: largest change of contrast, and of brightness in standard deviations.
        noise: standard deviation of the noise, in those of the patch.
        cutout: sides of the box in units of the patch; it may reach over the border.
        generator: draws on the device of the image; None = torch's global one.

    Returns:
        (B, C, *S), without a graph.

    Reference: Mi et al., PLoS One 21(4): e0342567, 2026, names the kinds of augmentation of the contrastive view.
    """
    count, _, *size = image.shape
    spatial = list(range(2, image.ndim))
    draw = partial(torch.rand, generator=generator, device=image.device)
    with torch.autocast(image.device.type, enabled=False):
        side = least_side + (1 - least_side) * draw(count, len(size))
        shift = (1 - side) * (2 * draw(count, len(size)) - 1)
        crop = torch.cat([torch.diag_embed(side), shift.unsqueeze(2)], 2)
        grid = functional.affine_grid(crop, list(image.shape), align_corners=False)
        copy = functional.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)
        mean, std = copy.mean(spatial, keepdim=True), copy.std(spatial, correction=0, keepdim=True)
        contrast, brightness = jitter * (2 * draw(2, *mean.shape) - 1)
        normal = torch.randn(copy.shape, generator=generator, device=image.device)
        copy = copy + contrast * (copy - mean) + (brightness + noise * normal) * std
        inside = torch.ones(count, 1, *[1] * len(size), dtype=torch.bool, device=image.device)
        for axis, (voxels, centre) in enumerate(zip(size, draw(len(size), count), strict=True)):
            place = (torch.arange(voxels, device=image.device) + 0.5) / voxels
            near = (place - centre.unsqueeze(1)).abs() <= cutout / 2
            inside = inside & near.view(count, 1, *[voxels if other == axis else 1 for other in range(len(size))])
    return torch.where(inside, mean, copy)


def clipped_noise(
    image: Tensor,
    std: float,
    limit: float,
    unit: float | Tensor = 1.0,
    keep_zeros: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the image with clipped Gaussian noise on every value.

    x + unit · clip(σ·n, −limit, limit),  n ~ N(0, 1)

    Args:
        image: (B, C, *S), floating point; the gradient goes through.
        std: σ >= 0, before clipping.
        limit: largest change, >= 0.
        unit: of both, in that of the image; a number, or a tensor that broadcasts to the image.
        keep_zeros: no noise where all channels are exactly 0, as outside a masked brain.
        generator: on the device of the image; None = torch's global one.

    Returns:
        (B, C, *S) in the type of the image.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956, the noisy copies; there
    σ = 0.1 and limit = 0.2.
    """
    normal = torch.randn(image.shape, generator=generator, dtype=image.dtype, device=image.device)
    noise = unit * (std * normal).clamp(-limit, limit)
    if keep_zeros:
        noise = noise * (image != 0).any(dim=1, keepdim=True)
    return image + noise
