"""Time for memory: what a loss needs between its forward and its backward pass is calculated twice, not kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Return function(*arguments), calculated again in the backward pass: full-size tensors are not kept till then.

    Args:
        function: draws no random numbers.
        arguments: of the function; the gradient goes to those that are tensors.
    """
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
