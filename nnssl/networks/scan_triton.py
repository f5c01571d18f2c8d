"""Triton kernels of the selective scan on CUDA, forward and backward; Triton is imported by the first call.

`selective_scan.selective_scan_reference` is the definition, with its gradient by autograd:

    h_t = exp(δ_t A) h_{t−1} + δ_t B_t u_t,  h_0 = 0;   y_t = Σ_m C_t[m] h_t[m] + D u_t      (per channel, m = 1..N)

The L steps are divided into chunks. `_boundaries` visits the chunks of one channel in order and stores the state that
enters each chunk, as one weighted sum for each chunk. After that all chunks are independent, so that a few channels
are enough to fill a GPU. A program of `_outputs` or `_gradients` takes one chunk of one group and visits the channels
of the group; the (N, chunk) tiles of B and C stay in registers. The backward pass recomputes h inside a chunk, and runs
the recurrence g_t = ∂L/∂h_t = C_t ∂y_t + exp(δ_{t+1} A) g_{t+1}. With kept_t = exp(δ_t A) h_{t−1}:

    ∂C_t = Σ_c ∂y_t h_t;  ∂B_t = Σ_c g_t δ_t u_t;  ∂u_t = Σ_m g_t δ_t B_t + D ∂y_t;  ∂D = Σ_t ∂y_t u_t
    ∂δ_t = Σ_m g_t (A kept_t + B_t u_t);  ∂A = Σ_t g_t kept_t δ_t

with Σ_c over the channels of a group. Each program writes partial sums that torch adds. The kernels use no atomic
operations, so that runs repeat bit for bit. Memory is linear: for each element of u, N/chunk values of the states, of
their gradients and of ∂A.

Reference: Gu and Dao, arXiv:2312.00752, equation 2 and section 3.3.2.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, TypeAlias

import torch
from torch import Tensor

CHUNK = 32  # with N = 16 a tile is 16 numbers per thread; the ten tiles of the backward pass then fit the registers
WARPS = 1  # of a program, so that scans are shuffles; some versions of Triton have bugs in reverse scans across warps
PROGRAMS = 2048  # enough to fill the largest GPUs; for short sequences a group's channels are divided among programs

# `_kernels` sets these names. Triton looks up every name in a kernel among this module's globals, annotations included,
# and accepts only modules and its own objects.
constexpr: TypeAlias = int  # triton.language.constexpr
tl: Any = None  # triton.language
compose: Any = None  # the compiled `_compose`


def _compose(a1: torch.Tensor, b1: torch.Tensor, a2: torch.Tensor, b2: torch.Tensor) -> tuple[Tensor, Tensor]:
    """Return the affine map h ↦ a2 (a1 h + b1) + b2 as slope and offset."""
    return a1 * a2, a2 * b1 + b2


def _boundaries(  # noqa: PLR0913, PLR0917 - a kernel's pointers and sizes
    x: torch.Tensor, w: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, out: torch.Tensor, channels: int,
    per_group: int, N: int, L: int, chunks: int, REVERSE: constexpr, N_PAD: constexpr, CHUNK: constexpr,
) -> None:  # fmt: skip
    """Write what enters each chunk: h (x = u, w = B), or exp(δ A) g of the next chunk (x = ∂y, w = C, REVERSE)."""
    row = tl.program_id(0).to(tl.int64)
    n, i = tl.arange(0, N_PAD).to(tl.int64), tl.arange(0, CHUNK)
    rate = tl.load(A + row % channels * N + n, mask=n < N, other=0.0)
    carry = tl.zeros((N_PAD,), tl.float32)
    for index in range(chunks - 1):
        # i counts steps from the end where the carry leaves the chunk; on the way to that end step t decays by `passed`
        if REVERSE:
            chunk = chunks - 1 - index
            t = chunk * CHUNK + i
            step = tl.load(delta + row * L + t, mask=t < L, other=0.0)
            passed = step
            value = tl.load(x + row * L + t, mask=t < L, other=0.0)
            target = chunk - 1
        else:
            t = index * CHUNK + CHUNK - 1 - i
            step = tl.load(delta + row * L + t)
            passed = tl.load(delta + row * L + t + 1, mask=i > 0, other=0.0)
            value = tl.load(x + row * L + t) * step
            target = index + 1
        decay = tl.exp(rate[:, None] * tl.cumsum(passed, 0)[None, :])
        place = row // per_group * N * L + n[:, None] * L + t[None, :]
        weight = tl.load(w + place, mask=(n < N)[:, None] & (t < L)[None, :], other=0.0)
        carry = tl.exp(rate * tl.sum(step, 0)) * carry + tl.sum(decay * weight * value[None, :], 1)
        tl.store(out + (row * chunks + target) * N + n, carry, mask=n < N)


def _outputs(  # noqa: PLR0913, PLR0917 - a kernel's pointers and sizes
    u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor,
    states: torch.Tensor, y: torch.Tensor, share: int, channels: int, per_group: int, N: int, L: int,
    chunks: int, N_PAD: constexpr, CHUNK: constexpr,
) -> None:  # fmt: skip
    """Write y of one chunk for a share of a group's channels."""
    chunk, group = tl.program_id(0), tl.program_id(2).to(tl.int64)
    n, i = tl.arange(0, N_PAD).to(tl.int64), tl.arange(0, CHUNK)
    t = chunk * CHUNK + i
    inside, known = t < L, (n < N)[:, None] & (t < L)[None, :]
    place = group * N * L + n[:, None] * L + t[None, :]
    b, c = tl.load(B + place, mask=known, other=0.0), tl.load(C + place, mask=known, other=0.0)
    first = tl.program_id(1) * share
    for channel in range(first, tl.minimum(first + share, per_group)):
        row = group * per_group + channel
        rate = tl.load(A + row % channels * N + n, mask=n < N, other=0.0)
        start = tl.load(states + (row * chunks + chunk) * N + n, mask=n < N, other=0.0)
        step = tl.load(delta + row * L + t, mask=inside, other=0.0)
        value = tl.load(u + row * L + t, mask=inside, other=0.0)
        a = tl.exp(rate[:, None] * step[None, :])
        added = b * (step * value)[None, :]
        _, h = tl.associative_scan((a, tl.where(i[None, :] == 0, a * start[:, None] + added, added)), 1, compose)
        tl.store(y + row * L + t, tl.sum(c * h, 0) + tl.load(D + row % channels) * value, mask=inside)


def _gradients(  # noqa: PLR0913, PLR0917 - a kernel's pointers and sizes
    grad_y: torch.Tensor, u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor,
    C: torch.Tensor, D: torch.Tensor, states: torch.Tensor, carries: torch.Tensor, du: torch.Tensor,
    ddelta: torch.Tensor, dA: torch.Tensor, dB: torch.Tensor, dC: torch.Tensor, dD: torch.Tensor, share: int,
    channels: int, per_group: int, N: int, L: int, chunks: int, N_PAD: constexpr, CHUNK: constexpr,
) -> None:  # fmt: skip
    """Write ∂u and ∂δ of one chunk for a share of a group's channels, and their parts of ∂A, ∂B, ∂C and ∂D."""
    chunk, group = tl.program_id(0), tl.program_id(2).to(tl.int64)
    n, i = tl.arange(0, N_PAD).to(tl.int64), tl.arange(0, CHUNK)
    t = chunk * CHUNK + i
    inside, known = t < L, (n < N)[:, None] & (t < L)[None, :]
    place = group * N * L + n[:, None] * L + t[None, :]
    b, c = tl.load(B + place, mask=known, other=0.0), tl.load(C + place, mask=known, other=0.0)
    b_before = tl.load(B + place - 1, mask=known & (i > 0)[None, :], other=0.0)
    grad_b, grad_c = tl.zeros((N_PAD, CHUNK), tl.float32), tl.zeros((N_PAD, CHUNK), tl.float32)
    first = tl.program_id(1) * share
    for channel in range(first, tl.minimum(first + share, per_group)):
        row = group * per_group + channel
        at = row * L + t
        edge = (row * chunks + chunk) * N + n
        rate = tl.load(A + row % channels * N + n, mask=n < N, other=0.0)
        start = tl.load(states + edge, mask=n < N, other=0.0)
        step = tl.load(delta + at, mask=inside, other=0.0)
        value = tl.load(u + at, mask=inside, other=0.0)
        grad = tl.load(grad_y + at, mask=inside, other=0.0)
        # kept_t has its own scan, because the difference h_t − δ_t B_t u_t would lose its digits:
        # kept_t = a_t (kept_{t−1} + δ_{t−1} B_{t−1} u_{t−1}), and a_t h_start in the first step of the chunk
        a = tl.exp(rate[:, None] * step[None, :])
        before = tl.load(delta + at - 1, mask=inside & (i > 0), other=0.0)
        before *= tl.load(u + at - 1, mask=inside & (i > 0), other=0.0)
        source = tl.where(i[None, :] == 0, start[:, None], b_before * before[None, :])
        _, kept = tl.associative_scan((a, a * source), 1, compose)
        # ∂C_t += ∂y_t h_t with h_t = kept_t + δ_t B_t u_t
        grad_c += grad[None, :] * (kept + b * (step * value)[None, :])
        # g_t = C_t ∂y_t + a_{t+1} g_{t+1}; `entering` is a_{t+1} g_{t+1} at the last step of the chunk
        a_after = tl.exp(rate[:, None] * tl.load(delta + at + 1, mask=t + 1 < L, other=0.0)[None, :])
        entering = tl.load(carries + edge, mask=n < N, other=0.0)
        pulled = c * grad[None, :] + tl.where(i[None, :] == CHUNK - 1, entering[:, None], 0.0)
        _, g = tl.associative_scan((a_after, pulled), 1, compose, reverse=True)
        # ∂B_t += g_t δ_t u_t
        grad_b += g * (step * value)[None, :]
        through_b = tl.sum(g * b, 0)
        g_kept = g * kept
        # ∂u_t = δ_t Σ_m g_t B_t + D ∂y_t
        tl.store(du + at, through_b * step + tl.load(D + row % channels) * grad, mask=inside)
        # ∂δ_t = u_t Σ_m g_t B_t + Σ_m A g_t kept_t
        tl.store(ddelta + at, through_b * value + tl.sum(g_kept * rate[:, None], 0), mask=inside)
        # ∂A = Σ_t δ_t g_t kept_t
        tl.store(dA + edge, tl.sum(g_kept * step[None, :], 1), mask=n < N)
        # ∂D = Σ_t u_t ∂y_t
        tl.store(dD + row * chunks + chunk, tl.sum(grad * value, 0))
    part = tl.program_id(1).to(tl.int64) * tl.num_programs(2) * N * L + place
    tl.store(dB + part, grad_b, mask=known)
    tl.store(dC + part, grad_c, mask=known)


@functools.cache
def _kernels() -> tuple[Any, Any, Any]:
    """Return the kernels `_boundaries`, `_outputs` and `_gradients`, compiled at their first launch."""
    jit = importlib.import_module("triton").jit
    language = importlib.import_module("triton.language")
    globals().update(tl=language, constexpr=language.constexpr, compose=jit(_compose))
    return jit(_boundaries), jit(_outputs), jit(_gradients)


def _launch(u: Tensor, B: Tensor, chunk: int) -> tuple[tuple[int, int, int], int, dict[str, int]]:
    """Return the grid of the chunk kernels, the channels of one program, and the keyword arguments of every kernel."""
    batch, channels, length = u.shape
    groups, n = B.shape[1:3]
    chunks, per_group, n_pad = -(-length // chunk), channels // groups, 1 << (n - 1).bit_length()
    share = -(-per_group // max(1, PROGRAMS // (chunks * batch * groups)))
    sizes = {"channels": channels, "per_group": per_group, "N": n, "L": length, "chunks": chunks, "N_PAD": n_pad}
    sizes |= {"CHUNK": chunk, "num_warps": WARPS}
    return (chunks, -(-per_group // share), batch * groups), share, sizes


def forward(  # noqa: PLR0913, PLR0917 - the recurrence has six arguments
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return y of the recurrence and the states that `backward` needs.

    Args:
        u: (B, D, L); this and all other tensors are float32, contiguous and on one CUDA device.
        delta: (B, D, L), not negative.
        A: (D, N), negative.
        B: (B, G, N, L); channel d uses group d // (D // G), and G divides D.
        C: (B, G, N, L).
        D: (D,).
        chunk: steps of one program, a power of two; `backward` needs the same value.

    Returns:
        y (B, D, L), and h before each chunk (B, D, ceil(L / chunk), N); both without a graph.
    """
    boundaries, outputs, _ = _kernels()
    grid, share, sizes = _launch(u, B, chunk)
    y, states = torch.empty_like(u), u.new_zeros(*u.shape[:2], grid[0], A.shape[1])
    with torch.cuda.device(u.get_device()):
        boundaries[u.shape[:2].numel(),](u, B, delta, A, states, REVERSE=False, **sizes)
        outputs[grid](u, delta, A, B, C, D, states, y, share, **sizes)
    return y, states


def backward(  # noqa: PLR0913, PLR0917 - the inputs of `forward`, its states and a gradient
    grad_y: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, states: Tensor,
    chunk: int = CHUNK,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of the six inputs.

    Args:
        grad_y: gradient of y, (B, D, L).
        u: as in `forward`.
        delta: as in `forward`.
        A: as in `forward`.
        B: as in `forward`.
        C: as in `forward`.
        D: as in `forward`.
        states: the states that `forward` returned.
        chunk: as in `forward`.

    Returns:
        The gradients of u, delta, A, B, C and D, each of the shape of its input.
    """
    boundaries, _, gradients = _kernels()
    grid, share, sizes = _launch(u, B, chunk)
    carries, dA = torch.zeros_like(states), torch.empty_like(states)
    du, ddelta, dD = torch.empty_like(u), torch.empty_like(u), u.new_empty(states.shape[:3])
    dB, dC = B.new_empty(grid[1], *B.shape), B.new_empty(grid[1], *B.shape)
    inputs, results = (grad_y, u, delta, A, B, C, D, states, carries), (du, ddelta, dA, dB, dC, dD)
    with torch.cuda.device(u.get_device()):
        boundaries[u.shape[:2].numel(),](grad_y, C, delta, A, carries, REVERSE=True, **sizes)
        gradients[grid](*inputs, *results, share, **sizes)
    return du, ddelta, dA.sum((0, 2)), dB.sum(0), dC.sum(0), dD.sum((0, 2))
