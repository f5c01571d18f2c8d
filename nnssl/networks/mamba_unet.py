"""Mamba-UNet in two or three dimensions: a U-shaped network of visual state-space blocks on patch tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nnssl.ingredients.supervised import at_least_fp32
from nnssl.networks.layers import LAYERS, pad_to_multiple
from nnssl.networks.outputs import pooled_outputs
from nnssl.networks.selective_scan import selective_scan

Strides = Sequence[Sequence[int]]
MAX_STAGES, LARGEST_PATCH, LEAST_TOKENS = 4, 4, 4


class MambaUNet(nn.Module):
    """Encoder and decoder of visual state-space blocks with concatenated skips, for images of any size.

    The image is cut into patches of the plan's first two pooling steps; further steps merge the tokens. A stage is two
    blocks x + DropPath(SS(LayerNorm(x))). The skip of a stage is its input. Tokens are channel-last, (B, *T, d). In 2-D
    with width 96 it is the network of Mamba-UNet (19,118,592 parameters for one channel and four classes); in 3-D the
    same graph with six scanning directions (6,766,240 with width 48, one channel and two classes). Plans with fewer
    than four further steps are continued with steps of two.

    Args:
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: voxels an axis; with `strides` it decides the number of stages, at most four.
        strides: pooling steps of every stage, the first entry all ones.
        deep_supervision: return the logits at every resolution but the coarsest; `network.decoder.deep_supervision`
            switches it later.
        width: features of the first stage, doubled in every further one up to 8·width; 0 takes 96 in 2-D, 48 in 3-D.
        blocks: blocks a stage.
        state_size: states a channel, N.
        expansion: inner width of a block in units of its features, E.
        drop_path: DropPath probability of the deepest block, in [0, 1), falling linearly to 0 at the first.
        final_channels: features of a voxel before the head; 0 takes `width` in 2-D and 16 in 3-D.

    Raises:
        ValueError: an option is out of range.

    Reference: Wang et al., Mamba-UNet, arXiv:2402.05079; Liu et al., VMamba, NeurIPS 2024.
    """

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
        super().__init__()
        if not 0.0 <= drop_path < 1.0 or min(blocks, state_size, expansion) < 1 or width < 0:
            raise ValueError(
                "drop_path lies in [0, 1); blocks, state_size and expansion are at least 1, width at least 0"
            )
        patch, merges = token_steps(patch_size, strides)
        axes = len(patch)
        width = width or (96 if axes == 2 else 48)
        dims = [width * 2**i for i in range(len(merges) + 1)]
        deepest = max(1, blocks * len(dims) - 1)
        rates = [drop_path * j / deepest for j in range(blocks * len(dims))]
        stages = [
            nn.Sequential(*(VSSBlock(dim, axes, state_size, expansion, rates[blocks * i + j]) for j in range(blocks)))
            for i, dim in [*enumerate(dims), *enumerate(dims[:-1])]
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


def token_steps(patch_size: Sequence[int], strides: Strides) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the voxels a token and the merging steps after it, from a plan's patch size and pooling steps.

    A token is the product of the first two pooling steps, or the first alone where that exceeds 4 in an axis. Further
    steps merge tokens until there are four stages or every axis of the next grid has fewer than four tokens. Where the
    plan has no more steps, axes of four tokens or more are merged by two.
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


class VSSBlock(nn.Module):
    """x + DropPath(SS(LayerNorm(x))) on tokens (B, *T, d).

    `recompute` keeps the input alone for the backward pass and does the block again there; None: on CUDA.
    """

    recompute: bool | None = None

    def __init__(self, dim: int, axes: int, state_size: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.scan = CrossScan(dim, axes, state_size, expansion)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after the block; DropPath skips it for whole samples, in training only."""
        recompute = x.is_cuda if self.recompute is None else self.recompute
        if recompute and self.training and torch.is_grad_enabled():
            result: Tensor = checkpoint(self.after, x, use_reentrant=False)
            return result
        return self.after(x)

    def after(self, x: Tensor) -> Tensor:
        """Return what `forward` does, keeping all that the backward pass needs."""
        change: Tensor = self.scan(self.norm(x))
        if self.training and self.drop_path:
            keep = torch.rand(len(x), *(1,) * (x.ndim - 1), device=x.device) >= self.drop_path
            change = change * keep.to(change.dtype) / (1.0 - self.drop_path)
        return x + change


class CrossScan(nn.Module):
    """Selective scans of the token grid along every axis, forward and backward, added up and gated (SS2D, SS3D).

    Every axis is the fastest of one cyclic order of the axes, so there are 2n directions with weights of their own:
    row-major and column-major in 2-D, (0,1,2), (1,2,0), (2,0,1) in 3-D (slowest to fastest), then all of them reversed.

    Args:
        dim: features d of a token.
        axes: spatial axes n, 2 or 3.
        state_size: states a channel, N.
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
            y = self.scan_all(at_least_fp32(u))
        y = self.norm(y.movedim(1, -1)).to(gate.dtype)
        out: Tensor = self.out_proj(y * functional.silu(gate))
        return out

    def scan_all(self, u: Tensor) -> Tensor:
        """Return the sum over all directions of the scans of u (B, D, *T), same shape."""
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
    """Return the cyclic orders of the axes, slowest to fastest; each axis is the fastest of one."""
    return [tuple((start + i) % axes for i in range(axes)) for start in range(axes)]


class PatchMerge(nn.Module):
    """Merge s_1 × … × s_n neighbouring tokens into one: concatenate (first axis fastest), LayerNorm, Linear."""

    def __init__(self, dim: int, out_dim: int, step: tuple[int, ...]) -> None:
        super().__init__()
        self.step = step
        self.norm = nn.LayerNorm(math.prod(step) * dim)
        self.reduction = nn.Linear(math.prod(step) * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, *ceil(T/s), d') for (B, *T, d); odd grids are zero-padded on the high side."""
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
        interleaved = split.permute(0, *itertools.chain(*((1 + i, 1 + n + i) for i in range(n))), 2 * n + 1)
        sizes = (t * s for t, s in zip(grid, self.step, strict=True))
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
        self.embed = LAYERS[len(patch)].convolution(input_channels, dims[0], patch, stride=patch)
        self.norm = nn.LayerNorm(dims[0])
        self.stages = nn.ModuleList(stages)
        self.merges = nn.ModuleList(PatchMerge(*args) for args in zip(dims, dims[1:], merges, strict=False))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the inputs of the stages, finest first, and the output of the last one."""
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
        for skip, expand, reduce, stage in reversed(
            list(zip(skips, self.expansions, self.reductions, self.stages, strict=True))
        ):
            up = expand(x)[(slice(None), *map(slice, skip.shape[1:-1]))]
            x = stage(reduce(torch.cat([up, skip], dim=-1)))
        logits: Tensor = self.head(self.norm_out(x)).movedim(-1, 1)
        logits = logits[(slice(None), slice(None), *map(slice, size))]
        return pooled_outputs(logits, self.strides) if self.deep_supervision else logits


def _offsets(step: tuple[int, ...]) -> itertools.product[tuple[int, ...]]:
    return itertools.product(*map(range, step))


def _lattice(offset: tuple[int, ...], step: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(o, None, s) for o, s in zip(offset, step, strict=True))


def _uniform(*shape: int, bound: float) -> Tensor:
    return (2 * torch.rand(*shape) - 1) * bound


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
