"""V-Net with a head at every resolution of its decoder, as in PLGDF."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnssl.networks.layers import LAYERS, widths
from nnssl.networks.outputs import output_sizes
from nnssl.networks.vnet import VNet, VNetDecoder, cropped

COARSE_DROPOUT = (0.6, 0.4, 0.2)  # of the finest head's, second head first; further ones have the last


class VNetMultiscale(VNet):
    """`VNet` that predicts under deep supervision by a head of its own at every resolution but the coarsest.

    Before a head are channels left out: with the default 0.5 before the finest head, with 0.3, 0.2 and 0.1 before the
    coarser ones; the next stage sees them all. Without deep supervision it computes what `VNet` computes.
    9,449,320 parameters in 3-D for four poolings by two, one channel and two classes.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: taken because plans name it; the network fits any size.
        strides: pooling steps of every stage, the first entry all ones.
        deep_supervision: return the logits of all heads, finest first; `network.decoder.deep_supervision` switches it
            later.
        dropout: probability after the coarsest stage and before the finest head; of it the coarser heads have shares.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956.
    """

    @staticmethod
    def make_decoder(
        num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool, dropout: float
    ) -> VNetDecoder:
        """Return the way up with all heads."""
        return _Decoder(num_classes, strides, deep_supervision, dropout)


class _Decoder(VNetDecoder):
    def __init__(
        self, num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool, dropout: float
    ) -> None:
        super().__init__(num_classes, strides, deep_supervision, dropout)
        layers = LAYERS[len(strides[0])]
        self.seg_layers = nn.ModuleList()  # nnU-Net's name: pre-trained weights leave them out
        for i, channels in enumerate(widths(len(strides))[1:-1]):
            left_out = layers.channel_dropout(dropout * COARSE_DROPOUT[min(i, len(COARSE_DROPOUT) - 1)])
            self.seg_layers.append(nn.Sequential(left_out, layers.convolution(channels, num_classes, 1)))

    def forward(self, features: list[Tensor], size: Sequence[int]) -> Tensor | list[Tensor]:
        """Return logits of this size, or those of all heads, for the features of every stage of the encoder."""
        x, *coarser = self.upwards(features)
        logits = self.finest(x, size)
        if not self.deep_supervision:
            return logits
        sizes = output_sizes(size, self.strides)[1:]
        heads = zip(self.seg_layers, coarser, sizes, strict=True)
        return [logits, *(cropped(head(y), fitting) for head, y, fitting in heads)]
