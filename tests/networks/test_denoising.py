from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from nnssl.errors import UsageError
from nnssl.host import network_of_entry
from nnssl.networks import load_network
from nnssl.networks.denoising import (
    DenoisingBranch,
    check_can_denoise,
    decode,
    detach_encoder,
    encode,
    shift_widths,
    time_code,
)
from tests.conftest import tiny_plans

STRIDES = {2: [[1, 1], [1, 2], [2, 2]], 3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
cases = pytest.mark.parametrize(("name", "dim"), [(n, d) for n in ("plan", "residual", "diff_vnet") for d in (2, 3)])


def build(name: str, dim: int, channels: int = 2, maps: int = 3, deep: bool = False) -> Any:
    """Return a network with strides that differ between the axes."""
    if name == "diff_vnet":
        options = {"width": 4, "dropout": 0.0, "deep_supervision": deep}
        return load_network(name, channels, maps, [8] * dim, STRIDES[dim], **options)
    (plan,) = tiny_plans(dim, [8] * dim)["configurations"].values()
    entry = plan["architecture"]
    entry["arch_kwargs"]["strides"] = STRIDES[dim]
    if name == "residual":
        entry["network_class_name"] = entry["network_class_name"].replace("PlainConvUNet", "ResidualEncoderUNet")
        entry["arch_kwargs"]["n_blocks_per_stage"] = entry["arch_kwargs"].pop("n_conv_per_stage")
    return network_of_entry(entry, channels, maps, allow_init=True, deep_supervision=deep)


def branch_of(name: str, dim: int, deep: bool = False) -> tuple[Any, DenoisingBranch]:
    torch.manual_seed(0)
    network = build(name, dim, deep=deep)
    return network, DenoisingBranch(network, build(name, dim, deep=deep).decoder, 3)


def inputs(dim: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = [size] * dim
    image, noised = (torch.randn(2, channels, *shape, generator=generator) for channels in (2, 3))
    return image, noised, torch.tensor([3, 700])


def test_time_code_by_hand() -> None:
    code = time_code(torch.tensor([555, 0]))
    assert code.shape == (2, 128)
    expected = {0: 0.8732826, 1: 0.9127993, 63: 0.0554715, 64: -0.4872140, 65: -0.4084085, 127: 0.9984603}
    assert {i: code[0, i].item() for i in expected} == pytest.approx(expected, abs=1e-4)
    assert code[1].tolist() == [0.0] * 64 + [1.0] * 64


@cases
def test_the_maps_have_the_size_of_the_image(name: str, dim: int) -> None:
    network, branch = branch_of(name, dim)
    image, noised, t = inputs(dim)
    (found,), features = branch(network.encoder, branch.condition(image), noised, t)
    assert found.shape == noised.shape
    assert [x.shape for x in features] == [x.shape for x in encode(network, image)]


@cases
def test_gradient_reaches_every_layer_but_the_networks_own_stem_and_decoder(name: str, dim: int) -> None:
    network, branch = branch_of(name, dim, deep=True)
    image, noised, t = inputs(dim)
    outputs, _ = branch(network.encoder, branch.condition(image), noised, t)
    assert len(outputs) == 2
    sum(output.square().mean() for output in outputs).backward()
    unused = [key for key, p in branch.named_parameters() if p.grad is None]
    assert unused == []
    stem = "encoder.stages.0." if name == "plan" else "encoder.stem."
    reached = {key for key, p in network.encoder.named_parameters() if p.grad is not None}
    assert reached == {key for key, _ in network.encoder.named_parameters() if not f"encoder.{key}".startswith(stem)}
    theta = [p for key, p in network.decoder.named_parameters() if not key.startswith("encoder.")]
    assert all(p.grad is None for p in theta)


@cases
def test_one_convolution_of_image_and_map(name: str, dim: int) -> None:
    """The two convolutions are one convolution of the image's and the map's channels, the image's first."""
    _, branch = branch_of(name, dim)
    image, noised, _ = inputs(dim)
    parts = branch.image_stem, branch.map_stem
    together = type(parts[0])(5, parts[0].out_channels, parts[0].kernel_size, padding=parts[0].padding)
    with torch.no_grad():
        together.weight.copy_(torch.cat([part.weight for part in parts], 1))
        together.bias.copy_(parts[0].bias)
    expected = together(torch.cat([image, noised], 1))
    torch.testing.assert_close(branch.condition(image) + branch.map_stem(noised), expected)


@cases
def test_without_map_and_time_the_branch_is_the_network(name: str, dim: int) -> None:
    network, branch = branch_of(name, dim)
    network.eval()
    branch.eval()
    image, noised, t = inputs(dim)
    other = build(name, dim).eval()
    branch.copy_stem(network)
    branch.decoder.load_state_dict(detach_encoder(copy.deepcopy(network.decoder)).state_dict())
    with torch.no_grad():
        for layer in [*branch.encoder_shifts, *branch.decoder_shifts]:
            layer.weight.zero_()
            layer.bias.zero_()
    (found,), _ = branch(network.encoder, branch.condition(image), torch.zeros_like(noised), t)
    torch.testing.assert_close(found, network(image))
    assert not torch.allclose(found, other(image))


@cases
def test_every_step_has_its_own_prediction(name: str, dim: int) -> None:
    network, branch = branch_of(name, dim)
    network.eval()
    branch.eval()
    image, noised, t = inputs(dim)
    (first,), _ = branch(network.encoder, branch.condition(image), noised, t)
    (second,), _ = branch(network.encoder, branch.condition(image), noised, t + 100)
    (swapped,), _ = branch(network.encoder, branch.condition(image.flip(0)), noised.flip(0), t.flip(0))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(swapped.flip(0), first)


@cases
def test_the_time_code_is_added_where_it_should(name: str, dim: int) -> None:
    """In nnU-Net's networks a shift of the deepest encoder stage alone shifts its features by the code."""
    network, branch = branch_of(name, dim)
    widths = shift_widths(network.encoder), shift_widths(network.decoder, network.encoder.output_channels)
    assert [[layer.out_features for layer in each] for each in (branch.encoder_shifts, branch.decoder_shifts)] == [
        *widths
    ]
    if name == "diff_vnet":
        assert widths == ([8, 8, 16, 16, 16], [8, 8, 4])
        return
    assert widths == ([4, 8, 8], [8, 4])
    image, noised, t = inputs(dim)
    before = branch(network.encoder, branch.condition(image), noised, t)[1]
    with torch.no_grad():
        branch.encoder_shifts[-1].bias += 2
    after = branch(network.encoder, branch.condition(image), noised, t)[1]
    torch.testing.assert_close(after[-1], before[-1] + 2)
    torch.testing.assert_close(after[:-1], before[:-1])


@cases
def test_nothing_of_the_network_is_in_the_branch(name: str, dim: int) -> None:
    network, branch = branch_of(name, dim)
    assert not {id(p) for p in branch.parameters()} & {id(p) for p in network.parameters()}
    assert not any(".encoder." in key for key in branch.state_dict())
    image = inputs(dim)[0]
    before = network(image)
    assert not build(name, dim).load_state_dict(network.state_dict()).missing_keys
    torch.testing.assert_close(network(image), before)


@cases
def test_decoders_without_encoder_predict_the_same(name: str, dim: int) -> None:
    network = build(name, dim, deep=True).eval()
    image = inputs(dim)[0]
    expected = network(image)
    bare = detach_encoder(copy.deepcopy(network.decoder))
    found = decode(bare, encode(network, image), image.shape[2:])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_diff_vnet_takes_sizes_that_are_no_multiple_of_its_strides() -> None:
    network, branch = branch_of("diff_vnet", 2)
    image, noised, t = inputs(2, size=7)
    (found,), _ = branch(network.encoder, branch.condition(image), noised, t)
    assert found.shape == noised.shape


@pytest.mark.parametrize("network", [load_network("vnet", 1, 2, [8, 8], [[1, 1], [2, 2]]), nn.Conv2d(1, 1, 1)])
def test_other_networks_are_refused(network: nn.Module) -> None:
    with pytest.raises(UsageError, match="cannot denoise label maps"):
        check_can_denoise(network)
