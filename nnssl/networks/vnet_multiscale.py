"""V-Net with a head at every resolution of its decoder, as in PLGDF."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnssl.networks.layers import LAYERS, widths
from nnssl.networks.outputs import output_sizes
from nnssl.networks.vnet import VNet, VNetDecoder, crop_to

COARSE_DROPOUT = (0.6, 0.4, 0.2)  # share of the finest head's dropout, second head first; further heads: the last


class VNetMultiscale(VNet):
    """`VNet` with a separate head at every resolution except the coarsest, for deep supervision.

    Dropout of whole channels precedes every head: by default 0.5 before the finest head, and 0.3, 0.2 and 0.1 before
    the coarser heads. The next stage of the decoder sees all channels. Without deep supervision the network computes
    the same function as `VNet`. The network has 9,449,320 parameters in 3-D for four poolings by two, one channel and
    two classes.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: accepted because plans contain it; the network fits any size.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the logits of all heads, finest first; `network.decoder.deep_supervision` changes
            this later.
        dropout: probability after the coarsest stage and before the finest head; the coarser heads have shares of it.

    Reference: Wang et al., PLGDF, Biomed. Signal Process. Control 108 (2025) 107956.
    """

    @staticmethod
    def make_decoder(
        num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool, dropout: float
    ) -> VNetDecoder:
        """Return the decoder with all heads."""
        return _Decoder(num_classes, strides, deep_supervision, dropout)


class _Decoder(VNetDecoder):
    def __init__(
        self, num_classes: int, strides: Sequence[Sequence[int]], deep_supervision: bool, dropout: float
    ) -> None:
        super().__init__(num_classes, strides, deep_supervision, dropout)
        layers = LAYERS[len(strides[0])]
        self.seg_layers = nn.ModuleList()  # nnU-Net's name of the heads, which pre-trained weights do not contain
        for i, channels in enumerate(widths(len(strides))[1:-1]):
            dropout_layer = layers.channel_dropout(dropout * COARSE_DROPOUT[min(i, len(COARSE_DROPOUT) - 1)])
            self.seg_layers.append(nn.Sequential(dropout_layer, layers.convolution(channels, num_classes, 1)))

    def forward(self, features: list[Tensor], size: Sequence[int]) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, *size), or the logits of all heads with deep supervision."""
        x, *coarser = self.decode(features)
        logits = self.predict_finest(x, size)
        if not self.deep_supervision:
            return logits
        sizes = output_sizes(size, self.strides)[1:]
        outputs = [logits]
        for head, y, coarse_size in zip(self.seg_layers, coarser, sizes, strict=True):
            outputs.append(crop_to(head(y), coarse_size))
        return outputs
