"""Dice and cross-entropy where a mask is 1, or of two targets on its two sides, at every output of deep supervision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.ingredients.eager_gradient import with_eager_gradient
from nnssl.ingredients.supervised import DiceForm, masked_dice_bce, masked_dice_ce


@dataclass(frozen=True)
class _OneOutput:
    """What both losses know: form of Dice, weights of the outputs, kind of labels."""

    dice: DiceForm
    scale_weights: tuple[float, ...] = (1.0,)
    regions: bool = False
    ignore_label: int | None = None

    def _weighted(self, outputs: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
        """Return the outputs that learn, each with its weight; a network can have fewer outputs than weights."""
        count = min(len(self.scale_weights), len(outputs))
        pairs = zip(self.scale_weights[:count], outputs[:count], strict=True)
        return [(weight, logits) for weight, logits in pairs if weight]

    def _one(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return half the sum of Dice loss and cross-entropy, target and mask at the resolution of the logits."""
        if not self.regions:
            return masked_dice_ce(logits, target[:, 0].long(), mask, self.dice, self.ignore_label)
        if self.ignore_label is not None and target.shape[1] > logits.shape[1]:
            target, mask = target[:, :-1], mask * (1 - target[:, -1:].to(mask.dtype))
        return masked_dice_bce(logits, target, mask, self.dice)


@dataclass(frozen=True)
class SegmentationLoss(_OneOutput):
    """Half the sum of Dice loss and cross-entropy where a mask is 1; the weighted sum over the outputs of a network.

    Attributes:
        dice: form of the Dice loss, see `nnssl.ingredients.supervised.masked_dice`.
        scale_weights: weight of each output, finest first; an output without a weight does not count.
        regions: the channels are regions (sigmoid), and targets have one channel each.
        ignore_label: label that does not count, None for none; with regions, targets have it as their last channel.
    """

    def __call__(self, outputs: Sequence[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        """Return the loss (0-d).

        Args:
            outputs: logits (B, C, *S_i), finest first; the gradient goes here.
            target: (B, 1, *S) labels or (B, R, *S) regions, at the finest resolution; coarser outputs take the
                nearest voxel.
            mask: (B or 1, 1, *S), 1 = counts.
        """
        terms = [
            weight * with_eager_gradient(self._one, logits, _nearest(target, logits), _nearest(mask, logits))
            for weight, logits in self._weighted(outputs)
        ]
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class MixedSegmentationLoss(_OneOutput):
    """Loss of an image made of two, each with its target; the weighted mean over the outputs of a network.

    Attributes:
        dice: form of the Dice loss, see `nnssl.ingredients.supervised.masked_dice`.
        scale_weights: weight of each output, finest first; an output without a weight does not count.
        regions: the channels are regions (sigmoid), and targets have one channel each.
        ignore_label: label that does not count, None for none; with regions, targets have it as their last channel.
    """

    def __call__(
        self,
        outputs: Sequence[Tensor],
        outside: Tensor,
        inside: Tensor,
        mask: Tensor,
        weight_outside: float = 1.0,
        weight_inside: float = 1.0,
    ) -> Tensor:
        """Return weight_outside · loss where the mask is 1 + weight_inside · loss where it is 0 (0-d).

        Args:
            outputs: logits (B, C, *S_i), finest first; the gradient goes here.
            outside: target where the mask is 1, (B, 1, *S) labels or (B, R, *S) regions, at the finest resolution;
                coarser outputs take the nearest voxel.
            inside: target where the mask is 0, as `outside`.
            mask: (B or 1, 1, *S), 0 or 1.
            weight_outside: factor of the first loss.
            weight_inside: factor of the second.
        """
        weighted, terms = self._weighted(outputs), []
        for weight, logits in weighted:
            targets = [_nearest(image, logits) for image in (outside, inside, mask)]
            terms.append(weight * with_eager_gradient(self._both, logits, *targets, weight_outside, weight_inside))
        return torch.stack(terms).sum() / sum(weight for weight, _ in weighted)

    def _both(
        self,
        logits: Tensor,
        outside: Tensor,
        inside: Tensor,
        mask: Tensor,
        weight_outside: float,
        weight_inside: float,
    ) -> Tensor:
        """Return the weighted losses of both sides, everything at the resolution of the logits."""
        first = self._one(logits, outside, mask)
        return weight_outside * first + weight_inside * self._one(logits, inside, 1 - mask)


def _nearest(image: Tensor, like: Tensor) -> Tensor:
    if image.shape[2:] == like.shape[2:]:
        return image
    return functional.interpolate(image.float(), like.shape[2:], mode="nearest-exact")
