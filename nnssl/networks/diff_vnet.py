"""Diff-VNet: the V-Net of A&D and DTLP-Net, whose encoder can also read noised label maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor, nn

from nnssl.networks.layers import LAYERS, Layers, pad_to_multiple
from nnssl.networks.outputs import pool_outputs
from nnssl.networks.vnet import crop_to

WIDEST = 16  # times the width of the first stage
Shifts = list[Tensor]


class DiffVNet(nn.Module):
    """V-Net of 32, 64, ... at most 512 channels, for images of any size, 2-D or 3-D.

    The stages have 1, 2, 3, 3, ... convolutions, each with ReLU, batch normalisation and dropout of whole channels, in
    this order. The encoder reduces the size by strided convolutions, and the decoder enlarges it by transposed ones.
    Skips are added. A stronger dropout follows the coarsest and the last stage. The image is padded with zeros at the
    high end of every axis to a multiple of the product of all strides, and the logits are cropped back. The initial
    weights are torch's defaults.

    This is the deployed network: the encoder with the stem for images, and one decoder (θ). It has no layer for the
    time code. `nnssl.networks.denoising.DenoisingBranch` adds the stem for noised maps, the time code and the decoder ξ
    for training. The network has 37,777,730 parameters in 3-D for four poolings by two, one channel and two classes:
    29,495,296 in the encoder with its stem and 8,282,434 in the decoder.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: accepted because plans contain it; the network fits any size.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the logits at every resolution except the coarsest;
            `network.decoder.deep_supervision` changes this later.
        width: channels of the first stage.
        dropout: probability of the dropout after the coarsest and the last stage; that after every convolution is a
            fifth.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, section III; the layers are those of the public code of Wang and
    Li, A&D, NeurIPS 2023.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - nnU-Net's arguments, and two options
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],  # noqa: ARG002
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
        width: int = 32,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.multiples = tuple(map(prod, zip(*strides, strict=True)))
        channels = [width * min(2**i, WIDEST) for i in range(len(strides))]
        self.encoder = _Encoder(input_channels, channels, strides, dropout)
        self.decoder = _Decoder(num_classes, channels, strides, deep_supervision, dropout)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, *S) for an image (B, input_channels, *S); a list with deep supervision."""
        outputs: Tensor | list[Tensor] = self.decoder(
            self.encoder(pad_to_multiple(image, self.multiples)), image.shape[2:]
        )
        return outputs


class _Stage(nn.Module):
    """A change of size, if any, and convolutions; a shift follows the change and all convolutions but the last."""

    def __init__(self, resize: nn.Module | None, convolutions: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.resize, self.convolutions = resize, nn.ModuleList(convolutions)
        self.shift_widths = [channels] * (len(convolutions) - (resize is None))

    def forward(self, x: Tensor, shifts: Iterator[Tensor] | None, skip: Tensor | None = None) -> Tensor:
        if self.resize is not None:
            x = _shift(self.resize(x), shifts)
        x = x if skip is None else x + skip
        *others, last = self.convolutions
        for convolution in others:
            x = _shift(convolution(x), shifts)
        result: Tensor = last(x)
        return result


class _Encoder(nn.Module):
    """The encoder.

    Attributes:
        output_channels: of every stage, as in nnU-Net's encoders.
        shift_widths: number of channels at every place where the time code is added.
    """

    def __init__(
        self,
        input_channels: int,
        channels: list[int],
        strides: Sequence[Sequence[int]],
        dropout: float,
    ) -> None:
        super().__init__()
        layers = LAYERS[len(strides[0])]
        self.strides = [list(stride) for stride in strides]
        self.output_channels = channels
        self.stem = _convolution(layers, input_channels, channels[0], dropout / 5)
        stages = []
        for i, stride in enumerate(self.strides[1:], start=1):
            width = channels[i]
            down = _activate_and_normalise(
                layers, layers.convolution(channels[i - 1], width, tuple(stride), tuple(stride)), width
            )
            stages.append(_Stage(down, _convolutions(layers, width, i, dropout / 5), width))
        self.stages = nn.ModuleList(stages)
        self.dropout = layers.channel_dropout(dropout)
        self.shift_widths = [width for stage in stages for width in stage.shift_widths]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the output of every stage, finest first, for an image (B, input_channels, *S)."""
        return self.after_stem(self.stem(image))

    def after_stem(self, x: Tensor, shifts: Shifts | None = None) -> list[Tensor]:
        """Return the output of every stage for the output of a stem.

        Args:
            x: (B, C_0, *S).
            shifts: (B, C, 1, ...) for each of `shift_widths`; None = no time code.
        """
        outputs, each = [x], None if shifts is None else iter(shifts)
        for stage in self.stages:
            outputs.append(stage(outputs[-1], each))
        outputs[-1] = self.dropout(outputs[-1])
        return outputs


class _Decoder(nn.Module):
    """A decoder with one head; `shift_widths` as in the encoder."""

    def __init__(
        self,
        num_classes: int,
        channels: list[int],
        strides: Sequence[Sequence[int]],
        deep_supervision: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        layers = LAYERS[len(strides[0])]
        self.deep_supervision = deep_supervision
        self.strides = tuple(map(tuple, strides))
        stages = []
        for i in reversed(range(len(strides) - 1)):
            step, width = self.strides[i + 1], channels[i]
            up = _activate_and_normalise(layers, layers.transposed(channels[i + 1], width, step, step), width)
            stages.append(_Stage(up, _convolutions(layers, width, i, dropout / 5), width))
        self.stages = nn.ModuleList(stages)
        self.dropout = layers.channel_dropout(dropout)
        self.head = layers.convolution(channels[0], num_classes, 1)
        self.shift_widths = [width for stage in stages for width in stage.shift_widths]

    def forward(
        self, features: list[Tensor], size: Sequence[int] | None = None, shifts: Shifts | None = None
    ) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, *size), or a list with deep supervision.

        Args:
            features: output of every stage of the encoder, finest first, (B, C_i, *S_i).
            size: number of voxels of the image along each axis, before padding; None = that of the finest features.
            shifts: as in the encoder.
        """
        x, *skips = reversed(features)
        each = None if shifts is None else iter(shifts)
        for stage, skip in zip(self.stages, skips, strict=True):
            x = stage(x, each, skip)
        logits = crop_to(self.head(self.dropout(x)), features[0].shape[2:] if size is None else size)
        return pool_outputs(logits, self.strides) if self.deep_supervision else logits


def _shift(x: Tensor, shifts: Iterator[Tensor] | None) -> Tensor:
    return x if shifts is None else x + next(shifts)


def _convolutions(layers: Layers, channels: int, stage: int, dropout: float) -> list[nn.Module]:
    return [_convolution(layers, channels, channels, dropout) for _ in range(min(stage + 1, 3))]


def _convolution(layers: Layers, inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    block = _activate_and_normalise(layers, layers.convolution(inputs, outputs, 3, padding=1), outputs)
    return block.append(layers.channel_dropout(dropout))


def _activate_and_normalise(layers: Layers, operation: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(operation, nn.ReLU(inplace=True), layers.norm(channels))
