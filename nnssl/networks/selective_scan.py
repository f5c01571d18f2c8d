"""The selective scan of Mamba (Gu and Dao, arXiv:2312.00752): one function with three backends, and its definition.

On CUDA the scan uses `mamba_ssm` if that package is installed, else the Triton kernels of `scan_triton`. On other
devices the scan is plain torch, in chunks, with an analytic backward pass. The module imports without any of them.
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
BUFFER = 1 << 18  # number of states in a chunk of one sample: a buffer of 1 MB stays in a core's cache
LEAST_STEPS = 32  # least length of a chunk, so that the stored states are at most N/32 times the input


@torch.compiler.disable  # type: ignore[untyped-decorator]
def selective_scan(  # noqa: PLR0913 - the recurrence has six arguments
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """Return y of the recurrence, for every channel d and state n, over the steps t = 1 … L with h_0 = 0.

    h_t[d, n] = exp(δ_t[d]·A[d, n])·h_{t−1}[d, n] + δ_t[d]·B_t[n]·u_t[d];   y_t[d] = Σ_n C_t[n]·h_t[d, n] + D[d]·u_t[d]

    `selective_scan_reference` is the definition. The scan computes in fp32 (fp64 for fp64 inputs), inside autocast as
    well. Memory is linear in L·D, because the states are kept at the ends of chunks only. All six inputs receive the
    gradient; double backward is an error.

    Args:
        u: input (B, D, L).
        delta: step sizes (B, D, L), positive.
        A: decay rates (D, N), negative.
        B: input weights (B, N, L); or (B, G, N, L), one set for each of G groups of D/G consecutive channels.
        C: output weights, as B.
        D: weights of the direct path (D,).
        backend: `auto` takes the first of `mamba_ssm`, `triton`, `chunked` that works for these tensors.

    Returns:
        (B, D, L) in the dtype of the computation.

    Raises:
        ValueError: shapes do not fit together, or the backend is unknown.
        ImportError: the requested backend is not installed.

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
            backend = _choose_backend(u.is_cuda and dtype == torch.float32)
        if backend == "mamba_ssm":
            scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
            inputs = [x.contiguous() for x in inputs]
        else:
            scan = {"triton": _TritonScan, "chunked": _ChunkedScan}[backend].apply
        y: Tensor = scan(*inputs)
        return y


def selective_scan_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return `selective_scan` in the dtype of the inputs: one step after the other, in plain autograd.

    Args:
        u: as in `selective_scan`.
        delta: as in `selective_scan`.
        A: as in `selective_scan`.
        B: as in `selective_scan`.
        C: as in `selective_scan`.
        D: as in `selective_scan`.

    Returns:
        (B, D, L).
    """
    B, C = (x if x.ndim == 4 else x.unsqueeze(1) for x in (B, C))
    B, C = (x.repeat_interleave(u.shape[1] // x.shape[1], dim=1) for x in (B, C))  # (B, D, N, L)
    h = u.new_zeros(u.shape[0], *A.shape)
    y = []
    for t in range(u.shape[2]):
        step, value = delta[:, :, t, None], u[:, :, t, None]
        h = (step * A).exp() * h + step * B[..., t] * value
        y.append((C[..., t] * h).sum(-1) + D * u[:, :, t])
    return torch.stack(y, -1)


def _choose_backend(cuda: bool) -> Backend:
    if cuda and _is_installed("mamba_ssm") and _is_installed("selective_scan_cuda"):
        return "mamba_ssm"
    return "triton" if cuda and _is_installed("triton") else "chunked"


@cache
def _is_installed(module: str) -> bool:
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
        named = {"u": u, "δ": delta, "A": A, "B": B, "C": C, "D": D}
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items())
        raise ValueError(f"the shapes do not fit together: {shapes}; see the docstring of selective_scan")


class _TritonScan(torch.autograd.Function):
    """The recurrence in Triton kernels; `scan_triton` has the algebra of the backward pass."""

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

    Tensors are time-major, (L, B, G, N, D/G), so that a step is one contiguous block and the channels are adjacent. The
    forward pass saves u as it arrives, because other layers save the same tensor, and δ time-major. Matrix products
    write to `out`: autocast can be on in the backward pass, and does not change such products.

    Backward, with g_t = ∂L/∂h_t and a_t = exp(δ_t·A):

        g_t = C_t·∂y_t + a_{t+1}·g_{t+1}
        ∂C_t = Σ_d h_t·∂y_t;  ∂B_t = Σ_d g_t·δ_t·u_t;  ∂D = Σ_t u_t·∂y_t;  ∂A = Σ_t g_t·a_t·h_{t−1}·δ_t
        ∂u_t = δ_t·Σ_n B_t·g_t + D·∂y_t;  ∂δ_t = u_t·Σ_n B_t·g_t + Σ_n A·g_t·a_t·h_{t−1}

    with Σ_d over the channels of a group.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, *others: Tensor) -> Tensor:  # noqa: ANN401 - autograd's context
        delta, A, B, C, D = others
        groups = B.shape[1]
        value, step, rate = _to_time_major(u, groups), _to_time_major(delta, groups), _to_group_rates(A, groups)
        weight_in, weight_out = _to_states_first(B), _to_states_first(C).transpose(-1, -2)
        chunks, buffers = _plan_chunks(step, A.shape[1])
        h_steps = buffers.h_steps
        y, starts = torch.empty_like(step), step.new_empty(len(chunks), *h_steps[0].shape)
        h_steps[0].zero_()
        for k, (part, count) in enumerate(chunks):
            starts[k] = h_steps[0]
            _fill_states(buffers, step[part], rate, weight_in[part], step[part] * value[part])
            torch.matmul(weight_out[part], buffers.h[1 : count + 1], out=y[part])
            h_steps[0].copy_(h_steps[count])
        ctx.save_for_backward(u, step, A, B, C, D, starts)
        return _to_channels_first(y.addcmul_(value, _to_group_weights(D, groups)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401 - autograd's context
        u, step, A, B, C, D, starts = ctx.saved_tensors
        groups = B.shape[1]
        value, grad = _to_time_major(u, groups), _to_time_major(grad_y, groups)
        rate, direct = _to_group_rates(A, groups), _to_group_weights(D, groups)
        weight_in, weight_out = _to_states_first(B), _to_states_first(C)
        chunks, buffers = _plan_chunks(step, A.shape[1])
        a, h, a_steps, h_steps = buffers
        g = torch.empty_like(a)
        g_steps = g.unbind(0)
        d_value, d_step = torch.empty_like(step), torch.empty_like(step)
        d_in, d_out = torch.empty_like(weight_in), torch.empty_like(weight_out)
        d_rate, d_direct = torch.zeros_like(rate), torch.zeros_like(direct)
        carry = torch.zeros_like(a_steps[0])  # a_{t+1}·g_{t+1} from the later chunk
        for k, (part, count) in reversed(list(enumerate(chunks))):
            aa, gg, drive = a[:count], g[:count], step[part] * value[part]  # drive is δ_t·u_t
            h_steps[0].copy_(starts[k])
            _fill_states(buffers, step[part], rate, weight_in[part], drive)
            # ∂C_t = Σ_d h_t·∂y_t
            torch.matmul(h[1 : count + 1], grad[part].transpose(-1, -2), out=d_out[part])
            # g_t = C_t·∂y_t + a_{t+1}·g_{t+1}, from the last step to the first
            torch.mul(weight_out[part], grad[part], out=gg)
            g_steps[count - 1].add_(carry)
            for t in range(count - 2, -1, -1):
                g_steps[t].addcmul_(a_steps[t + 1], g_steps[t + 1])
            # ∂B_t = Σ_d g_t·δ_t·u_t
            torch.matmul(gg, drive.transpose(-1, -2), out=d_in[part])
            # Σ_n B_t·g_t, which is the gradient of δ_t·u_t
            torch.matmul(weight_in[part].transpose(-1, -2), gg, out=d_value[part])
            # a_t·g_t of the first step, for the earlier chunk
            torch.mul(a_steps[0], g_steps[0], out=carry)
            # g_t·a_t·h_{t−1}, which is the gradient of δ_t·A
            aa.mul_(gg).mul_(h[:count])
            # ∂δ_t, second part: Σ_n A·(g_t·a_t·h_{t−1}); g is overwritten from here on
            torch.sum(torch.mul(aa, rate, out=gg), dim=-2, keepdim=True, out=d_step[part])
            # ∂A = Σ_t δ_t·(g_t·a_t·h_{t−1})
            d_rate += torch.mul(aa, step[part], out=gg).sum((0, 1))
            # ∂δ_t, first part: u_t·Σ_n B_t·g_t
            d_step[part].addcmul_(d_value[part], value[part])
            # ∂u_t = δ_t·Σ_n B_t·g_t + D·∂y_t
            d_value[part].mul_(step[part]).addcmul_(grad[part], direct)
            # ∂D = Σ_t u_t·∂y_t
            d_direct += (grad[part] * value[part]).sum((0, 1))
        return (
            _to_channels_first(d_value),
            _to_channels_first(d_step),
            d_rate.transpose(-1, -2).reshape(A.shape),
            d_in.squeeze(-1).permute(1, 2, 3, 0),
            d_out.squeeze(-1).permute(1, 2, 3, 0),
            d_direct.view_as(D),
        )


class _Buffers(NamedTuple):
    """Buffers for the decays and the states of one chunk, and views of their steps.

    Attributes:
        a: (chunk, B, G, N, D/G).
        h: (chunk + 1, B, G, N, D/G); the first entry is the state before the chunk.
        a_steps: views of the entries of `a`; unbinding once saves an indexing call for each step.
        h_steps: views of the entries of `h`.
    """

    a: Tensor
    h: Tensor
    a_steps: tuple[Tensor, ...]
    h_steps: tuple[Tensor, ...]


def _fill_states(buffers: _Buffers, step: Tensor, rate: Tensor, weight_in: Tensor, drive: Tensor) -> None:
    """Write a_t = exp(δ_t·A) to `a`, and the states h_1 … h_n that follow h[0] to `h[1:]`."""
    (a, h, a_steps, h_steps), count = buffers, len(step)
    torch.mul(step, rate, out=a[:count]).exp_()
    torch.mul(weight_in, drive, out=h[1 : count + 1])
    for t in range(count):
        h_steps[t + 1].addcmul_(a_steps[t], h_steps[t])


def _plan_chunks(step: Tensor, states: int) -> tuple[list[tuple[slice, int]], _Buffers]:
    """Return the slice and the number of steps of every chunk, and buffers for one chunk, for δ (L, B, G, 1, D/G)."""
    length, batch, groups, _, channels = step.shape
    size = min(length, max(LEAST_STEPS, BUFFER // (groups * channels * states)))
    a = step.new_empty(size, batch, groups, states, channels)
    h = step.new_empty(size + 1, batch, groups, states, channels)
    chunks = []
    for begin in range(0, length, size):
        end = min(begin + size, length)
        chunks.append((slice(begin, end), end - begin))
    return chunks, _Buffers(a, h, a.unbind(0), h.unbind(0))


def _to_time_major(x: Tensor, groups: int) -> Tensor:
    """Return (B, D, L) as contiguous (L, B, G, 1, D/G)."""
    batch, channels, length = x.shape
    return x.permute(2, 0, 1).contiguous().view(length, batch, groups, 1, channels // groups)


def _to_states_first(x: Tensor) -> Tensor:
    """Return (B, G, N, L) as contiguous (L, B, G, N, 1)."""
    return x.permute(3, 0, 1, 2).contiguous().unsqueeze(-1)


def _to_channels_first(x: Tensor) -> Tensor:
    """Return a view (B, D, L) of (L, B, G, 1, D/G)."""
    return x.flatten(2).permute(1, 2, 0)


def _to_group_rates(A: Tensor, groups: int) -> Tensor:
    """Return (D, N) as contiguous (G, N, D/G)."""
    return A.view(groups, -1, A.shape[1]).transpose(1, 2).contiguous()


def _to_group_weights(D: Tensor, groups: int) -> Tensor:
    """Return (D,) as (G, 1, D/G)."""
    return D.view(groups, 1, -1)
