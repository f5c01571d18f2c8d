"""The head of label propagation: logits remixed by the correlation of an encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from nnssl.ingredients.propagation import correlation_propagate
from nnssl.networks.layers import LAYERS

INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class CorrelationHead(nn.Module):
    """Two embeddings of the features of one encoder stage, and the logits that their correlation remixes.

    Args:
        channels: of every stage of the encoder, the finest first.
        strides: of every stage.
        width: numbers of each embedding, D.
        largest_stride: the stage is the deepest whose cumulative stride is at most this along every axis.
        projection: `block` = a convolution of 3 voxels to half of the channels, normalisation, ReLU and dropout before
            the two linear layers; `linear` = the two linear layers alone.
        batch_norm: the normalisation is that of the batch; otherwise of each sample.

    Attributes:
        level: number of the stage.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 18–19; the block is that of Sun et al., CorrMatch, CVPR 2024.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        width: int,
        largest_stride: int = 16,
        projection: Literal["block", "linear"] = "block",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        axes = len(strides[0])
        layers = LAYERS[axes]
        cumulative = torch.tensor([list(stride) for stride in strides]).cumprod(0).amax(1)
        self.level = max(1, int((cumulative <= largest_stride).sum())) - 1
        inputs = channels[self.level]
        self.projection: nn.Module = nn.Identity()
        if projection == "block":
            middle = max(1, inputs // 2)
            norm = layers.norm(middle) if batch_norm else INSTANCE_NORM[axes](middle, affine=True)
            convolution = layers.convolution(inputs, middle, 3, padding=1)
            self.projection = nn.Sequential(convolution, norm, nn.ReLU(inplace=True), layers.channel_dropout(0.1))
            inputs = middle
        self.first = layers.convolution(inputs, width, 1)
        self.second = layers.convolution(inputs, width, 1)
        self.interpolation = layers.interpolation

    def forward(
        self,
        features: Sequence[Tensor],
        logits: Tensor,
        form: Literal["row", "gather"] = "row",
        scale: Literal["inside", "outside"] = "inside",
    ) -> Tensor:
        """Return remixed logits (B, K, *S) in fp32.

        Args:
            features: of all stages of the encoder, the finest first; they receive the gradient.
            logits: (B, K, *S); they are interpolated to the places of the features, and back; they receive the
                gradient.
            form: see `nnssl.ingredients.propagation.correlation_propagate`.
            scale: see there.
        """
        deep = self.projection(features[self.level])
        grid, size = deep.shape[2:], logits.shape[2:]
        coarse = interpolate(logits.float(), grid, mode=self.interpolation, align_corners=True)
        mixed = correlation_propagate(
            self.first(deep).flatten(2), self.second(deep).flatten(2), coarse.flatten(2), form, scale
        )
        remixed: Tensor = interpolate(mixed.view_as(coarse), size, mode=self.interpolation, align_corners=True)
        return remixed
