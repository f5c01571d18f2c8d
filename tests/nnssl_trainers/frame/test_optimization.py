from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from nnssl.config import MethodConfig, config_with
from nnssl.networks import OptimizerDefaults
from nnssl.registry import METHODS
from nnssl_trainers.frame.optimization import build_optimizer, schedule_factor


class StateSpace(nn.Module):
    optimizer_defaults: ClassVar[OptimizerDefaults] = OptimizerDefaults("adamw", learning_rate=1e-3, weight_decay=0.1)
    undecayed: ClassVar[tuple[str, ...]] = ("rate",)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.rate = nn.Parameter(torch.zeros(2))


def settings(*text: str) -> MethodConfig:
    return config_with(MethodConfig, text)


def test_the_default_is_nnunets_optimiser() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), settings())
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    wanted = {"lr": 1e-2, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
    assert {name: group[name] for name in wanted} == wanted


def test_the_network_decides_where_no_setting_does() -> None:
    network = StateSpace()
    optimizer = build_optimizer(network, settings())
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed, free = optimizer.param_groups
    assert (decayed["lr"], decayed["weight_decay"], free["weight_decay"]) == (1e-3, 0.1, 0.0)
    assert free["params"] == [network.rate]
    assert len(decayed["params"]) == 2


@pytest.mark.parametrize("network", [nn.Linear(2, 2), StateSpace()], ids=["convolutional", "state space"])
def test_settings_win_over_the_network(network: nn.Module) -> None:
    given = ("learning_rate=0.5", "weight_decay=0.25", "momentum=0.8", "nesterov=off")
    sgd = build_optimizer(network, settings("optimizer=sgd", *given))
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"], group["nesterov"]) == (0.5, 0.25, 0.8, False)
    adamw = build_optimizer(network, settings("optimizer=adamw", *given))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (0.5, 0.25)


def test_another_optimiser_than_the_networks_has_its_own_defaults() -> None:
    group = build_optimizer(StateSpace(), settings("optimizer=sgd")).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (1e-2, 3e-5)
    group = build_optimizer(nn.Linear(2, 2), settings("optimizer=adamw")).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (5e-4, 0.05)


def test_no_momentum_has_no_nesterov() -> None:
    assert build_optimizer(nn.Linear(2, 2), settings("momentum=0")).param_groups[0]["nesterov"] is False


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ((), {0.0: 1.0, 0.25: 0.75**0.9, 1.0: 0.0}),
        (("learning_rate_schedule=constant",), {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        (("learning_rate_schedule=cosine",), {0.0: 1.0, 0.5: 0.5, 1.0: 0.0, 0.25: (1 + math.sqrt(0.5)) / 2}),
        (
            ("learning_rate_schedule=step", "learning_rate_factor=0.9", "learning_rate_interval=0.25"),
            {0.0: 1.0, 0.24: 1.0, 0.25: 0.9, 0.5: 0.81, 1.0: 0.9**4},
        ),
    ],
    ids=["poly", "constant", "cosine", "step"],
)
def test_schedules(text: tuple[str, ...], values: dict[float, float]) -> None:
    for progress, value in values.items():
        assert schedule_factor(settings(*text), progress) == pytest.approx(value)


@pytest.mark.parametrize(
    ("trainer", "total", "rates"),
    [
        ("DSMTTrainer", 30_000, {0: 0.01, 2_499: 0.01, 2_500: 0.009, 7_500: 0.00729, 15_000: 0.00531441}),
        ("CCETrainer", 6_000, {0: 0.01, 2_499: 0.01, 2_501: 0.001, 5_001: 0.0001}),
        ("PLGDFTrainer", 15_000, {0: 0.01, 14_999: 0.01}),
        ("DPTMTrainer", 10_000, {0: 0.01, 5_000: 0.005, 10_000: 0.0}),
    ],
)
def test_the_papers_learning_rates(trainer: str, total: int, rates: dict[int, float]) -> None:
    config = config_with(METHODS[trainer].load().config_class, ["preset=paper"])
    for iteration, rate in rates.items():
        assert config.learning_rate * schedule_factor(config, iteration / total) == pytest.approx(rate)
    decay = 5e-4 if trainer == "DPTMTrainer" else 1e-4
    assert (config.optimizer, config.momentum, config.nesterov, config.weight_decay) == ("sgd", 0.9, False, decay)


@pytest.mark.parametrize("name", METHODS)
def test_rates_are_set_before_every_step_and_continue_with_a_checkpoint(name: str, make_trainer, tmp_path) -> None:
    config = {"learning_rate": 0.004, "learning_rate_schedule": "cosine", "optimizer": "adamw"}
    trainer = make_trainer(name, 2, epoch=4, num_iterations=4, config=config)
    trainer.initialize()
    stream, _ = trainer.get_dataloaders()
    for _ in range(2):
        trainer.train_step(next(stream))
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    continued = make_trainer(name, 2, epoch=4, num_iterations=4, config=config)
    continued.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    for each in (trainer, continued):
        each.set_training_mode()
        each.train_step(next(stream))
    for (_, one), (_, two) in zip(trainer.trained, continued.trained, strict=True):
        assert [group["lr"] for group in one.param_groups] == [group["lr"] for group in two.param_groups]
        assert 0 < one.param_groups[0]["lr"] < 0.004
