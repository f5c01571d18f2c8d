from __future__ import annotations

import pytest
import torch
from torch import nn

from nnssl.networks import load_network
from nnssl.networks.denoising import DenoisingBranch

FOUR_POOLINGS = [[1, 1, 1]] + [[2, 2, 2]] * 4
CLASSES = {"la": 2, "synapse": 14, "amos": 16, "mmwhs": 5, "mnms": 4}
# of the public code of A&D, whose networks also have layers that no pass uses
PUBLISHED = {"la": 57_891_910, "synapse": 57_903_466, "amos": 57_905_392, "mmwhs": 57_894_799, "mnms": 57_893_836}
TIME = (128 + 1) * 512 + (512 + 1) * 512


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def shift(*widths: int) -> int:
    """Return the parameters of the linear layers from the time code to some widths."""
    return sum((512 + 1) * width for width in widths)


def build(classes: int = 3, **options: object) -> tuple[nn.Module, DenoisingBranch]:
    network, other = (load_network("diff_vnet", 1, classes, [16] * 3, FOUR_POOLINGS, **options) for _ in range(2))
    return network, DenoisingBranch(network, other.decoder, classes)


@pytest.mark.parametrize("data", CLASSES)
def test_parameters_are_the_published_ones_without_the_unused_layers(data: str) -> None:
    with torch.device("meta"):
        network, branch = build(CLASSES[data])
    trained = count(network, branch, network.decoder)  # encoder and θ; the branch with ξ; ψ is as large as θ
    unused_in_stems = TIME + 2 * shift(32)  # the time code of the stem for images, and a shift in each stem
    unused_in_last_stages = shift(64, 128, 256, 512) + shift(256, 128, 64, 32)  # of the encoder, and of ξ
    assert PUBLISHED[data] - trained == unused_in_stems + unused_in_last_stages


def test_parameters_of_the_parts() -> None:
    with torch.device("meta"):
        network, branch = build(2)
    assert count(network) == 37_777_730
    stem, encoder = count(network.encoder.stem), count(network.encoder)
    assert stem == 346_080 - TIME - shift(32)
    assert count(branch.image_stem, branch.map_stem, branch.rest_of_stem, branch.time) == 347_808 - shift(32)
    assert encoder - stem + count(branch.encoder_shifts) == 31_431_424 - shift(64, 128, 256, 512)
    assert count(branch.decoder, branch.decoder_shifts) == 9_201_730 - shift(256, 128, 64, 32)
    assert count(network.decoder) == 8_282_434


def test_layers_and_their_order() -> None:
    network, _ = build(width=4)
    block = ["Conv3d", "ReLU", "BatchNorm3d", "Dropout3d"]
    stages = list(network.encoder.stages)
    assert [type(layer).__name__ for layer in network.encoder.stem] == block
    assert [len(stage.convolutions) for stage in stages] == [2, 3, 3, 3]
    assert [len(stage.convolutions) for stage in network.decoder.stages] == [3, 3, 2, 1]
    for stage in stages:
        assert [type(layer).__name__ for layer in stage.resize] == block[:3]
        assert stage.resize[0].kernel_size == stage.resize[0].stride == (2, 2, 2)
        assert all([type(layer).__name__ for layer in each] == block for each in stage.convolutions)
    rates = [module.p for module in network.modules() if isinstance(module, nn.Dropout3d)]
    assert sorted(rates) == [0.1] * (12 + 9) + [0.5] * 2
    shapes = [tuple(x.shape[1:]) for x in network.eval().encoder(torch.randn(1, 1, 32, 16, 16))]
    assert shapes == [(4, 32, 16, 16), (8, 16, 8, 8), (16, 8, 4, 4), (32, 4, 2, 2), (64, 2, 1, 1)]


def test_the_published_patch_has_the_published_sizes() -> None:
    with torch.device("meta"):
        network, _ = build(2)
        sizes = [tuple(x.shape[1:]) for x in network.encoder(torch.empty(2, 1, 112, 112, 80))]
    assert sizes[-1] == (512, 7, 7, 5)
    assert sizes[0] == (32, 112, 112, 80)


def test_the_formula_of_a_small_network() -> None:
    torch.manual_seed(0)
    network = load_network("diff_vnet", 1, 2, [8, 8], [[1, 1], [2, 1]], width=2).double().eval()
    x, scale = torch.randn(1, 1, 8, 6).double(), (1 + 1e-5) ** -0.5  # of batch normalisation

    def cs(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return block[0](x).relu() * scale

    fine = cs(network.encoder.stem, x)
    (down,), (up,) = network.encoder.stages, network.decoder.stages
    deep = cs(down.resize, fine)
    for each in down.convolutions:
        deep = cs(each, deep)
    result = cs(up.convolutions[0], cs(up.resize, deep) + fine)
    torch.testing.assert_close(network(x), network.decoder.head(result))
