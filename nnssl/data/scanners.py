"""Four imaginary scanners, A to D, which image the same anatomy differently: domains for data sets that have none.

A scan passes these steps in this order. Everything but the noise, the bias field and the direction of the motion, which
are drawn for each scan, is fixed for a scanner.

1. Intensity curve: the values are scaled to [0, 1] between the percentiles 0.5 and 99.5 of the scan, raised to `gamma`,
   and lifted by `pedestal` on the scale [0, 1].
2. Bias field: the exponential of smooth noise (wavelength about a third of the scan) with standard deviation `bias`.
3. Motion: a box blur of `motion_mm` along one of the in-plane axes.
4. Resolution: in-plane pixels `pixel_factor` times as large, by means with Gaussian weights; labels by the nearest.
5. Rician noise of standard deviation `noise`, on the scale [0, 1].
6. Scale: the values times `scale`, as whole numbers.

In-plane axes are the two with the smaller spacing; equal spacings count the first axis as through-plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter1d

PERCENTILES = (0.5, 99.5)
BIAS_WAVELENGTH = 0.3  # of the scan's size

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scanner:
    """What a scanner does to a scan; the docstring of this module says how.

    Attributes:
        name: of the domain.
        gamma: exponent of the intensity curve; below 1 lifts the dark tissues.
        pedestal: share of the scale that is added everywhere, in [0, 1).
        bias: standard deviation of the logarithm of the bias field.
        motion_mm: length of the blur.
        pixel_factor: in-plane pixel size relative to the original, at least 1.
        noise: standard deviation of the noise, on the scale [0, 1].
        scale: brightest value, about.
    """

    name: str
    gamma: float
    pedestal: float
    bias: float
    motion_mm: float
    pixel_factor: float
    noise: float
    scale: float


SCANNERS = (
    Scanner("A", gamma=1.0, pedestal=0.0, bias=0.05, motion_mm=0.0, pixel_factor=1.0, noise=0.02, scale=1000),
    Scanner("B", gamma=0.5, pedestal=0.0, bias=0.25, motion_mm=0.0, pixel_factor=1.25, noise=0.03, scale=400),
    Scanner("C", gamma=2.0, pedestal=0.05, bias=0.15, motion_mm=4.0, pixel_factor=1.0, noise=0.06, scale=2500),
    Scanner("D", gamma=0.75, pedestal=0.3, bias=0.4, motion_mm=2.5, pixel_factor=1.5, noise=0.04, scale=4000),
)


def reimage(
    image: NDArray[Any],
    label: NDArray[Any],
    spacing_mm: Sequence[float],
    scanner: Scanner,
    rng: Generator,
) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, float, float]]:
    """Return a scan as a scanner would have imaged it.

    Args:
        image: (D, H, W), any range of values.
        label: (D, H, W), values 0 to 255.
        spacing_mm: voxel size of each axis.
        scanner: the scanner.
        rng: draws bias field, direction of the motion and noise.

    Returns:
        Image and label on the scanner's grid, of the same size as each other, and the new spacing.
    """
    in_plane = sorted(sorted(range(3), key=lambda axis: (-spacing_mm[axis], axis))[1:])
    low, high = np.percentile(image, PERCENTILES)
    signal = np.clip((image - low) / max(high - low, np.finfo(float).tiny), 0, 1) ** scanner.gamma
    signal = scanner.pedestal + (1 - scanner.pedestal) * signal
    signal *= np.exp(scanner.bias * _smooth_noise(rng, signal.shape))
    axis = in_plane[int(rng.integers(2))]
    if (length := round(scanner.motion_mm / spacing_mm[axis])) > 1:
        signal = uniform_filter1d(signal, length, axis=axis, mode="nearest")
    shape = tuple(
        max(1, round(size / scanner.pixel_factor)) if i in in_plane else size for i, size in enumerate(image.shape)
    )
    factors = tuple(old / new for old, new in zip(image.shape, shape, strict=True))
    signal, label = _resampled(signal, shape, factors, order=1), _resampled(label, shape, factors, order=0)
    real = signal + scanner.noise * rng.standard_normal(shape)
    magnitude = np.hypot(real, scanner.noise * rng.standard_normal(shape))
    values = (magnitude * scanner.scale).round().clip(0, np.iinfo(np.int16).max)
    first, second, third = (float(round(mm * factor, 6)) for mm, factor in zip(spacing_mm, factors, strict=True))
    return values.astype(np.int16), label.astype(np.uint8), (first, second, third)


def _smooth_noise(rng: Generator, shape: tuple[int, ...]) -> Floats:
    """Return noise of mean 0 and standard deviation 1, smooth over about a third of the scan."""
    sigma = [max(0.5, BIAS_WAVELENGTH * size) for size in shape]
    noise = gaussian_filter(rng.standard_normal(shape), sigma, mode="reflect")
    return np.asarray((noise - noise.mean()) / max(noise.std(), np.finfo(float).tiny))


def _resampled(
    volume: NDArray[Any], shape: tuple[int, ...], factors: tuple[float, ...], order: Literal[0, 1]
) -> NDArray[Any]:
    """Return a volume on a coarser grid over the same space; the image is averaged over the new voxel before."""
    if shape == volume.shape:
        return volume
    if order:
        for axis, factor in enumerate(factors):
            if factor > 1:
                volume = gaussian_filter(volume, [factor / 4 if i == axis else 0.0 for i in range(3)], mode="nearest")
    places = [(np.arange(size) + 0.5) * factor - 0.5 for size, factor in zip(shape, factors, strict=True)]
    grid = np.stack(np.meshgrid(*places, indexing="ij"))
    return np.asarray(map_coordinates(volume, grid, order=order, mode="nearest"))
