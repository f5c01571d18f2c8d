"""A network whose mask is known without training: a voxel is foreground where one channel lies above a threshold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ThresholdNetwork(nn.Module):
    """The logit of label 1 is the last channel minus a threshold, and that of the background is 0.

    A plan names the class like any other network; the threshold is the weight that a checkpoint holds.
    """

    def __init__(self, input_channels: int, num_classes: int, **_: Any) -> None:
        super().__init__()
        if num_classes != 2:
            raise ValueError("the network knows background and one label")
        self.threshold = nn.Parameter(torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        above = image[:, -1:] - self.threshold
        return torch.cat([torch.zeros_like(above), above], dim=1)
