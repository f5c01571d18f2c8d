"""What a network with one head returns under deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import interpolate


def pooled_outputs(logits: Tensor, strides: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the logits at every resolution of the plan but the coarsest, finest first.

    Output i is the mean of the logits over boxes of s_1·…·s_i voxels, round(n / (s_1·…·s_i)) boxes an axis of n voxels:
    the sizes of nnU-Net's targets for deep supervision. No parameters; the gradient goes to the logits.

    Args:
        logits: (B, C, *S).
        strides: pooling steps of every stage, the first entry all ones.

    Returns:
        Tensors (B, C, *S_i); the first is `logits` itself.
    """
    outputs, factors = [logits], [1] * (logits.dim() - 2)
    for stride in strides[1:-1]:
        factors = [factor * step for factor, step in zip(factors, stride, strict=True)]
        size = [max(1, round(n * (1 / factor))) for n, factor in zip(logits.shape[2:], factors, strict=True)]
        outputs.append(interpolate(logits, size, mode="area"))
    return outputs
