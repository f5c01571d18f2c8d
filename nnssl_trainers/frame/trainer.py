"""The base class of every method: it builds the network, the optimiser and the loss.

A method subclasses `SemiSupervisedTrainer` (or `TeacherStudentTrainer`, or `TwoStudentsTrainer`), names its config
class, and implements `training_losses`. The supervised loss and the augmentation are those of nnU-Net's trainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnssl.config import ConfigT
from nnssl.errors import EnvironmentProblem
from nnssl.host import case_dataset_class, input_channels
from nnssl.training import checkpoints
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.optimization import LearningRates, build_optimizer, schedule_factor
from nnssl_trainers.frame.step import TrainingStep


class SemiSupervisedTrainer(TrainingStep[ConfigT]):
    """The base class of all methods; the docstring of this module says what a method adds."""

    unused_heads: ClassVar[bool] = False  # True: some outputs have no loss, and distributed training must expect that

    def initialize(self) -> None:
        """Build network, optimiser and loss from the plans; the seed decides the first weights."""
        if self.was_initialized:
            raise RuntimeError("initialize was called twice")
        self._set_batch_size_and_oversample()
        self.num_input_channels = input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)
        torch.manual_seed(self.settings.seed)
        self.network = self.new_network()
        if self._do_i_compile():
            self.network = torch.compile(self.network)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = self.distribute(self.network)
        self.loss = self._build_loss()
        self.dataset_class = case_dataset_class(self.preprocessed_dataset_folder)
        self.was_initialized = True

    def distribute(self, network: nn.Module) -> DistributedDataParallel:
        """Return the network for several processes; on CUDA, batch normalisation uses the batches of all processes."""
        cuda = self.device.type == "cuda"
        if cuda:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        devices = [self.local_rank] if cuda else None
        return DistributedDataParallel(network, devices, find_unused_parameters=self.unused_heads)

    def new_network(self) -> nn.Module:
        """Return a freshly initialised network of the plans, on the device."""
        network: nn.Module = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        )
        return network.to(self.device)

    def load_pretrained(self, file: str) -> None:
        """Load the weights of another training, except the segmentation layers, which nnU-Net does not load either.

        Raises:
            EnvironmentProblem: the file cannot be read, or its network differs from the plans'.
        """
        self.initialize()
        theirs = checkpoints.load(Path(file)).get("network_weights", {})
        ours = unwrap(self.network).state_dict()
        heads = (".seg_layers.", "decoder.head.")
        wanted = [name for name in ours if not any(head in name for head in heads)]
        wrong = [name for name in wanted if name not in theirs or theirs[name].shape != ours[name].shape]
        if wrong:
            raise EnvironmentProblem(
                "these weights do not fit the network of the plans",
                where=file,
                why=f"{len(wrong)} of {len(wanted)} tensors are missing or of other shape, {wrong[0]} first",
            )
        unwrap(self.network).load_state_dict({**ours, **{name: theirs[name] for name in wanted}})

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, LearningRates]:
        """Return the student's optimiser, and the schedule of all learning rates by iteration."""
        return build_optimizer(self.network, self.config), LearningRates(self)

    def learning_rate_factors(self, iteration: int) -> list[float]:
        """Return the factor of each trained network's learning rate at one iteration."""
        factor = schedule_factor(self.config, iteration / self.settings.num_iterations)
        return [factor for _ in self.trained]

    def train_with_student(self, module: nn.Module) -> None:
        """Let the student's optimiser also train the parameters of another module."""
        self.optimizer.add_param_group({"params": list(module.parameters())})
