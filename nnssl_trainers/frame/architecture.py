"""From the network that a setting names to the `architecture` entry of the plans."""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnssl.errors import UsageError
from nnssl.networks import plans_entry
from nnssl.registry import NETWORKS

PLAN, NONE, RESIDUAL, BCP = "plan", "none", "residual", "bcp"
OF_BCP = {2: "unet_bcp", 3: "vnet"}  # networks of Bai et al., CVPR 2023, by number of axes
RESIDUAL_BLOCKS = (1, 3, 4)  # of the first stages, as nnU-Net's planners for residual encoders; 6 beyond them
Architecture = dict[str, Any]


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def architecture(setting: str, text: str, plan: Mapping[str, Any], others: tuple[str, ...] = ()) -> Architecture:
    """Return the `architecture` entry of the plans for the network that a setting names.

    Args:
        setting: name of the setting, for the message.
        text: `plan`, `residual` (nnU-Net's residual encoder in place of the plan's plain one), `bcp` (unet_bcp in 2-D,
            vnet in 3-D), a key of `nnssl.registry.NETWORKS`, or the dotted path of a network class. The last two take
            options after a colon: `mamba_unet:width=24,state_size=4`.
        plan: a configuration of nnU-Net's plans.
        others: further values of the setting, for the message.

    Raises:
        UsageError: no network has this name, or an option is wrong.
    """
    if text == PLAN:
        return dict(plan["architecture"])
    if text == RESIDUAL:
        return _residual(setting, plan["architecture"])
    name, _, options = text.partition(":")
    name = OF_BCP[len(plan["patch_size"])] if name == BCP else name
    known = f"known: {', '.join((PLAN, RESIDUAL, BCP, *NETWORKS, *others))}, or the dotted path of a class"
    if name not in NETWORKS and "." not in name:
        raise UsageError(f"{setting}={text} is no network", where=f"--set {setting}={text}", why=known)
    try:
        return plans_entry(name, plan, **_options(options))
    except UsageError as error:
        raise UsageError(
            f"{setting}={text} is no network", where=f"--set {setting}={text}", why=f"{error.what}; {known}"
        ) from error


def replace_architecture(plans: dict[str, Any], configuration: str, entry: Architecture) -> dict[str, Any]:
    """Return a copy of the plans in which a configuration has this `architecture` entry."""
    plans = copy.deepcopy(plans)
    plans["configurations"][configuration]["architecture"] = entry
    return plans


def _options(text: str) -> dict[str, Any]:
    """Return the options `a=1,b=text` of a network as numbers, lists or text."""
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


def _residual(setting: str, plain: Architecture) -> Architecture:
    """Return nnU-Net's network with residual encoder on the stages of a plain one."""
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
