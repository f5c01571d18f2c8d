"""Patches with their labels, mixed with other patches of the step or covered by blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnssl.ingredients.mixing import block_mask, draw_cutmix_boxes
from nnssl_trainers.parts.region_logits import class_labels


@dataclass(frozen=True)
class LabelledPatches:
    """Patches, their labels or pseudo-labels, and where the labels count.

    Attributes:
        image: (B, C_in, *S).
        labels: LongTensor (B, 1, *S), or (B, R, *S) for regions; 0 where they do not count.
        mask: BoolTensor (B, 1, *S), True = the label counts.
    """

    image: Tensor
    labels: Tensor
    mask: Tensor

    def join(self, other: LabelledPatches) -> LabelledPatches:
        """Return these patches and, after them, those of another batch."""
        pairs = ((self.image, other.image), (self.labels, other.labels), (self.mask, other.mask))
        return LabelledPatches(*(torch.cat(pair) for pair in pairs))


def known_patches(image: Tensor, target: Tensor, manager: Any) -> LabelledPatches:  # noqa: ANN401
    """Return labelled patches in the form of this module.

    Args:
        image: (B, C_in, *S).
        target: nnU-Net's labels (B, 1, *S), or regions; voxels with the ignore label get label 0 and do not count.
        manager: nnU-Net's label manager of the data set.
    """
    heads, shape = manager.num_segmentation_heads, (len(target), -1, *target.shape[2:])
    labels, known = class_labels(target, heads, manager.has_regions, manager.ignore_label)
    return LabelledPatches(image, labels.view(shape), known.view(shape)[:, :1])


def mix_with_partners(others: LabelledPatches, patches: LabelledPatches) -> LabelledPatches:
    """Return patches with a box of a partner: any other patch of the step, with equal probability.

    A box has the place and the label of the partner's voxels; see `nnssl.ingredients.mixing.draw_cutmix_boxes`. A patch
    without any partner stays as it is.

    Args:
        others: patches that can be partners, and nothing else.
        patches: patches that get a box; they can be partners of each other.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 12.
    """
    pool, first = others.join(patches), len(others.image)
    mixed = LabelledPatches(patches.image.clone(), patches.labels.clone(), patches.mask.clone())
    if len(pool.image) < 2:
        return mixed
    for i, box in enumerate(draw_cutmix_boxes(patches.image.shape[2:], len(patches.image))):
        drawn = int(torch.randint(len(pool.image) - 1, ()))
        partner, place = drawn + int(drawn >= first + i), (slice(None), *box)
        for own, source in ((mixed.image, pool.image), (mixed.labels, pool.labels), (mixed.mask, pool.mask)):
            own[i][place] = source[partner][place]
    return mixed


def mask_blocks(image: Tensor, ratio: float) -> Tensor:
    """Return images (B, C_in, *S) in which random blocks are 0, in all channels; every image has its own blocks.

    The value 0 is the mean of an image that is normalised to mean 0.

    Args:
        image: (B, C_in, *S).
        ratio: share of the blocks that are masked, in [0, 1]; a patch has 16 blocks along an axis.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 14.
    """
    masks = torch.cat([block_mask(image.shape[2:], ratio) for _ in image])
    return image * masks.to(image.device, image.dtype, non_blocking=True)
