from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnssl.errors import UsageError
from nnssl.networks import load_network
from nnssl.networks.cce_pair import CCEPair
from nnssl.networks.diff_vnet import DiffVNet
from nnssl.networks.layers import widths
from nnssl.networks.outputs import pool_outputs, resize_outputs
from nnssl.networks.resnet34_vnet import ResNet34VNet
from nnssl.networks.unet_bcp import UNetBCP
from nnssl.networks.vnet import VNet
from nnssl.networks.vnet_multiscale import VNetMultiscale
from nnssl.registry import METHODS, NETWORKS, find_method, find_network

CLASSES = {
    "unet_bcp": UNetBCP,
    "vnet": VNet,
    "vnet_multiscale": VNetMultiscale,
    "resnet34_vnet": ResNet34VNet,
    "cce_pair": CCEPair,
    "diff_vnet": DiffVNet,
}
every = pytest.mark.parametrize("name", CLASSES)
FOUR_POOLINGS = {2: [[1, 1]] + [[2, 2]] * 4, 3: [[1, 1, 1]] + [[2, 2, 2]] * 4}
SHORT = {2: [[1, 1], [1, 2], [2, 2]], 3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}


def make(name: str, dim: int = 2, channels: int = 1, classes: int = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return load_network(name, channels, classes, [16] * dim, SHORT[dim], **options)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_the_papers_parameter_counts() -> None:
    unet = load_network("unet_bcp", 1, 4, [256, 256], FOUR_POOLINGS[2])
    assert (count(unet), count(unet.encoder), count(unet.decoder)) == (1_813_764, 1_180_464, 633_300)
    assert count(load_network("vnet", 1, 2, [112, 112, 80], FOUR_POOLINGS[3])) == 9_448_866
    assert count(load_network("vnet_multiscale", 1, 2, [112, 112, 80], FOUR_POOLINGS[3])) == 9_449_320
    with torch.device("meta"):
        assert count(load_network("resnet34_vnet", 1, 2, [112, 112, 80], FOUR_POOLINGS[3])) == 17_930_354
        assert count(load_network("cce_pair", 1, 2, [112, 112, 80], FOUR_POOLINGS[3])) == 27_379_220


def test_stages_of_the_papers_networks() -> None:
    def stages(network: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
        return [tuple(features.shape[1:]) for features in network.eval().encoder(x)]

    unet = load_network("unet_bcp", 1, 4, [256, 256], FOUR_POOLINGS[2])
    assert stages(unet, image(1, 1, 32, 48)) == [(16, 32, 48), (32, 16, 24), (64, 8, 12), (128, 4, 6), (256, 2, 3)]
    assert [m.p for m in unet.modules() if isinstance(m, nn.Dropout)] == [0.05, 0.1, 0.2, 0.3, 0.5, 0, 0, 0, 0]
    vnet = load_network("vnet", 1, 2, [112, 112, 80], FOUR_POOLINGS[3])
    assert stages(vnet, image(1, 1, 16, 16, 32))[::2] == [(16, 16, 16, 32), (64, 4, 4, 8), (256, 1, 1, 2)]
    assert [m.p for m in vnet.modules() if isinstance(m, nn.Dropout3d)] == [0.5, 0.5]
    kernels = [[tuple(m.kernel_size) for m in part.modules() if isinstance(m, nn.Conv3d)] for part in vnet.children()]
    assert [part.count((3, 3, 3)) for part in kernels] == [1 + 2 + 3 + 3 + 3, 3 + 3 + 2 + 1]


def test_stages_of_the_residual_encoder() -> None:
    with torch.device("meta"):
        network = load_network("resnet34_vnet", 1, 2, [112, 112, 80], FOUR_POOLINGS[3])
        sizes = [tuple(x.shape[1:]) for x in network.encoder(torch.empty(1, 1, 112, 112, 80))]
    assert sizes == [(16, 112, 112, 80), (32, 56, 56, 40), (64, 28, 28, 20), (128, 14, 14, 10), (256, 7, 7, 5)]
    stem, *stages = network.encoder.stages
    assert (stem[0].kernel_size, stem[0].stride, stem[0].bias) == ((7, 7, 7), (1, 1, 1), None)
    assert [len(stage) for stage in stages] == [3, 4, 6, 3]
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout3d)] == [0.5]
    deep = load_network("resnet34_vnet", 1, 2, [64, 64], [[1, 1], *[[2, 2]] * 6])
    assert [len(stage) for stage in deep.encoder.stages[1:]] == [3, 4, 6, 3, 3, 3]


def test_residual_blocks_against_their_formula() -> None:
    torch.manual_seed(0)
    network = load_network("resnet34_vnet", 1, 2, [8, 8], [[1, 1], [1, 2]]).double().eval()
    scale, x = (1 + 1e-5) ** -0.5, image(1, 16, 8, 6).double()  # of batch normalisation
    for number, block in enumerate(network.encoder.stages[1]):
        stride = (1, 1) if number else (1, 2)
        first, second = (module.weight for module in block.residual if isinstance(module, nn.Conv2d))
        y = (nn.functional.conv2d(x, first, stride=stride, padding=1) * scale).relu()
        y = nn.functional.conv2d(y, second, padding=1) * scale
        shortcut = x if number else nn.functional.conv2d(x, block.shortcut[0].weight, stride=stride) * scale
        expected = (shortcut + y).relu()
        torch.testing.assert_close(block(x), expected)
        x = expected
    weight = load_network("resnet34_vnet", 1, 2, [64, 64], FOUR_POOLINGS[2]).encoder.stages[4][1].residual[0].weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


def test_the_pair_averages_its_members() -> None:
    network, x = make("cce_pair").eval(), image(2, 1, 13, 8)
    first, second = network.members
    assert (type(first), type(second)) == (ResNet34VNet, VNet)
    expected = (first(x).softmax(1) + second(x).softmax(1)) / 2
    torch.testing.assert_close(network(x).softmax(1), expected)


def test_widths_and_dropout_beyond_four_poolings() -> None:
    assert widths(7) == [16, 32, 64, 128, 256, 256, 256]
    unet = load_network("unet_bcp", 1, 2, [64, 64], [[1, 1], *[[2, 2]] * 6])
    assert [m.p for m in unet.encoder.modules() if isinstance(m, nn.Dropout)] == [0.05, 0.1, 0.2, 0.3, 0.5, 0.5, 0.5]
    assert unet.eval()(image(1, 1, 64, 64)).shape == (1, 2, 64, 64)


@every
@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((61, 50), FOUR_POOLINGS[2]),
        ((3, 1), FOUR_POOLINGS[2]),
        ((7, 30), [[1, 1], [1, 2], [1, 2], [2, 2]]),
        ((9, 16, 11), FOUR_POOLINGS[3]),
        ((5, 17, 12), [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 3]]),
        ((6, 7), [[1, 1]]),
    ],
)
def test_any_size_channels_and_strides(name: str, size: tuple[int, ...], strides: list[list[int]]) -> None:
    network = load_network(name, 2, 5, size, strides).eval()
    assert network(image(2, 2, *size)).shape == (2, 5, *size)


def test_vnet_pads_with_zeros_at_the_high_side() -> None:
    network, x = make("vnet", 3).eval(), image(1, 1, 3, 7, 6)
    padded = torch.zeros(1, 1, 4, 8, 8)
    padded[:, :, :3, :7, :6] = x
    torch.testing.assert_close(network(x), network(padded)[:, :, :3, :7, :6])


def test_unet_pooling_keeps_the_border_of_odd_sizes() -> None:
    pool = make("unet_bcp").encoder.stages[2][0]
    assert pool(torch.tensor([[[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]]])).tolist() == [[[[5, 6], [8, 9]]]]


def two_stages(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return a network whose batch normalisation divides by sqrt(1 + 1e-5), and its convolutions in order."""
    network = load_network(name, 1, 2, [8, 8], [[1, 1], [2, 2]]).double().eval()
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return network, [(m.weight, m.bias) for m in network.modules() if isinstance(m, kinds)]


def test_unet_against_its_formula() -> None:
    (network, convolutions), x = two_stages("unet_bcp"), image(1, 1, 8, 6).double()
    first, second, third, fourth, reduction, fifth, sixth, head = convolutions

    def block(y: Tensor, *pair: tuple[Tensor, Tensor]) -> Tensor:
        for conv in pair:
            y = nn.functional.conv2d(y, *conv, padding=1) / (1 + 1e-5) ** 0.5
            y = torch.where(y > 0, y, 0.01 * y)
        return y

    fine = block(x, first, second)
    coarse = block(fine.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)), third, fourth)
    up = nn.functional.conv2d(coarse, *reduction)
    up = nn.functional.interpolate(up, (8, 6), mode="bilinear", align_corners=True)
    expected = nn.functional.conv2d(block(torch.cat([fine, up], 1), fifth, sixth), *head, padding=1)
    torch.testing.assert_close(network(x), expected)


def test_vnet_against_its_formula() -> None:
    (network, convolutions), x = two_stages("vnet"), image(1, 1, 8, 6).double()
    first, down, second, third, up, fourth, head = convolutions
    scale = (1 + 1e-5) ** -0.5

    def conv(y: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return (nn.functional.conv2d(y, *weights, padding=1) * scale).relu()

    fine = conv(x, first)
    coarse = conv(conv((nn.functional.conv2d(fine, *down, stride=2) * scale).relu(), second), third)
    back = (nn.functional.conv_transpose2d(coarse, *up, stride=2) * scale).relu()
    torch.testing.assert_close(network(x), nn.functional.conv2d(conv(back + fine, fourth), *head))


@every
@pytest.mark.parametrize("dim", [2, 3])
def test_gradient_reaches_every_parameter(name: str, dim: int) -> None:
    network = make(name, dim, channels=2, deep_supervision=True)
    sum(output.square().mean() for output in network(image(2, 2, *[12] * dim))).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if parameter.dim() > 1 or key.endswith(
            "decoder.head.bias"
        ):  # a bias before batch normalisation has gradient zero
            assert parameter.grad.abs().sum() > 0, key


@every
def test_dropout_is_random_in_training_and_off_in_evaluation(name: str) -> None:
    network, x = make(name), image(2, 1, 12, 12)
    assert not torch.equal(network(x), network(x))
    off = make(name, dropout=[0.0] if name == "unet_bcp" else 0.0)
    assert torch.equal(off(x), off(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@every
@pytest.mark.parametrize(("dim", "size"), [(2, (13, 22)), (3, (6, 7, 10))])
def test_deep_supervision_fits_nnunets_targets(name: str, dim: int, size: tuple[int, ...]) -> None:
    plain, supervised = make(name, dim).eval(), make(name, dim, deep_supervision=True).eval()
    assert [*plain.state_dict()] == [*supervised.state_dict()]
    supervised.load_state_dict(plain.state_dict())
    x = image(2, 1, *size)
    outputs = supervised(x)
    scales = [[1.0] * dim, [1 / step for step in SHORT[dim][1]]]
    targets = DownsampleSegForDSTransform(scales)(segmentation=torch.zeros(1, *size))["segmentation"]
    assert [output.shape[2:] for output in outputs] == [target.shape[1:] for target in targets]
    torch.testing.assert_close(outputs[0], plain(x))
    supervised.decoder.deep_supervision = False
    torch.testing.assert_close(supervised(x), plain(x))


def test_multiscale_vnet_is_vnet_with_heads_on_the_decoder() -> None:
    network = load_network("vnet_multiscale", 2, 3, [32, 32], FOUR_POOLINGS[2], deep_supervision=True)
    plain = load_network("vnet", 2, 3, [32, 32], FOUR_POOLINGS[2])
    weights = {key: value for key, value in network.state_dict().items() if ".seg_layers." not in key}
    plain.load_state_dict(weights)
    assert [m.p for m in network.decoder.modules() if isinstance(m, nn.Dropout2d)] == [0.5, 0.3, 0.2, 0.1]
    x, seen = image(2, 2, 32, 32), []
    for stage in network.decoder.stages:
        stage.register_forward_hook(lambda _m, _i, y: seen.append(y))
    finest, *coarser = network.eval()(x)
    torch.testing.assert_close(finest, plain.eval()(x))
    for (_, head), features, output in zip(network.decoder.seg_layers, seen[-2::-1], coarser, strict=True):
        torch.testing.assert_close(output, nn.functional.conv2d(features, head.weight, head.bias))
    assert [tuple(output.shape) for output in coarser] == [(2, 3, 16, 16), (2, 3, 8, 8), (2, 3, 4, 4)]


def test_heads_drop_channels_but_the_decoder_keeps_them() -> None:
    network = load_network("vnet_multiscale", 1, 2, [32, 32], FOUR_POOLINGS[2], deep_supervision=True).eval()
    x = image(1, 1, 32, 32)
    expected = network(x)
    for layer in network.decoder.seg_layers:
        layer.train()
    outputs = network(x)
    assert torch.equal(outputs[0], expected[0])
    assert any(not torch.equal(a, b) for a, b in zip(outputs[1:], expected[1:], strict=True))


def test_more_poolings_get_a_head_each() -> None:
    strides = [[1, 1], *[[2, 2]] * 6]
    network = load_network("vnet_multiscale", 1, 2, [64, 64], strides, deep_supervision=True).eval()
    assert [tuple(output.shape[2:]) for output in network(image(1, 1, 64, 64))] == [(64 >> i,) * 2 for i in range(6)]
    assert [m.p for m in network.decoder.modules() if isinstance(m, nn.Dropout2d)] == [0.5, 0.3, 0.2, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("strides", [[[1, 1]], [[1, 1], [2, 2]]])
def test_multiscale_vnet_without_a_resolution_between(strides: list[list[int]]) -> None:
    network = load_network("vnet_multiscale", 1, 2, [8, 8], strides, deep_supervision=True).eval()
    assert [tuple(output.shape) for output in network(image(1, 1, 7, 9))] == [(1, 2, 7, 9)]


@pytest.mark.parametrize(("dim", "mode"), [(2, "bilinear"), (3, "trilinear")])
def test_outputs_at_full_size(dim: int, mode: str) -> None:
    sizes = [[4, 6, 8][:dim], [4, 3, 4][:dim], [2, 3, 2][:dim]]
    outputs = [image(1, 2, *size).half() for size in sizes]
    for mixed, third in ((False, mode), (True, "nearest")):
        full = resize_outputs(outputs, mixed)
        assert all(z.dtype == torch.float32 for z in full)
        for z, output, how in zip(full, outputs, (mode, mode, third), strict=True):
            torch.testing.assert_close(z, nn.functional.interpolate(output.float(), sizes[0], mode=how))
    assert resize_outputs([image(1, 2, *sizes[0]).double()])[0].dtype == torch.float64


def test_pool_outputs_are_means_over_boxes() -> None:
    logits = image(1, 2, 4, 8, 8).requires_grad_()
    outputs = pool_outputs(logits, [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]])
    assert [tuple(output.shape[2:]) for output in outputs] == [(4, 8, 8), (4, 4, 4), (2, 2, 2)]
    for output, (d, h, w) in zip(outputs, [(1, 1, 1), (1, 2, 2), (2, 4, 4)], strict=True):
        for z, y, x in torch.cartesian_prod(*[torch.arange(n) for n in output.shape[2:]]).tolist():
            box = logits[:, :, z * d : (z + 1) * d, y * h : (y + 1) * h, x * w : (x + 1) * w]
            torch.testing.assert_close(output[:, :, z, y, x], box.mean((2, 3, 4)))
    outputs[2].sum().backward()
    torch.testing.assert_close(logits.grad, torch.full_like(logits, 1 / 32))


@pytest.mark.parametrize(("size", "expected"), [((5, 7), [(5, 7), (2, 4), (1, 2)]), ((1, 3), [(1, 3), (1, 2), (1, 1)])])
def test_pooled_sizes_round_half_to_even_and_never_vanish(
    size: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    outputs = pool_outputs(image(1, 1, *size), [[1, 1], [2, 2], [2, 2], [2, 2]])
    assert [tuple(output.shape[2:]) for output in outputs] == expected


@pytest.mark.parametrize("strides", [[[1, 1]], [[1, 1], [2, 2]]])
def test_one_output_when_there_is_no_resolution_between(strides: list[list[int]]) -> None:
    logits = image(1, 2, 4, 4)
    (output,) = pool_outputs(logits, strides)
    assert output is logits


@every
@pytest.mark.parametrize("dim", [2, 3])
def test_nnunet_builds_it_from_plans(name: str, dim: int) -> None:
    architecture = {
        "network_class_name": f"nnssl.networks.{name}.{CLASSES[name].__name__}",
        "arch_kwargs": {"patch_size": [16] * dim, "strides": SHORT[dim]},
        "_kw_requires_import": [],
    }
    plan = ConfigurationManager({"architecture": architecture})
    assert plan.pool_op_kernel_sizes == SHORT[dim]
    network = get_network_from_plans(
        plan.network_arch_class_name,
        plan.network_arch_init_kwargs,
        plan.network_arch_init_kwargs_req_import,
        2,
        3,
        deep_supervision=True,
    )
    assert type(network) is CLASSES[name]
    assert [tuple(output.shape[:2]) for output in network.eval()(image(1, 2, *[16] * dim))] == [(1, 3), (1, 3)]


@every
def test_copies_and_pickles_compute_the_same(name: str) -> None:
    network, x = make(name, deep_supervision=True).eval(), image(1, 1, 9, 8)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        for output, expected in zip(other(x), network(x), strict=True):
            assert torch.equal(output, expected)


@every
def test_half_precision_step(name: str) -> None:
    network = make(name, deep_supervision=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(image(2, 1, 12, 12))
        sum(output.float().square().mean() for output in outputs).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@every
def test_compiles_without_a_graph_break(name: str) -> None:
    network, x = make(name, deep_supervision=True).eval(), image(1, 1, 9, 8)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))
    network.decoder.deep_supervision = False
    torch.testing.assert_close(compiled(x), network(x))


def test_registry_entries() -> None:
    assert {"unet_bcp", "vnet", "mamba_unet"} <= NETWORKS.keys()
    assert all(key == network.name for key, network in NETWORKS.items())
    assert NETWORKS["mamba_unet"].module == "nnssl.networks.mamba_unet"
    for name, network in CLASSES.items():
        assert find_network(name).load() is network
    assert pickle.loads(pickle.dumps(find_network("vnet"))) == find_network("vnet")
    with pytest.raises(FrozenInstanceError):
        NETWORKS["vnet"].name = "other"


@pytest.mark.parametrize(("name", "advice"), [("vnett", "network vnet"), ("zzz", "choose one of these names")])
def test_unknown_network(name: str, advice: str) -> None:
    with pytest.raises(UsageError, match=f"unknown network '{name}'") as raised:
        load_network(name, 1, 2, [8, 8], SHORT[2])
    assert raised.value.why == f"known networks: {', '.join(NETWORKS)}"
    assert raised.value.run == advice


def test_unknown_method() -> None:
    with pytest.raises(UsageError) as raised:
        find_method("SupervisedTrainr")
    assert raised.value.why == f"known trainers: {', '.join(METHODS)}"
    assert (raised.value.where, raised.value.run) == ("-tr SupervisedTrainr", "-tr SupervisedTrainer")
