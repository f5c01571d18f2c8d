"""Optimisers and learning rates: declared once, for every method, from the settings and the network's own wishes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from nnssl.config import MethodConfig
from nnssl.networks import OptimizerDefaults
from nnssl_trainers.frame.architecture import unwrap

DEFAULTS = {  # nnU-Net's, and those of AdamW's authors for vision transformers
    "sgd": OptimizerDefaults("sgd", learning_rate=1e-2, weight_decay=3e-5),
    "adamw": OptimizerDefaults("adamw", learning_rate=5e-4, weight_decay=0.05),
}


def build_optimizer(network: nn.Module, config: MethodConfig) -> torch.optim.Optimizer:
    """Return the optimiser of one network.

    A setting that is given wins, then what the network's class declares as its `optimizer_defaults`, then nnU-Net's
    values. Parameters whose names end with one of the class's `undecayed` names have no weight decay.

    Args:
        network: with its parameters on the device.
        config: settings of the method.
    """
    own: OptimizerDefaults = getattr(unwrap(network), "optimizer_defaults", DEFAULTS["sgd"])
    defaults = own if config.optimizer in ("auto", own.optimizer) else DEFAULTS[config.optimizer]
    rate = defaults.learning_rate if config.learning_rate is None else config.learning_rate
    decay = defaults.weight_decay if config.weight_decay is None else config.weight_decay
    groups = parameter_groups(network)
    optimizer: torch.optim.Optimizer
    if defaults.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, rate, weight_decay=decay)
    else:
        nesterov = config.nesterov and config.momentum > 0
        optimizer = torch.optim.SGD(groups, rate, momentum=config.momentum, nesterov=nesterov, weight_decay=decay)
    return optimizer


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters of a network in groups: with weight decay, and without where its class names some."""
    undecayed: tuple[str, ...] = getattr(unwrap(network), "undecayed", ())
    named = list(network.named_parameters())
    if not undecayed:
        return [{"params": [parameter for _, parameter in named]}]
    free = [parameter for name, parameter in named if name.endswith(undecayed)]
    decayed = [parameter for name, parameter in named if not name.endswith(undecayed)]
    return [{"params": decayed}, {"params": free, "weight_decay": 0.0}]


def schedule_factor(config: MethodConfig, progress: float) -> float:
    """Return the factor of the learning rate, from 1 downwards.

    poly: (1 − p)^0.9, nnU-Net's.  cosine: ½(1 + cos πp).  step: f^⌊p / interval⌋.  constant: 1.

    Args:
        config: `learning_rate_schedule`, `learning_rate_factor` f and `learning_rate_interval`.
        progress: p, the share of the run (or of its phase) that is done, in [0, 1].
    """
    if config.learning_rate_schedule == "poly":
        return float((1 - progress) ** 0.9)
    if config.learning_rate_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.learning_rate_schedule == "step":
        return float(config.learning_rate_factor ** math.floor(progress / config.learning_rate_interval + 1e-9))
    return 1.0


class LearningRates:
    """The learning rates of several optimisers; stands where nnU-Net has its scheduler.

    Args:
        trainer: has `trained`, the networks with their optimisers, and `learning_rate_factors(iteration)`.
    """

    def __init__(self, trainer: Any) -> None:  # noqa: ANN401 - the frame's trainer, which imports this module
        self.trainer = trainer

    def step(self, iteration: int) -> None:
        """Set the learning rates of one iteration."""
        factors = self.trainer.learning_rate_factors(iteration)
        for factor, (_, optimizer) in zip(factors, self.trainer.trained, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor
