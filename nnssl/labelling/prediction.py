"""Labels and their confidence from the probabilities of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.host import LabelManager


def mean_probabilities(members: Sequence[Tensor]) -> Tensor:
    """Return the mean of probabilities (C, *S) of several networks, in fp32; one network's stay as they are."""
    if len(members) == 1:
        return members[0]
    total = torch.zeros_like(members[0], dtype=torch.float32)
    for probs in members:
        total += probs
    return total / len(members)


def most_likely(probs: Tensor, labels: LabelManager) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return the most likely label of each voxel, and how sure the network is.

    Args:
        probs: (C, *S), of classes, or of regions that may overlap.
        labels: nnU-Net's label manager.

    Returns:
        Label values (*S).
        Confidence (*S), uint8, 255 = certain: the probability of the label; for regions the smallest max(p, 1 − p) of
        all regions.
    """
    sure = torch.maximum(probs, 1 - probs).amin(0) if labels.has_regions else probs.amax(0)
    found = labels.convert_probabilities_to_segmentation(probs)
    return found.cpu().numpy(), (sure * 255).round().to(torch.uint8).cpu().numpy()
