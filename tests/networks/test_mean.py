from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnssl.networks.mean import MeanOfNetworks
from tests.conftest import tiny_plans


def architectures(dim: int) -> list[dict[str, Any]]:
    """Return plans entries of nnU-Net's own network and of two Mamba-UNets, one class a network."""
    (stock,) = tiny_plans(dim, [16] * dim)["configurations"].values()
    strides = stock["architecture"]["arch_kwargs"]["strides"]
    arguments = {"patch_size": [16] * dim, "strides": strides, "width": 8, "blocks": 1, "state_size": 2}
    mamba = {
        "network_class_name": "nnssl.networks.mamba_unet.MambaUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": [],
    }
    return [stock["architecture"], mamba, {**mamba, "arch_kwargs": {**arguments, "expansion": 1}}]


def make(dim: int = 2, **options: Any) -> MeanOfNetworks:
    torch.manual_seed(0)
    mean = MeanOfNetworks(1, 3, architectures(dim), **options)
    with torch.no_grad():
        for parameter in mean.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mean.eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Constant(nn.Module):
    def __init__(self, *logits: list[float]) -> None:
        super().__init__()
        self.logits = [nn.Parameter(torch.tensor([each])[..., None, None]) for each in logits]

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.logits


@pytest.mark.parametrize("dim", [2, 3])
@torch.no_grad()
def test_softmax_of_the_logits_is_the_mean(dim: int) -> None:
    mean, x = make(dim), image(2, 1, *[16] * dim)
    members = torch.stack([member(x).softmax(1) for member in mean.members])
    assert members.std(0).max() > 1e-3  # they differ
    torch.testing.assert_close(mean(x).softmax(1), members.mean(0))
    torch.testing.assert_close(mean(x).exp().sum(1), torch.ones(2, *[16] * dim))  # log probabilities


@torch.no_grad()
def test_sigmoid_of_the_logits_is_the_mean() -> None:
    mean, x = make(sigmoid=True), image(2, 1, 16, 16)
    expected = torch.stack([member(x).sigmoid() for member in mean.members]).mean(0)
    torch.testing.assert_close(mean(x).sigmoid(), expected)


@pytest.mark.parametrize(
    ("sigmoid", "expected"), [(False, [0.6, 0.4]), (True, [0.5 * (0.75 + 0.5), 0.5 * (0.25 + 1 / 3)])]
)
def test_hand_values_and_members_with_deep_supervision(sigmoid: bool, expected: list[float]) -> None:
    tensor = torch.tensor([[3.0, 1 / 3], [1.0, 0.5]]) if sigmoid else torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    first, second = tensor.log().tolist()
    members = [Constant(first, [9.0, 9.0]), Constant(second, [9.0, 9.0])]
    logits = MeanOfNetworks.of(members, sigmoid)(image(1, 1, 1, 1))
    found = logits.sigmoid() if sigmoid else logits.softmax(1)
    torch.testing.assert_close(found.flatten(), torch.tensor(expected))
    logits[0, 0].sum().backward()
    assert all(member.logits[0].grad.abs().max() > 0 for member in members)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_confident_members_stay_finite(sigmoid: bool) -> None:
    members = [Constant([200.0, -200.0]), Constant([150.0, -180.0])]
    logits = MeanOfNetworks.of(members, sigmoid)(image(1, 1, 1, 1))
    assert logits.isfinite().all()
    assert logits[0, 0] > 100 or not sigmoid
    half = MeanOfNetworks.of([Constant([200.0, -200.0]), Constant([-200.0, 200.0])], sigmoid)(image(1, 1, 1, 1))
    torch.testing.assert_close(half[0, 0], half[0, 1])


@torch.no_grad()
def test_weights_are_shared_and_fit_the_network_from_plans() -> None:
    built, x = make(), image(1, 1, 16, 16)
    members = [copy.deepcopy(member) for member in built.members]
    shared = MeanOfNetworks.of(members, sigmoid=False)
    assert [*shared.members] == members
    assert [*shared.state_dict()] == [*built.state_dict()]
    assert torch.equal(shared(x), built(x))
    next(members[1].parameters()).add_(1.0)
    assert not torch.equal(shared(x), built(x))
    built.load_state_dict(shared.state_dict())
    assert torch.equal(shared(x), built(x))
    shared.load_state_dict(make().state_dict())
    assert torch.equal(shared(x), make()(x))


@torch.no_grad()
def test_plans_entry_deep_supervision_and_pickle() -> None:
    arguments = {"architectures": architectures(2), "sigmoid": True}
    network = get_network_from_plans("nnssl.networks.mean.MeanOfNetworks", arguments, [], 1, 3, deep_supervision=True)
    x = image(1, 1, 16, 16)
    (logits,) = network.eval()(x)
    network.decoder.deep_supervision = False
    assert network.sigmoid
    assert torch.equal(network(x), logits)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), logits)


@torch.no_grad()
def test_full_precision_inside_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert make()(image(1, 1, 16, 16)).dtype == torch.float32
