"""Layer classes for 2-D and 3-D, and helpers that U-Net and V-Net share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional


class Layers(NamedTuple):
    """The layer classes for one number of spatial axes.

    Attributes:
        convolution: convolution, strided or plain.
        transposed: transposed convolution.
        norm: batch normalisation.
        max_pool: maximum over boxes.
        channel_dropout: dropout of whole channels.
        interpolation: name of linear interpolation in `torch.nn.functional.interpolate`.
    """

    convolution: Callable[..., nn.Module]
    transposed: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    max_pool: Callable[..., nn.Module]
    channel_dropout: Callable[..., nn.Module]
    interpolation: str


LAYERS = {
    2: Layers(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Dropout2d, "bilinear"),
    3: Layers(nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.MaxPool3d, nn.Dropout3d, "trilinear"),
}


def widths(num_stages: int) -> list[int]:
    """Return the number of channels of each stage i, min(16·2^i, 256)."""
    return [min(16 * 2**i, 256) for i in range(num_stages)]


def pad_to_multiple(x: Tensor, step: Sequence[int]) -> Tensor:
    """Return (B, C, *S) padded with zeros at the high end of every axis, up to a multiple of the axis's step."""
    missing = [-n % m for n, m in zip(x.shape[2:], step, strict=True)]
    if not any(missing):
        return x
    amounts: list[int] = []  # torch expects (low, high) of the last axis first
    for n in reversed(missing):
        amounts += (0, n)
    return functional.pad(x, amounts)


def collect_outputs(stages: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """Return the output of every stage of a chain, in the order of the stages."""
    outputs = []
    for stage in stages:
        x = stage(x)
        outputs.append(x)
    return outputs
