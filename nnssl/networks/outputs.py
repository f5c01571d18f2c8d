"""Outputs of networks under deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from nnssl.networks.layers import LAYERS


def output_sizes(size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the sizes of nnU-Net's targets for deep supervision, finest first: all resolutions except the coarsest.

    Size i is round(n / (s_1·…·s_i)), at least 1, for an axis of n voxels.

    Args:
        size: number of voxels along each axis.
        strides: pooling steps of every stage; the first entry is all ones.
    """
    sizes, factors = [list(size)], [1] * len(size)
    for stride in strides[1:-1]:
        factors = [factor * step for factor, step in zip(factors, stride, strict=True)]
        sizes.append([max(1, round(n * (1 / factor))) for n, factor in zip(size, factors, strict=True)])
    return sizes


def pool_outputs(logits: Tensor, strides: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the logits at every resolution of the plan except the coarsest, finest first.

    Output i is the mean of the logits over boxes of s_1·…·s_i voxels, in the sizes of `output_sizes`.

    Args:
        logits: (B, C, *S); receive the gradient.
        strides: pooling steps of every stage; the first entry is all ones.

    Returns:
        Tensors (B, C, *S_i); the first is `logits` itself.
    """
    coarser = output_sizes(logits.shape[2:], strides)[1:]
    return [logits, *(interpolate(logits, size, mode="area") for size in coarser)]


def resize_outputs(outputs: Sequence[Tensor], mixed: bool = False) -> list[Tensor]:
    """Return the outputs of all scales at the size of the first output, interpolated linearly, in fp32 (or fp64).

    Args:
        outputs: logits (B, C, *S_i), finest first; receive the gradient.
        mixed: interpolate the third and all further outputs by nearest neighbour, as the authors' code of PLGDF does.

    Returns:
        Tensors (B, C, *S_0).
    """
    size, full = outputs[0].shape[2:], []
    for i, logits in enumerate(outputs):
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        mode = "nearest" if mixed and i > 1 else LAYERS[len(size)].interpolation
        full.append(exact if logits.shape[2:] == size else interpolate(exact, size, mode=mode))
    return full
