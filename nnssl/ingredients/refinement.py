"""Refinement of soft labels by confident, similar neighbours: the label propagation of DSMT-Net.

Su, Sun and Adamyk, Comput. Biol. Chem. 119 (2025) 108579; the equation numbers are those of this paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from nnssl.ingredients.box_filter import Border, box_mean, list_windows, pad, running_sum, spatial_axes
from nnssl.ingredients.supervised import promote_to_fp32

Mode = Literal["propagate", "literal", "pairwise"]
Scope = Literal["pixel", "image"]

_CHUNK_VOXELS = 1 << 20  # groups of samples have about this size, so that temporary tensors stay small and in the cache
_QUANTILE_VOXELS = 100_000
_PAIR_RADIUS, _PAIR_BANDWIDTH = 2, 0.1


class Neighbourhood(NamedTuple):
    """What the refinement needs from an image; computed once, shared by all predictions for that image."""

    window: Tensor  # (B, 1, *S) or (B, 1, 1, ...), integer side of the window, before it is made odd
    similarity: Tensor  # (B, 1, *S), normalised, in [0, 1]
    image: Tensor  # (B, C_in, *S), scaled on request
    window_range: tuple[int, int]  # least and greatest side


class NeighbourhoodOptions(TypedDict, total=False):
    """Keyword options of `neighbourhood`."""

    window_scope: Scope
    low: int
    high: int
    temperature: float | None
    scale: bool


@torch.no_grad()
def scale_intensities(image: Tensor) -> Tensor:
    """Return the image scaled so that its 0.5 and 99.5 percent quantiles become 0 and 1, and clipped to [0, 1].

    I = clip((x − q_0.5%) / (q_99.5% − q_0.5% + 1e-8), 0, 1) for each sample and channel. Above 100,000 voxels the
    quantiles are those of about 100,000 voxels, every k-th one. k shares no factor with the number of voxels, so that
    all positions along every axis occur.

    Args:
        image: (B, C_in, *S), any unit; receives no gradient.

    Returns:
        (B, C_in, *S) in [0, 1]; 0 where a channel is constant.

    Reference: none in the paper. Eq. 5 adds the gradient to a length, so the intensities need a fixed range.
    """
    image = promote_to_fp32(image)
    voxels = image.flatten(2)
    count = voxels.shape[-1]
    step = math.ceil(count / _QUANTILE_VOXELS)
    while math.gcd(step, count) > 1:
        step += 1
    voxels = voxels[..., ::step]
    quantiles = _low_quantile(voxels), -_low_quantile(-voxels)
    lowest, highest = (q.view(*q.shape, *[1] * (image.dim() - 2)) for q in quantiles)
    return (image - lowest).div_(highest - lowest + 1e-8).clamp_(0.0, 1.0)


@torch.no_grad()
def edge_adaptive_window(
    image: Tensor,
    low: int = 3,
    high: int = 7,
    border: Literal["replicate", "zero"] = "replicate",
    scope: Scope = "pixel",
) -> Tensor:
    """Return the side of each voxel's window: small where the image is smooth, large at edges.

    P = clamp(low + ⌊g⌋, low, high),  g² = mean over channels of Σ_a (Sobel_a I)²

    Sobel_a is [−1, 0, 1] along axis a and [1, 2, 1] along the other axes. In 3-D Sobel_a is divided by 4, so that a
    volume that is constant along one axis gives the values of its 2-D slices.

    Args:
        image: (B, C_in, *S), in [0, 1]; receives no gradient.
        low: least side in voxels.
        high: greatest side in voxels.
        border: what lies outside the image: the nearest voxel, or zeros, which make edges at the border.
        scope: "pixel" = one window per voxel; "image" = one window per sample, from the mean of g.

    Returns:
        (B, 1, *S) int64, or (B, 1, 1, ...) for scope "image"; even values stay even.

    Reference: eq. 5. The equation has no index on P; one window per voxel and the smoothing in 3-D are our reading.
    """
    magnitude = _apply_in_chunks(partial(_sobel_magnitude, border=border), promote_to_fp32(image))
    if scope == "image":
        magnitude = magnitude.mean(dim=spatial_axes(magnitude), keepdim=True)
    return magnitude.floor_().add_(low).clamp_(low, high).long()


@torch.no_grad()
def local_similarity(
    image: Tensor, window: int | Tensor, border: Border = "replicate", window_range: tuple[int, int] = (3, 7)
) -> Tensor:
    """Return minus the mean squared difference between each voxel and the voxels of its window, centre included.

    S_i = −1/|W(i)| · Σ_{k ∈ W(i)} (I_k − I_i)² = −(box(I²) − 2·I·box(I) + I²), mean over channels

    The mean of the sample is subtracted first, because in fp32 the difference of two large numbers would lose its
    digits. With zeros outside the image the mean stays, because S would change.

    Args:
        image: (B, C_in, *S); receives no gradient.
        window: side in voxels, >= 1. An even integer P reaches from −P/2 to P/2 − 1. A tensor of integers (B, 1, *S)
            or (B, 1, 1, ...) gives each voxel its own side; an even side P becomes P + 1.
        border: what lies outside the image: the nearest voxel ("replicate"), zeros that count ("zero"), or nothing, so
            that the mean takes the voxels inside the image ("valid").
        window_range: least and greatest side in a tensor `window`. Used on devices other than the CPU, where reading
            the tensor would wait for the device; sides outside this range are clamped.

    Returns:
        (B, 1, *S), <= 0, in fp32 or fp64.

    Reference: eq. 6, where P² is read as the number of voxels in the window, in 3-D as well.
    """

    def similarity(image: Tensor, window: int | Tensor) -> Tensor:
        if border != "zero":
            image = image - image.mean(dim=spatial_axes(image), keepdim=True)
        windows = list_windows(window, image, border, window_range)
        squares = image.square().mean(dim=1, keepdim=True)
        distance = squares + box_mean(squares, windows, border)
        for channel in torch.split(image, 1, dim=1):
            distance.addcmul_(channel, box_mean(channel, windows, border), value=-2.0 / image.shape[1])
        return distance.clamp_(min=0.0).neg_()

    return _apply_in_chunks(similarity, promote_to_fp32(image), window)


@torch.no_grad()
def normalised_similarity(similarity: Tensor, temperature: float | None = None) -> Tensor:
    """Return the similarity on a scale from 0 to 1; the most similar voxel of a sample has 1.

    S_norm = exp((S − max S) / τ), by default with τ = mean(−S) + 1e-8 of the sample

    Args:
        similarity: (B, 1, *S), <= 0; receives no gradient. Half precision is converted to fp32.
        temperature: τ > 0, in squared intensities; None = the default above. τ = 1 is the paper's formula; for images
            in [0, 1] the result is then close to 1 everywhere.

    Returns:
        (B, 1, *S) in [0, 1]; 1 everywhere for a constant image.

    Reference: eq. 7; the temperature is an addition to the paper.
    """
    similarity, axes = promote_to_fp32(similarity), spatial_axes(similarity)
    scaled = similarity - similarity.amax(dim=axes, keepdim=True)
    if temperature is not None:
        return scaled.div_(temperature).exp_()
    return scaled.div_(1e-8 - similarity.mean(dim=axes, keepdim=True)).exp_()


def confidence_mask(probs: Tensor, threshold_factor: float = -0.5, steepness: float = 10.0) -> Tensor:
    """Return how far each voxel's confidence lies above the threshold of the sample; 0 below the threshold.

    M = σ(steepness·(C − T))·[C >= T],  C = max_k p_k,  T = min(mean C + threshold_factor·std C, max C)

    Args:
        probs: (B, C, *S), sums to 1 over C; receives the gradient through C, while T is a constant.
        threshold_factor: number of (population) standard deviations above the mean.
        steepness: slope of the sigmoid.

    Returns:
        (B, 1, *S) in {0} ∪ [0.5, 1); at least one voxel is not 0, because T does not exceed max C.

    Reference: eq. 8–11, with the voxel's own C where the paper prints the mean of C; the paper gives no constants.
    """

    def mask(probs: Tensor) -> Tensor:
        confidence = probs.amax(dim=1, keepdim=True)
        fixed, axes = confidence.detach(), spatial_axes(probs)
        mean = fixed.mean(dim=axes, keepdim=True)
        deviation = (fixed - mean).square_().mean(dim=axes, keepdim=True).sqrt_()
        threshold = torch.minimum(mean + threshold_factor * deviation, fixed.amax(dim=axes, keepdim=True))
        # ge_ on a copy writes 0 and 1 as floats; >= would make a bool tensor, whose conversion is slower
        return torch.sigmoid((confidence - threshold) * steepness) * fixed.clone().ge_(threshold)

    return _apply_in_chunks(mask, promote_to_fp32(probs))


def propagate_labels(  # noqa: PLR0913, PLR0917
    probs: Tensor,
    similarity: Tensor,
    mask: Tensor,
    window: int | Tensor,
    iterations: int = 3,
    retention: float = 0.1,
    mode: Mode = "propagate",
    image: Tensor | None = None,
    window_range: tuple[int, int] = (3, 7),
) -> Tensor:
    """Return the probabilities after confident voxels have passed theirs to similar neighbours.

    "propagate":  y ← M·y + (1 − M)·(box(W·y) + κ·y) / (box(W) + κ),  W = S·M
    "pairwise":   as "propagate", with exp(−(I_j − I_i)²/(2·0.1²))·M_j in place of W_j, on windows of side 5
    "literal":    y ← softmax(y·S·M + y·(1 − M))

    Args:
        probs: (B, C, *S), sums to 1 over C; receives the gradient.
        similarity: (B, 1, *S), normalised, in [0, 1]; receives the gradient if required. Not used by "pairwise".
        mask: M, (B, 1, *S), in [0, 1]; receives the gradient if required. An empty mask (all 0) leaves the
            probabilities as they are, except in the mode "literal".
        window: as in `local_similarity`, with replicate borders; used by "propagate" only.
        iterations: number of rounds; S and M stay fixed. 0 returns `probs`.
        retention: κ >= 0, weight of a voxel's own value among its neighbours.
        mode: "literal" is the paper's formula. That formula moves nothing between voxels, and each round flattens the
            probabilities without changing any argmax; so "literal" is not the default.
        image: (B, C_in, *S), in [0, 1]; required by "pairwise".
        window_range: as in `local_similarity`.

    Returns:
        (B, C, *S), in fp32 or fp64, sums to 1 over C; within the range of the old values, except in "literal".

    Raises:
        ValueError: unknown mode, or "pairwise" without an image.

    Reference: eq. 12–13 ("literal"); the other modes are additions to the paper.
    """
    if mode not in ("propagate", "literal", "pairwise"):
        raise ValueError(f"mode must be propagate, literal or pairwise, got {mode}")
    if mode == "pairwise" and image is None:
        raise ValueError("pairwise propagation needs the image")
    if iterations == 0:
        return probs
    probs = promote_to_fp32(probs)
    if mode == "literal":
        factor = 1.0 - mask * (1.0 - similarity)
        for _ in range(iterations):
            probs = torch.softmax(probs * factor, dim=1)
        return probs

    kappa = max(retention, torch.finfo(probs.dtype).eps ** 2)  # avoids 0/0 where no neighbour is confident

    def spread(y: Tensor, similarity: Tensor, mask: Tensor, window: int | Tensor, image: Tensor | None) -> Tensor:
        average: Callable[[Tensor], Tensor]
        if image is None:
            windows = list_windows(window, y, "replicate", window_range)
            weights, average = similarity * mask, partial(box_mean, windows=windows)
        else:
            weights, average = mask, partial(_bilateral_mean, image=image)
        support = average(weights) + kappa
        labels = y[:, :-1]  # the last class follows from the others, since the sum is 1
        for _ in range(iterations):
            neighbours = average(labels * weights).add_(labels, alpha=kappa).div_(support)
            labels = torch.lerp(neighbours, labels, mask)
        return torch.cat([labels, (1.0 - labels.sum(dim=1, keepdim=True)).clamp_min(0.0)], dim=1)

    guide = image.to(probs.dtype) if image is not None and mode == "pairwise" else None
    return _apply_in_chunks(spread, probs, similarity.to(probs.dtype), mask.to(probs.dtype), window, guide)


def neighbourhood(
    image: Tensor,
    *,
    window_scope: Scope = "pixel",
    low: int = 3,
    high: int = 7,
    temperature: float | None = None,
    scale: bool = True,
) -> Neighbourhood:
    """Return the part of the refinement that depends on the image alone, eq. 5–7.

    Args:
        image: (B, C_in, *S), the image that the networks saw; receives no gradient.
        window_scope: one window per "pixel" or per "image".
        low: least side of a window in voxels.
        high: greatest side of a window in voxels.
        temperature: as in `normalised_similarity`.
        scale: True scales the intensities to [0, 1] with `scale_intensities`; False keeps them.

    Returns:
        Window, normalised similarity and image; see `Neighbourhood`.
    """
    image = scale_intensities(image) if scale else promote_to_fp32(image).detach()
    window = edge_adaptive_window(image, low, high, scope=window_scope)
    similarity = normalised_similarity(local_similarity(image, window, window_range=(low, high)), temperature)
    return Neighbourhood(window, similarity, image, (low, high))


def enhance(  # noqa: PLR0913
    probs: Tensor,
    image: Tensor | Neighbourhood,
    *,
    threshold_factor: float = -0.5,
    steepness: float = 10.0,
    iterations: int = 3,
    retention: float = 0.1,
    mode: Mode = "propagate",
    regions: bool = False,
    **options: Unpack[NeighbourhoodOptions],
) -> Tensor:
    """Return the refined prediction for an image, eq. 5–13 in one call.

    Args:
        probs: (B, C, *S), sums to 1 over C; receives the gradient (a caller that wants targets detaches the result).
        image: (B, C_in, *S), the image that the network saw; or its `neighbourhood`, to share it among predictions.
        threshold_factor: as in `confidence_mask`.
        steepness: as in `confidence_mask`.
        iterations: as in `propagate_labels`.
        retention: as in `propagate_labels`.
        mode: as in `propagate_labels`.
        regions: the channels are independent probabilities; each channel is refined as the two classes p and 1 − p.
        options: options of `neighbourhood`, for an image.

    Returns:
        (B, C, *S), in fp32 or fp64; sums to 1 over C, or with `regions` each channel in [0, 1].

    Raises:
        TypeError: options beside a `Neighbourhood`.
    """
    if isinstance(image, Neighbourhood) and options:
        raise TypeError(f"these belong to neighbourhood(): {', '.join(options)}")
    around = image if isinstance(image, Neighbourhood) else neighbourhood(image, **options)
    window, similarity, scaled, window_range = around

    def refine(y: Tensor) -> Tensor:
        mask = confidence_mask(y, threshold_factor, steepness)
        return propagate_labels(y, similarity, mask, window, iterations, retention, mode, scaled, window_range)

    if not regions:
        return refine(probs)
    return torch.cat([refine(torch.cat([p, 1.0 - p], dim=1))[:, :1] for p in torch.split(probs, 1, dim=1)], dim=1)


def _apply_in_chunks(function: Callable[..., Tensor], first: Tensor, *others: Tensor | int | None) -> Tensor:
    """Return function(first, *others), computed for one group of samples after the other.

    Args:
        function: takes these arguments for a group of samples and returns one row for each sample.
        first: (B, C, *S).
        others: tensors are split like `first` (a tensor with one row is repeated); other values are passed as they are.
    """
    size = max(1, _CHUNK_VOXELS // first[0, 0].numel())
    arguments = [first, *(o.expand(len(first), *o.shape[1:]) if isinstance(o, Tensor) else o for o in others)]
    parts = []
    for start in range(0, len(first), size):
        group = [a[start : start + size] if isinstance(a, Tensor) else a for a in arguments]
        parts.append(function(*group))
    return torch.cat(parts)


def _low_quantile(values: Tensor) -> Tensor:
    """Return the 0.5 percent quantile over the last axis, linearly interpolated; sorts the smallest values only."""
    position = 0.005 * (values.shape[-1] - 1)
    index = math.floor(position)
    tail = values.topk(min(index + 2, values.shape[-1]), largest=False).values
    return torch.lerp(tail[..., index], tail[..., -1], position - index)


def _sobel_magnitude(image: Tensor, border: str) -> Tensor:
    """Return the root of the mean over channels of the squared Sobel gradient, (B, 1, *S)."""

    def smooth(values: Tensor, axis: int) -> Tensor:
        return running_sum(running_sum(values, axis, 2), axis, 2)  # [1, 1] twice is [1, 2, 1]

    smoothed = pad(image, 1, 1, border)
    derivatives: list[Tensor] = []
    for axis in spatial_axes(image):
        length = image.shape[axis]
        derivatives = [smooth(derivative, axis) for derivative in derivatives]
        derivatives.append(smoothed.narrow(axis, 2, length) - smoothed.narrow(axis, 0, length))
        smoothed = smooth(smoothed, axis)
    squares = torch.zeros_like(image)
    for derivative in derivatives:
        squares.addcmul_(derivative, derivative, value=16.0 ** (4 - image.dim()))  # 1 in 2-D, (1/4)² in 3-D
    return squares.mean(dim=1, keepdim=True).sqrt_()


def _bilateral_mean(values: Tensor, image: Tensor) -> Tensor:
    """Return the mean over windows of side 5, each neighbour weighted by how close its intensity is."""
    side = 2 * _PAIR_RADIUS + 1
    padded_values, padded_image = (pad(t, _PAIR_RADIUS, _PAIR_RADIUS, "replicate") for t in (values, image))
    mean = torch.zeros_like(values)
    for offset in itertools.product(range(side), repeat=image.dim() - 2):
        neighbour, intensity = padded_values, padded_image
        for axis, start in zip(spatial_axes(image), offset, strict=True):
            length = image.shape[axis]
            neighbour, intensity = neighbour.narrow(axis, start, length), intensity.narrow(axis, start, length)
        distance = (intensity - image).square_().mean(dim=1, keepdim=True)
        weight = distance.mul_(-0.5 / _PAIR_BANDWIDTH**2).exp_()
        mean = mean.addcmul_(neighbour, weight)
    return mean.div_(side ** (image.dim() - 2))
