from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from nnssl.errors import UsageError
from nnssl.networks import build_network, load_network
from nnssl_trainers.frame.architecture import architecture
from nnssl_trainers.parts.decoder_features import DecoderFeatures
from tests.conftest import tiny_plans

STRIDES = {2: [[1, 1], [2, 2], [2, 2]], 3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
TOKENS = {"mamba_unet": {"width": 8, "state_size": 2, "blocks": 1}, "swin_unet": {"width": 8, "blocks": 1}}
OURS = ["unet_bcp", "vnet", "vnet_multiscale", "resnet34_vnet", *TOKENS]


def make(name: str, dim: int = 2, deep_supervision: bool = True) -> nn.Module:
    torch.manual_seed(0)
    if name not in {"plan", "residual"}:
        options = TOKENS.get(name, {})
        return load_network(name, 1, 3, [16] * dim, STRIDES[dim], deep_supervision=deep_supervision, **options)
    (plan,) = tiny_plans(dim, [16] * dim)["configurations"].values()
    entry = architecture("network", name, plan)
    return build_network(json.loads(json.dumps(entry)), 1, 3, deep_supervision=deep_supervision)


def last_layer(name: str, network: nn.Module) -> nn.Module:
    if name in {"plan", "residual"}:
        return network.decoder.seg_layers[-1]
    return network.decoder.head[-1] if name in TOKENS else network.decoder.head


@pytest.mark.parametrize("name", [*OURS, "plan", "residual"])
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_the_last_layer_makes_the_logits_of_them(name: str, dim: int, deep_supervision: bool) -> None:
    network = make(name, dim, deep_supervision)
    kept = DecoderFeatures(network)
    for module in network.modules():
        if isinstance(module, nn.Dropout2d | nn.Dropout3d):
            module.p = 0.0
    size = (16, 12, 16)[:dim]
    outputs = network(torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1)))
    logits = outputs[0] if isinstance(outputs, list) else outputs
    features = kept.take(size)
    assert kept.kept is None
    assert features.shape[2:] == size
    layer = last_layer(name, network)
    again = layer(features.movedim(1, -1)).movedim(-1, 1) if name in TOKENS else layer(features)
    torch.testing.assert_close(again, logits)
    assert features.requires_grad


@pytest.mark.parametrize("name", ["vnet", "resnet34_vnet"])
def test_before_the_dropout(name: str) -> None:
    network = make(name)
    kept = DecoderFeatures(network)
    network(torch.randn(4, 1, 16, 16))
    dead = (kept.take((16, 16)) == 0).flatten(2).all(2).float().mean().item()
    assert dead < 0.25


def test_odd_sizes_are_cropped_and_evaluation_keeps_nothing() -> None:
    network = make("vnet")
    kept = DecoderFeatures(network)
    network(torch.randn(2, 1, 13, 15))
    assert kept.take((13, 15)).shape == (2, 16, 13, 15)
    network.eval()(torch.randn(2, 1, 13, 15))
    assert kept.kept is None


@pytest.mark.parametrize("name", ["resnet34_vnet", "plan"])
def test_compiled_networks_give_the_same_features_and_gradients(name: str) -> None:
    results: list[tuple[Tensor, dict[str, Tensor | None]]] = []
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    for compiled in (False, True):
        network = make(name)
        for module in network.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
        called = torch.compile(network, backend="aot_eager", fullgraph=True) if compiled else network
        kept = DecoderFeatures(called)
        logits = called(x)[0]
        features = kept.take((16, 16))
        (logits.square().mean() + features.sin().mean()).backward()
        results.append((features.detach(), {key: p.grad for key, p in network.named_parameters()}))
    (eager, gradients), (traced, theirs) = results
    torch.testing.assert_close(traced, eager)
    for key, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(theirs[key], gradient, atol=1e-5, rtol=1e-3)


def test_networks_without_such_a_layer_are_an_error() -> None:
    with pytest.raises(UsageError, match="features of Sequential are not known") as raised:
        DecoderFeatures(nn.Sequential(nn.Conv2d(1, 2, 1)))
    assert raised.value.run.startswith("--set contrast_weight=0")
