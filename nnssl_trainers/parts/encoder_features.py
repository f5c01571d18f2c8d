"""Features of a network's encoder, taken from the forward pass that a step needs in any case."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nnssl.errors import UsageError


class EncoderFeatures:
    """Keep the pooled features of the encoder's deepest stage in every forward pass.

    A forward hook keeps the features, so that labelled and unlabelled patches pass the encoder only once. The hook must
    be registered before the first pass; then `torch.compile` traces it with the network. The hook adds no parameter and
    no key to checkpoints. DistributedDataParallel sums the gradients of all passes of a step if one of these passes
    goes through its own forward.

    Args:
        network: a network without wrappers whose encoder returns the features of all stages, the deepest last, and has
            the number of features of each stage as `output_channels`: a network of nnU-Net or of `nnssl.networks`.
            Where the encoder has `channels_last`, the features are the last axis.

    Attributes:
        width: number of features of the deepest stage.

    Raises:
        UsageError: the network has no such encoder.
    """

    def __init__(self, network: Any) -> None:  # noqa: ANN401
        encoder = getattr(network, "encoder", None)
        if not isinstance(encoder, nn.Module) or not hasattr(encoder, "output_channels"):
            raise UsageError(
                f"{type(network).__name__} has no encoder whose features can be contrasted",
                where="architecture of the plans",
                why="the networks of nnU-Net and of nnssl have such an encoder",
                run="--set contrast_weight=0, or another network",
            )
        self.width = int(encoder.output_channels[-1])  # type: ignore[index]
        self._channel_axis = -1 if getattr(encoder, "channels_last", False) else 1
        self._latest: Tensor | None = None
        encoder.register_forward_hook(self._keep)

    def _keep(self, _encoder: nn.Module, _image: tuple[Tensor, ...], stages: list[Tensor]) -> None:
        self._latest = stages[-1].movedim(self._channel_axis, 1).float().flatten(2).mean(2)

    def take(self) -> Tensor:
        """Return the features (B, width) of the last pass: the mean over space in fp32, with graph; once per pass."""
        features, self._latest = self._latest, None
        assert features is not None
        return features
