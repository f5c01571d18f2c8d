"""Logits without the classes that pseudo-labels do not have, so that these classes are not unlearned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FAR_BELOW = -30.0  # logit of a class that no loss on unlabelled patches may push away


def without_classes(logits: Tensor, lost: Sequence[bool], regions: bool) -> Tensor:
    """Return logits in which the lost classes have a constant far below the others, and so no gradient.

    Args:
        logits: (B, C, *S), or (B, R, *S) for regions; the other classes keep their gradient.
        lost: for each foreground class, or for each region, whether it is lost; without a lost class the logits are
            returned as they are.
        regions: the channels are regions; otherwise the first channel is the background.
    """
    if not any(lost):
        return logits
    first = [] if regions else [False]
    hidden = torch.tensor([*first, *lost]).to(logits.device, non_blocking=True)
    return logits.masked_fill(hidden.view(-1, *[1] * (logits.ndim - 2)), FAR_BELOW)
