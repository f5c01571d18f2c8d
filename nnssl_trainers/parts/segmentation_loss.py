"""Dice and cross-entropy with a mask at every output of deep supervision, for one target or for a mix of two."""

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
    """The common part of both losses: form of Dice, weights of the outputs, kind of labels."""

    dice: DiceForm
    scale_weights: tuple[float, ...] = (1.0,)
    regions: bool = False
    ignore_label: int | None = None

    def _pair_with_weights(self, outputs: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
        """Return the outputs that learn, each with its weight; a network may have fewer outputs than weights."""
        count = min(len(self.scale_weights), len(outputs))
        pairs = zip(self.scale_weights[:count], outputs[:count], strict=True)
        return [(weight, logits) for weight, logits in pairs if weight]

    def _loss_at(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Return half the sum of Dice loss and cross-entropy; target and mask have the resolution of the logits."""
        if not self.regions:
            return masked_dice_ce(logits, target[:, 0].long(), mask, self.dice, self.ignore_label)
        if self.ignore_label is not None and target.shape[1] > logits.shape[1]:
            target, mask = target[:, :-1], mask * (1 - target[:, -1:].to(mask.dtype))
        return masked_dice_bce(logits, target, mask, self.dice)


@dataclass(frozen=True)
class SegmentationLoss(_OneOutput):
    """Half the sum of Dice loss and cross-entropy where a mask is 1, as a weighted sum over a network's outputs.

    Attributes:
        dice: form of the Dice loss, see `nnssl.ingredients.supervised.masked_dice`.
        scale_weights: weight of each output, the finest first; an output without a weight does not count.
        regions: True = the channels are regions (sigmoid), and the target has one channel for each region.
        ignore_label: the label that does not count, or None; with regions it is the last channel of the target.
    """

    def __call__(self, outputs: Sequence[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        """Return the loss (0-d).

        Args:
            outputs: logits (B, C, *S_i), the finest first; they receive the gradient.
            target: labels (B, 1, *S) or regions (B, R, *S) at the finest resolution; coarser outputs use the nearest
                voxel.
            mask: (B or 1, 1, *S), 1 = the voxel counts.
        """
        terms = [
            weight * with_eager_gradient(self._loss_at, logits, _resize(target, logits), _resize(mask, logits))
            for weight, logits in self._pair_with_weights(outputs)
        ]
        return torch.stack(terms).sum()


@dataclass(frozen=True)
class MixedSegmentationLoss(_OneOutput):
    """The loss of an image that is a mix of two images with a target each, as a weighted mean over a network's outputs.

    Attributes:
        dice: form of the Dice loss, see `nnssl.ingredients.supervised.masked_dice`.
        scale_weights: weight of each output, the finest first; an output without a weight does not count.
        regions: True = the channels are regions (sigmoid), and a target has one channel for each region.
        ignore_label: the label that does not count, or None; with regions it is the last channel of a target.
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
            outputs: logits (B, C, *S_i), the finest first; they receive the gradient.
            outside: the target where the mask is 1: labels (B, 1, *S) or regions (B, R, *S) at the finest resolution;
                coarser outputs use the nearest voxel.
            inside: the target where the mask is 0, in the same form as `outside`.
            mask: (B or 1, 1, *S), 0 or 1.
            weight_outside: factor of the loss outside.
            weight_inside: factor of the loss inside.
        """
        weighted, terms = self._pair_with_weights(outputs), []
        for weight, logits in weighted:
            images = [_resize(image, logits) for image in (outside, inside, mask)]
            terms.append(
                weight * with_eager_gradient(self._loss_of_mix, logits, *images, weight_outside, weight_inside)
            )
        return torch.stack(terms).sum() / sum(weight for weight, _ in weighted)

    def _loss_of_mix(
        self,
        logits: Tensor,
        outside: Tensor,
        inside: Tensor,
        mask: Tensor,
        weight_outside: float,
        weight_inside: float,
    ) -> Tensor:
        """Return the sum of the weighted losses outside and inside; all tensors have the resolution of the logits."""
        outer = self._loss_at(logits, outside, mask)
        return weight_outside * outer + weight_inside * self._loss_at(logits, inside, 1 - mask)


def _resize(image: Tensor, like: Tensor) -> Tensor:
    """Return an image (B, C, *S) at the size of another one; each voxel takes the value of the nearest voxel."""
    if image.shape[2:] == like.shape[2:]:
        return image
    return functional.interpolate(image.float(), like.shape[2:], mode="nearest-exact")
