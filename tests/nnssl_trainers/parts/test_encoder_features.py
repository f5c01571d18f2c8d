from __future__ import annotations

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnssl.errors import UsageError
from nnssl_trainers.frame.architecture import architecture
from nnssl_trainers.parts.encoder_features import EncoderFeatures
from tests.conftest import tiny_plans


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(
    "name",
    [
        "plan",
        "residual",
        "unet_bcp",
        "vnet",
        "vnet_multiscale",
        "resnet34_vnet",
        "mamba_unet:width=8,state_size=2",
        "swin_unet:width=8",
    ],
)
def test_features_are_the_mean_of_the_deepest_stage(name: str, dim: int) -> None:
    (plan,) = tiny_plans(dim, [16] * dim)["configurations"].values()
    entry = architecture("network", name, plan)
    network = get_network_from_plans(*entry.values(), 1, 3, allow_init=False, deep_supervision=False).eval()
    features = EncoderFeatures(network)
    image = torch.randn(2, 1, *[16] * dim)
    network(image)
    found = features.take()
    assert found.shape == (2, features.width)
    deepest = network.encoder(image)[-1].detach()
    if name.startswith(("mamba", "swin")):
        deepest = deepest.movedim(-1, 1)
    torch.testing.assert_close(found.detach(), deepest.flatten(2).mean(2))
    found.sum().backward()
    assert any(parameter.grad is not None for parameter in network.encoder.parameters())


def test_other_networks_are_refused() -> None:
    with pytest.raises(UsageError, match="has no encoder whose features can be contrasted"):
        EncoderFeatures(nn.Conv2d(1, 1, 1))
