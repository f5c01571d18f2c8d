"""Passes that two processes share give the outputs and the gradients of one process."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from nnssl_trainers.parts.shared_passes import SharedPasses, average_gradients, whole


def small_network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    extra = {"plain": nn.Identity(), "batch norm": nn.BatchNorm2d(3), "dropout": nn.Dropout(0.5)}[kind]
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), extra, nn.ReLU(), nn.Conv2d(3, 2, 1))


def step(network: nn.Module, plain: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs and features; the loss mixes the samples of the batch and goes outside the shared passes, too."""
    kept: list[Tensor] = []
    hook = plain[0].register_forward_hook(lambda *parts: kept.append(parts[2]))
    outputs = network(images)
    features = whole(network, kept.pop())
    hook.remove()
    mixed = (outputs * outputs.flip(0)).sum() / outputs.detach().abs().sum()
    (mixed + features.square().mean() + plain(images[:1]).square().mean()).backward()
    return outputs.detach(), features.detach()


def rank_of_two(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for kind in ("plain", "batch norm", "dropout"):
        for size in (4, 3, 1):  # even, uneven, fewer samples than processes
            plain = small_network(kind)
            network = SharedPasses(plain, cuda=False)
            torch.manual_seed(5)
            outputs, features = step(network, plain, torch.randn(size, 1, 6, 6))
            average_gradients(network.parameters())
            gradients = [parameter.grad for parameter in plain.parameters()]
            found[f"{kind} {size}"] = (outputs, features, gradients, torch.rand(1))
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_outputs_and_gradients_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank_of_two, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in ranks[0]:
        kind, size = name.rsplit(" ", 1)
        network = small_network(kind)
        torch.manual_seed(5)
        outputs, features = step(network, network, torch.randn(int(size), 1, 6, 6))
        expected = (outputs, features, [parameter.grad for parameter in network.parameters()], torch.rand(1))
        for found in ranks:  # the last number shows that the generators stand where those of one process stand
            torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)


def test_a_network_of_one_process_is_left_alone() -> None:
    network, image = small_network("plain"), torch.randn(2, 1, 6, 6)
    assert whole(network, image) is image
    wrapped = SharedPasses(copy.deepcopy(network), cuda=False)
    assert [f"module.{name}" for name in network.state_dict()] == list(wrapped.state_dict())
