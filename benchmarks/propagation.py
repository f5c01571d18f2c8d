"""Correlation propagation in chunks against the explicit map: time as a ratio, and the memory of a large map.

Both calculations take turns in one run; the ratio of each round is taken and the median over rounds reported. The peak
is that of the process, above its memory before the call.

    python -m benchmarks.propagation [--places 4096] [--large 15680] [--batch 2] [--width 4] [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from nnssl.ingredients.propagation import correlation_propagate, correlation_propagate_reference

KILOBYTES = 1024


def tensors(batch: int, width: int, places: int) -> list[Tensor]:
    """Return two embeddings and values (B, D, N) that need a gradient."""
    return [torch.randn(batch, width, places, requires_grad=True) for _ in range(3)]


def seconds(function: Callable[..., Tensor], inputs: list[Tensor], form: str) -> tuple[float, float]:
    """Return the seconds of the forward pass, and of the forward and the backward pass."""
    start = time.perf_counter()
    result = function(*inputs, form)
    forward = time.perf_counter() - start
    torch.autograd.grad(result.square().mean(), inputs)
    return forward, time.perf_counter() - start


def main() -> None:
    """Print the ratios and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", type=int, default=4096)
    parser.add_argument("--large", type=int, default=15_680)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    for form in ("row", "gather"):
        large = tensors(1, arguments.width, arguments.large)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _, both = seconds(correlation_propagate, large, form)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / KILOBYTES
        print(f"{form}, N = {arguments.large}: {both:.2f} s forward and backward, {peak:.0f} MB more than before")
    for form in ("row", "gather"):
        inputs, ratios = tensors(arguments.batch, arguments.width, arguments.places), []
        for round_number in range(arguments.rounds + 1):  # the first one warms up
            pair = [seconds(f, inputs, form) for f in (correlation_propagate_reference, correlation_propagate)]
            if round_number:
                ratios.append([slow / fast for slow, fast in zip(*pair, strict=True)])
        forward, whole = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(f"{form}, N = {arguments.places}: forward {forward:.1f} times faster, with backward {whole:.1f} times")


if __name__ == "__main__":
    main()
