"""Labels made from predictions."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from torch import Tensor


def largest_component(labels: Tensor, num_classes: int, exempt: tuple[int, ...] = ()) -> Tensor:
    """Return the labels with only the largest connected component of each foreground class; the rest is background.

    Voxels that share a face, an edge or a corner are connected (8 neighbours in 2-D, 26 in 3-D). Of components of one
    size the one met first stays, the last axis running fastest. Runs on the CPU, within the bounding box of a class.

    Args:
        labels: LongTensor (B, *S); unchanged. For region maps (B, R, *S) give `maps.flatten(0, 1)` and two classes.
        num_classes: classes with background, >= 2; labels outside 1 .. num_classes − 1 are left as they are.
        exempt: classes of which every component stays, for structures that come in many pieces.

    Returns:
        LongTensor (B, *S) on the device of `labels`.

    Reference: Bai et al., Bidirectional copy-paste, CVPR 2023, the teacher's pseudo-labels; Su, Sun, Adamyk,
    DSMT-Net, Comput. Biol. Chem. 119 (2025) 108579, the targets of eq. 15–17.
    """
    cleaned = labels.detach().to("cpu", copy=True)
    for image in cleaned.numpy():
        for label, box in enumerate(ndimage.find_objects(image, num_classes - 1), start=1):
            if box is None or label in exempt:
                continue
            region = image[box]
            components, _ = ndimage.label(region == label, structure=np.ones([3] * region.ndim))
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            region[(components > 0) & (components != sizes.argmax())] = 0
    return cleaned.to(labels.device)
