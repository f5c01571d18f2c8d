"""V-Net with batch normalisation and added skips, as in bidirectional copy-paste."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from nnssl.networks.layers import LAYERS, Layers, collect_outputs, pad_to_multiple, widths
from nnssl.networks.outputs import pool_outputs


class VNet(nn.Module):
    """V-Net of 16, 32, ... at most 256 channels, for images of any size, 2-D or 3-D.

    The stages have 1, 2, 3, 3, ... convolutions with batch normalisation and ReLU. The encoder reduces the size by
    strided convolutions, and the decoder enlarges it by transposed convolutions. Skips are added. Dropout of whole
    channels follows the coarsest and the last stage. The image is padded with zeros at the high end of every axis to a
    multiple of the product of all strides, and the logits are cropped back. The initial weights are torch's defaults.

    The network has 9,448,866 parameters in 3-D for four poolings by two, one channel and two classes. In training,
    batch normalisation needs more than one voxel in the batch at the coarsest stage.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: accepted because plans contain it; the network fits any size.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the logits at every resolution except the coarsest;
            `network.decoder.deep_supervision` changes this later.
        dropout: probability of both dropout layers.

    Reference: Milletari et al., V-Net, 3DV 2016; Bai et al., Bidirectional copy-paste, CVPR 2023.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],  # noqa: ARG002
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.multiples = tuple(map(prod, zip(*strides, strict=True)))
        self.encoder = self.make_encoder(input_channels, strides, dropout)
        self.decoder = self.make_decoder(num_classes, strides, deep_supervision, dropout)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, *S) for an image (B, input_channels, *S); a list with deep supervision."""
        size = image.shape[2:]
        outputs: Tensor | list[Tensor] = self.decoder(self.encoder(pad_to_multiple(image, self.multiples)), size)
        return outputs

    @staticmethod
    def make_encoder(input_channels: int, strides: Sequence[Sequence[int]], dropout: float) -> nn.Module:
        """Return the encoder; a subclass can return a different one."""
        return _Encoder(input_channels, strides, dropout)

    @staticmethod
    def make_decoder(
        num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool, dropout: float
    ) -> VNetDecoder:
        """Return the decoder; a subclass can return a different one."""
        return VNetDecoder(num_classes, strides, deep_supervision, dropout)


class _Encoder(nn.Module):
    def __init__(self, input_channels: int, strides: Sequence[Sequence[int]], dropout: float) -> None:
        super().__init__()
        layers = LAYERS[len(strides[0])]
        channels = widths(len(strides))
        self.output_channels = channels  # of every stage, as in nnU-Net's encoders
        self.stages = nn.ModuleList([_convolutions(layers, input_channels, channels[0], 0)])
        for i, stride in enumerate(strides[1:], start=1):
            step = tuple(stride)
            down = _normalise_and_activate(
                layers, layers.convolution(channels[i - 1], channels[i], step, step), channels[i]
            )
            self.stages.append(nn.Sequential(down, _convolutions(layers, channels[i], channels[i], i)))
        self.dropout = layers.channel_dropout(dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        *finer, coarsest = collect_outputs(self.stages, x)
        return [*finer, self.dropout(coarsest)]


class VNetDecoder(nn.Module):
    """The decoder of V-Net, with one head.

    Args:
        num_classes: output channels, with the background.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the means of the logits at the coarser resolutions as well.
        dropout: probability of the dropout before the head.
    """

    def __init__(
        self, num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool, dropout: float
    ) -> None:
        super().__init__()
        layers = LAYERS[len(strides[0])]
        channels = widths(len(strides))
        self.deep_supervision = deep_supervision
        self.strides = tuple(map(tuple, strides))
        self.ups, self.stages = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(strides) - 1)):
            step = self.strides[i + 1]
            self.ups.append(
                _normalise_and_activate(
                    layers, layers.transposed(channels[i + 1], channels[i], step, step), channels[i]
                )
            )
            self.stages.append(_convolutions(layers, channels[i], channels[i], i))
        self.dropout = layers.channel_dropout(dropout)
        self.head = layers.convolution(channels[0], num_classes, 1)

    def forward(self, features: list[Tensor], size: Sequence[int]) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, *size), or a list with deep supervision.

        Args:
            features: output of every stage of the encoder, finest first, (B, C_i, *S_i).
            size: number of voxels of the image along each axis, before padding.
        """
        logits = self.predict_finest(self.decode(features)[0], size)
        return pool_outputs(logits, self.strides) if self.deep_supervision else logits

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """Return the output of every stage of the decoder, finest first; without poolings the encoder's output."""
        x, *skips = reversed(features)
        if not skips:
            return [x]
        outputs: list[Tensor] = []
        for skip, up, stage in zip(skips, self.ups, self.stages, strict=True):
            x = stage(up(x) + skip)
            outputs.append(x)
        return outputs[::-1]

    def predict_finest(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return the logits (B, num_classes, *size) for the finest features of the decoder."""
        return crop_to(self.head(self.dropout(x)), size)


def _convolutions(layers: Layers, inputs: int, outputs: int, stage: int) -> nn.Sequential:
    channels = [inputs, *[outputs] * min(stage + 1, 3)]
    return nn.Sequential(
        *[_normalise_and_activate(layers, layers.convolution(a, outputs, 3, padding=1), outputs) for a in channels[:-1]]
    )


def _normalise_and_activate(layers: Layers, operation: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(operation, layers.norm(channels), nn.ReLU(inplace=True))


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, C, *size): the first voxels of every spatial axis of (B, C, *S)."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, 0, length)
    return x
