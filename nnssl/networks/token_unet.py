"""A U-shaped network of blocks on patch tokens in 2-D or 3-D; Mamba-UNet and Swin-UNet differ in the block alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnssl.networks.layers import LAYERS, pad_to_multiple
from nnssl.networks.outputs import pool_outputs

Strides = Sequence[Sequence[int]]
MAX_STAGES, LARGEST_PATCH, LEAST_TOKENS = 4, 4, 4


class TokenSizes(NamedTuple):
    """The sizes that a plan does not give.

    Attributes:
        width: features of the first stage, doubled in every further stage up to 8·width; 0 = 96 in 2-D, 48 in 3-D.
        blocks: number of blocks in a stage.
        drop_path: DropPath probability of the deepest block, in [0, 1); it decreases linearly to 0 at the first block.
        final_channels: features of a voxel before the head; 0 = `width` in 2-D, 16 in 3-D.
    """

    width: int
    blocks: int
    drop_path: float
    final_channels: int


class TokenUNet(nn.Module):
    """Encoder and decoder of blocks on tokens, with concatenated skips, for images of any size.

    The image is divided into patches whose size is the product of the plan's first two pooling steps; further steps
    merge the tokens. The skip of a stage is the stage's input. Tokens are channel-last, (B, *T, d). If the plan has
    fewer pooling steps than the network needs, steps of two follow.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: number of voxels along each axis; with `strides` it decides the number of stages, at most four.
        strides: pooling steps of every stage; the first entry is all ones.
        deep_supervision: return the logits at every resolution except the coarsest;
            `network.decoder.deep_supervision` changes this later.
        sizes: widths, depth and DropPath.
        block: makes a block from the features of a token, the block's number in its stage and its DropPath
            probability.

    Raises:
        ValueError: an option is out of range.
    """

    @classmethod
    def plan_options(cls, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Return the width for a configuration of plans: three times its first features in 2-D, 1.5 times in 3-D."""
        features = plan["architecture"]["arch_kwargs"].get("features_per_stage", [32])[0]
        return {"width": features * 3 if len(plan["patch_size"]) == 2 else features * 3 // 2}

    def __init__(  # noqa: PLR0913 - a plans entry
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        strides: Strides,
        deep_supervision: bool,
        sizes: TokenSizes,
        *,
        block: Callable[[int, int, float], nn.Module],
    ) -> None:
        super().__init__()
        width, blocks, drop_path, final_channels = sizes
        if not 0.0 <= drop_path < 1.0 or blocks < 1 or width < 0:
            raise ValueError("drop_path lies in [0, 1); blocks is at least 1, width at least 0")
        patch, merges = token_steps(patch_size, strides)
        axes = len(patch)
        width = width or (96 if axes == 2 else 48)
        dims = [width * 2**i for i in range(len(merges) + 1)]
        deepest = max(1, blocks * len(dims) - 1)
        rates = [drop_path * j / deepest for j in range(blocks * len(dims))]
        stages = [
            nn.Sequential(*(block(dim, j, rates[blocks * i + j]) for j in range(blocks)))
            for i, dim in [*enumerate(dims), *enumerate(dims[:-1])]  # of the encoder, then of the decoder
        ]
        self.encoder = _Encoder(input_channels, dims, patch, merges, stages[: len(dims)])
        final = final_channels or (width if axes == 2 else 16)
        head = nn.Sequential(PatchExpand(width, final, patch), nn.Linear(final, num_classes, bias=False))
        self.decoder = _Decoder(dims, merges, stages[len(dims) :], head)
        self.decoder.deep_supervision = deep_supervision
        self.decoder.strides = tuple(map(tuple, strides))
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, num_classes, *S) for an image (B, input_channels, *S); a list with deep supervision."""
        outputs: Tensor | list[Tensor] = self.decoder(self.encoder(image), image.shape[2:])
        return outputs


def drop_samples(change: Tensor, probability: float) -> Tensor:
    """Return a block's change (B, *T, d), set to 0 for whole samples and scaled for the others (DropPath)."""
    keep = torch.rand(len(change), *(1,) * (change.ndim - 1), device=change.device) >= probability
    return change * keep.to(change.dtype) / (1.0 - probability)


def token_steps(patch_size: Sequence[int], strides: Strides) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the size of a token and the merging steps, from a plan's patch size and pooling steps.

    The size of a token is the product of the first two pooling steps, or the first step alone where the product exceeds
    4 along an axis. Further steps merge tokens, until the network has four stages or the next grid has fewer than four
    tokens along every axis. After the plan's last step, axes with at least four tokens are merged by two.

    Args:
        patch_size: number of voxels along each axis.
        strides: pooling steps of every stage; the first entry is all ones.

    Returns:
        Voxels of a token along each axis, and one merging step for each further stage.
    """
    steps = [tuple(step) for step in strides[1:]]
    patch = steps.pop(0) if steps else (1,) * len(patch_size)
    both = tuple(a * b for a, b in zip(patch, steps[0], strict=True)) if steps else patch
    if steps and max(both) <= LARGEST_PATCH:
        patch = both
        steps.pop(0)
    grid = [-(-n // p) for n, p in zip(patch_size, patch, strict=True)]
    merges: list[tuple[int, ...]] = []
    while len(merges) < MAX_STAGES - 1:
        merge = steps.pop(0) if steps else tuple(2 if n >= LEAST_TOKENS else 1 for n in grid)
        grid = [-(-n // m) for n, m in zip(grid, merge, strict=True)]
        if max(grid) < LEAST_TOKENS:
            break
        merges.append(merge)
    return patch, merges


class PatchMerge(nn.Module):
    """Merge s_1 × … × s_n neighbouring tokens into one token: concatenate (first axis fastest), LayerNorm, Linear."""

    def __init__(self, dim: int, out_dim: int, step: tuple[int, ...]) -> None:
        super().__init__()
        self.step = step
        self.norm = nn.LayerNorm(math.prod(step) * dim)
        self.reduction = nn.Linear(math.prod(step) * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, *ceil(T/s), d') for (B, *T, d); the grid is padded with zeros at the high end of every axis."""
        x = pad_to_multiple(x.movedim(-1, 1), self.step).movedim(1, -1)
        parts = [x[(slice(None), *_lattice(offset[::-1], self.step))] for offset in _offsets(self.step[::-1])]
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return merged


class PatchExpand(nn.Module):
    """Split a token into s_1 × … × s_n tokens: Linear, rearrange (last axis fastest), LayerNorm."""

    def __init__(self, dim: int, out_dim: int, step: tuple[int, ...]) -> None:
        super().__init__()
        self.step = step
        self.expand = nn.Linear(dim, math.prod(step) * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, *(T·s), d') for (B, *T, d)."""
        n, grid = len(self.step), x.shape[1:-1]
        split = self.expand(x).unflatten(-1, (*self.step, -1))  # (B, *T, *s, d')
        pairs = [(1 + i, 1 + n + i) for i in range(n)]  # grid axis and step axis of each spatial axis
        interleaved = split.permute(0, *itertools.chain.from_iterable(pairs), 2 * n + 1)
        sizes = [t * s for t, s in zip(grid, self.step, strict=True)]
        out: Tensor = self.norm(interleaved.reshape(len(x), *sizes, -1))
        return out


class _Encoder(nn.Module):
    def __init__(
        self,
        input_channels: int,
        dims: list[int],
        patch: tuple[int, ...],
        merges: list[tuple[int, ...]],
        stages: list[nn.Sequential],
    ) -> None:
        super().__init__()
        self.patch = patch
        self.output_channels, self.channels_last = dims, True  # of every stage; tokens have their features last
        self.embed = LAYERS[len(patch)].convolution(input_channels, dims[0], patch, stride=patch)
        self.norm = nn.LayerNorm(dims[0])
        self.stages = nn.ModuleList(stages)
        self.merges = nn.ModuleList(PatchMerge(*args) for args in zip(dims[:-1], dims[1:], merges, strict=True))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the inputs of all stages except the last, finest first, and then the output of the last stage."""
        x = self.norm(self.embed(pad_to_multiple(image, self.patch)).movedim(1, -1))
        features = []
        for stage, merge in zip(self.stages, [*self.merges, nn.Identity()], strict=True):
            features.append(x)
            x = merge(stage(x))
        return [*features[:-1], x]


class _Decoder(nn.Module):
    deep_supervision: bool
    strides: Strides

    def __init__(
        self, dims: list[int], merges: list[tuple[int, ...]], stages: list[nn.Sequential], head: nn.Sequential
    ) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dims[-1])
        finer, coarser = dims[:-1], dims[1:]
        self.expansions = nn.ModuleList(PatchExpand(*args) for args in zip(coarser, finer, merges, strict=True))
        self.reductions = nn.ModuleList(nn.Linear(2 * dim, dim) for dim in finer)
        self.stages = nn.ModuleList(stages)
        self.norm_out = nn.LayerNorm(dims[0])
        self.head = head

    def forward(self, features: list[Tensor], size: torch.Size) -> Tensor | list[Tensor]:
        *skips, x = features
        x = self.norm_in(x)
        levels = list(zip(skips, self.expansions, self.reductions, self.stages, strict=True))  # finest first
        for skip, expand, reduce, stage in reversed(levels):
            up = expand(x)[(slice(None), *map(slice, skip.shape[1:-1]))]
            x = stage(reduce(torch.cat([up, skip], dim=-1)))
        logits: Tensor = self.head(self.norm_out(x)).movedim(-1, 1)
        logits = logits[(slice(None), slice(None), *map(slice, size))]
        return pool_outputs(logits, self.strides) if self.deep_supervision else logits


def _offsets(step: tuple[int, ...]) -> itertools.product[tuple[int, ...]]:
    """Return the positions inside a box of this size, last axis fastest."""
    return itertools.product(*map(range, step))


def _lattice(offset: tuple[int, ...], step: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the slices that take every step-th token along each axis, from the offset on."""
    return tuple(slice(o, None, s) for o, s in zip(offset, step, strict=True))


def _initialise(module: nn.Module) -> None:
    """Draw the weights of a linear layer from a truncated normal distribution and set the bias to 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
