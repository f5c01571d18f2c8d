"""Features of the plan's network, taken from the forward pass that a step makes anyway."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nnssl.errors import UsageError


class EncoderFeatures:
    """Keeps the pooled features of the deepest stage of a network's encoder whenever that runs.

    A forward hook, so that labelled and unlabelled patches pass the encoder once. Put on before the first pass, it is
    traced by `torch.compile` with the network; it adds no parameter and no key to checkpoints; DistributedDataParallel
    sums up the gradients of all passes of a step as long as one of them went through its own forward.

    Args:
        network: a network, not wrapped, whose encoder returns the features of all stages, deepest last, and tells their
            numbers as `output_channels`: nnU-Net's and those of `nnssl.networks`. With `channels_last` the features
            are the last axis.

    Attributes:
        width: number of features.

    Raises:
        UsageError: the network has no such encoder.
    """

    def __init__(self, network: Any) -> None:  # noqa: ANN401
        encoder = getattr(network, "encoder", None)
        if not isinstance(encoder, nn.Module) or not hasattr(encoder, "output_channels"):
            raise UsageError(
                f"{type(network).__name__} has no encoder whose features can be contrasted",
                where="architecture of the plans",
                why="the networks of nnU-Net and of nnssl have one",
                run="--set contrast_weight=0, or another network",
            )
        self.width = int(encoder.output_channels[-1])  # type: ignore[index]
        self._channel_axis = -1 if getattr(encoder, "channels_last", False) else 1
        self._latest: Tensor | None = None
        encoder.register_forward_hook(self._keep)

    def _keep(self, _encoder: nn.Module, _image: tuple[Tensor, ...], stages: list[Tensor]) -> None:
        self._latest = stages[-1].movedim(self._channel_axis, 1).float().flatten(2).mean(2)

    def take(self) -> Tensor:
        """Return the features (B, width) of the latest pass, their mean over space, fp32, with its graph; once."""
        features, self._latest = self._latest, None
        assert features is not None
        return features
