from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from nnssl.networks import load_network, mamba_unet
from nnssl.networks.mamba_unet import CrossScan, MambaUNet, VSSBlock, scan_orders

TWO, THREE = [[1, 1], *[[2, 2]] * 4], [[1, 1, 1], *[[2, 2, 2]] * 4]
ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2]]
ORDERS = {2: [(0, 1), (1, 0)], 3: [(0, 1, 2), (1, 2, 0), (2, 0, 1)]}  # slowest to fastest


def tiny(strides: list[list[int]], channels: int = 1, classes: int = 2, **options: object) -> MambaUNet:
    torch.manual_seed(0)
    patch = [32] * len(strides[0])
    return MambaUNet(channels, classes, patch, strides, **{"width": 8, "state_size": 4, "final_channels": 8, **options})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def places(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, grid)))


@pytest.mark.parametrize("strides", [TWO, [[1, 1], *[[2, 2]] * 6]], ids=["four poolings", "six poolings"])
def test_the_papers_parameter_counts(strides: list[list[int]]) -> None:
    network = load_network("mamba_unet", 3, 4, [256, 256], strides)
    encoder, decoder = network.encoder, network.decoder
    assert count(network) == 19_121_664
    assert count(encoder.embed) + count(encoder.norm) == 4_896
    blocks = [105_408, 339_840, 1_195_776, 4_455_936]
    assert [[count(block) for block in stage] for stage in encoder.stages] == [[n, n] for n in blocks]
    assert [[count(block) for block in stage] for stage in decoder.stages] == [[n, n] for n in blocks[:3]]
    assert [count(merge) for merge in encoder.merges] == [74_496, 296_448, 1_182_720]
    assert [count(expand) for expand in decoder.expansions] == [73_920, 295_296, 1_180_416]
    assert [count(reduction) for reduction in decoder.reductions] == [18_528, 73_920, 295_296]
    ends = (decoder.norm_in, decoder.norm_out, decoder.head[0], decoder.head[1])
    assert [count(part) for part in ends] == [1_536, 192, 147_648, 96 * 4]


@pytest.mark.parametrize(
    ("channels", "classes", "patch", "options", "expected"),
    [
        (1, 4, [256, 256], {}, 19_118_592),
        (1, 2, [112, 112, 80], {}, 6_766_240),
        (1, 2, [112, 112, 80], {"width": 32}, 3_331_200),
        (1, 2, [112, 112, 80], {"width": 96}, 24_149_248),
        (1, 2, [112, 112, 80], {"state_size": 8}, 6_157_984),
    ],
)
def test_parameter_counts(channels: int, classes: int, patch: list[int], options: dict, expected: int) -> None:
    assert count(MambaUNet(channels, classes, patch, TWO if len(patch) == 2 else THREE, **options)) == expected


def test_drop_path_rates_are_mirrored() -> None:
    network = MambaUNet(1, 2, [64, 64], [[1, 1], [1, 1], [1, 1], *[[2, 2]] * 3], width=8)
    rates = [[block.drop_path for block in stage] for stage in network.encoder.stages]
    assert [rate for pair in rates for rate in pair] == pytest.approx([0.2 * j / 7 for j in range(8)])
    assert [[block.drop_path for block in stage] for stage in network.decoder.stages] == rates[:3]


def test_initial_weights() -> None:
    scan = tiny(THREE, width=32).encoder.stages[0][0].scan
    steps = nn.functional.softplus(scan.step_bias)
    assert scan.x_proj.abs().max() <= 64**-0.5
    assert scan.step_weight.abs().max() <= 2**-0.5
    assert 1e-4 <= steps.min() < 4e-3
    assert 3e-2 < steps.max() <= 0.1 + 1e-6
    torch.testing.assert_close(scan.log_rate.exp(), torch.arange(1.0, 5).expand(6 * 64, 4))
    assert torch.equal(scan.direct, torch.ones(6 * 64))
    assert scan.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("grid", "forward"),
    [
        ((2, 3), [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]]),
        ((2, 2, 2), [[0, 1, 2, 3, 4, 5, 6, 7], [0, 4, 1, 5, 2, 6, 3, 7], [0, 2, 4, 6, 1, 3, 5, 7]]),
    ],
)
def test_scan_orders(grid: tuple[int, ...], forward: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def nothing(u: Tensor, *others: Tensor) -> Tensor:
        seen.append(u)
        return u

    monkeypatch.setattr(mamba_unet, "selective_scan", nothing)
    assert scan_orders(len(grid)) == ORDERS[len(grid)]
    tokens = torch.arange(math.prod(grid), dtype=torch.float32).view(1, 1, *grid)
    total = CrossScan(1, len(grid), 1, 1).scan_all(tokens)
    assert seen[0][0].tolist() == forward + [line[::-1] for line in forward]
    assert torch.equal(total, 2 * len(grid) * tokens)  # every direction puts the tokens back to their places


def layer_norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * module.weight + module.bias


def naive_cross_scan(module: CrossScan, x: Tensor) -> Tensor:
    """Return SS2D or SS3D of one sample (*T, d), token by token, as its five steps."""
    grid, states, rank = tuple(x.shape[:-1]), module.state_size, module.rank
    tokens, axes = places(grid), x.ndim - 1
    inner = module.in_proj.weight.shape[0] // 2
    before = {i: module.in_proj.weight @ x[i] for i in tokens}
    u = {}
    for i in tokens:  # 1: depth-wise convolution of the first half
        total = module.conv.bias.clone()
        for offset in itertools.product((-1, 0, 1), repeat=axes):
            j = tuple(a + o for a, o in zip(i, offset, strict=True))
            if j in before:
                total = total + module.conv.weight[(slice(None), 0, *(o + 1 for o in offset))] * before[j][:inner]
        u[i] = total * torch.sigmoid(total)
    forward = [sorted(tokens, key=lambda i, order=order: [i[a] for a in order]) for order in ORDERS[axes]]
    y = {i: torch.zeros(inner, dtype=x.dtype) for i in tokens}
    rates = -module.log_rate.exp().view(2 * axes, inner, states)
    for k, sequence in enumerate(forward + [line[::-1] for line in forward]):  # 2
        h = torch.zeros(inner, states, dtype=x.dtype)
        for i in sequence:
            projected = module.x_proj[k] @ u[i]  # 3
            step = (1 + (module.step_weight[k] @ projected[:rank] + module.step_bias[k]).exp()).log()
            B, C = projected[rank : rank + states], projected[rank + states :]
            h = (step[:, None] * rates[k]).exp() * h + (step * u[i])[:, None] * B  # 4
            y[i] = y[i] + h @ C + module.direct.view(2 * axes, inner)[k] * u[i]
    out = torch.empty_like(x)
    for i in tokens:  # 5
        gate = before[i][inner:]
        out[i] = module.out_proj.weight @ (layer_norm(y[i], module.norm) * gate * torch.sigmoid(gate))
    return out


@pytest.mark.parametrize("grid", [(2, 3), (3, 1), (2, 3, 2)])
def test_cross_scan_against_a_loop_over_tokens(grid: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    module = CrossScan(4, len(grid), 3, 2).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    x = torch.randn(2, *grid, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([naive_cross_scan(module, sample) for sample in x])
        torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-10)


def test_scans_are_in_full_precision_inside_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    scan = mamba_unet.selective_scan
    monkeypatch.setattr(mamba_unet, "selective_scan", lambda *inputs: seen.extend(inputs) or scan(*inputs))
    network = tiny(TWO)
    with torch.autocast("cpu", torch.bfloat16):
        network(image(2, 1, 16, 16)).float().square().mean().backward()
    assert {x.dtype for x in seen} == {torch.float32}
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_drop_path_skips_whole_samples_in_training_only() -> None:
    torch.manual_seed(2)
    block, x = VSSBlock(4, 2, 2, 1, 0.25), torch.randn(2000, 1, 2, 4)
    nn.init.normal_(block.scan.out_proj.weight)
    with torch.no_grad():
        change = block.eval()(x) - x
        ratio = (block.train()(x) - x) / change
    kept = ratio[:, 0, 0, 0] > 0.5
    expected = torch.where(kept, 4 / 3, 0.0)[:, None, None, None].expand_as(x)
    torch.testing.assert_close(ratio * change, expected * change, rtol=1e-4, atol=1e-5)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=5 * (0.25 * 0.75 / 2000) ** 0.5)
    assert torch.equal(block.eval()(x), x + block.scan(block.norm(x)))
    block.drop_path = 0.0
    assert torch.equal(block.train()(x), block.eval()(x))
