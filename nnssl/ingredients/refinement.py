"""Soft labels refined by confident, similar neighbours: the label propagation of DSMT-Net.

Su, Sun and Adamyk, Comput. Biol. Chem. 119 (2025) 108579; equation numbers are this paper's. A box mean is a sum of
shifted slices along one axis after the other, built by doubling: O(log window) passes, memory linear in the voxels.
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

from nnssl.ingredients.box_filter import Border, box_mean, pad, running_sum, sided_windows, spatial_axes
from nnssl.ingredients.supervised import at_least_fp32

Mode = Literal["propagate", "literal", "pairwise"]
Scope = Literal["pixel", "image"]

_CHUNK_VOXELS = 1 << 20  # samples are taken in groups of about this size: the temporaries stay small and in the cache
_QUANTILE_VOXELS = 100_000
_PAIR_RADIUS, _PAIR_BANDWIDTH = 2, 0.1


class Neighbourhood(NamedTuple):
    """What the refinement takes from an image; computed once, shared by all predictions for that image."""

    window: Tensor  # (B, 1, *S) or (B, 1, 1, ...), integer side of the window, before it is made odd
    similarity: Tensor  # (B, 1, *S), normalised, in [0, 1]
    image: Tensor  # (B, C_in, *S), scaled if asked for
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
    """Return the image with its 0.5 and 99.5 percent quantiles moved to 0 and 1, and clipped there.

    I = clip((x − q_0.5%) / (q_99.5% − q_0.5% + 1e-8), 0, 1) per sample and channel. Above 100,000 voxels q is that of
    every k-th, about that many; k shares no factor with their number, so that all positions of every axis occur.

    Args:
        image: (B, C_in, *S), any unit; no gradient.

    Returns:
        (B, C_in, *S) in [0, 1]; 0 where a channel is constant.

    Reference: ours; eq. 5 adds the gradient to a length, so its intensities need a fixed range.
    """
    image = at_least_fp32(image)
    voxels = image.flatten(2)
    count = voxels.shape[-1]
    step = math.ceil(count / _QUANTILE_VOXELS)
    while math.gcd(step, count) > 1:
        step += 1
    voxels = voxels[..., ::step]
    lowest, highest = (q.view(*q.shape, *[1] * (image.dim() - 2)) for q in (_tail(voxels), -_tail(-voxels)))
    return (image - lowest).div_(highest - lowest + 1e-8).clamp_(0.0, 1.0)


@torch.no_grad()
def edge_adaptive_window(
    image: Tensor,
    low: int = 3,
    high: int = 7,
    border: Literal["replicate", "zero"] = "replicate",
    scope: Scope = "pixel",
) -> Tensor:
    """Return the side of each voxel's window: small where the image is smooth, large at its edges.

    P = clamp(low + ⌊g⌋, low, high),  g² = mean over channels of Σ_a (Sobel_a I)²

    Sobel_a is [−1, 0, 1] along axis a and [1, 2, 1] along the others; in 3-D divided by 4, so that a volume that is
    constant along one axis gives the values of its 2-D slices.

    Args:
        image: (B, C_in, *S), in [0, 1]; no gradient.
        low: least side in voxels.
        high: greatest side in voxels.
        border: what lies outside the image; zeros make edges of their own.
        scope: "pixel", or "image" for one window per sample from the mean of g.

    Returns:
        (B, 1, *S) int64, for scope "image" (B, 1, 1, ...); even values are kept.

    Reference: eq. 5, which has no index on P; "per pixel" and the 3-D smoothing are our reading.
    """
    magnitude = _per_chunk(partial(_sobel_magnitude, border=border), at_least_fp32(image))
    if scope == "image":
        magnitude = magnitude.mean(dim=spatial_axes(magnitude), keepdim=True)
    return magnitude.floor_().add_(low).clamp_(low, high).long()


@torch.no_grad()
def local_similarity(
    image: Tensor, window: int | Tensor, border: Border = "replicate", window_range: tuple[int, int] = (3, 7)
) -> Tensor:
    """Return minus the mean squared difference between each voxel and its window, centre included.

    S_i = −1/|W(i)| · Σ_{k ∈ W(i)} (I_k − I_i)² = −(box(I²) − 2·I·box(I) + I²), mean over channels

    The sample mean is subtracted first, lest fp32 lose the difference of two large numbers (not with zeros outside,
    where S would change).

    Args:
        image: (B, C_in, *S); no gradient.
        window: side in voxels, >= 1; an even int P reaches from −P/2 to P/2 − 1. A tensor of integers (B, 1, *S) or
            (B, 1, 1, ...) gives each voxel its own side, made odd: P if odd, else P + 1.
        border: what lies outside: the nearest voxel, zeros that count, or nothing (mean over the voxels inside).
        window_range: least and greatest side that a tensor `window` holds. Used off the CPU only, where looking would
            wait for the device; there, sides outside are moved into it.

    Returns:
        (B, 1, *S), <= 0, at least fp32.

    Reference: eq. 6, its P² read as the number of voxels in the window, for 3-D too.
    """

    def similarity(image: Tensor, window: int | Tensor) -> Tensor:
        if border != "zero":
            image = image - image.mean(dim=spatial_axes(image), keepdim=True)
        windows = sided_windows(window, image, border, window_range)
        squares = image.square().mean(dim=1, keepdim=True)
        distance = squares + box_mean(squares, windows, border)
        for channel in torch.split(image, 1, dim=1):
            distance.addcmul_(channel, box_mean(channel, windows, border), value=-2.0 / image.shape[1])
        return distance.clamp_(min=0.0).neg_()

    return _per_chunk(similarity, at_least_fp32(image), window)


@torch.no_grad()
def normalised_similarity(similarity: Tensor, temperature: float | None = None) -> Tensor:
    """Return the similarity on a scale from 0 to 1, where the most similar voxel of a sample has 1.

    S_norm = exp((S − max S) / τ), by default with τ = mean(−S) + 1e-8 of the sample

    Args:
        similarity: (B, 1, *S), <= 0; no gradient. Half precision is taken to fp32.
        temperature: τ > 0, in squared intensities; 1 is the paper's formula, which for images in [0, 1] is close to 1
            everywhere. None takes it from the sample.

    Returns:
        (B, 1, *S) in [0, 1]; 1 everywhere for a constant image.

    Reference: eq. 7; the temperature is ours.
    """
    similarity, axes = at_least_fp32(similarity), spatial_axes(similarity)
    scaled = similarity - similarity.amax(dim=axes, keepdim=True)
    if temperature is not None:
        return scaled.div_(temperature).exp_()
    return scaled.div_(1e-8 - similarity.mean(dim=axes, keepdim=True)).exp_()


def confidence_mask(probs: Tensor, threshold_factor: float = -0.5, steepness: float = 10.0) -> Tensor:
    """Return how far each voxel's confidence lies above the sample's threshold, 0 below it.

    M = σ(steepness·(C − T))·[C >= T],  C = max_k p_k,  T = min(mean C + threshold_factor·std C, max C)

    Args:
        probs: (B, C, *S), summing to 1 over C; the gradient goes here through C, the threshold is a constant.
        threshold_factor: number of standard deviations (population) above the mean.
        steepness: slope of the sigmoid.

    Returns:
        (B, 1, *S) in {0} ∪ [0.5, 1); never all 0, because T does not exceed max C.

    Reference: eq. 8-11, with the voxel's own C where the paper prints its mean; the constants are ours.
    """

    def mask(probs: Tensor) -> Tensor:
        confidence = probs.amax(dim=1, keepdim=True)
        fixed, axes = confidence.detach(), spatial_axes(probs)
        mean = fixed.mean(dim=axes, keepdim=True)
        deviation = (fixed - mean).square_().mean(dim=axes, keepdim=True).sqrt_()
        threshold = torch.minimum(mean + threshold_factor * deviation, fixed.amax(dim=axes, keepdim=True))
        # comparing in place gives numbers at once, without the slow way through bool
        return torch.sigmoid((confidence - threshold) * steepness) * fixed.clone().ge_(threshold)

    return _per_chunk(mask, at_least_fp32(probs))


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
    "pairwise":   the same with weights exp(−(I_j − I_i)²/(2·0.1²))·M_j on windows of side 5 in place of W_j
    "literal":    y ← softmax(y·S·M + y·(1 − M))

    Args:
        probs: (B, C, *S), summing to 1 over C; the gradient goes here, and to `similarity` and `mask` if they need it.
        similarity: (B, 1, *S), normalised, in [0, 1]; not used by "pairwise".
        mask: (B, 1, *S), in [0, 1]; 0 everywhere leaves the probabilities as they are (not in "literal").
        window: as in `local_similarity`, replicate borders; used by "propagate" only.
        iterations: number of rounds, S and M stay fixed; 0 returns `probs`.
        retention: κ >= 0, weight of a voxel's own value among its neighbours.
        mode: the paper's formula is "literal"; it moves nothing between voxels and flattens the probabilities round by
            round without changing a single argmax, hence the default.
        image: (B, C_in, *S), in [0, 1]; needed by "pairwise".
        window_range: as in `local_similarity`.

    Returns:
        (B, C, *S), at least fp32, summing to 1 over C; within the range of the old values, except "literal".

    Raises:
        ValueError: unknown mode, or "pairwise" without an image.

    Reference: eq. 12-13 ("literal"); the others are ours.
    """
    if mode not in ("propagate", "literal", "pairwise"):
        raise ValueError(f"mode must be propagate, literal or pairwise, got {mode}")
    if mode == "pairwise" and image is None:
        raise ValueError("pairwise propagation needs the image")
    if iterations == 0:
        return probs
    probs = at_least_fp32(probs)
    if mode == "literal":
        factor = 1.0 - mask * (1.0 - similarity)
        for _ in range(iterations):
            probs = torch.softmax(probs * factor, dim=1)
        return probs

    kappa = max(retention, torch.finfo(probs.dtype).eps ** 2)  # 0 would leave 0/0 where nobody around is confident

    def spread(y: Tensor, similarity: Tensor, mask: Tensor, window: int | Tensor, image: Tensor | None) -> Tensor:
        if image is None:
            windows = sided_windows(window, y, "replicate", window_range)
            weights, average = similarity * mask, partial(box_mean, windows=windows)
        else:
            weights, average = mask, partial(_bilateral_mean, image=image)
        support = average(weights) + kappa
        labels = y[:, :-1]  # the last class is what the others leave of 1
        for _ in range(iterations):
            neighbours = average(labels * weights).add_(labels, alpha=kappa).div_(support)
            labels = torch.lerp(neighbours, labels, mask)
        return torch.cat([labels, (1.0 - labels.sum(dim=1, keepdim=True)).clamp_min(0.0)], dim=1)

    guide = image.to(probs.dtype) if image is not None and mode == "pairwise" else None
    return _per_chunk(spread, probs, similarity.to(probs.dtype), mask.to(probs.dtype), window, guide)


def neighbourhood(
    image: Tensor,
    *,
    window_scope: Scope = "pixel",
    low: int = 3,
    high: int = 7,
    temperature: float | None = None,
    scale: bool = True,
) -> Neighbourhood:
    """Return the part of the refinement that depends on the image alone, eq. 5-7.

    Args:
        image: (B, C_in, *S), the image the networks saw; no gradient.
        window_scope: one window per "pixel" or per "image".
        low: least side of a window in voxels.
        high: greatest side.
        temperature: as in `normalised_similarity`.
        scale: bring the intensities to [0, 1] by `scale_intensities`; False takes them as they are.

    Returns:
        Window, normalised similarity and image; see `Neighbourhood`.
    """
    image = scale_intensities(image) if scale else at_least_fp32(image).detach()
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
    """Return the refined prediction for an image, eq. 5-13 in one call.

    Args:
        probs: (B, C, *S), summing to 1 over C; the gradient goes here (callers that want targets detach).
        image: (B, C_in, *S), the image the network saw, or its `neighbourhood`, to share it among predictions.
        threshold_factor: as in `confidence_mask`.
        steepness: as there.
        iterations: as in `propagate_labels`.
        retention: as there.
        mode: as there.
        regions: the channels are independent probabilities; each is refined as the two classes p and 1 − p.
        options: of `neighbourhood`; an error (TypeError) if it is given instead of an image.

    Returns:
        (B, C, *S), at least fp32; summing to 1 over C, with `regions` each in [0, 1].
    """
    if isinstance(image, Neighbourhood) and options:
        raise TypeError(f"these belong to neighbourhood(): {', '.join(options)}")
    around = image if isinstance(image, Neighbourhood) else neighbourhood(image, **options)
    window, similarity, scaled, window_range = around
    refined = []
    for y in [torch.cat([p, 1.0 - p], dim=1) for p in torch.split(probs, 1, dim=1)] if regions else [probs]:
        mask = confidence_mask(y, threshold_factor, steepness)
        new = propagate_labels(y, similarity, mask, window, iterations, retention, mode, scaled, window_range)
        refined.append(new[:, :1] if regions else new)
    return torch.cat(refined, dim=1)


def _per_chunk(function: Callable[..., Tensor], first: Tensor, *others: Tensor | int | None) -> Tensor:
    """Return function(first, *others), computed on groups of samples."""
    size = max(1, _CHUNK_VOXELS // first[0, 0].numel())
    rows = [o.expand(len(first), *o.shape[1:]) if isinstance(o, Tensor) else o for o in others]
    starts = range(0, len(first), size)
    parts = [[r[i : i + size] if isinstance(r, Tensor) else r for r in (first, *rows)] for i in starts]
    return torch.cat([function(*part) for part in parts])


def _tail(values: Tensor) -> Tensor:
    """Return the 0.5 percent quantile over the last axis, linearly interpolated; only the tail is sorted."""
    position = 0.005 * (values.shape[-1] - 1)
    index = math.floor(position)
    tail = values.topk(min(index + 2, values.shape[-1]), largest=False).values
    return torch.lerp(tail[..., index], tail[..., -1], position - index)


def _sobel_magnitude(image: Tensor, border: str) -> Tensor:
    """Return the root of the mean over channels of the squared Sobel gradient, (B, 1, *S)."""
    smoothed, derivatives = pad(image, 1, 1, border), list[Tensor]()
    for axis in spatial_axes(image):
        derivatives = [running_sum(running_sum(d, axis, 2), axis, 2) for d in derivatives]
        derivatives.append(smoothed.narrow(axis, 2, image.shape[axis]) - smoothed.narrow(axis, 0, image.shape[axis]))
        smoothed = running_sum(running_sum(smoothed, axis, 2), axis, 2)
    squares = torch.zeros_like(image)
    for derivative in derivatives:
        squares.addcmul_(derivative, derivative, value=16.0 ** (4 - image.dim()))
    return squares.mean(dim=1, keepdim=True).sqrt_()


def _bilateral_mean(values: Tensor, image: Tensor) -> Tensor:
    """Return the mean over windows of side 5, each neighbour weighed by how close its intensity is."""
    side = 2 * _PAIR_RADIUS + 1
    padded, around = (pad(t, _PAIR_RADIUS, _PAIR_RADIUS, "replicate") for t in (values, image))
    mean = torch.zeros_like(values)
    for offset in itertools.product(range(side), repeat=image.dim() - 2):
        here, there = padded, around
        for axis, start in zip(spatial_axes(image), offset, strict=True):
            here, there = (t.narrow(axis, start, image.shape[axis]) for t in (here, there))
        distance = (there - image).square_().mean(dim=1, keepdim=True)
        weight = distance.mul_(-0.5 / _PAIR_BANDWIDTH**2).exp_()
        mean = mean.addcmul_(here, weight)
    return mean.div_(side ** (image.dim() - 2))
