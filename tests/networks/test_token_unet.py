from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnssl.networks.mamba_unet import MambaUNet
from nnssl.networks.outputs import pool_outputs
from nnssl.networks.swin_unet import SwinUNet
from nnssl.networks.token_unet import PatchExpand, PatchMerge, TokenUNet, token_steps

TWO, THREE = [[1, 1], *[[2, 2]] * 4], [[1, 1, 1], *[[2, 2, 2]] * 4]
ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [1, 2, 2]]
SMALL = {MambaUNet: {"state_size": 4}, SwinUNet: {"window": 3}}
every = pytest.mark.parametrize("network_class", SMALL)


def tiny(
    network_class: type[TokenUNet], strides: list[list[int]], channels: int = 1, classes: int = 2, **options: object
) -> TokenUNet:
    torch.manual_seed(0)
    patch, small = [32] * len(strides[0]), {"width": 8, "final_channels": 8, **SMALL[network_class]}
    return network_class(channels, classes, patch, strides, **{**small, **options})


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def places(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, grid)))


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


@every
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
def test_any_size_channels_and_strides(
    network_class: type[TokenUNet], size: tuple[int, ...], strides: list[list[int]]
) -> None:
    network, x = tiny(network_class, strides, channels=2, classes=5).eval(), image(2, 2, *size)
    logits = network(x)
    assert logits.shape == (2, 5, *size)
    padded = torch.zeros(2, 2, *(n + -n % step for n, step in zip(size, network.encoder.patch, strict=True)))
    inside = (slice(None), slice(None), *map(slice, size))
    padded[inside] = x
    torch.testing.assert_close(logits, network(padded)[inside])  # zeros at the high side, cropped again
    torch.testing.assert_close(logits[1:], network(x[1:]), rtol=1e-4, atol=1e-5)  # samples do not see each other


@every
@torch.no_grad()
def test_the_skip_of_a_stage_is_its_input(network_class: type[TokenUNet]) -> None:
    network, x = network_class(1, 2, [64, 64], TWO, width=8).eval(), image(1, 1, 61, 50)
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


@every
@pytest.mark.parametrize("strides", [TWO, THREE, ANISOTROPIC])
def test_gradient_reaches_every_parameter(network_class: type[TokenUNet], strides: list[list[int]]) -> None:
    network = tiny(network_class, strides, channels=2, drop_path=0.0)
    network(image(1, 2, *[16] * len(strides[0]))).square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@every
@pytest.mark.parametrize("size", [(29, 22), (13, 18, 8)])
@torch.no_grad()
def test_deep_supervision(network_class: type[TokenUNet], size: tuple[int, ...]) -> None:
    strides = TWO if len(size) == 2 else ANISOTROPIC
    plain, supervised = tiny(network_class, strides).eval(), tiny(network_class, strides, deep_supervision=True).eval()
    supervised.load_state_dict(plain.state_dict())
    x = image(2, 1, *size)
    outputs, expected = supervised(x), pool_outputs(plain(x), strides)
    assert len(outputs) == len(strides) - 1
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, wanted)
    supervised.decoder.deep_supervision = False
    torch.testing.assert_close(supervised(x), plain(x))


@every
@pytest.mark.parametrize("options", [{"drop_path": 1.0}, {"blocks": 0}, {"width": -1}])
def test_options_out_of_range(network_class: type[TokenUNet], options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="drop_path lies in"):
        tiny(network_class, TWO, **options)


@every
@pytest.mark.parametrize("strides", [TWO, THREE])
@torch.no_grad()
def test_nnunet_builds_it_from_plans_and_copies_compute_the_same(
    network_class: type[TokenUNet], strides: list[list[int]]
) -> None:
    dim = len(strides[0])
    arguments = {"patch_size": [16] * dim, "strides": strides, "width": 8, "blocks": 1, **SMALL[network_class]}
    name = f"{network_class.__module__}.{network_class.__name__}"
    network = get_network_from_plans(name, arguments, [], 2, 3, deep_supervision=True).eval()
    outputs = network(image(1, 2, *[16] * dim))
    assert [tuple(output.shape) for output in outputs] == [(1, 3, *[16 // 2**i] * dim) for i in range(4)]
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        for output, expected in zip(other(image(1, 2, *[16] * dim)), outputs, strict=True):
            assert torch.equal(output, expected)
