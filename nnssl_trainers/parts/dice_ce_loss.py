"""Dice and cross-entropy with weights of the classes at every output of deep supervision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nnssl.ingredients.eager_gradient import with_eager_gradient
from nnssl.ingredients.supervised import dice_ce
from nnssl_trainers.parts.masked_nnunet_loss import nearest
from nnssl_trainers.parts.region_logits import class_logits


@dataclass(frozen=True)
class DiceCELoss:
    """The weighted sum of `nnssl.ingredients.supervised.dice_ce` over a network's outputs.

    Attributes:
        scale_weights: weight of each output, the finest first; an output without a weight does not count.
        regions: the channels are regions (sigmoid); each region is a problem with two classes, and the sums go over all
            regions.
        form: where the weights of the classes stand, see `dice_ce`.
    """

    scale_weights: tuple[float, ...] = (1.0,)
    regions: bool = False
    form: Literal["normalised", "literal"] = "normalised"

    def __call__(
        self, outputs: Sequence[Tensor], labels: Tensor, mask: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return the loss (0-d); 0 where no voxel counts.

        Args:
            outputs: logits (B, C, *S_i), the finest first; they receive the gradient. One output alone has weight 1.
            labels: LongTensor (B, 1, *S), or (B, R, *S) for regions, at the finest resolution; coarser outputs use the
                nearest voxel.
            mask: (B, 1, *S), 1 = the voxel counts.
            class_weights: (C,), or (2,) for regions; None = all 1.
        """
        weights = (1.0,) if len(outputs) == 1 else self.scale_weights
        terms = [
            weight
            * with_eager_gradient(self._loss_at, logits, nearest(labels, logits), nearest(mask, logits), class_weights)
            for weight, logits in zip(weights, outputs, strict=False)
            if weight
        ]
        return torch.stack(terms).sum()

    def _loss_at(self, logits: Tensor, labels: Tensor, mask: Tensor, class_weights: Tensor | None) -> Tensor:
        weights = mask.repeat_interleave(labels.shape[1], 0)
        form = "normalised" if class_weights is None else self.form
        return dice_ce(class_logits(logits, self.regions), labels.flatten(0, 1).long(), class_weights, weights, form)
