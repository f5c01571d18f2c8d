"""The features that a network makes its prediction of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnssl.errors import UsageError


class DecoderFeatures:
    """Keeps what enters the last layer of a network in training: the features of the decoder's finest stage.

    A hook on that layer, so that the network is called, compiled, distributed and saved as without it. torch.compile
    traces the hook, which has to be there before the first call, and gives the features out beside the logits.
    DistributedDataParallel waits for the gradients of weights, and every weight before the features is one before the
    logits. In evaluation nothing is kept.

    Args:
        network: nnU-Net's, or one with `decoder.head`; not wrapped by torch.compile or DistributedDataParallel.

    Raises:
        UsageError: the network has no such layer.
    """

    def __init__(self, network: nn.Module) -> None:
        decoder: Any = getattr(network, "decoder", None)
        layer: Any = getattr(decoder, "head", None)
        if isinstance(layer, nn.Sequential):
            layer = layer[-1]
        elif layer is not None:
            layer = getattr(decoder, "dropout", layer)  # V-Net's drops other channels in every sample
        elif getattr(decoder, "seg_layers", None):
            layer = decoder.seg_layers[-1]
        if layer is None:
            raise UsageError(
                f"the features of {type(network).__name__} are not known",
                why="a network needs decoder.head, or decoder.seg_layers as nnU-Net's",
                run="--set contrast_weight=0, or another network",
            )
        self.channels_last = isinstance(layer, nn.Linear)
        self.kept: Tensor | None = None
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if layer.training:
            self.kept = arguments[0]

    def take(self, size: Sequence[int]) -> Tensor:
        """Return the features (B, F, *S) of the last forward pass, cropped to a size *S, and forget them."""
        assert self.kept is not None
        features, self.kept = self.kept, None
        features = features.movedim(-1, 1) if self.channels_last else features
        return features[(slice(None), slice(None), *map(slice, size))]
