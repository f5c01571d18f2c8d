"""Encoder of ResNet-34 with the decoder of V-Net: sub-network A of the dual network with uncertainty-guided labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from nnssl.networks.layers import LAYERS, Layers, collect_outputs, widths
from nnssl.networks.vnet import VNet, VNetDecoder

_AnyModule = TypeVar("_AnyModule", bound=nn.Module)
BLOCKS = (3, 4, 6, 3)  # residual blocks in the stages of ResNet-34; further stages have as many as the last one


class ResNet34VNet(VNet):
    """Residual encoder of ResNet-34 with V-Net's decoder, for images of any size, 2-D or 3-D.

    The stem is one convolution of size 7 without pooling. Each pooling step of the plan is a stage of 3, 4, 6, 3, 3, …
    residual blocks; the first block of a stage has this stride. The stages have 16, 32, … at most 256 channels, batch
    normalisation and ReLU. Skips are added. Dropout of whole channels precedes the head. The image is padded with zeros
    at the high end of every axis to a multiple of the product of all strides, and the logits are cropped back.

    The network has 17,930,354 parameters in 3-D for four poolings by two, one channel and two classes. The initial
    weights of the convolutions are those of He et al., normal with variance 2 / fan-in. In training, batch
    normalisation needs more than one voxel in the batch at the coarsest stage.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: accepted because plans contain it; the network fits any size.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the logits at every resolution except the coarsest;
            `network.decoder.deep_supervision` changes this later.
        dropout: probability of the dropout before the head.

    Reference: Lu et al., Enhancing dual network based semi-supervised medical image segmentation with
    uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025, ResNet sub-network; He et al., CVPR 2016.
    """

    @staticmethod
    def make_encoder(input_channels: int, strides: Sequence[Sequence[int]], dropout: float) -> nn.Module:  # noqa: ARG004
        """Return the residual encoder, which has no dropout."""
        return _initialise_as_he(_Encoder(input_channels, strides))

    @staticmethod
    def make_decoder(
        num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool, dropout: float
    ) -> VNetDecoder:
        """Return V-Net's decoder."""
        return _initialise_as_he(VNetDecoder(num_classes, strides, deep_supervision, dropout))


def _initialise_as_he(part: _AnyModule) -> _AnyModule:
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return part


class _Encoder(nn.Module):
    def __init__(self, input_channels: int, strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        layers = LAYERS[len(strides[0])]
        channels = widths(len(strides))
        self.output_channels = channels  # of every stage, as in nnU-Net's encoders
        stem = layers.convolution(input_channels, channels[0], 7, padding=3, bias=False)
        self.stages = nn.ModuleList([nn.Sequential(stem, layers.norm(channels[0]), nn.ReLU(inplace=True))])
        for i, stride in enumerate(strides[1:]):
            first = _Block(layers, channels[i], channels[i + 1], tuple(stride))
            others = BLOCKS[min(i, len(BLOCKS) - 1)] - 1
            self.stages.append(
                nn.Sequential(first, *[_Block(layers, channels[i + 1], channels[i + 1], 1) for _ in range(others)])
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        return collect_outputs(self.stages, x)


class _Block(nn.Module):
    """conv – norm – ReLU – conv – norm, plus the input (through a convolution where its shape changes), then ReLU."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, stride: int | tuple[int, ...]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            layers.convolution(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            layers.norm(outputs),
            nn.ReLU(inplace=True),
            layers.convolution(outputs, outputs, 3, padding=1, bias=False),
            layers.norm(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            convolution = layers.convolution(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, layers.norm(outputs))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.residual(x) + self.shortcut(x))
        return y
