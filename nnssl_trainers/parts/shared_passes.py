"""Passes of a network that several processes share: each computes a part of the batch, and all get all outputs.

In distributed training every process draws the same global batch and the same random numbers, and computes the losses
of the whole batch. Only the passes of the networks are shared. So masked means, batch statistics of losses, and patches
that are mixed within a batch are those of one process, for every method: the number of processes changes nothing but
rounding.

The gradient of a process is N times the gradient of its part, for N processes. What a process computes outside shared
passes gives every process the whole gradient. The mean over the processes (`average_gradients`) is right for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

T = TypeVar("T", Tensor, list[Tensor], tuple[Tensor, ...])


class SharedPasses(nn.Module):
    """A network whose passes the processes share.

    Every process computes the whole batch where the batch has fewer samples than there are processes. Batch
    normalisation other than `SyncBatchNorm` also needs the whole batch. On the CPU, so does dropout, so that every
    process draws what one process would draw; elsewhere each process drops features of its own.

    Args:
        network: the network, with or without torch.compile; it returns logits or a list of logits (B, C, *S).
        cuda: whether the network is on a GPU.
    """

    def __init__(self, network: nn.Module, cuda: bool) -> None:
        super().__init__()
        self.module, self._cuda = network, cuda
        self._counts: list[int] = []  # samples of each process in the last pass; empty: all had the whole batch

    def forward(self, images: Tensor) -> Any:  # noqa: ANN401 - what the network returns
        """Return the outputs for all images (B, C_in, *S), which are the same in every process."""
        ranks = distributed.get_world_size()
        counts = [len(part) for part in torch.arange(len(images)).tensor_split(ranks)]
        self._counts = counts if min(counts) > 0 and self._may_split() else []
        if not self._counts:
            return self.module(images)
        own = torch.split(images, self._counts)[distributed.get_rank()]
        outputs = self.module(own) if not self._drops() else self._with_own_numbers(own)
        return self.gather(outputs)

    def gather(self, parts: T) -> T:
        """Return tensors of the last pass for the whole batch.

        Args:
            parts: a tensor (B_rank, ...) or several, as the network or a hook in the network gave them.

        Returns:
            The same with (B, ...). The gradient goes to the part of this process, times the number of processes.
        """
        if not self._counts:
            return parts
        if isinstance(parts, Tensor):
            return _Gather.apply(parts, self._counts)  # type: ignore[no-untyped-call]
        return type(parts)(_Gather.apply(part, self._counts) for part in parts)  # type: ignore[no-untyped-call]

    def _may_split(self) -> bool:
        if not self.training:
            return True
        if self._drops() and not self._cuda:
            return False
        norms = (m for m in self.module.modules() if isinstance(m, _BatchNorm) and not isinstance(m, SyncBatchNorm))
        return not any(norm.training for norm in norms)

    def _drops(self) -> bool:
        """Return whether a pass draws random numbers: for dropout, or for whole paths that are dropped."""
        dropping = (m for m in self.module.modules() if isinstance(m, _DropoutNd) or hasattr(m, "drop_path"))
        return any(m.training for m in dropping)

    def _with_own_numbers(self, images: Tensor) -> Any:  # noqa: ANN401
        """Return the outputs with random numbers of this process; the generators of all processes stay equal."""
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            torch.manual_seed(seed + distributed.get_rank())
            return self.module(images)


class _Gather(torch.autograd.Function):
    """Concatenate the parts of all processes; every process has the same gradient of the whole."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, counts: list[int]) -> Tensor:  # noqa: ANN401
        ctx.counts = counts
        padded = part.new_zeros(max(counts), *part.shape[1:])  # the processes exchange tensors of one shape
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(found, padded)
        return torch.cat([tensor[:count] for tensor, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        own = torch.split(gradient, ctx.counts)[distributed.get_rank()]
        return own * len(ctx.counts), None


def whole(network: nn.Module, parts: T) -> T:
    """Return tensors of a network's last pass for the whole batch: gathered where the processes shared the pass.

    Args:
        network: the network, with its wrappers.
        parts: see `SharedPasses.gather`.
    """
    return network.gather(parts) if isinstance(network, SharedPasses) else parts


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Let the gradients be the means over all processes.

    Args:
        parameters: with the same gradients in every process; those without a gradient are left out.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for kind in dict.fromkeys((gradient.device, gradient.dtype) for gradient in gradients):
        same = [gradient for gradient in gradients if (gradient.device, gradient.dtype) == kind]
        flat = torch.cat([gradient.flatten() for gradient in same])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for gradient, mean in zip(same, torch.split(flat, [gradient.numel() for gradient in same]), strict=True):
            gradient.copy_(mean.view_as(gradient))
