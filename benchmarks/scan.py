"""Cost of the selective scan, forward and backward, as ratios to its backends.

`chunked` is compared with plain autograd: a scan of two levels (inside about sqrt(L) chunks at once, then over their
ends) and the loop over all steps. Time is the median over rounds in which they take turns; memory is the most that one
forward and backward pass holds beyond its inputs, in units of u. The greatest relative difference of y and the six
gradients shows that all compute the same.

    python -m benchmarks.scan [--length 1960] [--channels 576] [--groups 1 6] [--rounds 7] [-device cpu]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from benchmarks.refinement import peak_bytes
from benchmarks.steps import Step, seconds
from nnssl.networks.selective_scan import Backend, selective_scan

Scan = Callable[..., Tensor]


def loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return y of the recurrence, step by step over time-major tensors."""
    a, driven, weights = time_major(u, delta, A, B, C)
    h, states = torch.zeros_like(a[0]), []
    for a_t, driven_t in zip(a.unbind(0), driven.unbind(0), strict=True):
        h = torch.addcmul(driven_t, a_t, h)
        states.append(h)
    return channels_first(torch.matmul(weights, torch.stack(states)), u, D)


def two_level(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Return y of the recurrence, all chunks of about sqrt(L) steps at once; the states at their ends come after."""
    length = u.shape[2]
    size = math.ceil(math.sqrt(length))
    missing = (0, -length % size)  # steps of length 0 change nothing
    longer, delta, B, C = (pad(x, missing) for x in (u, delta, B, C))
    a, driven, weights = (x.view(-1, size, *x.shape[1:]).transpose(0, 1) for x in time_major(longer, delta, A, B, C))
    local, passed = [driven[0]], [a[0]]
    for a_t, driven_t in zip(a.unbind(0)[1:], driven.unbind(0)[1:], strict=True):
        local.append(torch.addcmul(driven_t, a_t, local[-1]))
        passed.append(a_t * passed[-1])
    starts = [torch.zeros_like(a[0, 0])]
    for passed_k, local_k in zip(passed[-1].unbind(0)[:-1], local[-1].unbind(0)[:-1], strict=True):
        starts.append(torch.addcmul(local_k, passed_k, starts[-1]))
    start = torch.stack(starts)
    outputs = [
        torch.matmul(weight, torch.addcmul(local_t, passed_t, start))
        for weight, local_t, passed_t in zip(weights.unbind(0), local, passed, strict=True)
    ]
    return channels_first(torch.stack(outputs, 1).flatten(0, 1)[:length], u, D)


def time_major(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return exp(δA), δBu, (L, B, G, N, D/G), and C as (L, B, G, 1, N)."""
    batch, groups, _, length = B.shape
    step, value = (x.permute(2, 0, 1).contiguous().view(length, batch, groups, 1, -1) for x in (delta, u))
    rate = A.view(groups, -1, A.shape[1]).transpose(1, 2)
    weights = [x.permute(3, 0, 1, 2).contiguous().unsqueeze(-1) for x in (B, C)]
    return (step * rate).exp(), weights[0] * (step * value), weights[1].transpose(-1, -2)


def channels_first(y: Tensor, u: Tensor, D: Tensor) -> Tensor:
    """Return y (L, B, G, 1, D/G) with the direct path as (B, D, L)."""
    return torch.addcmul(y.flatten(2).permute(1, 2, 0), u, D[:, None])


def make(arguments: argparse.Namespace, groups: int) -> list[Tensor]:
    """Return inputs as a network has them at its start: steps of 0.001 to 0.1 and more, rates of −1 … −N."""
    torch.manual_seed(0)
    size = (arguments.batch, arguments.channels, arguments.length)
    rates = -torch.arange(1.0, arguments.states + 1).repeat(arguments.channels, 1)
    weights = [torch.randn(arguments.batch, groups, arguments.states, arguments.length) for _ in range(2)]
    inputs = [torch.randn(size), softplus(torch.randn(size) - 4), rates, *weights, torch.ones(arguments.channels)]
    return [x.to(arguments.device).requires_grad_() for x in inputs]


def passes(scan: Scan, inputs: list[Tensor], grad_y: Tensor) -> list[Tensor]:
    """Return y and the gradients of the inputs."""
    y = scan(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the greatest difference in units of the greatest value, over y and the gradients."""
    pairs = zip(found, expected, strict=True)
    return max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs)


def scans(inputs: list[Tensor]) -> dict[str, Scan]:
    """Return the backends that work here, and the two forms in plain autograd."""
    backends: list[Backend] = ["chunked"]
    if inputs[0].is_cuda:
        backends += [name for name in ("triton", "mamba_ssm") if find_spec(name)]
    ours: dict[str, Scan] = {name: partial(selective_scan, backend=name) for name in backends}
    return {**ours, "two levels, autograd": two_level, "loop, autograd": loop}


def main() -> None:
    """Print times, memory and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=576)
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--length", type=int, default=1960)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    synchronise = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    for groups in arguments.groups:
        inputs = make(arguments, groups)
        grad_y = torch.randn(inputs[0].shape, device=inputs[0].device)
        steps: dict[str, Step] = {name: partial(passes, scan, inputs, grad_y) for name, scan in scans(inputs).items()}
        times = seconds(steps, arguments.rounds, 1, synchronise)
        memory = {name: peak_bytes(step, inputs[0].device) / inputs[0].nbytes for name, step in steps.items()}
        expected = passes(loop, inputs, grad_y)
        print(f"{groups} group{'s' * (groups > 1)}: u {tuple(inputs[0].shape)}, {arguments.states} states")
        for name, scan in scans(inputs).items():
            ratios = [a / b for a, b in zip(times[name], times["chunked"], strict=True)]
            error = difference(passes(scan, inputs, grad_y), expected)
            print(
                f"  {name:<22}{1000 * statistics.median(times[name]):9.1f} ms{memory[name]:8.1f} times u"
                f"   to chunked: time {statistics.median(ratios):6.2f} ({min(ratios):.2f} to {max(ratios):.2f}),"
                f" memory {memory[name] / memory['chunked']:5.2f}   difference {error:.0e}"
            )


if __name__ == "__main__":
    main()
