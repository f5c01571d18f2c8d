"""Weights of one fold: out of a checkpoint and into one, and the check that they fit the network of the plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.host import input_channels, network_of_entry, plans_manager
from nnssl.inference.checkpoint import Checkpoint
from nnssl.training import checkpoints

STOCK_TRAINER = "nnUNetTrainer"


@dataclass(frozen=True)
class FoldNetwork:
    """What a bundle says about the network of a fold, beside its weights.

    Attributes:
        trainer: class name that stock nnU-Net looks up to build the network.
        configuration: name of the plans' configuration.
        mirror_axes: spatial axes that test-time mirroring may flip.
        aliases: name of a weight -> name of the weight that it is, as nnU-Net's decoder holds its encoder, too.
    """

    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]
    aliases: dict[str, str]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FoldNetwork:
        """Return the description from plain values.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the content is something else.
        """
        axes = tuple(int(axis) for axis in content["mirror_axes"])
        aliases = {str(name): str(other) for name, other in content["aliases"].items()}
        if any(axis not in (0, 1, 2) for axis in axes):
            raise ValueError(f"mirror_axes {axes}")
        return cls(str(content["trainer"]), str(content["configuration"]), axes, aliases)


def without_repeats(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights, each once, and for every further name of a weight the first one."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and first.setdefault(key, name) != name:
            aliases[name] = first[key]
    kept = {name: tensor.contiguous().clone() for name, tensor in weights.items() if name not in aliases}
    return kept, aliases


def with_repeats(weights: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Return weights under all of their names.

    Raises:
        KeyError: an alias names a weight that is not there.
    """
    return {**weights, **{name: weights[other] for name, other in aliases.items()}}


def save_checkpoint(
    path: Path, weights: Mapping[str, Tensor], network: FoldNetwork, ours: Mapping[str, Any] | None
) -> None:
    """Write the checkpoint that nnssl and stock nnU-Net predict with: tensors, numbers and texts only.

    Args:
        path: of the checkpoint.
        weights: under all names.
        network: of the fold.
        ours: what stands under nnssl's key; None for a checkpoint of stock nnU-Net.

    Raises:
        EnvironmentProblem: the file cannot be written.
    """
    content = {
        "network_weights": dict(weights),
        "trainer_name": network.trainer,
        "init_args": {"configuration": network.configuration},
        "inference_allowed_mirroring_axes": network.mirror_axes or None,
        **({} if ours is None else {checkpoints.KEY: dict(ours)}),
    }
    checkpoints.save(content, path)


def problem_with_weights(
    plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str, weights: Mapping[str, Tensor]
) -> str:
    """Return why weights do not fit the network of the plans; empty where they fit.

    The network is built without memory for its weights (torch's device `meta`).
    """
    wrong = [name for name, tensor in weights.items() if not isinstance(name, str) or not isinstance(tensor, Tensor)]
    if wrong:
        return f"{wrong[0]!r} is no tensor"
    try:
        manager = plans_manager(plans)
        plan = manager.get_configuration(configuration)
        heads = manager.get_label_manager(dataset_json).num_segmentation_heads
        channels = input_channels(manager, plan, dataset_json)
        with torch.device("meta"):
            entry = plan.configuration["architecture"]
            network = network_of_entry(entry, channels, heads, allow_init=False, deep_supervision=False)
    except Exception as error:  # plans from outside can be wrong in any way
        return f"the network of the plans cannot be built ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted == found:
        return ""
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    name = different[0]
    return (
        f"{len(different)} weights do not fit the network of the plans: {name} has the shape "
        f"{found.get(name, 'none')}, the network needs {wanted.get(name, 'none')}"
    )


def network_of(checkpoint: Checkpoint, aliases: Mapping[str, str], trainer: str = "") -> FoldNetwork:
    """Return the description of the network in a checkpoint; `trainer` takes the place of the checkpoint's name."""
    name = trainer or checkpoint.trainer
    return FoldNetwork(name, checkpoint.configuration, checkpoint.mirror_axes or (), dict(aliases))
