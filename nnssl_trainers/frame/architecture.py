"""Networks other than the plan's: from the name in a setting to the entry in the plans."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.config import MethodConfig, config_with
from nnssl.errors import UsageError
from nnssl.networks import plans_entry
from nnssl.registry import NETWORKS
from nnssl.training.settings import RunSettings

PLAN, NONE, RESIDUAL = "plan", "none", "residual"
RESIDUAL_BLOCKS = (1, 3, 4)  # of the first stages, as nnU-Net's planners for residual encoders; 6 beyond them
Architecture = dict[str, Any]


def architecture(
    setting: str, name: str, plan: Mapping[str, Any], options: Mapping[str, Any], others: tuple[str, ...] = ()
) -> Architecture:
    """Return the `architecture` entry of the plans for the network that a setting names.

    Args:
        setting: name of the setting, for the message.
        name: `plan`, `residual` (nnU-Net's residual encoder in place of the plan's plain one), a key of
            `nnssl.registry.NETWORKS`, or the dotted path of a network class.
        plan: a configuration of nnU-Net's plans.
        options: the network's own options; the plan's own network takes none.
        others: further values of the setting, for the message.

    Raises:
        UsageError: there is no such network.
    """
    if name == PLAN:
        return dict(plan["architecture"])
    if name == RESIDUAL:
        return _residual(setting, plan["architecture"])
    try:
        return plans_entry(name, plan, **options)
    except UsageError as error:
        raise UsageError(
            f"{setting}={name} is no network",
            where=f"--set {setting}={name}",
            why=f"known: {', '.join((PLAN, RESIDUAL, *NETWORKS, *others))}, or the dotted path of a class",
        ) from error


def plans_with_network(
    plans: dict[str, Any], configuration: str, config_class: type[MethodConfig], setting: str
) -> dict[str, Any]:
    """Return a copy of the plans whose network is the one that a setting of the run names.

    Args:
        plans: nnU-Net's plans with the run's settings in them; unchanged.
        configuration: for instance `3d_fullres`.
        config_class: settings of the method.
        setting: one of them, see `architecture`.

    Raises:
        UsageError: there is no such network, or a setting is wrong.
    """
    plans = copy.deepcopy(plans)
    config = config_with(config_class, RunSettings.from_plans(plans).config)
    plan = PlansManager(plans).get_configuration(configuration).configuration
    entry = architecture(setting, getattr(config, setting), plan, {})
    plans["configurations"][configuration]["architecture"] = entry
    return plans


def _residual(setting: str, plain: Architecture) -> Architecture:
    """Return nnU-Net's network with residual encoder on the stages of a plain one."""
    arguments = {key: value for key, value in plain["arch_kwargs"].items() if key != "nonlin_first"}
    if not plain["network_class_name"].endswith(".PlainConvUNet"):
        raise UsageError(
            f"{setting}={RESIDUAL} needs nnU-Net's plain network in the plans",
            where=f"--set {setting}={RESIDUAL}",
            why=f"theirs is {plain['network_class_name']}",
        )
    stages = len(arguments.pop("n_conv_per_stage"))
    arguments["n_blocks_per_stage"] = [*RESIDUAL_BLOCKS, *[6] * stages][:stages]
    return {
        **plain,
        "network_class_name": plain["network_class_name"].replace("PlainConvUNet", "ResidualEncoderUNet"),
        "arch_kwargs": arguments,
    }
