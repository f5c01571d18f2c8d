"""Networks from the papers, as plans entries: `X(input_channels, num_classes, patch_size, strides, ...)`."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nnssl.errors import UsageError
from nnssl.host import network_of_entry
from nnssl.registry import find_network


@dataclass(frozen=True)
class OptimizerDefaults:
    """The optimiser that a network's authors train it with; a network class names it as `optimizer_defaults`.

    Attributes:
        optimizer: `sgd` or `adamw`.
        learning_rate: first learning rate.
        weight_decay: weight decay.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float


def load_network(
    name: str,
    input_channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]],
    **kwargs: Any,  # noqa: ANN401 - each network has its own options
) -> nn.Module:
    """Return a new network with random weights.

    Args:
        name: key of `nnssl.registry.NETWORKS`.
        input_channels: image channels.
        num_classes: output channels, with the background.
        patch_size: voxels an axis, 2 or 3 axes.
        strides: pooling steps of every stage, as in nnU-Net's plans; the first entry is all ones.
        **kwargs: `deep_supervision` and the network's own options.

    Returns:
        Network from (B, input_channels, *S) to logits (B, num_classes, *S); with `deep_supervision=True` to a list of
        logits, finest first.

    Raises:
        UsageError: no such network; the message lists the valid names.
    """
    network: nn.Module = find_network(name).load()(input_channels, num_classes, patch_size, strides, **kwargs)
    return network


def plans_entry(name: str, plan: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the `architecture` entry that makes nnU-Net build a network, sized by a configuration of its plans.

    A network class with a class method `plan_options(plan)` derives options of its own from the plan.

    Args:
        name: key of `nnssl.registry.NETWORKS`, or the dotted path of a class with the same constructor.
        plan: a configuration of nnU-Net's plans, with `patch_size` and `architecture`.
        **kwargs: the network's own options; they override what the plan gives.

    Raises:
        UsageError: no such network (the message lists the valid names), or no such option of it.
    """
    if "." in name:
        path = name
    else:
        network = find_network(name)
        path = f"{network.module}.{network.class_name}"
    found: Any = pydoc.locate(path)
    if not inspect.isclass(found):
        raise UsageError(f"there is no class {path}", where=f"network {name}")
    unknown = [option for option in kwargs if option not in inspect.signature(found).parameters]
    if unknown:
        raise UsageError(f"{found.__name__} has no option {', '.join(unknown)}", where=f"network {name}")
    strides = plan["architecture"]["arch_kwargs"]["strides"]
    options: dict[str, Any] = {"patch_size": [int(n) for n in plan["patch_size"]], "strides": strides}
    options |= found.plan_options(plan) if hasattr(found, "plan_options") else {}
    return {"network_class_name": path, "arch_kwargs": {**options, **kwargs}, "_kw_requires_import": []}


def build_network(entry: Mapping[str, Any], input_channels: int, num_classes: int, **kwargs: Any) -> nn.Module:  # noqa: ANN401
    """Return the network of an `architecture` entry of nnU-Net's plans, ours or not, as nnU-Net builds it.

    Args:
        entry: `network_class_name`, `arch_kwargs`, `_kw_requires_import`.
        input_channels: image channels.
        num_classes: output channels.
        **kwargs: `allow_init` and `deep_supervision`, as nnU-Net's `get_network_from_plans` takes them.
    """
    network: nn.Module = network_of_entry(entry, input_channels, num_classes, **kwargs)
    return network
