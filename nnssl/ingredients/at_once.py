"""A loss is one number: its gradient can be taken at once, and nothing else need be kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnssl.ingredients.supervised import at_least_fp32


def derived_at_once(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Return function(*arguments), with its gradient taken here; what the function kept for it is free on return.

    Without this, a sum of losses keeps the full-size tensors of all of them until the backward pass.

    Args:
        function: returns a 0-d tensor that depends on every tensor that requires a gradient.
        arguments: of the function; the gradient goes to those that are tensors, in fp32 where they are in half
            precision, so that loss scaling comes in time. It has no gradient of its own.

    Returns:
        0-d tensor.
    """
    wanted = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)
    result: Tensor = _DerivedAtOnce.apply(function, *arguments) if wanted else function(*arguments)  # type: ignore[no-untyped-call]
    return result


class _DerivedAtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *arguments: object) -> Tensor:  # noqa: ANN401
        leaves = [_leaf(a) if isinstance(a, Tensor) else a for a in arguments]
        with torch.enable_grad():
            value = function(*leaves)
        learning = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        ctx.learning = [any(leaf is one for one in learning) for leaf in leaves]
        ctx.save_for_backward(*torch.autograd.grad(value, learning))
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        gradients = iter(ctx.saved_tensors)
        return None, *(next(gradients) * factor if learns else None for learns in ctx.learning)


def _leaf(argument: Tensor) -> Tensor:
    """Return the argument as the function is to see it, where its own gradient ends."""
    leaf = argument.detach()
    return at_least_fp32(leaf).requires_grad_() if argument.requires_grad else leaf
