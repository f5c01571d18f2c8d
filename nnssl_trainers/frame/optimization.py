"""Optimisers and learning rates of every method, from the settings and from what the network's class declares."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from nnssl.config import MethodConfig
from nnssl.networks import OptimizerDefaults
from nnssl_trainers.frame.architecture import unwrap

DEFAULTS = {  # sgd: the values of nnU-Net; adamw: values that are usual for vision transformers
    "sgd": OptimizerDefaults("sgd", learning_rate=1e-2, weight_decay=3e-5),
    "adamw": OptimizerDefaults("adamw", learning_rate=5e-4, weight_decay=0.05),
}


def build_optimizer(network: nn.Module, config: MethodConfig) -> torch.optim.Optimizer:
    """Return the optimiser of one network.

    A given setting comes first, the `optimizer_defaults` of the network's class second, `DEFAULTS` last. Parameters
    whose names end with one of the class's `undecayed` names have no weight decay.

    Args:
        network: the network; its parameters are on the device already.
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
    """Return a network's parameters in groups: those with weight decay, then those that its class leaves undecayed."""
    undecayed: tuple[str, ...] = getattr(unwrap(network), "undecayed", ())
    named = list(network.named_parameters())
    if not undecayed:
        return [{"params": [parameter for _, parameter in named]}]
    free = [parameter for name, parameter in named if name.endswith(undecayed)]
    decayed = [parameter for name, parameter in named if not name.endswith(undecayed)]
    return [{"params": decayed}, {"params": free, "weight_decay": 0.0}]


def schedule_factor(config: MethodConfig, progress: float) -> float:
    """Return the factor of the learning rate; every schedule starts at 1 and never rises.

    poly (nnU-Net): (1 − p)^0.9.  cosine: ½(1 + cos πp).  step: f^⌊p / interval⌋.  constant: 1.

    Args:
        config: holds `learning_rate_schedule`, `learning_rate_factor` (f) and `learning_rate_interval`.
        progress: p, the finished share of the run (or of its phase), in [0, 1].
    """
    if config.learning_rate_schedule == "poly":
        return float((1 - progress) ** 0.9)
    if config.learning_rate_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.learning_rate_schedule == "step":
        return float(config.learning_rate_factor ** math.floor(progress / config.learning_rate_interval + 1e-9))
    return 1.0


class LearningRates:
    """The learning rates of several optimisers; this class takes the place of nnU-Net's scheduler.

    Args:
        trainer: a trainer with `trained` (the networks and their optimisers) and `learning_rate_factors(iteration)`.
    """

    def __init__(self, trainer: Any) -> None:  # noqa: ANN401 - the frame's trainer, which imports this module
        self.trainer = trainer

    def step(self, iteration: int) -> None:
        """Set the learning rates of one iteration."""
        factors = self.trainer.learning_rate_factors(iteration)
        for factor, (_, optimizer) in zip(factors, self.trainer.trained, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor
