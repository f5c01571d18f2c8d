"""Losses that compute their gradient in the forward pass, so that only the gradient is kept for the backward pass.

A loss is one number. So its gradient is known in the forward pass, up to the factor that arrives in the backward pass.
Losses that keep only their gradients need less memory than losses that keep their full-size intermediate tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnssl.ingredients.supervised import promote_to_fp32


def with_eager_gradient(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Return function(*arguments); its gradient is computed here, and its intermediate tensors are freed here.

    The definition is the plain call `function(*arguments)`: value and gradient are the same.

    Args:
        function: returns a 0-d tensor that depends on every tensor argument that requires a gradient.
        arguments: arguments of the function; its tensors receive the gradient. The function sees half precision as
            fp32, so that loss scaling multiplies the gradient before it is rounded to half precision.

    Returns:
        0-d tensor; double backward is an error.
    """
    learning = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    if not (torch.is_grad_enabled() and learning):
        return function(*arguments)
    leaves = [_make_leaf(a) if isinstance(a, Tensor) else a for a in arguments]
    value = function(*leaves)
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    return attach_gradients(value.detach(), learning, torch.autograd.grad(value, wanted))


def attach_gradients(value: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return the value with gradients that are already known.

    `attach_gradients_reference` is the definition; this function makes no tensor of the size of `tensors`.

    Args:
        value: 0-d tensor without a graph.
        tensors: tensors that the value depends on; they receive the gradients.
        gradients: ∂value/∂tensor for each tensor, of the same shape and of the same or a wider type; constants.

    Returns:
        0-d tensor; double backward is an error.
    """
    result: Tensor = _AttachGradients.apply(value, *gradients, *tensors)  # type: ignore[no-untyped-call]
    return result


def attach_gradients_reference(value: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return v + Σ_i Σ g_i·(t_i − constant t_i): the value v, with the gradient g_i by t_i, in plain autograd.

    Args:
        value: as in `attach_gradients`.
        tensors: as in `attach_gradients`; finite.
        gradients: as in `attach_gradients`.

    Returns:
        0-d tensor.
    """
    terms = [(g * (t - t.detach())).sum() for t, g in zip(tensors, gradients, strict=True)]
    return value + torch.stack(terms).sum()


class _AttachGradients(torch.autograd.Function):
    """The backward pass multiplies the known gradients by the factor that arrives."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *gradients_and_tensors: Tensor) -> Tensor:  # noqa: ANN401
        gradients = gradients_and_tensors[: len(gradients_and_tensors) // 2]
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        # ∂L/∂t_i = ∂L/∂v · ∂v/∂t_i = factor · g_i
        by_tensors = [gradient * factor for gradient in ctx.saved_tensors]
        by_gradients = [None for _ in by_tensors]
        return None, *by_gradients, *by_tensors


def _make_leaf(argument: Tensor) -> Tensor:
    """Return the argument without its history; a leaf in fp32 or fp64 if the argument requires a gradient."""
    leaf = argument.detach()
    return promote_to_fp32(leaf).requires_grad_() if argument.requires_grad else leaf
