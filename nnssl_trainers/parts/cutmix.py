"""CutMix within a batch: boxes of patches, with their labels and masks, go into other patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnssl.ingredients.mixing import copy_paste, cutmix_rectangle


def cutmix_batch(tensors: Sequence[Tensor], probability: float) -> list[Tensor]:
    """Return tensors in which each patch has, with some probability, a box of the patch before it.

    All tensors share the boxes; a batch of one patch and the probability 0 change nothing.

    Args:
        tensors: image (B, C, *S) first, then labels, masks and the like (B, c, *S). The results have the image's type.
        probability: of a box, in [0, 1].

    Reference: Yun et al., CutMix, ICCV 2019; boxes as in Yang et al., UniMatch, CVPR 2023.
    """
    image = tensors[0]
    if not probability or len(image) < 2:
        return list(tensors)
    boxes = torch.cat([cutmix_rectangle(image.shape[2:], probability) for _ in image])
    boxes = boxes.to(image.device, non_blocking=True)
    return [copy_paste(x.to(image.dtype), x.roll(1, 0).to(image.dtype), boxes) for x in tensors]
