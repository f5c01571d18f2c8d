"""Swin-UNet in two or three dimensions: a U-shaped network of shifted-window attention on patch tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnssl.networks import OptimizerDefaults
from nnssl.networks.layers import pad_to_multiple
from nnssl.networks.token_unet import Strides, TokenSizes, TokenUNet, drop_samples

HEAD_WIDTH = 32  # features of an attention head


class SwinUNet(TokenUNet):
    """Encoder and decoder of Swin Transformer blocks with concatenated skips, for images of any size.

    The graph of `TokenUNet`; blocks with windows at rest and with windows shifted by half a window alternate. In 2-D
    with width 96 this is the network of Swin-UNet, with 27,168,420 parameters for three channels and four classes. Its
    authors start from weights that were trained on ImageNet; here all weights are random.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: number of voxels along each axis; with `strides` it decides the number of stages, at most four.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the logits at every resolution except the coarsest;
            `network.decoder.deep_supervision` changes this later.
        width: features of the first stage, doubled in every further stage up to 8·width; 0 = 96 in 2-D, 48 in 3-D.
        blocks: number of blocks in a stage.
        window: tokens of an attention window along each axis.
        mlp_ratio: inner width of a block's perceptron in units of its features.
        drop_path: DropPath probability of the deepest block, in [0, 1); it decreases linearly to 0 at the first block.
        final_channels: features of a voxel before the head; 0 = `width` in 2-D, 16 in 3-D.

    Raises:
        ValueError: an option is out of range.

    Reference: Cao et al., Swin-Unet, ECCV Workshops 2022; Liu et al., Swin Transformer, ICCV 2021.
    """

    optimizer_defaults: ClassVar[OptimizerDefaults] = OptimizerDefaults("adamw", learning_rate=5e-4, weight_decay=0.05)
    undecayed: ClassVar[tuple[str, ...]] = ("position_bias",)

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
        window: int = 7,
        mlp_ratio: int = 4,
        drop_path: float = 0.2,
        final_channels: int = 0,
    ) -> None:
        if min(window, mlp_ratio) < 1:
            raise ValueError("window and mlp_ratio are at least 1")
        axes = len(patch_size)

        def block(dim: int, number: int, rate: float) -> SwinBlock:
            return SwinBlock(dim, axes, window, shifted=number % 2 == 1, mlp_ratio=mlp_ratio, drop_path=rate)

        sizes = TokenSizes(width, blocks, drop_path, final_channels)
        super().__init__(input_channels, num_classes, patch_size, strides, deep_supervision, sizes, block=block)


class SwinBlock(nn.Module):
    """z = x + DropPath(WA(LayerNorm(x))), then z + DropPath(MLP(LayerNorm(z))), on tokens (B, *T, d).

    Args:
        dim: features d of a token.
        axes: number of spatial axes, 2 or 3.
        window: tokens of a window along each axis.
        shifted: shift the windows by half a window.
        mlp_ratio: inner width of the perceptron in units of d.
        drop_path: probability that each part is skipped for a sample in training, in [0, 1).
    """

    def __init__(
        self, dim: int, axes: int, window: int, *, shifted: bool = False, mlp_ratio: int = 4, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, axes, window, shifted)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (B, *T, d) after the block; in training, DropPath skips its parts for whole samples."""
        x = x + self._kept(self.attention(self.norm_attention(x)))
        return x + self._kept(self.mlp(self.norm_mlp(x)))

    def _kept(self, change: Tensor) -> Tensor:
        return drop_samples(change, self.drop_path) if self.training and self.drop_path else change


class WindowAttention(nn.Module):
    """Multi-head attention within windows of tokens, with a learned bias for every relative position (W-MSA, SW-MSA).

    A window has `window` tokens along an axis, or all tokens of an axis that has fewer. The grid is padded at the high
    end of every axis to whole windows; no token attends to padding. Shifted windows wrap around the grid, and tokens
    attend only to tokens of the same side of it. Windows along an axis that has one window alone are not shifted.

    Args:
        dim: features d of a token; the number of heads is the largest divisor of d up to d / 32, at least 1.
        axes: number of spatial axes, 2 or 3.
        window: tokens of a window along each axis.
        shifted: shift the windows by half a window, rounded down.
    """

    def __init__(self, dim: int, axes: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.heads = next(n for n in range(max(1, dim // HEAD_WIDTH), 0, -1) if dim % n == 0)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)
        self.position_bias = nn.Parameter(torch.empty((2 * window - 1) ** axes, self.heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, *T, d) for tokens (B, *T, d)."""
        grid = x.shape[1:-1]
        sides = [min(self.window, n) for n in grid]
        shifts = [side // 2 if self.shifted and n > side else 0 for side, n in zip(sides, grid, strict=True)]
        places, axes = [slice(None), *map(slice, grid)], list(range(1, x.ndim - 1))
        x = pad_to_multiple(x.movedim(-1, 1), sides).movedim(1, -1)
        padded = x.shape[1:-1]
        x = torch.roll(x, [-s for s in shifts], axes)
        attended = self.attend(windows(x, sides), self._scores(grid, padded, sides, shifts))
        x = torch.roll(grid_of_windows(attended, padded, sides), shifts, axes)
        out: Tensor = self.projection(x[tuple(places)])
        return out

    def attend(self, x: Tensor, scores: Tensor) -> Tensor:
        """Return the attention (B, W, N, d) of tokens in windows; `scores` (W or 1, heads, N, N) are added to q·k."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)  # (B, W, heads, N, e)
        result: Tensor = functional.scaled_dot_product_attention(q, k, v, attn_mask=scores.to(q.dtype))
        return result.transpose(-2, -3).flatten(-2)

    def _scores(
        self, grid: Sequence[int], padded: Sequence[int], sides: Sequence[int], shifts: Sequence[int]
    ) -> Tensor:
        """Return the biases (1, heads, N, N), with −∞ between tokens that do not see each other (W, heads, N, N)."""
        device = self.position_bias.device
        bias = self.position_bias[relative_positions(sides, self.window, device)].permute(2, 0, 1)[None]
        if not any(shifts) and list(grid) == list(padded):
            return bias
        part = torch.zeros(tuple(padded), dtype=torch.long, device=device)
        for axis, (n, total, shift) in enumerate(zip(grid, padded, shifts, strict=True)):
            place = torch.arange(total, device=device) + shift
            wrapped, outside = place >= total, place % total >= n
            part = 4 * part + (wrapped + 2 * outside).view(-1, *[1] * (len(padded) - 1 - axis))
        part = windows(part[None, ..., None], sides)[0, :, :, 0]
        return bias.masked_fill((part[:, None, :] != part[:, :, None])[:, None], -math.inf)


def windows(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the tokens (B, *T, d) window by window, (B, W, N, d); the sides divide the grid."""
    n = len(sides)
    split = [size for total, side in zip(x.shape[1:-1], sides, strict=True) for size in (total // side, side)]
    order = [0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1]
    return x.reshape(len(x), *split, -1).permute(order).flatten(n + 1, 2 * n).flatten(1, n)


def grid_of_windows(x: Tensor, grid: Sequence[int], sides: Sequence[int]) -> Tensor:
    """Return the tokens (B, *T, d) of windows (B, W, N, d): the inverse of `windows`."""
    n = len(sides)
    counts = [total // side for total, side in zip(grid, sides, strict=True)]
    order = [0, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)), 2 * n + 1]
    return x.reshape(len(x), *counts, *sides, -1).permute(order).reshape(len(x), *grid, -1)


def relative_positions(sides: Sequence[int], largest: int, device: torch.device) -> Tensor:
    """Return the number (N, N) of each pair's relative position among the (2·largest − 1)^n possible ones."""
    lines = [torch.arange(side, device=device) for side in sides]
    places = torch.stack(torch.meshgrid(*lines, indexing="ij")).flatten(1)
    difference = places[:, :, None] - places[:, None, :] + largest - 1
    number = difference[0]
    for each in difference[1:]:
        number = number * (2 * largest - 1) + each
    return number
