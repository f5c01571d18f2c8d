"""Turn the network that a setting names into the `architecture` entry of the plans."""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch._dynamo import OptimizedModule

from nnssl.errors import UsageError
from nnssl.networks import plans_entry
from nnssl.registry import BCP, PLAN, RESIDUAL, check_network, known_networks
from nnssl_trainers.parts.shared_passes import SharedPasses

OF_BCP = {2: "unet_bcp", 3: "vnet"}  # the networks of Bai et al., CVPR 2023, by number of spatial axes
RESIDUAL_BLOCKS = (1, 3, 4)  # nnU-Net's residual planners give the first stages these blocks and each later stage 6
Architecture = dict[str, Any]


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network itself, without the wrappers of distributed training and torch.compile."""
    if isinstance(network, SharedPasses):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def architecture(setting: str, text: str, plan: Mapping[str, Any], others: tuple[str, ...] = ()) -> Architecture:
    """Return the `architecture` entry of the plans for the network that a setting names.

    Args:
        setting: name of the setting; the error message uses it.
        text: `plan`, `residual` (nnU-Net's residual encoder replaces the plan's plain encoder), `bcp` (unet_bcp in
            2-D, vnet in 3-D), a key of `nnssl.registry.NETWORKS`, or the dotted path of a network class. The last two
            take options after a colon: `mamba_unet:width=24,state_size=4`.
        plan: one configuration of nnU-Net's plans.
        others: further values of the setting; the error message lists them.

    Raises:
        UsageError: no network has this name, or an option is wrong.
    """
    check_network(setting, text, others)
    if text == PLAN:
        return dict(plan["architecture"])
    if text == RESIDUAL:
        return _residual_architecture(setting, plan["architecture"])
    name, _, options = text.partition(":")
    name = OF_BCP[len(plan["patch_size"])] if name == BCP else name
    try:
        return plans_entry(name, plan, **_parse_options(options))
    except UsageError as error:
        raise UsageError(
            f"{setting}={text} is no network",
            where=f"--set {setting}={text}",
            why=f"{error.what}; {known_networks(others)}",
        ) from error


def replace_architecture(plans: dict[str, Any], configuration: str, entry: Architecture) -> dict[str, Any]:
    """Return a copy of the plans in which one configuration has a new `architecture` entry."""
    plans = copy.deepcopy(plans)
    plans["configurations"][configuration]["architecture"] = entry
    return plans


def _parse_options(text: str) -> dict[str, Any]:
    """Return a network's options, written as `a=1,b=text`, by name; a value is a number, a list or text."""
    options = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not separator or not key.isidentifier():
            raise UsageError(f"'{part}' is not of the form option=value")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def _residual_architecture(setting: str, plain: Architecture) -> Architecture:
    """Return the entry of nnU-Net's network with residual encoder that has the stages of a plain network."""
    arguments = {key: value for key, value in plain["arch_kwargs"].items() if key != "nonlin_first"}
    if not plain["network_class_name"].endswith(".PlainConvUNet"):
        raise UsageError(
            f"{setting}={RESIDUAL} needs nnU-Net's plain network in the plans",
            where=f"--set {setting}={RESIDUAL}",
            why=f"the plans have {plain['network_class_name']}",
        )
    stages = len(arguments.pop("n_conv_per_stage"))
    arguments["n_blocks_per_stage"] = [*RESIDUAL_BLOCKS, *[6] * stages][:stages]
    return {
        **plain,
        "network_class_name": plain["network_class_name"].replace("PlainConvUNet", "ResidualEncoderUNet"),
        "arch_kwargs": arguments,
    }
