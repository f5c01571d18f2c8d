"""U-Net with batch normalisation and dropout, as in bidirectional copy-paste."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from nnssl.networks.layers import LAYERS, Layers, collect_outputs, widths
from nnssl.networks.outputs import pool_outputs

DROPOUT = (0.05, 0.1, 0.2, 0.3, 0.5)


class UNetBCP(nn.Module):
    """U-Net of 16, 32, ... at most 256 channels, for images of any size, 2-D or 3-D.

    A stage is two blocks of convolution, batch normalisation and LeakyReLU(0.01), with dropout between the blocks. The
    encoder reduces the size by max-pooling; at an odd size the last box is smaller. The decoder interpolates linearly
    to the size of the skip. The initial weights are torch's defaults.

    The network has 1,813,764 parameters in 2-D for four poolings by two, one channel and four classes. In training,
    batch normalisation needs more than one voxel in the batch at the coarsest stage.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: accepted because plans contain it; the network fits any size.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the logits at every resolution except the coarsest;
            `network.decoder.deep_supervision` changes this later.
        dropout: probability for each stage of the encoder; further stages have the last value.

    Reference: Ronneberger et al., U-Net, MICCAI 2015; Bai et al., Bidirectional copy-paste, CVPR 2023.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],  # noqa: ARG002
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
        dropout: Sequence[float] = DROPOUT,
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(input_channels, strides, dropout)
        self.decoder = _Decoder(num_classes, strides, deep_supervision)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, *S) for an image (B, input_channels, *S); a list with deep supervision."""
        outputs: Tensor | list[Tensor] = self.decoder(self.encoder(image))
        return outputs


class _Encoder(nn.Module):
    def __init__(self, input_channels: int, strides: Sequence[Sequence[int]], dropout: Sequence[float]) -> None:
        super().__init__()
        layers = LAYERS[len(strides[0])]
        channels = [input_channels, *widths(len(strides))]
        self.output_channels = channels[1:]  # of every stage, as in nnU-Net's encoders
        self.stages = nn.ModuleList()
        for i, stride in enumerate(strides):
            block = _block(layers, channels[i], channels[i + 1], dropout[min(i, len(dropout) - 1)])
            pool = [layers.max_pool(tuple(stride), ceil_mode=True)] if i else []
            self.stages.append(nn.Sequential(*pool, *block))

    def forward(self, x: Tensor) -> list[Tensor]:
        return collect_outputs(self.stages, x)


class _Decoder(nn.Module):
    def __init__(self, num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool) -> None:
        super().__init__()
        layers = LAYERS[len(strides[0])]
        channels = widths(len(strides))
        self.deep_supervision = deep_supervision
        self.strides = tuple(map(tuple, strides))
        self.interpolation = layers.interpolation
        self.reductions, self.stages = nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(strides) - 1)):
            self.reductions.append(layers.convolution(channels[i + 1], channels[i], 1))
            self.stages.append(nn.Sequential(*_block(layers, 2 * channels[i], channels[i], 0.0)))
        self.head = layers.convolution(channels[0], num_classes, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor | list[Tensor]:
        x, *skips = reversed(features)
        for skip, reduction, stage in zip(skips, self.reductions, self.stages, strict=True):
            up = interpolate(reduction(x), skip.shape[2:], mode=self.interpolation, align_corners=True)
            x = stage(torch.cat([skip, up], dim=1))
        logits: Tensor = self.head(x)
        return pool_outputs(logits, self.strides) if self.deep_supervision else logits


def _block(layers: Layers, inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    return [
        layers.convolution(inputs, outputs, 3, padding=1),
        layers.norm(outputs),
        nn.LeakyReLU(0.01, inplace=True),
        nn.Dropout(dropout),
        layers.convolution(outputs, outputs, 3, padding=1),
        layers.norm(outputs),
        nn.LeakyReLU(0.01, inplace=True),
    ]
