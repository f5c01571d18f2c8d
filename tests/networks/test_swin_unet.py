from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnssl.networks import load_network
from nnssl.networks.swin_unet import SwinBlock, SwinUNet, WindowAttention, grid_of_windows, relative_positions, windows

TWO, THREE = [[1, 1], *[[2, 2]] * 4], [[1, 1, 1], *[[2, 2, 2]] * 4]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tokens(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_the_papers_parameter_counts() -> None:
    network = load_network("swin_unet", 3, 4, [224, 224], TWO)
    assert count(network) == 27_168_420
    blocks = [112_347, 445_878, 1_776_492, 7_091_928]
    assert [[count(block) for block in stage] for stage in network.encoder.stages] == [[n, n] for n in blocks]
    assert [[count(block) for block in stage] for stage in network.decoder.stages] == [[n, n] for n in blocks[:3]]
    assert [block.attention.heads for block, _ in network.encoder.stages] == [3, 6, 12, 24]
    assert [[block.attention.shifted for block in stage] for stage in network.encoder.stages] == [[False, True]] * 4


def test_parameter_count_in_3d() -> None:
    assert count(load_network("swin_unet", 1, 2, [112, 112, 80], THREE)) == 7_734_176


def naive_attention(layer: WindowAttention, x: Tensor) -> Tensor:
    """Every token by itself: the window it lies in after the shift, and on the same side of the wrap."""
    grid, width = x.shape[1:-1], layer.window
    sides = [min(width, size) for size in grid]
    shifts = [side // 2 if layer.shifted and size > side else 0 for side, size in zip(sides, grid, strict=True)]
    totals = [-(-size // side) * side for side, size in zip(sides, grid, strict=True)]

    def window_of(place: tuple[int, ...]) -> list[tuple[int, bool]]:
        moved = [(p - s) % total for p, s, total in zip(place, shifts, totals, strict=True)]
        return [(m // side, p < s) for m, side, p, s in zip(moved, sides, place, shifts, strict=True)]

    def number_in_window(place: tuple[int, ...]) -> list[int]:
        return [(p - s) % total % side for p, s, total, side in zip(place, shifts, totals, sides, strict=True)]

    out = torch.zeros_like(x)
    qkv = layer.qkv(x).unflatten(-1, (3, layer.heads, -1))
    for place in itertools.product(*map(range, grid)):
        seen = [other for other in itertools.product(*map(range, grid)) if window_of(other) == window_of(place)]
        for h in range(layer.heads):
            scores = []
            for other in seen:
                steps = zip(number_in_window(place), number_in_window(other), strict=True)
                row = 0
                for a, b in steps:
                    row = row * (2 * width - 1) + a - b + width - 1
                q, k = qkv[(slice(None), *place)][:, 0, h], qkv[(slice(None), *other)][:, 1, h]
                scores.append((q * k).sum(-1) / math.sqrt(q.shape[-1]) + layer.position_bias[row, h])
            weights = torch.stack(scores, -1).softmax(-1)
            values = torch.stack([qkv[(slice(None), *other)][:, 2, h] for other in seen], -1)
            e = values.shape[1]
            out[(slice(None), *place)][:, h * e : (h + 1) * e] = (values * weights[:, None]).sum(-1)
    return layer.projection(out)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "window"), [((6, 6), 3), ((7, 4), 3), ((2, 8), 4), ((1, 5), 2), ((4, 3, 5), 2), ((1, 4, 2), 3)]
)
@torch.no_grad()
def test_attention_against_every_token_by_itself(grid: tuple[int, ...], window: int, shifted: bool) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(64, len(grid), window, shifted)
    nn.init.normal_(layer.position_bias)
    x = tokens(2, *grid, 64)
    torch.testing.assert_close(layer(x), naive_attention(layer, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("grid", "sides"), [((4, 6), (2, 3)), ((4, 2, 6), (2, 2, 3))])
def test_windows_and_back(grid: tuple[int, ...], sides: tuple[int, ...]) -> None:
    x = tokens(2, *grid, 3)
    found = windows(x, sides)
    counts = [n // side for n, side in zip(grid, sides, strict=True)]
    assert found.shape == (2, math.prod(counts), math.prod(sides), 3)
    for w, corner in enumerate(itertools.product(*map(range, counts))):
        for n, offset in enumerate(itertools.product(*map(range, sides))):
            place = tuple(c * side + o for c, side, o in zip(corner, sides, offset, strict=True))
            assert torch.equal(found[:, w, n], x[(slice(None), *place)])
    assert torch.equal(grid_of_windows(found, grid, sides), x)


def test_relative_positions() -> None:
    found = relative_positions([2, 2], 2, torch.device("cpu"))
    assert found.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_positions([1, 2], 3, torch.device("cpu")).tolist() == [[12, 11], [13, 12]]


@torch.no_grad()
def test_a_block_without_shift_commutes_with_moves_by_a_window() -> None:
    torch.manual_seed(0)
    block, x = SwinBlock(32, 2, 3).eval(), tokens(1, 9, 6, 32)
    moved = torch.roll(block(x), (3, 3), (1, 2))
    torch.testing.assert_close(block(torch.roll(x, (3, 3), (1, 2))), moved)


@torch.no_grad()
def test_the_formula_of_a_block() -> None:
    torch.manual_seed(0)
    block, x = SwinBlock(32, 3, 2, shifted=True).eval(), tokens(2, 3, 4, 2, 32)
    middle = x + block.attention(functional.layer_norm(x, (32,)))
    first, _, last = block.mlp
    inner = functional.gelu(functional.layer_norm(middle, (32,)) @ first.weight.T + first.bias)
    torch.testing.assert_close(block(x), middle + inner @ last.weight.T + last.bias)


def test_drop_path_drops_the_parts_of_whole_samples_in_training() -> None:
    torch.manual_seed(3)
    block, x = SwinBlock(8, 2, 2, drop_path=0.5), tokens(400, 2, 2, 8)
    with torch.no_grad():
        out = block.train()(x)
        untouched = (out == x).flatten(1).all(1)
        assert 60 <= untouched.sum() <= 140  # both parts dropped: a quarter of 400
        block.drop_path = 0.0
        assert torch.equal(block(x), block.eval()(x))


@pytest.mark.parametrize("options", [{"window": 0}, {"mlp_ratio": 0}])
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SwinUNet(1, 2, [32, 32], TWO, **options)


def test_half_precision() -> None:
    network = SwinUNet(1, 3, [32, 32], TWO, width=8, window=2)
    with torch.autocast("cpu", torch.bfloat16):
        network(tokens(2, 1, 29, 20)).float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
