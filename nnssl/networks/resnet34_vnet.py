"""ResNet-34 encoder with the decoder of V-Net, sub-network A of the dual network with uncertainty-guided labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from nnssl.networks.layers import LAYERS, Layers, outputs_of_stages, widths
from nnssl.networks.vnet import VNet, VNetDecoder

_AnyModule = TypeVar("_AnyModule", bound=nn.Module)
BLOCKS = (3, 4, 6, 3)  # residual blocks of ResNet-34; stages beyond its four have as many as the last


class ResNet34VNet(VNet):
    """Residual encoder of ResNet-34 and V-Net's decoder, for images of any size, 2-D or 3-D.

    The stem is one convolution of size 7 without pooling; each pooling step of the plan is a stage of 3, 4, 6, 3, 3, …
    residual blocks, whose first has that stride. 16, 32, … at most 256 channels, batch normalisation and ReLU. Skips
    are added. Dropout of whole channels before the head. The image is padded with zeros at the high side to a multiple
    of all strides' product, and the logits are cropped back.
    17,930,354 parameters in 3-D for four poolings by two, one channel and two classes. Convolutions start as He et al.
    have it, normal with variance 2 / fan-in.
    Batch normalisation needs more than one voxel in the batch at the coarsest stage in training.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: taken because plans name it; the network fits any size.
        strides: pooling steps of every stage, the first entry all ones.
        deep_supervision: return the logits at every resolution but the coarsest; `network.decoder.deep_supervision`
            switches it later.
        dropout: its probability.

    Reference: Lu et al., Enhancing dual network based semi-supervised medical image segmentation with
    uncertainty-guided pseudo-labeling, Knowledge-Based Systems 2025, ResNet sub-network; He et al., CVPR 2016.
    """

    @staticmethod
    def make_encoder(input_channels: int, strides: Sequence[Sequence[int]], dropout: float) -> nn.Module:  # noqa: ARG004
        """Return the way down, which has no dropout."""
        return _as_he(_Encoder(input_channels, strides))

    @staticmethod
    def make_decoder(
        num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool, dropout: float
    ) -> VNetDecoder:
        """Return V-Net's way up."""
        return _as_he(VNetDecoder(num_classes, strides, deep_supervision, dropout))


def _as_he(part: _AnyModule) -> _AnyModule:
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return part


class _Encoder(nn.Module):
    def __init__(self, input_channels: int, strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        layers = LAYERS[len(strides[0])]
        channels = widths(len(strides))
        stem = layers.convolution(input_channels, channels[0], 7, padding=3, bias=False)
        self.stages = nn.ModuleList([nn.Sequential(stem, layers.norm(channels[0]), nn.ReLU(inplace=True))])
        for i, stride in enumerate(strides[1:]):
            first = _Block(layers, channels[i], channels[i + 1], tuple(stride))
            others = BLOCKS[min(i, len(BLOCKS) - 1)] - 1
            self.stages.append(
                nn.Sequential(first, *[_Block(layers, channels[i + 1], channels[i + 1], 1) for _ in range(others)])
            )

    def forward(self, x: Tensor) -> list[Tensor]:
        return outputs_of_stages(self.stages, x)


class _Block(nn.Module):
    """conv – norm – ReLU – conv – norm, plus the input (convolved where its shape changes), ReLU."""

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
