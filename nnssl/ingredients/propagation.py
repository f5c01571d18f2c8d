"""Propagation of predictions between places that look alike, without a map of all pairs of places."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnssl.ingredients.supervised import promote_to_fp32

CHUNK_VALUES = {"cpu": 2**19, "other": 2**24}  # pairs in one part of the map; a CPU keeps 2^19 of them in its cache


def correlation_propagate(
    e1: Tensor,
    e2: Tensor,
    values: Tensor,
    form: Literal["row", "gather"] = "row",
    scale: Literal["inside", "outside"] = "inside",
) -> Tensor:
    """Return values remixed by the correlation of two embeddings of the same places.

    With S_ij = ⟨e1_i, e2_j⟩ / √D:
    row: z'_j = Σ_i P_i · softmax_j(S_ij); the sum over all places is kept
    gather: z'_j = Σ_i P_i · softmax_i(S_ij); each result is a mean of values, as in attention
    outside: S has no factor, and the result is divided by √D

    The map S of N·N pairs is never stored: a part of its rows is computed, used and thrown away, and the backward pass
    computes it again. `correlation_propagate_reference` is the definition.

    Args:
        e1: (B, D, N), first embedding of N places; receives the gradient.
        e2: (B, D, N), second embedding; receives the gradient.
        values: (B, K, N), P, for instance logits; receive the gradient.
        form: one of the two forms above.
        scale: where the factor 1/√D stands.

    Returns:
        (B, K, N) in fp32, or in fp64 for such inputs; double backward is an error.

    Raises:
        ValueError: `form` or `scale` has an unknown value.

    Reference: Li et al., DTLP-Net, arXiv 2508.08549, eq. 18–19, whose code form is that of Sun et al., CorrMatch, CVPR
    2024. The paper prints the factor outside.
    """
    if form not in {"row", "gather"} or scale not in {"inside", "outside"}:
        raise ValueError(f"form must be row or gather, scale inside or outside, got {form!r} and {scale!r}")
    a, b, p = (promote_to_fp32(x) for x in (e1, e2, values))
    factor = 1 / math.sqrt(e1.shape[1])
    if scale == "inside":
        a = a * factor
    mixed: Tensor = _Propagate.apply(a, b, p, form == "row")  # type: ignore[no-untyped-call]
    return mixed if scale == "inside" else mixed * factor


def correlation_propagate_reference(
    e1: Tensor, e2: Tensor, values: Tensor, form: str = "row", scale: str = "inside"
) -> Tensor:
    """Return `correlation_propagate`, with the whole map and in plain autograd.

    Args:
        e1: as in `correlation_propagate`.
        e2: as in `correlation_propagate`.
        values: as in `correlation_propagate`.
        form: as in `correlation_propagate`.
        scale: as in `correlation_propagate`.

    Returns:
        (B, K, N).
    """
    factor = 1 / math.sqrt(e1.shape[1])
    pairs = e1.transpose(1, 2) @ e2 * (factor if scale == "inside" else 1.0)
    mixed = values @ pairs.softmax(2 if form == "row" else 1)
    return mixed if scale == "inside" else mixed * factor


class _Propagate(torch.autograd.Function):
    """Both forms in chunks of rows: softmax(aᵀb) spreads values over b (row), softmax(bᵀa) gathers them for b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, values: Tensor, row: bool) -> Tensor:  # noqa: ANN401
        queries, keys = (a, b) if row else (b, a)
        result = torch.zeros_like(values)
        with torch.autocast(a.device.type, enabled=False):
            for part, weights, _ in _chunks(queries, keys):
                if row:
                    result.baddbmm_(values[:, :, part], weights)
                else:
                    result[:, :, part] = values @ weights.transpose(1, 2)
        ctx.save_for_backward(a, b, values, result)
        ctx.row = row
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        a, b, values, result = ctx.saved_tensors
        row = ctx.row
        queries, keys = (a, b) if row else (b, a)
        by_queries, by_keys, by_values = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        with torch.autocast(a.device.type, enabled=False):
            for part, weights, memory in _chunks(queries, keys):
                # softmax: dL/dS = w·(dw − Σ w·dw), where dw = ⟨own, other⟩ and Σ w·dw = ⟨own, mixed⟩
                if row:
                    own, other = values[:, :, part], gradient
                    mixed = by_values[:, :, part] = gradient @ weights.transpose(1, 2)
                else:
                    own, other, mixed = gradient[:, :, part], values, result[:, :, part]
                    by_values.baddbmm_(own, weights)
                own = torch.cat([own, -(own * mixed).sum(1, keepdim=True)], 1).transpose(1, 2)
                by_weights = torch.bmm(own, torch.cat([other, torch.ones_like(other[:, :1])], 1), out=memory)
                by_pairs = by_weights.mul_(weights)
                by_queries[:, :, part] = keys @ by_pairs.transpose(1, 2)
                by_keys.baddbmm_(queries[:, :, part], by_pairs)
        by_a, by_b = (by_queries, by_keys) if row else (by_keys, by_queries)
        return by_a, by_b, by_values, None


def _chunks(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield parts of the queries (B, D, N), their softmax over the keys (B, n, N), and free memory of that size.

    All parts use the same memory.
    """
    batch, _, count = queries.shape
    most = CHUNK_VALUES["cpu" if queries.device.type == "cpu" else "other"]
    step = min(count, max(1, most // max(1, batch * count)))
    pairs, weights = queries.new_empty(2, batch, step, count)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        size = part.stop - part.start
        memory, own = (x if size == step else x[:, :size].contiguous() for x in (pairs, weights))
        torch.bmm(queries[:, :, part].transpose(1, 2), keys, out=memory)
        torch.softmax(memory, 2, out=own)
        yield part, own, memory
