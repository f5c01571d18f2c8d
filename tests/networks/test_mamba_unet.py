from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnssl.networks import load_network, mamba_unet
from nnssl.networks.mamba_unet import CrossScan, MambaUNet, PatchExpand, PatchMerge, VSSBlock, scan_orders, token_steps
from nnssl.networks.outputs import pool_outputs

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


@pytest.mark.parametrize(
    ("patch", "strides", "token", "merges"),
    [
        ((256, 256), TWO, (4, 4), [(2, 2)] * 3),
        ((256, 256), [[1, 1], *[[2, 2]] * 6], (4, 4), [(2, 2)] * 3),  # four stages are enough
        ((112, 112, 80), THREE, (4, 4, 4), [(2, 2, 2)] * 3),
        ((64, 64), TWO, (4, 4), [(2, 2)] * 2),  # 16, 8, 4 tokens an axis, and 2 would be too few
        ((64, 48), [[1, 1], [2, 2], [4, 2], [2, 2]], (2, 2), [(4, 2), (2, 2)]),  # 8 in an axis: the first step only
        ((40, 192, 160), ANISOTROPIC, (1, 4, 4), [(2, 2, 2), (1, 2, 2), (2, 2, 2)]),
        ((3, 64, 64), [[1, 1, 1], [1, 2, 2], [1, 2, 2]], (1, 4, 4), [(1, 2, 2), (1, 2, 2)]),  # continued by two
        ((32, 32), [[1, 1], [2, 2]], (2, 2), [(2, 2), (2, 2)]),
        ((32, 32), [[1, 1]], (1, 1), [(2, 2)] * 3),
        ((12, 12), TWO, (4, 4), []),
    ],
)
def test_token_steps(
    patch: tuple[int, ...], strides: list[list[int]], token: tuple[int, ...], merges: list[tuple[int, ...]]
) -> None:
    assert token_steps(patch, strides) == (token, merges)


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


def bare(module: PatchMerge | PatchExpand, *names: str) -> PatchMerge | PatchExpand:
    for name in names:
        setattr(module, name, nn.Identity())
    return module


@pytest.mark.parametrize(
    ("step", "offsets"),
    [
        ((2, 2), [(0, 0), (1, 0), (0, 1), (1, 1)]),
        ((1, 2, 2), [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]),
        ((2, 1, 2), [(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1)]),
        ((2, 2, 2), [(a, b, c) for c in (0, 1) for b in (0, 1) for a in (0, 1)]),
    ],
)
@pytest.mark.parametrize("size", [4, 3])
def test_patch_merge_takes_the_first_axis_fastest(
    step: tuple[int, ...], offsets: list[tuple[int, ...]], size: int
) -> None:
    grid = (size,) * len(step)
    x = image(2, *grid, 3)
    merged = bare(PatchMerge(3, 6, step), "norm", "reduction")(x)
    coarse = tuple(-(-size // s) for s in step)
    assert merged.shape == (2, *coarse, math.prod(step) * 3)
    for i in places(coarse):
        parts = []
        for offset in offsets:
            j = tuple(a * s + o for a, s, o in zip(i, step, offset, strict=True))
            parts.append(x[(slice(None), *j)] if max(j) < size else torch.zeros(2, 3))
        assert torch.equal(merged[(slice(None), *i)], torch.cat(parts, -1))
    module = PatchMerge(3, 6, step)
    expected = module.reduction(nn.functional.layer_norm(merged, merged.shape[-1:]))
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("step", [(2, 2), (4, 4), (1, 2, 2), (2, 2, 2), (4, 2, 1)])
def test_patch_expand_takes_the_last_axis_fastest(step: tuple[int, ...]) -> None:
    grid = (2, 3, 2)[: len(step)]
    x = image(2, *grid, 3 * math.prod(step))
    expanded = bare(PatchExpand(3, 3, step), "expand", "norm")(x)
    assert expanded.shape == (2, *(n * s for n, s in zip(grid, step, strict=True)), 3)
    for i in places(grid):
        for number, offset in enumerate(places(step)):
            j = tuple(a * s + o for a, s, o in zip(i, step, offset, strict=True))
            features = x[(slice(None), *i)][:, 3 * number : 3 * (number + 1)]
            assert torch.equal(expanded[(slice(None), *j)], features)
    module = PatchExpand(5, 3, step)
    tokens = image(2, *grid, 5)
    expected = bare(copy.deepcopy(module), "expand", "norm")(module.expand(tokens))
    torch.testing.assert_close(module(tokens), nn.functional.layer_norm(expected, (3,)))


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((61, 50), TWO),
        ((3, 1), TWO),
        ((9, 30), [[1, 1], [1, 2], [1, 2], [2, 2]]),
        ((6, 7), [[1, 1]]),
        ((28, 24, 20), THREE),
        ((5, 33, 18), ANISOTROPIC),
        ((7, 9, 11), [[1, 1, 1], [2, 3, 1], [2, 2, 2]]),
    ],
)
@torch.no_grad()
def test_any_size_channels_and_strides(size: tuple[int, ...], strides: list[list[int]]) -> None:
    network, x = tiny(strides, channels=2, classes=5).eval(), image(2, 2, *size)
    logits = network(x)
    assert logits.shape == (2, 5, *size)
    padded = torch.zeros(2, 2, *(n + -n % step for n, step in zip(size, network.encoder.patch, strict=True)))
    inside = (slice(None), slice(None), *map(slice, size))
    padded[inside] = x
    torch.testing.assert_close(logits, network(padded)[inside])  # zeros at the high side, cropped again
    torch.testing.assert_close(logits[1:], network(x[1:]), rtol=1e-4, atol=1e-5)  # samples do not see each other


@torch.no_grad()
def test_the_skip_of_a_stage_is_its_input() -> None:
    network, x = MambaUNet(1, 2, [64, 64], TWO, width=8).eval(), image(1, 1, 61, 50)
    encoder, decoder = network.encoder, network.decoder
    tokens, skips = encoder.norm(encoder.embed(nn.functional.pad(x, (0, 2, 0, 3))).movedim(1, -1)), []
    for stage, merge in zip(encoder.stages[:-1], encoder.merges, strict=True):
        skips.append(tokens)
        tokens = merge(stage(tokens))
    assert [tuple(skip.shape) for skip in skips] == [(1, 16, 13, 8), (1, 8, 7, 16)]
    tokens = decoder.norm_in(encoder.stages[-1](tokens))
    for i in (1, 0):
        up = decoder.expansions[i](tokens)[:, : skips[i].shape[1], : skips[i].shape[2]]
        tokens = decoder.stages[i](decoder.reductions[i](torch.cat([up, skips[i]], -1)))
    logits = decoder.head(decoder.norm_out(tokens)).movedim(-1, 1)
    torch.testing.assert_close(network(x), logits[:, :, :61, :50], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strides", [TWO, THREE, ANISOTROPIC])
def test_gradient_reaches_every_parameter(strides: list[list[int]]) -> None:
    network = tiny(strides, channels=2, drop_path=0.0)
    network(image(1, 2, *[16] * len(strides[0]))).square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


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


@pytest.mark.parametrize("size", [(29, 22), (13, 18, 8)])
@torch.no_grad()
def test_deep_supervision(size: tuple[int, ...]) -> None:
    strides = TWO if len(size) == 2 else ANISOTROPIC
    plain, supervised = tiny(strides).eval(), tiny(strides, deep_supervision=True).eval()
    supervised.load_state_dict(plain.state_dict())
    x = image(2, 1, *size)
    outputs, expected = supervised(x), pool_outputs(plain(x), strides)
    assert len(outputs) == len(strides) - 1
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted)
    supervised.decoder.deep_supervision = False
    torch.testing.assert_close(supervised(x), plain(x))


@pytest.mark.parametrize("strides", [TWO, THREE])
@torch.no_grad()
def test_nnunet_builds_it_from_plans_and_copies_compute_the_same(strides: list[list[int]]) -> None:
    dim = len(strides[0])
    arguments = {"patch_size": [16] * dim, "strides": strides, "width": 8, "blocks": 1, "expansion": 1}
    name = "nnssl.networks.mamba_unet.MambaUNet"
    network = get_network_from_plans(name, arguments, [], 2, 3, deep_supervision=True).eval()
    outputs = network(image(1, 2, *[16] * dim))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, *[16 // 2**i] * dim) for i in range(4)]
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        for output, expected in zip(other(image(1, 2, *[16] * dim)), outputs, strict=True):
            assert torch.equal(output, expected)
