"""Random changes of images on their device, for views that a loss compares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.ingredients.box_filter import pad
from nnssl.ingredients.supervised import promote_to_fp32


@torch.no_grad()
def augment_patches(
    image: Tensor,
    least_side: float = 0.8,
    jitter: float = 0.3,
    noise: float = 0.1,
    cutout: float = 0.25,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return each patch cropped and enlarged, with changed contrast and brightness, noise, and one box erased.

    Each patch has its own random numbers. Let μ and σ be mean and standard deviation of a channel after the crop. A
    value x becomes μ + a·(x − μ) + b·σ + noise·σ·ε, with a − 1 and b uniform in ±jitter and ε normal. Inside the
    erased box the value is μ.

    Args:
        image: (B, C, *S), any intensities; receives no gradient. Half precision is converted to fp32.
        least_side: the side of the crop is uniform between this value and 1, in units of the patch, for each axis.
        jitter: largest change of contrast, and largest change of brightness in standard deviations.
        noise: standard deviation of the noise in units of the patch's standard deviation.
        cutout: side of the erased box in units of the patch; the box may reach over the border.
        generator: generator on the device of the image; None = torch's global generator.

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
        erased = _boxes(size, draw(len(size), count), cutout)
    return torch.where(erased, mean, copy)


def _boxes(size: Sequence[int], centres: Tensor, side: float) -> Tensor:
    """Return (B, 1, *S), True inside a box for each sample, for centres (n, B) and a side in units of the patch."""
    axes, count = centres.shape
    inside = torch.ones(count, 1, *[1] * axes, dtype=torch.bool, device=centres.device)
    for axis, (voxels, centre) in enumerate(zip(size, centres, strict=True)):
        position = (torch.arange(voxels, device=centres.device) + 0.5) / voxels
        near = (position - centre.unsqueeze(1)).abs() <= side / 2  # (B, voxels)
        shape = [1] * axes
        shape[axis] = voxels
        inside = inside & near.view(count, 1, *shape)
    return inside


def add_shared_noise(views: Sequence[Tensor], std: float, generator: torch.Generator | None = None) -> list[Tensor]:
    """Return views of the same patches, all with the same Gaussian noise.

    x + σ·n,  n ~ N(0, 1), one draw for each value of a view

    Args:
        views: tensors of one shape (B, C, *S), floating point; they receive the gradient.
        std: σ >= 0, in intensities of the images; 0 draws nothing and returns the views themselves.
        generator: generator on the device of the images; None = torch's global generator.

    Returns:
        One tensor (B, C, *S) for each view, in its type.

    Reference: Su, Sun, Adamyk, DSMT-Net, Comput. Biol. Chem. 119 (2025) 108579, table 8, noise on unlabelled images.
    """
    if not std:
        return list(views)
    first = views[0]
    noise = std * torch.randn(first.shape, generator=generator, dtype=first.dtype, device=first.device)
    return [view + noise.to(view.dtype) for view in views]


def add_clipped_noise(
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
        image: (B, C, *S), floating point; receives the gradient.
        std: σ >= 0, before clipping, in multiples of `unit`.
        limit: largest change, >= 0, in multiples of `unit`.
        unit: unit of `std` and `limit` in intensities of the image; a number, or a tensor that broadcasts to the image.
        keep_zeros: add no noise where all channels are exactly 0, as outside a masked brain.
        generator: generator on the device of the image; None = torch's global generator.

    Returns:
        (B, C, *S) in the type of the image.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956, the noisy copies, with σ = 0.1
    and limit = 0.2.
    """
    normal = torch.randn(image.shape, generator=generator, dtype=image.dtype, device=image.device)
    noise = unit * (std * normal).clamp(-limit, limit)
    if keep_zeros:
        noise = noise * (image != 0).any(dim=1, keepdim=True)
    return image + noise


def gumbel_softmax(
    logits: Tensor, temperature: float, uniform: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return soft class probabilities of logits with Gumbel noise.

    softmax_c((z_c + g_c) / T),  g = −log(−log u),  u ~ U(0, 1)

    Args:
        logits: (B, C, *S); receive the gradient. Half precision is converted to fp32.
        temperature: T > 0.
        uniform: the draws u (B, C, *S) in (0, 1), for tests; None = draw them.
        generator: generator on the device of the logits; None = torch's global generator.

    Returns:
        (B, C, *S), sums to 1 over C, in fp32 or fp64.

    Raises:
        ValueError: `temperature` is not positive.

    Reference: Jang et al., Categorical reparameterization with Gumbel-softmax, ICLR 2017, eq. 1–2; Li et al., DTLP-Net,
    arXiv 2508.08549, eq. 7.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    z = promote_to_fp32(logits)
    if uniform is None:
        uniform = torch.rand(z.shape, generator=generator, dtype=z.dtype, device=z.device)
    limits = torch.finfo(z.dtype)
    u = uniform.to(z.dtype).clamp(limits.tiny, 1 - limits.eps)
    return ((z - (-u.log()).log()) / temperature).softmax(1)


def gaussian_blur(probs: Tensor, sigma: float = 1.0, border: Literal["replicate", "zero"] = "replicate") -> Tensor:
    """Return probabilities after a Gaussian filter of three taps along each axis.

    The weights of the taps are exp(−1/(2σ²)), 1, exp(−1/(2σ²)), divided by their sum.

    Args:
        probs: (B, C, *S); receive the gradient.
        sigma: σ > 0, in voxels.
        border: `replicate` repeats the border voxel, so that the sum over C stays 1; `zero` loses mass at the border.

    Returns:
        (B, C, *S) in the type of `probs`.

    Raises:
        ValueError: `sigma` is not positive, or `border` has an unknown value.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 7.
    """
    if not sigma > 0 or border not in {"replicate", "zero"}:
        raise ValueError(f"sigma must be positive, border replicate or zero, got {sigma} and {border!r}")
    side = math.exp(-0.5 / sigma**2)
    middle = 1 / (1 + 2 * side)
    padded = pad(probs, 1, 1, border)
    for axis in range(2, probs.ndim):
        size = padded.shape[axis] - 2
        outer = padded.narrow(axis, 0, size) + padded.narrow(axis, 2, size)
        padded = side * middle * outer + middle * padded.narrow(axis, 1, size)
    return padded
