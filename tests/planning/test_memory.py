from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nnssl.networks import build_network, load_network, plans_entry
from nnssl.planning.memory import relative_activations, saved_bytes
from nnssl.registry import METHODS


def test_saved_bytes_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    image = torch.zeros(2, 1, 8, 8)
    kept = 2 * 64 * 4 * (1 + 4)  # the inputs of the convolutions; ReLU keeps its output, which is the second
    assert saved_bytes(network, image) == kept
    assert saved_bytes(network.to("meta"), image.to("meta")) == kept


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", ["unet_bcp", "vnet"])
def test_meta_keeps_what_the_cpu_keeps(name: str, dim: int) -> None:
    network = load_network(name, 1, 2, [16] * dim, [[1] * dim, [2] * dim, [2] * dim])
    image = torch.zeros(2, 1, *[16] * dim)
    assert saved_bytes(network, image) == saved_bytes(network.to("meta"), image.to("meta"))


class Held:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def bytes_kept(step: Callable[[], torch.Tensor], networks: list[nn.Module]) -> int:
    """Return the bytes that wait for the backward pass when a step's losses are there, but those of weights."""
    held: weakref.WeakSet[Held] = weakref.WeakSet()  # loses what is freed before

    def hold(tensor: torch.Tensor) -> Held:
        kept = Held(tensor)
        held.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda kept: kept.tensor):
        loss = step()
    weights = {p.untyped_storage()._cdata for network in networks for p in network.parameters()}
    storages = {kept.tensor.untyped_storage()._cdata: kept.tensor.untyped_storage() for kept in held}
    assert loss.requires_grad
    return sum(storage.nbytes() for address, storage in storages.items() if address not in weights)


@pytest.mark.parametrize("name", ["DSMTTrainer", "CCETrainer"])
@pytest.mark.parametrize(("dim", "patch"), [(2, 64), (3, 32)])
def test_a_step_of_two_students_keeps_what_planning_predicts(
    name: str, dim: int, patch: int, make_tiny, make_trainer
) -> None:
    folder = make_tiny(dim, [patch] * dim, features_per_stage=[16, 32, 64], n_conv_per_stage=[2, 2, 2])
    plan = json.loads((folder / "nnUNetPlans.json").read_text())["configurations"]["2d" if dim == 2 else "3d_fullres"]
    trainer = make_trainer(name, dim)
    trainer.initialize()
    trainer.set_training_mode()
    batch = trainer._move_to_device(next(trainer.get_dataloaders()[0]))
    batch = dataclasses.replace(batch, iteration=4)

    kept = bytes_kept(lambda: torch.stack(list(trainer.training_losses(batch).values())).sum(), trainer.students)
    method = METHODS[name]
    divisor = method.activations + relative_activations(plan, method.networks, 1, 3, mixed_precision=False)
    planned = build_network(plan["architecture"], 1, 3, deep_supervision=True)
    predicted = divisor * saved_bytes(planned, batch.image_l)
    assert kept == pytest.approx(predicted, rel=0.15)


def test_a_network_of_the_same_size_counts_once() -> None:
    plan = {
        "patch_size": [32, 32],
        "architecture": {
            "network_class_name": "nnssl.networks.unet_bcp.UNetBCP",
            "arch_kwargs": {"patch_size": [32, 32], "strides": [[1, 1], [2, 2], [2, 2]]},
            "_kw_requires_import": [],
        },
    }
    assert plans_entry("unet_bcp", plan) == plan["architecture"]
    assert relative_activations(plan, ["unet_bcp"], 1, 2, mixed_precision=False) == pytest.approx(1.0, abs=0.02)
    assert relative_activations(plan, ["unet_bcp"] * 2, 1, 2, mixed_precision=False) == pytest.approx(2.0, abs=0.04)
    assert relative_activations(plan, ["unet_bcp"], 1, 2) == pytest.approx(1.0, abs=0.02)
