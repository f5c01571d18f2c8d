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
class Side:
    """The labels of one of the two sides of a mix, and how much they count.

    Attributes:
        target: labels (B, 1, *S) or regions (B, R, *S) at the finest resolution.
        weight: factor of the loss on this side, >= 0.
        counts: (B, 1, *S), 1 = the voxel counts; None = every voxel counts.
    """

    target: Tensor
    weight: float = 1.0
    counts: Tensor | None = None

    def at_size_of(self, logits: Tensor) -> Side:
        """Return this side at the resolution of an output; each voxel takes the value of the nearest voxel."""
        counts = None if self.counts is None else _resize(self.counts, logits)
        return Side(_resize(self.target, logits), self.weight, counts)

    def within(self, mask: Tensor) -> Tensor:
        """Return a mask (B or 1, 1, *S) without the voxels of this side that do not count."""
        return mask if self.counts is None else mask * self.counts.to(mask.dtype)


@dataclass(frozen=True)
class MixedSegmentationLoss(_OneOutput):
    """The loss of an image that is a mix of two images with a target each, as a weighted mean over a network's outputs.

    Let M be 1 outside and 0 inside, y and ŷ the targets, w and ŵ the weights, and ℓ_m half the sum of Dice loss and
    cross-entropy where each voxel v weighs m_v:

        one Dice over the mix: (w + ŵ)·ℓ_ω(p, M·y + (1 − M)·ŷ),  ω = w·M + ŵ·(1 − M)
        separate sides:        w·ℓ_M(p, y) + ŵ·ℓ_{1−M}(p, ŷ)

    With separate sides, the Dice of a side divides by what this side alone has of a class. So a few falsely labelled
    voxels on a side without the structure pull as hard as a whole structure, and a false structure on a side whose
    target has none is hardly pushed away.

    Attributes:
        dice: form of the Dice loss, see `nnssl.ingredients.supervised.masked_dice`.
        scale_weights: weight of each output, the finest first; an output without a weight does not count.
        regions: True = the channels are regions (sigmoid), and a target has one channel for each region.
        ignore_label: the label that does not count, or None; with regions it is the last channel of a target.
        separate_sides: compute Dice and cross-entropy on each side alone.
    """

    separate_sides: bool = False

    def __call__(self, outputs: Sequence[Tensor], outside: Side, inside: Side, mask: Tensor) -> Tensor:
        """Return the loss (0-d); 0 where no voxel counts.

        Args:
            outputs: logits (B, C, *S_i), the finest first; they receive the gradient.
            outside: labels and weight where the mask is 1; coarser outputs use the nearest voxel.
            inside: labels and weight where the mask is 0.
            mask: (B or 1, 1, *S), 0 or 1.
        """
        weighted, terms = self._pair_with_weights(outputs), []
        for weight, logits in weighted:
            sides = [side.at_size_of(logits) for side in (outside, inside)]
            terms.append(weight * with_eager_gradient(self._loss_of_mix, logits, *sides, _resize(mask, logits)))
        return torch.stack(terms).sum() / sum(weight for weight, _ in weighted)

    def _loss_of_mix(self, logits: Tensor, outside: Side, inside: Side, mask: Tensor) -> Tensor:
        """Return the loss of one output; all tensors have the resolution of the logits."""
        outer, inner = outside.within(mask), inside.within(1 - mask)
        if self.separate_sides:
            loss = outside.weight * self._loss_at(logits, outside.target, outer)
            return loss + inside.weight * self._loss_at(logits, inside.target, inner)
        first, second = _equal_channels(outside.target, inside.target)
        target = torch.where(mask.bool(), first, second)
        weights = outside.weight * outer + inside.weight * inner
        return (outside.weight + inside.weight) * self._loss_at(logits, target, weights)


def _equal_channels(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two targets with as many channels; a channel that only one of them has, the ignore label, is 0."""
    most = max(first.shape[1], second.shape[1])
    padded = [functional.pad(x, [0, 0] * (x.ndim - 2) + [0, most - x.shape[1]]) for x in (first, second)]
    return padded[0], padded[1]


def _resize(image: Tensor, like: Tensor) -> Tensor:
    """Return an image (B, C, *S) at the size of another one; each voxel takes the value of the nearest voxel."""
    if image.shape[2:] == like.shape[2:]:
        return image
    return functional.interpolate(image.float(), like.shape[2:], mode="nearest-exact")


def known_voxels(target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    """Return the voxels of labelled patches that have a label, as BoolTensor (B, 1, *S).

    Args:
        target: labels (B, 1, *S), or regions (B, R, *S), whose last channel is the ignore label where there is one.
        regions: True = the channels are regions.
        ignore_label: the label that does not count; None where the data set has no such label.
    """
    if ignore_label is None:
        return torch.ones_like(target[:, :1], dtype=torch.bool)
    return target[:, -1:] == 0 if regions else target != ignore_label
