"""Two networks trained side by side by gradient, each with its own optimiser; a mixin of the frame's trainers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnssl.config import MethodConfig, config_with, hyper
from nnssl.errors import UsageError
from nnssl.networks import build_network
from nnssl.networks.mean import MeanOfNetworks
from nnssl.registry import NETWORKS
from nnssl.training.settings import RunSettings
from nnssl_trainers.frame.architecture import NONE, PLAN, RESIDUAL, Architecture, architecture
from nnssl_trainers.frame.run_loop import unwrapped
from nnssl_trainers.frame.trainer import SemiSupervisedTrainer, as_list

NO_DECAY = ("log_rate", "direct")  # of a state-space block: shrinking them would change its dynamics
ADAMW_LR, ADAMW_DECAY = 5e-4, 0.05


@dataclass(frozen=True)
class TwoStudentsConfig(MethodConfig):
    """Settings of every method with two students."""

    student1: str = hyper(
        PLAN, f"network of student 1: {PLAN}, {RESIDUAL}, {', '.join(NETWORKS)}, or the dotted path of a network class"
    )
    student2: str = hyper("mamba_unet", f"network of student 2: as student1, or {NONE}")
    mamba_width: int = hyper(
        0, "features of mamba_unet's first stage; 0: the plan's times 3 in 2-D (96 for 32), times 1.5 in 3-D", low=0
    )
    mamba_states: int = hyper(16, "states a channel of mamba_unet", "N", low=1)
    mamba_optimizer: str = hyper("adamw", "optimiser of mamba_unet", choices=("adamw", "sgd"))
    deployed: str = hyper("student1", "the network that is deployed", choices=("student1", "student2", "mean"))
    pretrain_share: float = hyper(0.0, "share of the run that is pre-training on labels", low=0.0, high=1.0)
    pretrain_least: int = hyper(0, "least iterations of pre-training, but at most half of the run", low=0)


class TwoStudentsTrainer(SemiSupervisedTrainer):
    """Student 1 is the frame's `network`; student 2 lives beside it, and both take a step at the same time.

    The plans of the run describe the deployed network, so that predicting needs nothing of a trainer.
    """

    config_class = TwoStudentsConfig
    unused_heads: ClassVar[bool] = True  # those of deep supervision, where a student learns from its finest output
    needs_student2: ClassVar[bool] = False
    network2: Any = None
    optimizer2: torch.optim.Optimizer | None = None

    def plans_of_run(self, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the plans with the deployed network as their architecture."""
        plans = copy.deepcopy(plans)
        config: Any = config_with(self.config_class, RunSettings.from_plans(plans).config)
        if self.needs_student2 and config.student2 == NONE:
            raise UsageError(
                f"{type(self).__name__} needs two students",
                where=f"--set student2={NONE}",
                run=f"--set student2={PLAN}",
            )
        manager = PlansManager(plans)
        plan = manager.get_configuration(configuration).configuration
        names = [config.student1] + [config.student2] * (config.student2 != NONE)
        options = {"state_size": config.mamba_states, **({"width": config.mamba_width} if config.mamba_width else {})}
        self.architectures = [
            architecture(
                f"student{i}", name, plan, options if name == "mamba_unet" else {}, others=(NONE,) if i == 2 else ()
            )
            for i, name in enumerate(names, start=1)
        ]
        if len(names) == 1 and config.deployed in {"student2", "mean"}:
            raise UsageError("there is no student 2 to deploy", where=f"--set student2=none deployed={config.deployed}")
        regions = manager.get_label_manager(dataset_json).has_regions
        plans["configurations"][configuration]["architecture"] = {
            "student2": self.architectures[-1],
            "mean": _mean_architecture(self.architectures, regions),
        }.get(config.deployed, self.architectures[0])
        return plans

    def initialize(self) -> None:
        """Build student 1 (and what else the frame has), then student 2 and its optimiser."""
        super().initialize()
        if len(self.architectures) > 1:
            network = self._build(self.architectures[1], self.enable_deep_supervision)
            self.optimizer2 = self._optimizer(network)
            self.network2 = torch.compile(network) if self._do_i_compile() else network
            if self.is_ddp:
                self.network2 = self.distributed(self.network2)
        if self.config.deployed == "mean":
            members = [unwrapped(network) for network in self.students]
            self._mean = MeanOfNetworks.of(members, self.label_manager.has_regions)

    def new_network(self) -> nn.Module:
        """Return a freshly initialised network of student 1's architecture, on the device."""
        return self._build(self.architectures[0], self.enable_deep_supervision)

    @property
    def students(self) -> list[nn.Module]:
        """Student 1, and student 2 where there is one."""
        return [self.network] if self.network2 is None else [self.network, self.network2]

    @property
    def trained(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        """The students, each with its optimiser."""
        return list(zip(self.students, filter(None, [self.optimizer, self.optimizer2]), strict=True))

    @property
    def deployed(self) -> nn.Module:
        """The network that `--set deployed=` names (before `initialize` student 1's place-holder)."""
        names = {"student2": "network2", "mean": "_mean", "teacher": "teacher"}
        named: nn.Module | None = getattr(self, names.get(self.config.deployed, "network"), None)
        return self.network if named is None else named

    def outputs_of(self, network: nn.Module, images: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the network's logits, finest first, for each batch of images; of student 2 the finest only.

        One forward pass for all of them where no sample sees another; networks with batch normalisation take them one
        after the other, so that each batch has its own statistics (but not in distributed training, which knows one
        forward pass a step).

        Args:
            network: a student.
            images: tensors (B_i, C_in, *S).
        """
        heads = None if network is self.network else 1
        apart = not self.is_ddp and any(isinstance(module, _BatchNorm) for module in unwrapped(network).modules())
        if apart:
            return [as_list(network(image))[:heads] for image in images]
        together = as_list(network(torch.cat(list(images))))[:heads]
        parts = [torch.split(logits, [len(image) for image in images]) for logits in together]
        return [list(outputs) for outputs in zip(*parts, strict=True)]

    # ------------------------------------------------------------------ optimisers

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - optimiser and schedule, as in nnU-Net
        """Return student 1's optimiser, and the schedule of both students' learning rates."""
        return self._optimizer(self.network), _Schedule(self)

    def learning_rate_factor(self, iteration: int) -> float:
        """Return nnU-Net's polynomial schedule over the run, from 1 to 0; it starts anew after pre-training."""
        begin = self.pretrain_iterations if iteration >= self.pretrain_iterations else 0
        length = max(1, self.settings.num_iterations - begin)
        return float((1 - (iteration - begin) / length) ** 0.9)

    def loss_weights(self, iteration: int) -> tuple[float, float]:  # noqa: ARG002
        """Return the factors of both students' losses, which learning rates of AdamW take over: its steps feel none."""
        return 1.0, 1.0

    @property
    def pretrain_iterations(self) -> int:
        """Number of steps of pre-training: its share of the run, at least `pretrain_least` or half of the run."""
        total = self.settings.num_iterations
        return max(round(self.config.pretrain_share * total), min(self.config.pretrain_least, total // 2))

    def restart_optimizers(self) -> None:
        """Forget the momentum of both students."""
        for _, optimizer in self.trained:
            optimizer.state.clear()

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Return nnU-Net's SGD; for state-space networks AdamW, unless `mamba_optimizer` says otherwise."""
        named = list(network.named_parameters())
        free = [parameter for name, parameter in named if name.endswith(NO_DECAY)]
        decayed = [parameter for name, parameter in named if not name.endswith(NO_DECAY)]
        groups: list[dict[str, Any]] = [{"params": decayed}] + [{"params": free, "weight_decay": 0.0}] * bool(free)
        if free and self.config.mamba_optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, ADAMW_LR, weight_decay=ADAMW_DECAY)
        else:
            decay = self.weight_decay
            optimizer = torch.optim.SGD(groups, self.initial_lr, momentum=0.99, nesterov=True, weight_decay=decay)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def _build(self, architecture: Architecture, deep_supervision: bool) -> nn.Module:
        heads = self.label_manager.num_segmentation_heads
        network = build_network(architecture, self.num_input_channels, heads, deep_supervision=deep_supervision)
        return network.to(self.device)

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Return the state with student 2 in it."""
        state = super().state()
        if self.optimizer2 is not None:
            state["student2"] = unwrapped(self.network2).state_dict()
            state["optimizer2"] = self.optimizer2.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a state with student 2 in it."""
        super().load_state(state)
        if self.optimizer2 is not None:
            unwrapped(self.network2).load_state_dict(state["student2"])
            self.optimizer2.load_state_dict(state["optimizer2"])


class _Schedule:
    """Sets the learning rate of every optimiser; stands where nnU-Net has its scheduler."""

    def __init__(self, trainer: TwoStudentsTrainer) -> None:
        self.trainer = trainer

    def step(self, iteration: int) -> None:
        """Set the learning rates of one iteration."""
        factor, weights = self.trainer.learning_rate_factor(iteration), self.trainer.loss_weights(iteration)
        for weight, (_, optimizer) in zip(weights, self.trainer.trained, strict=False):
            own = factor * weight if isinstance(optimizer, torch.optim.AdamW) else factor
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * own


def _mean_architecture(members: list[Architecture], sigmoid: bool) -> Architecture:
    return {
        "network_class_name": f"{MeanOfNetworks.__module__}.{MeanOfNetworks.__name__}",
        "arch_kwargs": {
            "architectures": members,
            "strides": members[0]["arch_kwargs"]["strides"],
            "sigmoid": sigmoid,
        },
        "_kw_requires_import": [],
    }
