from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from nnssl.networks.denoising import decode, encode
from nnssl_trainers.parts.dtlp_branches import (
    FeatureKeeper,
    has_batch_norm,
    predict_views,
    with_decoder,
)
from tests.nnssl_trainers.parts.dtlp_cases import small_branches, small_network

dims = pytest.mark.parametrize("dim", [2, 3])


def weights(decoder: nn.Module) -> list[torch.Tensor]:
    return [value for name, value in decoder.state_dict().items() if not name.startswith("encoder.")]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@dims
def test_the_decoders_start_from_the_trained_one(dim: int) -> None:
    network, branches = small_branches(dim)
    trained = copy.deepcopy(network)
    xi = copy.deepcopy(branches.xi)
    branches.start_from(network, start_xi=False)
    assert same(branches.psi, network.decoder)
    assert same(branches.xi, xi)
    branches.start_from(network, start_xi=True)
    assert same(branches.xi.decoder, network.decoder)
    first = network.encoder.stages[0][0].convs[0].conv
    assert torch.equal(branches.xi.image_stem.weight, first.weight)
    assert torch.equal(branches.xi.map_stem.weight, xi.map_stem.weight)
    assert branches.xi.image_stem.weight is not first.weight
    assert same(network, trained)
    fresh = small_network(dim)
    branches.start_from(network, False, fresh)
    assert same(network.decoder, fresh.decoder)
    assert same(network.encoder, trained.encoder)
    assert same(branches.psi, trained.decoder)


@dims
def test_aggregation_moves_the_decoder_alone(dim: int) -> None:
    network, branches = small_branches(dim)
    before = copy.deepcopy(network)
    branches.aggregate(network, 0.9)
    means = [(a + b) / 2 for a, b in zip(weights(branches.xi.decoder), weights(branches.psi), strict=True)]
    for new, old, mean in zip(weights(network.decoder), weights(before.decoder), means, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * mean)
    assert same(network.encoder, before.encoder)


@dims
def test_denoising_draws_steps_and_noise(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, branches = small_branches(dim)
    image, maps = torch.randn(2, 1, *[8] * dim), torch.ones(2, 3, *[8] * dim)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = branches.xi.forward

    def watch(encoder: nn.Module, condition: torch.Tensor, noised: torch.Tensor, t: torch.Tensor) -> Any:
        seen.append((noised, t))
        return forward(encoder, condition, noised, t)

    monkeypatch.setattr(branches.xi, "forward", watch)
    for seed in range(30):
        torch.manual_seed(seed)
        outputs, features = branches.denoise(network, image, maps)
    assert [x.shape[1] for x in outputs] == [3, 3]
    assert features[-1].shape[1] == 8
    steps = torch.cat([t for _, t in seen])
    assert steps.min() < 200
    assert steps.max() > 800
    torch.manual_seed(29)
    t, noise = torch.randint(1000, (2,)), torch.randn_like(maps)
    torch.testing.assert_close(seen[-1][0], branches.schedule.q_sample(maps, t, noise))


@dims
def test_the_first_teacher_has_no_graph_and_reads_the_image_once(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, branches = small_branches(dim)
    calls = []
    condition = branches.xi.condition
    monkeypatch.setattr(branches.xi, "condition", lambda image: calls.append(1) or condition(image))
    image = torch.randn(2, 1, *[8] * dim)
    torch.manual_seed(3)
    first = branches.teach(network, image)
    assert len(calls) == 1  # for all three steps
    assert not any(x.requires_grad for x in (first.psi, first.raw, first.clamped))
    torch.testing.assert_close(first.psi, decode(branches.psi, encode(network, image), image.shape[2:])[0].detach())
    torch.manual_seed(3)
    clamped, raw = branches.schedule.ddim_sample(
        lambda x, t: branches.xi(network.encoder, condition(image), x, t)[0][0], first.raw.shape, 3
    )
    assert torch.equal(first.raw, raw)
    assert torch.equal(first.clamped, clamped)


@dims
def test_a_network_with_another_decoder(dim: int) -> None:
    network, branches = small_branches(dim)
    shell = with_decoder(network, small_network(dim), branches.psi)
    assert list(shell.state_dict()) == list(network.state_dict())
    image = torch.randn(1, 1, *[8] * dim)
    torch.testing.assert_close(shell(image), decode(branches.psi, encode(network, image), image.shape[2:]))
    with torch.no_grad():
        next(branches.psi.parameters()).add_(1)
        next(network.encoder.parameters()).add_(1)
    torch.testing.assert_close(shell(image), decode(branches.psi, encode(network, image), image.shape[2:]))
    shell.decoder.deep_supervision = False
    assert branches.psi.deep_supervision
    alone = small_network(dim, deep=False)
    alone.load_state_dict(shell.state_dict())
    torch.testing.assert_close(alone(image), shell(image))


@pytest.mark.parametrize("together", [True, False])
def test_views_in_one_pass_or_in_several(together: bool) -> None:
    network = small_network(2)
    keeper, passes = FeatureKeeper(network.encoder), []
    network.register_forward_hook(lambda _, images, __: passes.append(len(images[0])))
    views = {"a": torch.randn(2, 1, 8, 8), "b": torch.randn(3, 1, 8, 8)}
    outputs, features = predict_views(network, keeper, views, together)
    assert passes == ([5] if together else [2, 3])
    for name, image in views.items():
        torch.testing.assert_close(outputs[name], network(image))
        torch.testing.assert_close(features[name], encode(network, image))
    assert predict_views(network, keeper, {}, together) == ({}, {})
    assert not has_batch_norm(network)
    assert has_batch_norm(nn.Sequential(nn.BatchNorm3d(1)))
