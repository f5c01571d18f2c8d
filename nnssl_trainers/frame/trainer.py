"""The base class of every method: it builds the network, the optimiser and the loss.

A method subclasses `SemiSupervisedTrainer` (or `TeacherStudentTrainer`, or `TwoStudentsTrainer`), names its config
class, and implements `training_losses`. The supervised loss and the augmentation are those of nnU-Net's trainer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from nnssl.config import ConfigT, MethodConfig
from nnssl.errors import EnvironmentProblem
from nnssl.host import case_dataset_class, input_channels
from nnssl.system.files import settings_hash
from nnssl.training import checkpoints
from nnssl.training.record import plans_hash
from nnssl.training.start import check_start
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.checkpointing import plan_of
from nnssl_trainers.frame.optimization import LearningRates, build_optimizer, schedule_factor
from nnssl_trainers.frame.step import TrainingStep
from nnssl_trainers.parts.shared_passes import SharedPasses

log = logging.getLogger("nnssl.train")


class SemiSupervisedTrainer(TrainingStep[ConfigT]):
    """The base class of all methods; the docstring of this module says what a method adds."""

    _from_pretrained = False

    def initialize(self) -> None:
        """Build network, optimiser and loss from the plans; the seed decides the first weights."""
        if self.was_initialized:
            raise RuntimeError("initialize was called twice")
        with self._as_one_process():
            self._set_batch_size_and_oversample()
        self.num_input_channels = input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)
        torch.manual_seed(self.settings.seed)
        self.network = self.new_network()
        if self._do_i_compile():
            self.network = torch.compile(self.network)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = self.distribute(self.network)
        with self._as_one_process():
            self.loss = self._build_loss()
        self.dataset_class = case_dataset_class(self.preprocessed_dataset_folder)
        self.was_initialized = True

    @contextlib.contextmanager
    def _as_one_process(self) -> Iterator[None]:
        """Let nnU-Net's code see one process inside the block: every process has the global batch and its loss."""
        several, self.is_ddp = self.is_ddp, False
        try:
            yield
        finally:
            self.is_ddp = several

    def distribute(self, network: nn.Module) -> SharedPasses:
        """Return the network for several processes; on CUDA, batch normalisation uses the batches of all processes."""
        cuda = self.device.type == "cuda"
        if cuda:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return SharedPasses(network, cuda)

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
        self._from_pretrained = True
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

    def load_start(self, file: str) -> None:
        """Load all weights, with the segmentation layers, of another run with the same plans into the students.

        Raises:
            EnvironmentProblem: the file cannot be read, or its data or network differ from those of this run.
        """
        self.initialize()
        checkpoint = checkpoints.load(Path(file))
        check_start(checkpoint, self.plans_manager.plans, self.configuration_name, self.dataset_json, file)
        self.load_students(checkpoint, file)

    def load_students(self, checkpoint: dict[str, Any], file: Path | str) -> None:
        """Load the weights of a checkpoint into every student whose network has the same tensors.

        Raises:
            EnvironmentProblem: the first student's network is another one.
        """
        found = checkpoint.get(checkpoints.KEY, {}).get("students") or [checkpoint["network_weights"]]
        for number, (network, _) in enumerate(self.trained):
            theirs, ours = found[min(number, len(found) - 1)], unwrap(network).state_dict()
            wrong = [name for name in {**ours, **theirs} if not _same_shape(ours.get(name), theirs.get(name))]
            if not wrong:
                unwrap(network).load_state_dict(theirs)
            elif number == 0:
                raise EnvironmentProblem(
                    "these weights are of another network",
                    where=file,
                    why=f"{len(wrong)} of {len(ours)} tensors are missing or of other shape, {wrong[0]} first",
                )
            else:
                log.warning("warning: student %d has another network than %s and starts untrained", number + 1, file)

    @property
    def unlabelled_from(self) -> int | None:
        """Iteration from which on unlabelled patches count; None where they do not."""
        return 0 if self.uses_unlabelled else None

    def supervised_key(self) -> str:
        """Return the key of the supervised training in this run; empty where no other run can start from it."""
        return ""

    def key_of_supervised(self, iterations: int) -> str:
        """Return a hash of all that decides the weights after supervised training of some length.

        Two runs with the same key have the same weights after these iterations. Empty without supervised iterations,
        and where the run does not start from random weights.
        """
        if not iterations or self._from_pretrained or self.settings.start_from:
            return ""
        base = {item.name for item in dataclasses.fields(MethodConfig)} - {"preset", "network"}
        return settings_hash(
            {
                "plans": plans_hash(self.plans_manager.plans),
                "configuration": self.configuration_name,
                "labelled": list(self.fold_cases().labelled),
                "seed": self.settings.seed,
                "bf16": self.settings.bf16,
                "iterations": iterations,
                "processes": distributed.get_world_size() if self.is_ddp else 1,
                "networks": self.student_architectures(),
                "settings": {name: value for name, value in self.config.to_dict().items() if name in base},
            }
        )

    def student_architectures(self) -> list[dict[str, Any]]:
        """Return the plans entry of each student's network."""
        return [plan_of(self.plans_manager.plans, self.configuration_name)["architecture"]]

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


def _same_shape(ours: Tensor | None, theirs: Tensor | None) -> bool:
    return ours is not None and theirs is not None and ours.shape == theirs.shape
