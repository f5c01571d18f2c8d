"""Eight voxels of two classes, and their entropies, that several tests share."""

from __future__ import annotations

import torch
from torch import Tensor


def two_classes(foreground: list[float]) -> Tensor:
    """Return probabilities (1, 2, 1, n) in double precision."""
    p = torch.tensor(foreground, dtype=torch.float64)
    return torch.stack([1 - p, p]).view(1, 2, 1, -1)


PROBS_A = two_classes([0.02, 0.08, 0.38, 0.55, 0.72, 0.99, 0.90, 0.30])
PROBS_B = two_classes([0.05, 0.20, 0.62, 0.71, 0.66, 0.97, 0.85, 0.04])
LABELS = torch.tensor([0, 0, 1, 1, 1, 1, 1, 0]).view(1, 1, 8)
H_A = [0.098039, 0.278769, 0.664064, 0.688139, 0.592953, 0.056002, 0.325083, 0.610864]
H_B = [0.198515, 0.500402, 0.664064, 0.602152, 0.641035, 0.134742, 0.422709, 0.167944]
