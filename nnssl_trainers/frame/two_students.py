"""Two students that learn side by side by gradient, each with its own optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnssl.config import hyper, hyper_network
from nnssl.errors import UsageError
from nnssl.host import plans_manager
from nnssl.networks import build_network
from nnssl.networks.mean import MeanOfNetworks
from nnssl.registry import NONE, PLAN
from nnssl_trainers.frame.architecture import Architecture, architecture, replace_architecture, unwrap
from nnssl_trainers.frame.batch import as_list
from nnssl_trainers.frame.checkpointing import plan_of
from nnssl_trainers.frame.optimization import build_optimizer, schedule_factor
from nnssl_trainers.frame.stages import StagedConfig, StagedTrainer


@dataclass(frozen=True)
class TwoStudentsConfig(StagedConfig):
    """The settings of every method with two students; `network` names the network of student 1."""

    student2: str = hyper_network(
        "mamba_unet", f"network of student 2: the values of `network`, or {NONE}", others=(NONE,)
    )
    deployed: str = hyper("student1", "the network that is deployed", choices=("student1", "student2", "mean"))
    pretrain_share: float = hyper(0.0, "share of the run that is pre-training on labels", low=0.0, high=1.0)
    pretrain_least: int = hyper(0, "least number of pre-training iterations, at most half of the run", low=0)


TwoStudentsConfigT = TypeVar("TwoStudentsConfigT", bound=TwoStudentsConfig)


class TwoStudentsTrainer(StagedTrainer[TwoStudentsConfigT]):
    """The frame of methods with two students: student 1 is the frame's `network`, student 2 is `network2`.

    Both students take a step at the same time. The plans of the run describe the deployed network, so that prediction
    needs no trainer.
    """

    needs_student2: ClassVar[bool] = False
    network2: Any = None
    optimizer2: torch.optim.Optimizer | None = None
    _mean: nn.Module | None = None
    _pretrained_for: int | None = None  # iterations of finished pre-training: a run that becomes longer keeps them

    def plans_of_run(self, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the plans whose architecture is the deployed network.

        Raises:
            UsageError: a network has no known name, or the method or the setting `deployed` needs a second student.
        """
        first, second, deployed = self.config.network, self.config.student2, self.config.deployed
        if second == NONE and self.needs_student2:
            raise UsageError(
                f"{type(self).__name__} needs two students",
                where=f"--set student2={NONE}",
                run=f"--set student2={PLAN}",
            )
        if second == NONE and deployed in {"student2", "mean"}:
            raise UsageError("there is no student 2 to deploy", where=f"--set student2=none deployed={deployed}")
        plan = plan_of(plans, configuration)
        self.architectures = [architecture("network", first, plan)]
        if second != NONE:
            self.architectures.append(architecture("student2", second, plan, others=(NONE,)))
        if deployed == "mean":
            regions = plans_manager(plans).get_label_manager(dataset_json).has_regions
            return replace_architecture(plans, configuration, _mean_architecture(self.architectures, regions))
        return replace_architecture(plans, configuration, self.architectures[1 if deployed == "student2" else 0])

    def student_architectures(self) -> list[dict[str, Any]]:
        """Return the plans entry of each student's network."""
        return self.architectures

    def initialize(self) -> None:
        """Build student 1 and the rest of the frame, and then student 2 and its optimiser."""
        super().initialize()
        if len(self.architectures) > 1:
            network = self._build(self.architectures[1], self.enable_deep_supervision)
            self.optimizer2 = build_optimizer(network, self.config)
            self.network2 = torch.compile(network) if self._do_i_compile() else network
            if self.is_ddp:
                self.network2 = self.distribute(self.network2)
        if self.config.deployed == "mean":
            members = [unwrap(network) for network in self.students]
            self._mean = MeanOfNetworks.of(members, self.label_manager.has_regions)

    def new_network(self) -> nn.Module:
        """Return a new network with the architecture of student 1, on the device."""
        return self._build(self.architectures[0], self.enable_deep_supervision)

    @property
    def students(self) -> list[nn.Module]:
        """Student 1, and student 2 where the run has a second student."""
        return [self.network] if self.network2 is None else [self.network, self.network2]

    @property
    def trained(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        """The students, each with its optimiser."""
        pairs: list[tuple[nn.Module, torch.optim.Optimizer]] = [(self.network, self.optimizer)]
        if self.optimizer2 is not None:
            pairs.append((self.network2, self.optimizer2))
        return pairs

    @property
    def deployed(self) -> nn.Module:
        """The network that the setting `deployed` names; before `initialize` always student 1."""
        named = {"student2": self.network2, "mean": self._mean}.get(self.config.deployed)
        return super().deployed if named is None else named

    def outputs_of(self, network: nn.Module, images: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return all outputs of a student, its logits, for each batch of images.

        One forward pass takes all batches together. A network with batch normalisation takes the batches one after the
        other, so that each batch has its own statistics.

        Args:
            network: a student.
            images: tensors (B_i, C_in, *S).

        Returns:
            For each batch the list of its logits (B_i, C, *S_j), the finest first.
        """
        apart = any(isinstance(module, _BatchNorm) for module in unwrap(network).modules())
        if apart:
            return [as_list(network(image)) for image in images]
        together = as_list(network(torch.cat(list(images))))
        parts = [torch.split(logits, [len(image) for image in images]) for logits in together]
        return [list(outputs) for outputs in zip(*parts, strict=True)]

    # ------------------------------------------------------------------ optimisers

    def learning_rate_factors(self, iteration: int) -> list[float]:
        """Return the factor of each student's learning rate; the schedule starts again with each stage and phase.

        The step of AdamW does not depend on the scale of the loss. Its learning rate takes the factor of the loss
        instead.
        """
        begin, length = self.stage_at(iteration)
        step = -1 if self.method_begin is None else iteration - self.method_begin
        if self.pretrain_iterations and step >= self.pretrain_iterations:
            begin, length = begin + self.pretrain_iterations, max(1, length - self.pretrain_iterations)
        factor = schedule_factor(self.config, (iteration - begin) / length)
        weights, optimizers = self.loss_weights(step), [optimizer for _, optimizer in self.trained]
        return [
            factor * weight if isinstance(optimizer, torch.optim.AdamW) else factor
            for weight, optimizer in zip(weights[: len(optimizers)], optimizers, strict=True)
        ]

    def loss_weights(self, step: int) -> tuple[float, float]:  # noqa: ARG002
        """Return the factors of the losses of student 1 and student 2 at a step of the method; -1: before it."""
        return 1.0, 1.0

    @property
    def pretrain_iterations(self) -> int:
        """Number of pre-training steps: the share of the run, but at least `pretrain_least` or half of the run.

        A method that starts from trained students has none.
        """
        if self.starts_trained:
            return 0
        if self._pretrained_for is not None:
            return self._pretrained_for
        total = self.method_iterations
        return max(round(self.config.pretrain_share * total), min(self.config.pretrain_least, total // 2))

    def restart_optimizers(self) -> None:
        """Forget the momentum of both students."""
        for _, optimizer in self.trained:
            optimizer.state.clear()

    def _build(self, architecture: Architecture, deep_supervision: bool) -> nn.Module:
        heads = self.label_manager.num_segmentation_heads
        network = build_network(architecture, self.num_input_channels, heads, deep_supervision=deep_supervision)
        return network.to(self.device)

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Return the state, including student 2."""
        state = {**super().state(), "pretrain_iterations": self.pretrain_iterations}
        if self.optimizer2 is not None:
            state["student2"] = unwrap(self.network2).state_dict()
            state["optimizer2"] = self.optimizer2.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that includes student 2."""
        super().load_state(state)
        pretrained = state.get("pretrain_iterations")
        self._pretrained_for = pretrained if pretrained is not None and self.method_step >= pretrained else None
        if self.optimizer2 is not None:
            unwrap(self.network2).load_state_dict(state["student2"])
            self.optimizer2.load_state_dict(state["optimizer2"])


def _mean_architecture(members: list[Architecture], sigmoid: bool) -> Architecture:
    """Return the entry of the network that averages the predictions of its members."""
    return {
        "network_class_name": f"{MeanOfNetworks.__module__}.{MeanOfNetworks.__name__}",
        "arch_kwargs": {
            "architectures": members,
            "strides": members[0]["arch_kwargs"]["strides"],
            "sigmoid": sigmoid,
        },
        "_kw_requires_import": [],
    }
