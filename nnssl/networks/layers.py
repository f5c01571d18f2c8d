"""Layers by number of axes, and the widths that U-Net and V-Net share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional


class Layers(NamedTuple):
    """The layers of one number of axes.

    Attributes:
        convolution: strided or plain convolution.
        transposed: transposed convolution.
        norm: batch normalisation.
        max_pool: maximum over boxes.
        channel_dropout: dropout of whole channels.
        interpolation: mode of linear interpolation.
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
    """Return the channels of each stage, min(16·2^i, 256)."""
    return [min(16 * 2**i, 256) for i in range(num_stages)]


def pad_to_multiple(x: Tensor, step: Sequence[int]) -> Tensor:
    """Return (B, C, *S) zero-padded on the high side, so that every axis is a multiple of its step."""
    missing = [-n % m for n, m in zip(x.shape[2:], step, strict=True)]
    return functional.pad(x, [amount for n in reversed(missing) for amount in (0, n)]) if any(missing) else x


def outputs_of_stages(stages: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """Return the output of every stage of a chain, the first one's first."""
    outputs = []
    for stage in stages:
        x = stage(x)
        outputs.append(x)
    return outputs
