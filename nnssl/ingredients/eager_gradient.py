"""A loss is one number: its gradient can be taken at once, and nothing else need be kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    learning = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    if not (torch.is_grad_enabled() and learning):
        return function(*arguments)
    leaves = [_leaf(a) if isinstance(a, Tensor) else a for a in arguments]
    value = function(*leaves)
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    return with_gradients(value.detach(), learning, torch.autograd.grad(value, wanted))


def with_gradients(value: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return the value, with gradients that are known already; they have none of their own.

    Args:
        value: 0-d tensor.
        tensors: what it depends on.
        gradients: of the value, each of the shape of its tensor, and of its type or a wider one.

    Returns:
        0-d tensor.
    """
    result: Tensor = _WithGradients.apply(value, *gradients, *tensors)  # type: ignore[no-untyped-call]
    return result


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *both: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(*both[: len(both) // 2])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        gradients = ctx.saved_tensors
        return None, *[None] * len(gradients), *(gradient * factor for gradient in gradients)


def _leaf(argument: Tensor) -> Tensor:
    """Return the argument as the function is to see it, where its own gradient ends."""
    leaf = argument.detach()
    return at_least_fp32(leaf).requires_grad_() if argument.requires_grad else leaf
