"""nnU-Net's loss on the voxels of a mask: for pseudo-labels, which leave voxels out without an ignore label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nnssl.ingredients.eager_gradient import with_eager_gradient
from nnssl.ingredients.supervised import class_numbers, masked_mean, promote_to_fp32

SMOOTH = 1e-5  # nnU-Net's


@dataclass(frozen=True)
class MaskedNNUNetLoss:
    """Cross-entropy minus soft Dice as nnU-Net computes them, over the voxels that count.

    Of each output: mean CE − mean over classes of (2·Σ m·p·y + s) / (Σ m·p + Σ m·y + s), s = 1e-5, without background;
    where labels are regions: binary cross-entropy, and the Dice of every region. Without a mask this is nnU-Net's loss.
    In distributed training nnU-Net sums the Dice over all processes; this loss takes the patches of its own process.

    Attributes:
        scale_weights: weight of each output, the finest first; an output without a weight does not count.
        batch_dice: the Dice sums over the whole batch; False: over each patch, and the mean follows.
        regions: the channels are regions (sigmoid), and the target has one channel for each region.

    Reference: Isensee et al., nnU-Net, Nature Methods 18, 2021, loss function; Drozdzal et al., The importance of skip
    connections, LABELS 2016, the Dice.
    """

    scale_weights: tuple[float, ...] = (1.0,)
    batch_dice: bool = False
    regions: bool = False

    def __call__(self, outputs: Sequence[Tensor], target: Tensor, mask: Tensor) -> Tensor:
        """Return the loss as a weighted sum over the outputs (0-d); an empty mask gives no gradient.

        Args:
            outputs: logits (B, C, *S_i), the finest first; they receive the gradient.
            target: labels (B, 1, *S) or regions (B, R, *S) at the finest resolution; coarser outputs use the nearest
                voxel.
            mask: (B, 1, *S), 1 = the voxel counts.
        """
        terms = [
            weight * with_eager_gradient(self._loss_at, logits, nearest(target, logits), nearest(mask, logits))
            for weight, logits in zip(self.scale_weights, outputs, strict=False)
            if weight
        ]
        return torch.stack(terms).sum()

    def _loss_at(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        z, weights = promote_to_fp32(logits), mask.to(torch.float32)
        if self.regions:
            goal = target.to(z.dtype)
            cross_entropy = masked_mean(functional.binary_cross_entropy_with_logits(z, goal, reduction="none"), mask)
            probs = z.sigmoid()
        else:
            goal = (target.long() == class_numbers(z)).to(z.dtype)
            log_probs = z.log_softmax(1)
            cross_entropy = masked_mean(-(log_probs * goal).sum(1, keepdim=True), mask)
            probs, goal = log_probs.exp()[:, 1:], goal[:, 1:]
        axes = [0, *range(2, z.ndim)] if self.batch_dice else list(range(2, z.ndim))
        overlap = (probs * goal * weights).sum(axes)
        size = (probs * weights).sum(axes) + (goal * weights).sum(axes)
        return cross_entropy - ((2 * overlap + SMOOTH) / (size + SMOOTH)).mean()


def nearest(image: Tensor, like: Tensor) -> Tensor:
    """Return an image (B, C, *S) at the size of another one; each voxel takes the value of the nearest voxel."""
    if image.shape[2:] == like.shape[2:]:
        return image
    return functional.interpolate(image.float(), like.shape[2:], mode="nearest-exact")
