"""Several networks deployed as one network: the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import Self

from nnssl.networks import build_network


class MeanOfNetworks(nn.Module):
    """The mean of the members' class probabilities, returned as logits.

    The logits are log Σ_k softmax(z_k) / K, so that their softmax is the mean. With `sigmoid` they are
    log Σ_k σ(z_k) − log Σ_k σ(−z_k), so that their sigmoid is the mean.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        architectures: one `architecture` entry of nnU-Net's plans for each member.
        strides: pooling steps of every stage; accepted because nnU-Net reads them from the plans of every network.
        sigmoid: the channels are regions instead of exclusive classes.
        deep_supervision: return a list of one tensor; `network.decoder.deep_supervision` changes this later.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        architectures: Sequence[dict[str, Any]],
        strides: Sequence[Sequence[int]] = (),  # noqa: ARG002
        sigmoid: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            build_network(item, input_channels, num_classes, allow_init=False, deep_supervision=False)
            for item in architectures
        )
        self.sigmoid = sigmoid
        self.decoder = _Switch(deep_supervision)

    @classmethod
    def of(cls, members: Sequence[nn.Module], sigmoid: bool) -> Self:
        """Return the mean of existing networks; their weights are shared, not copied."""
        mean = cls(0, 0, [], sigmoid=sigmoid)
        mean.members.extend(members)
        return mean

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, *S) in fp32 for an image (B, input_channels, *S); see `deep_supervision`."""
        outputs = [member(image) for member in self.members]
        logits = torch.stack([(z[0] if isinstance(z, list | tuple) else z).float() for z in outputs])
        if self.sigmoid:
            mean = functional.logsigmoid(logits).logsumexp(0) - functional.logsigmoid(-logits).logsumexp(0)
        else:
            mean = logits.log_softmax(2).logsumexp(0) - math.log(len(outputs))
        return [mean] if self.decoder.deep_supervision else mean


class _Switch(nn.Module):
    """The attribute `decoder.deep_supervision`, which nnU-Net sets on every network."""

    def __init__(self, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
