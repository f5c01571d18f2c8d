"""Mamba-UNet in two or three dimensions: a U-shaped network of visual state-space blocks on patch tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nnssl.ingredients.supervised import promote_to_fp32
from nnssl.networks import OptimizerDefaults
from nnssl.networks.layers import LAYERS
from nnssl.networks.selective_scan import selective_scan
from nnssl.networks.token_unet import Strides, TokenSizes, TokenUNet, drop_samples


class MambaUNet(TokenUNet):
    """Encoder and decoder of visual state-space blocks with concatenated skips, for images of any size.

    The image is divided into patches whose size is the product of the plan's first two pooling steps; further steps
    merge the tokens. A stage consists of `blocks` blocks x + DropPath(SS(LayerNorm(x))). The skip of a stage is the
    stage's input. Tokens are channel-last, (B, *T, d). If the plan has fewer pooling steps than the network needs,
    steps of two follow.

    In 2-D with width 96 this is the network of Mamba-UNet, with 19,118,592 parameters for one channel and four
    classes. In 3-D the network has the same graph with six scanning directions, and 6,766,240 parameters with width
    48, one channel and two classes.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: number of voxels along each axis; with `strides` it decides the number of stages, at most four.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the logits at every resolution except the coarsest;
            `network.decoder.deep_supervision` changes this later.
        width: features of the first stage, doubled in every further stage up to 8·width; 0 = 96 in 2-D, 48 in 3-D.
        blocks: number of blocks in a stage.
        state_size: number of states of a channel, N.
        expansion: inner width of a block in units of its features, E.
        drop_path: DropPath probability of the deepest block, in [0, 1); it decreases linearly to 0 at the first block.
        final_channels: features of a voxel before the head; 0 = `width` in 2-D, 16 in 3-D.

    Raises:
        ValueError: an option is out of range.

    Reference: Wang et al., Mamba-UNet, arXiv:2402.05079; Liu et al., VMamba, NeurIPS 2024.
    """

    optimizer_defaults: ClassVar[OptimizerDefaults] = OptimizerDefaults("adamw", learning_rate=5e-4, weight_decay=0.05)
    undecayed: ClassVar[tuple[str, ...]] = ("log_rate", "direct")  # to shrink A or D would change a block's dynamics

    def __init__(  # noqa: PLR0913 - a plans entry
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        strides: Strides,
        deep_supervision: bool = False,
        *,
        width: int = 0,
        blocks: int = 2,
        state_size: int = 16,
        expansion: int = 2,
        drop_path: float = 0.2,
        final_channels: int = 0,
    ) -> None:
        if min(state_size, expansion) < 1:
            raise ValueError("state_size and expansion are at least 1")
        axes = len(patch_size)

        def block(dim: int, _: int, rate: float) -> VSSBlock:
            return VSSBlock(dim, axes, state_size, expansion, rate)

        sizes = TokenSizes(width, blocks, drop_path, final_channels)
        super().__init__(input_channels, num_classes, patch_size, strides, deep_supervision, sizes, block=block)


class VSSBlock(nn.Module):
    """x + DropPath(SS(LayerNorm(x))) on tokens (B, *T, d).

    Args:
        dim: features d of a token.
        axes: number of spatial axes, 2 or 3.
        state_size: number of states of a channel, N.
        expansion: inner width in units of d, E.
        drop_path: probability that the block is skipped for a sample in training, in [0, 1).

    Attributes:
        recompute: keep only the input for the backward pass, and compute the block again there; None = on CUDA only.
    """

    recompute: bool | None = None

    def __init__(self, dim: int, axes: int, state_size: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.scan = CrossScan(dim, axes, state_size, expansion)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (B, *T, d) after the block; in training, DropPath skips the block for whole samples."""
        recompute = x.is_cuda if self.recompute is None else self.recompute
        if recompute and self.training and torch.is_grad_enabled():
            result: Tensor = checkpoint(self.transform, x, use_reentrant=False)
            return result
        return self.transform(x)

    def transform(self, x: Tensor) -> Tensor:
        """Return the result of `forward`, with all tensors kept that the backward pass needs."""
        change: Tensor = self.scan(self.norm(x))
        if self.training and self.drop_path:
            change = drop_samples(change, self.drop_path)
        return x + change


class CrossScan(nn.Module):
    """Selective scans of the token grid along every axis, forward and backward, summed and gated (SS2D, SS3D).

    Each axis is the fastest axis of one cyclic order of the axes: row-major and column-major in 2-D; (0,1,2), (1,2,0),
    (2,0,1) in 3-D (slowest to fastest). With the reversed orders the scan has 2n directions; each direction has its own
    weights.

    Args:
        dim: features d of a token.
        axes: number n of spatial axes, 2 or 3.
        state_size: number of states of a channel, N.
        expansion: inner width D in units of d, E.
    """

    def __init__(self, dim: int, axes: int, state_size: int, expansion: int) -> None:
        super().__init__()
        inner, rank, directions = expansion * dim, -(-dim // 16), 2 * axes
        self.orders = scan_orders(axes)
        self.state_size, self.rank = state_size, rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = LAYERS[axes].convolution(inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Parameter(_uniform(directions, rank + 2 * state_size, inner, bound=inner**-0.5))
        self.step_weight = nn.Parameter(_uniform(directions, inner, rank, bound=rank**-0.5))
        # initial step sizes are log-uniform in [1e-3, 0.1], as in Mamba
        step = torch.exp(torch.rand(directions, inner) * math.log(0.1 / 1e-3) + math.log(1e-3)).clamp_min(1e-4)
        self.step_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        states = torch.arange(1, state_size + 1, dtype=torch.float32)
        self.log_rate = nn.Parameter(states.log().repeat(directions * inner, 1))
        self.direct = nn.Parameter(torch.ones(directions * inner))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, *T, d) for tokens (B, *T, d)."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = functional.silu(self.conv(u.movedim(-1, 1)))
        with torch.autocast(u.device.type, enabled=False):
            y = self.scan_all(promote_to_fp32(u))
        y = self.norm(y.movedim(1, -1)).to(gate.dtype)
        out: Tensor = self.out_proj(y * functional.silu(gate))
        return out

    def scan_all(self, u: Tensor) -> Tensor:
        """Return the sum of the scans of u (B, D, *T) over all directions, of the same shape."""
        batch, inner, *grid = u.shape
        lines = torch.stack([u.permute(0, 1, *(2 + axis for axis in order)).flatten(2) for order in self.orders], dim=1)
        lines = torch.cat([lines, lines.flip(-1)], dim=1)  # (B, K, D, L)
        sizes = [self.rank, self.state_size, self.state_size]
        parts = torch.matmul(self.x_proj, lines).split_with_sizes(sizes, dim=2)
        step = functional.softplus(torch.matmul(self.step_weight, parts[0]) + self.step_bias[..., None])
        y = selective_scan(
            lines.flatten(1, 2), step.flatten(1, 2), -self.log_rate.exp(), parts[1], parts[2], self.direct
        ).view(batch, 2, len(self.orders), inner, -1)
        y = y[:, 0] + y[:, 1].flip(-1)
        total = torch.zeros((), dtype=y.dtype, device=y.device)
        for k, order in enumerate(self.orders):
            back = [2 + order.index(axis) for axis in range(len(grid))]
            total = total + y[:, k].view(batch, inner, *(grid[axis] for axis in order)).permute(0, 1, *back)
        return total


def scan_orders(axes: int) -> list[tuple[int, ...]]:
    """Return the cyclic orders of the axes, slowest to fastest; each axis is the fastest axis of one order."""
    return [tuple((start + i) % axes for i in range(axes)) for start in range(axes)]


def _uniform(*shape: int, bound: float) -> Tensor:
    """Return random numbers between −bound and bound."""
    return (2 * torch.rand(*shape) - 1) * bound
