"""A small network with DTLP-Net's branches, for the tests of its parts."""

from __future__ import annotations

from typing import Any

import torch

from nnssl.host import network_of_entry
from nnssl_trainers.methods.dtlp import DTLPConfig
from nnssl_trainers.parts.dtlp_branches import DTLPBranches
from tests.conftest import tiny_plans


def small_network(dim: int, heads: int = 3, deep: bool = True) -> Any:
    (plan,) = tiny_plans(dim, [8] * dim)["configurations"].values()
    return network_of_entry(plan["architecture"], 1, heads, allow_init=True, deep_supervision=deep)


def small_branches(dim: int, heads: int = 3, **config: Any) -> tuple[Any, DTLPBranches]:
    torch.manual_seed(0)
    network = small_network(dim, heads)
    settings = DTLPConfig(**{"correlation_weight": 1.0, "ddim_steps": 3, **config})
    decoders = [small_network(dim, heads).decoder for _ in range(2)]
    return network, DTLPBranches(network, decoders, heads, settings)
