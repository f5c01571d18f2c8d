from __future__ import annotations

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnssl.errors import UsageError
from nnssl.registry import METHODS
from nnssl_trainers.frame.architecture import architecture, replace_architecture, unwrap
from tests.conftest import tiny_plans


def plan(dim: int):
    (found,) = tiny_plans(dim, [16] * dim)["configurations"].values()
    return found


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("text", ["plan", "residual", "bcp", "vnet", "mamba_unet:width=8,state_size=2"])
def test_entries_build_networks(text: str, dim: int) -> None:
    entry = architecture("network", text, plan(dim))
    network = get_network_from_plans(*entry.values(), 1, 3, allow_init=False, deep_supervision=False)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *[16] * dim)).shape == (1, 3, *[16] * dim)


def test_bcp_is_a_unet_in_2d_and_a_vnet_in_3d() -> None:
    names = [architecture("network", "bcp", plan(dim))["network_class_name"].rpartition(".")[2] for dim in (2, 3)]
    assert names == ["UNetBCP", "VNet"]


def test_a_network_class_derives_its_options_from_the_plan() -> None:
    widths = [architecture("network", "mamba_unet", plan(dim))["arch_kwargs"]["width"] for dim in (2, 3)]
    assert widths == [12, 6]  # the tiny plan has 4 features
    options = architecture("network", "mamba_unet:width=8,state_size=2", plan(2))["arch_kwargs"]
    assert (options["width"], options["state_size"]) == (8, 2)


@pytest.mark.parametrize("text", ["vnett", "mamba_unet:wide=8", "mamba_unet:width", "os.path", "no.such.Class", "none"])
def test_unknown_networks_and_options_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        architecture("network", text, plan(2))
    assert caught.value.where == f"--set network={text}"
    assert "mamba_unet" in caught.value.why


def test_residual_needs_the_plain_network() -> None:
    residual = architecture("network", "residual", plan(2))
    assert residual["arch_kwargs"]["n_blocks_per_stage"] == [1, 3, 4]
    assert "n_conv_per_stage" not in residual["arch_kwargs"]
    with pytest.raises(UsageError, match="needs nnU-Net's plain network"):
        architecture("network", "residual", {**plan(2), "architecture": residual})


def test_plans_are_copied() -> None:
    plans = tiny_plans(2, [16, 16])
    changed = replace_architecture(plans, "2d", architecture("network", "vnet", plan(2)))
    assert changed["configurations"]["2d"]["architecture"]["network_class_name"].endswith("VNet")
    assert plans == tiny_plans(2, [16, 16])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_every_network(name: str, make_trainer) -> None:
    network, kind = ("diff_vnet:width=4", "DiffVNet") if name == "DTLPTrainer" else ("vnet", "VNet")
    trainer = make_trainer(name, 2, config={"network": network})  # DTLP-Net's denoising branch shares the encoder
    trainer.initialize()
    assert type(unwrap(trainer.network)).__name__ == kind
    terms = trainer.training_losses(trainer._move_to_device(next(trainer.get_dataloaders()[0])))
    assert all(term.isfinite() for term in terms.values())


def test_a_network_without_wrappers_is_returned_itself() -> None:
    network = nn.Linear(1, 1)
    assert unwrap(network) is network
    assert unwrap(torch.compile(network)) is network
