from __future__ import annotations

import pytest
import torch

from nnssl.bundles.trust import problems_of_plans
from nnssl.bundles.weights import (
    FoldNetwork,
    problem_with_weights,
    save_checkpoint,
    with_repeats,
    without_repeats,
)
from nnssl.inference.checkpoint import load_checkpoint
from nnssl.networks import build_network, plans_entry
from nnssl.networks.mean import MeanOfNetworks
from nnssl.registry import NETWORKS
from tests.conftest import LABELS, tiny_plans

DESCRIPTION = {"labels": LABELS, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}


def test_shared_weights_are_kept_once_and_come_back_under_all_names() -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    weights = {"a": shared, "b": shared, "turned": shared.T, "copy": shared.clone(), "empty": torch.zeros(0)}
    kept, aliases = without_repeats(weights)
    assert aliases == {"b": "a"}
    assert set(kept) == {"a", "turned", "copy", "empty"}
    assert all(tensor.is_contiguous() for tensor in kept.values())
    back = with_repeats(kept, aliases)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())
    with pytest.raises(KeyError):
        with_repeats(kept, {"b": "nowhere"})


@pytest.mark.parametrize("axes", [(), (0, 2)])
@pytest.mark.parametrize("ours", [None, {"trainer": "FixMatchTrainer"}])
def test_a_checkpoint_reads_like_one_of_a_run(axes, ours, tmp_path) -> None:
    network = FoldNetwork.from_dict(
        {"trainer": "nnUNetTrainer", "configuration": "2d", "mirror_axes": list(axes), "aliases": {}}
    )
    save_checkpoint(tmp_path / "checkpoint.pth", {"w": torch.ones(2)}, network, ours)
    read = load_checkpoint(tmp_path / "checkpoint.pth")
    assert torch.equal(read.weights["w"], torch.ones(2))
    assert (read.trainer, read.configuration, read.ours) == ("nnUNetTrainer", "2d", ours is not None)
    assert read.mirror_axes == (axes or None)


@pytest.mark.parametrize("name", ["", *sorted(NETWORKS)])
def test_the_networks_of_nnssl_fit_their_own_weights(name) -> None:
    """The check builds every network without memory, and agrees with the network that prediction builds."""
    plans = tiny_plans(3, [32, 32, 32])
    plan = plans["configurations"]["3d_fullres"]
    if name:
        plan["architecture"] = plans_entry(name, plan)
    weights = build_network(plan["architecture"], 1, len(LABELS), allow_init=False, deep_supervision=False).state_dict()
    assert problems_of_plans(plans) == []
    assert problem_with_weights(plans, DESCRIPTION, "3d_fullres", weights) == ""
    first = next(iter(weights))
    assert first in problem_with_weights(plans, DESCRIPTION, "3d_fullres", {**weights, first: torch.zeros(1, 7)})
    without = {key: tensor for key, tensor in weights.items() if key != first}
    assert "1 weights do not fit" in problem_with_weights(plans, DESCRIPTION, "3d_fullres", without)


def test_what_is_no_tensor_and_what_cannot_be_built_is_said() -> None:
    plans = tiny_plans(3, [16, 16, 16])
    assert "'w' is no tensor" in problem_with_weights(plans, DESCRIPTION, "3d_fullres", {"w": 3})
    assert "cannot be built" in problem_with_weights(plans, DESCRIPTION, "2d", {})
    assert "cannot be built" in problem_with_weights({}, DESCRIPTION, "3d_fullres", {})


def test_the_mean_of_two_networks_fits_its_own_weights_and_its_members_are_checked() -> None:
    plans = tiny_plans(3, [32, 32, 32])
    plan = plans["configurations"]["3d_fullres"]
    members = [plan["architecture"], plans_entry("vnet", plan)]
    arguments = {"architectures": members, "strides": members[0]["arch_kwargs"]["strides"], "sigmoid": False}
    name = f"{MeanOfNetworks.__module__}.{MeanOfNetworks.__name__}"
    plan["architecture"] = {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": []}
    network = build_network(plan["architecture"], 1, len(LABELS), allow_init=False, deep_supervision=False)
    assert problems_of_plans(plans) == []
    assert problem_with_weights(plans, DESCRIPTION, "3d_fullres", network.state_dict()) == ""
    members[1]["network_class_name"] = "os.system"
    assert problems_of_plans(plans) == ["network_class_name is 'os.system'"]
