"""Labels and their confidence from the logits of a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.host import LabelManager


def labels_and_confidence(logits: Tensor, labels: LabelManager) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return the most likely label of each voxel, and how sure the network is.

    Args:
        logits: (C, *S), of classes, or of regions that may overlap.
        labels: nnU-Net's label manager.

    Returns:
        Label values (*S).
        Confidence (*S), uint8, 255 = certain: the probability of the label; for regions the smallest max(p, 1 − p) of
        all regions.
    """
    probs: Tensor = labels.apply_inference_nonlin(logits)
    return most_likely(probs, labels)


def most_likely(probs: Tensor, labels: LabelManager) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Return labels and confidence as `labels_and_confidence` does, from probabilities (C, *S)."""
    sure = torch.maximum(probs, 1 - probs).amin(0) if labels.has_regions else probs.amax(0)
    found = labels.convert_probabilities_to_segmentation(probs)
    return found.cpu().numpy(), (sure * 255).round().to(torch.uint8).cpu().numpy()
