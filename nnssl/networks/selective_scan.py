"""The selective scan of Mamba (Gu and Dao, arXiv:2312.00752): one function, three backends.

On CUDA `mamba_ssm` where it is installed, our Triton kernels without it; elsewhere a chunked scan in plain torch with
an analytic backward pass. None of them is needed to import this module.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Backend = Literal["auto", "mamba_ssm", "triton", "chunked"]
BUFFER = 1 << 18  # states of a sample that a chunk holds: a buffer of 1 MB stays in a core's cache
LEAST_STEPS = 32  # of a chunk, so that the stored states are no more than N/32 times the input


@torch.compiler.disable  # type: ignore[untyped-decorator]
def selective_scan(  # noqa: PLR0913 - the recurrence has six arguments
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """Return y of the recurrence, for every channel d and state n, over the steps t = 1 … L with h_0 = 0.

    h_t[d, n] = exp(δ_t[d]·A[d, n])·h_{t−1}[d, n] + δ_t[d]·B_t[n]·u_t[d];   y_t[d] = Σ_n C_t[n]·h_t[d, n] + D[d]·u_t[d]

    Computed in fp32 (fp64 for fp64 inputs), inside autocast as well. Memory is linear in L·D: the states are kept at
    the ends of chunks only. The gradient reaches all six inputs, once (no double backward).

    Args:
        u: input (B, D, L).
        delta: step sizes (B, D, L), positive.
        A: decay rates (D, N), negative.
        B: input weights (B, N, L), or (B, G, N, L) where each of G groups of D/G consecutive channels has its own.
        C: output weights, as B.
        D: weights of the direct path (D,).
        backend: `auto` takes the first that works for these tensors of `mamba_ssm`, `triton`, `chunked`.

    Returns:
        (B, D, L) in the dtype of the computation.

    Raises:
        ValueError: shapes do not fit together, or no such backend.
        ImportError: the backend that was asked for is not installed.

    Reference: Su et al., Comput. Biol. Chem. 119 (2025) 108579, eq. 3-4, in the input-dependent form of Mamba.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    B, C = (x if x.ndim == 4 else x.unsqueeze(1) for x in (B, C))
    _check(u, delta, A, B, C, D)
    inputs = [x.to(dtype) for x in (u, delta, A, B, C, D)]
    with torch.autocast(u.device.type, enabled=False):
        if backend == "auto":
            backend = _best_backend(u.is_cuda and dtype == torch.float32)
        if backend == "mamba_ssm":
            scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
            inputs = [x.contiguous() for x in inputs]
        else:
            scan = {"triton": _TritonScan, "chunked": _ChunkedScan}[backend].apply
        y: Tensor = scan(*inputs)
        return y


def _best_backend(cuda: bool) -> Backend:
    if cuda and _installed("mamba_ssm") and _installed("selective_scan_cuda"):
        return "mamba_ssm"
    return "triton" if cuda and _installed("triton") else "chunked"


@cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> None:
    fits = (
        (u.ndim, A.ndim, B.ndim) == (3, 2, 4)
        and delta.shape == u.shape
        and len(A) == u.shape[1] == D.numel()
        and B.shape == C.shape == (len(u), B.shape[1], A.shape[1], u.shape[2])
        and u.shape[1] % B.shape[1] == 0
    )
    if not fits:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip("uδABCD", (u, delta, A, B, C, D), strict=True))
        raise ValueError(f"shapes do not fit together: {shapes}; see the docstring")


class _TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:  # noqa: ANN401 - autograd's context
        from nnssl.networks import scan_triton

        u, delta, A, B, C, D = (x.contiguous() for x in inputs)
        y, states = scan_triton.forward(u, delta, A, B, C, D)
        ctx.save_for_backward(u, delta, A, B, C, D, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 - autograd's context
        from nnssl.networks import scan_triton

        return scan_triton.backward(grad_y.contiguous(), *ctx.saved_tensors)


class _ChunkedScan(torch.autograd.Function):
    """The recurrence in chunks that stay in the cache; backward recomputes the states of a chunk from its start.

    All is time-major, (L, B, G, N, D/G), so that a step is one contiguous slab and the channels lie side by side. Saved
    are u as it came, which other layers save too, and δ time-major. Matrix products write to `out`: autocast, which may
    be on in the backward pass, leaves those alone.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, *others: Tensor) -> Tensor:  # noqa: ANN401 - autograd's context
        delta, A, B, C, D = others
        groups = B.shape[1]
        value, step, rate = _time_major(u, groups), _time_major(delta, groups), _rates(A, groups)
        weight_in, weight_out = _states_first(B), _states_first(C).transpose(-1, -2)
        chunks, buffers = _chunks(step, A.shape[1])
        h_steps = buffers.h_steps
        y, starts = torch.empty_like(step), step.new_empty(len(chunks), *h_steps[0].shape)
        h_steps[0].zero_()
        for k, (part, count) in enumerate(chunks):
            starts[k] = h_steps[0]
            _states(buffers, step[part], rate, weight_in[part], step[part] * value[part])
            torch.matmul(weight_out[part], buffers.h[1 : count + 1], out=y[part])
            h_steps[0].copy_(h_steps[count])
        ctx.save_for_backward(u, step, A, B, C, D, starts)
        return _channels_first(y.addcmul_(value, _direct(D, groups)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 - autograd's context
        u, step, A, B, C, D, starts = ctx.saved_tensors
        groups = B.shape[1]
        value, grad = _time_major(u, groups), _time_major(grad_y, groups)
        rate, direct = _rates(A, groups), _direct(D, groups)
        weight_in, weight_out = _states_first(B), _states_first(C)
        chunks, buffers = _chunks(step, A.shape[1])
        a, h, a_steps, h_steps = buffers
        g = torch.empty_like(a)
        g_steps = g.unbind(0)
        d_value, d_step = torch.empty_like(step), torch.empty_like(step)
        d_in, d_out = torch.empty_like(weight_in), torch.empty_like(weight_out)
        d_rate, d_direct = torch.zeros_like(rate), torch.zeros_like(direct)
        carry = torch.zeros_like(a_steps[0])  # a_{t+1}·g_{t+1} from the later chunk
        for k, (part, count) in reversed(list(enumerate(chunks))):
            aa, gg, drive = a[:count], g[:count], step[part] * value[part]
            h_steps[0].copy_(starts[k])
            _states(buffers, step[part], rate, weight_in[part], drive)
            torch.matmul(h[1 : count + 1], grad[part].transpose(-1, -2), out=d_out[part])
            torch.mul(weight_out[part], grad[part], out=gg)
            g_steps[count - 1].add_(carry)
            for t in range(count - 2, -1, -1):
                g_steps[t].addcmul_(a_steps[t + 1], g_steps[t + 1])
            torch.matmul(gg, drive.transpose(-1, -2), out=d_in[part])
            torch.matmul(weight_in[part].transpose(-1, -2), gg, out=d_value[part])  # so far the gradient of δ·u
            torch.mul(a_steps[0], g_steps[0], out=carry)
            aa.mul_(gg).mul_(h[:count])  # ∂/∂(δA) = g_t·a_t·h_{t−1}
            torch.sum(torch.mul(aa, rate, out=gg), dim=-2, keepdim=True, out=d_step[part])
            d_rate += torch.mul(aa, step[part], out=gg).sum((0, 1))
            d_step[part].addcmul_(d_value[part], value[part])
            d_value[part].mul_(step[part]).addcmul_(grad[part], direct)
            d_direct += (grad[part] * value[part]).sum((0, 1))
        return (
            _channels_first(d_value),
            _channels_first(d_step),
            d_rate.transpose(-1, -2).reshape(A.shape),
            d_in.squeeze(-1).permute(1, 2, 3, 0),
            d_out.squeeze(-1).permute(1, 2, 3, 0),
            d_direct.view_as(D),
        )


class _Buffers(NamedTuple):
    """Room for the decays and the states of one chunk, and views of its steps.

    Attributes:
        a: (chunk, B, G, N, D/G).
        h: (chunk + 1, B, G, N, D/G), the first one before the chunk.
        a_steps: `a` step by step.
        h_steps: `h` step by step.
    """

    a: Tensor
    h: Tensor
    a_steps: tuple[Tensor, ...]
    h_steps: tuple[Tensor, ...]


def _states(buffers: _Buffers, step: Tensor, rate: Tensor, weight_in: Tensor, drive: Tensor) -> None:
    """Write a_t = exp(δ_t·A) to `a` and the states h_1 … h_n to `h[1:]`, from the start h[0]."""
    (a, h, a_steps, h_steps), count = buffers, len(step)
    torch.mul(step, rate, out=a[:count]).exp_()
    torch.mul(weight_in, drive, out=h[1 : count + 1])
    for t in range(count):
        h_steps[t + 1].addcmul_(a_steps[t], h_steps[t])


def _chunks(step: Tensor, states: int) -> tuple[list[tuple[slice, int]], _Buffers]:
    """Return the place and the number of steps of every chunk, and buffers for one, for steps (L, B, G, 1, D/G)."""
    length, batch, groups, _, channels = step.shape
    size = min(length, max(LEAST_STEPS, BUFFER // (groups * channels * states)))
    a, h = (step.new_empty(size + extra, batch, groups, states, channels) for extra in (0, 1))
    ends = [min(begin + size, length) for begin in range(0, length, size)]
    places = [(slice(begin, end), end - begin) for begin, end in zip(range(0, length, size), ends, strict=True)]
    return places, _Buffers(a, h, a.unbind(0), h.unbind(0))


def _time_major(x: Tensor, groups: int) -> Tensor:
    """Return (B, D, L) as contiguous (L, B, G, 1, D/G)."""
    batch, channels, length = x.shape
    return x.permute(2, 0, 1).contiguous().view(length, batch, groups, 1, channels // groups)


def _states_first(x: Tensor) -> Tensor:
    """Return (B, G, N, L) as contiguous (L, B, G, N, 1)."""
    return x.permute(3, 0, 1, 2).contiguous().unsqueeze(-1)


def _channels_first(x: Tensor) -> Tensor:
    """Return a view (B, D, L) of (L, B, G, 1, D/G)."""
    return x.flatten(2).permute(1, 2, 0)


def _rates(A: Tensor, groups: int) -> Tensor:
    """Return (D, N) as contiguous (G, N, D/G)."""
    return A.view(groups, -1, A.shape[1]).transpose(1, 2).contiguous()


def _direct(D: Tensor, groups: int) -> Tensor:
    """Return (D,) as (G, 1, D/G)."""
    return D.view(groups, 1, -1)
