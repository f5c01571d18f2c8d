"""The features from which a network's last layer computes the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnssl.errors import UsageError


class DecoderFeatures:
    """Keep the input of a network's last layer during training: the features of the decoder's finest stage.

    A hook on that layer keeps the features. Calls, compilation, distribution and checkpoints of the network stay as
    they are. torch.compile traces the hook and returns the features beside the logits; the hook must therefore be
    registered before the first call. DistributedDataParallel also works: all weights that the features depend on are
    weights that the logits depend on. In evaluation mode the hook keeps nothing.

    Args:
        network: nnU-Net's network, or a network with `decoder.head`; without the wrappers of torch.compile and
            DistributedDataParallel.

    Raises:
        UsageError: the network has no such layer.
    """

    def __init__(self, network: nn.Module) -> None:
        decoder: Any = getattr(network, "decoder", None)
        layer: Any = getattr(decoder, "head", None)
        if isinstance(layer, nn.Sequential):
            layer = layer[-1]
        elif layer is not None:
            layer = getattr(decoder, "dropout", layer)  # V-Net's dropout drops different channels in each sample
        elif getattr(decoder, "seg_layers", None):
            layer = decoder.seg_layers[-1]
        if layer is None:
            raise UsageError(
                f"the features of {type(network).__name__} are not known",
                why="the network needs decoder.head, or decoder.seg_layers as in nnU-Net's networks",
                run="--set contrast_weight=0, or another network",
            )
        self.channels_last = isinstance(layer, nn.Linear)
        self.kept: Tensor | None = None
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if layer.training:
            self.kept = arguments[0]

    def take(self, size: Sequence[int]) -> Tensor:
        """Return the features (B, F, *S) of the last forward pass, cropped to the size *S; once per pass."""
        assert self.kept is not None
        features, self.kept = self.kept, None
        features = features.movedim(-1, 1) if self.channels_last else features
        return features[(slice(None), slice(None), *map(slice, size))]
