"""The constructor of a run, its networks, and checkpoints that survive a kill at any moment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnssl.config import ConfigT, config_with
from nnssl.errors import UsageError
from nnssl.host import plans_manager
from nnssl.names import CHECKPOINT_SUPERVISED
from nnssl.registry import PLAN
from nnssl.training import checkpoints
from nnssl.training.run_folder import LATEST
from nnssl.training.settings import RunSettings
from nnssl_trainers.frame.architecture import architecture, replace_architecture, unwrap
from nnssl_trainers.frame.epoch_log import EpochLog

LOGGED_AT_START = ("epoch_start_timestamps", "lrs")  # the other lists of nnU-Net's log grow at the end of an epoch


class Checkpointing(nnUNetTrainer, Generic[ConfigT]):
    """nnU-Net's trainer with the settings of a run and with checkpoints of the whole state.

    Raises:
        UsageError: the configuration is a cascade, or a setting is unknown or impossible.
    """

    config_class: type[ConfigT]
    network: Any
    grad_scaler: Any
    was_initialized: bool
    is_ddp: bool
    _best_ema: float | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        self.settings = RunSettings.from_plans(plans)
        self.config: ConfigT = config_with(self.config_class, self.settings.config)
        plans = self.plans_of_run(plans, configuration, dataset_json)
        plans.setdefault("continue_training", False)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded:
            raise UsageError(f"{configuration} is a cascade", why="nnssl trains 2d, 3d_lowres and 3d_fullres")
        if self.is_ddp and device.type == "cuda":
            self.device = torch.device("cuda", torch.cuda.current_device())  # nnU-Net counts over all machines
        elif self.is_ddp:
            self.device, self.grad_scaler = device, None
        self.num_epochs = self.settings.num_epochs
        self.iteration = 0
        self.record = EpochLog(Path(self.output_folder))
        self._terms: dict[str, Tensor] = {}
        self._counted_steps = 0  # that are in the sums of the terms
        self._resumable = True

    def plans_of_run(
        self,
        plans: dict[str, Any],
        configuration: str,
        dataset_json: dict[str, Any],  # noqa: ARG002 - methods that override this one use the labels
    ) -> dict[str, Any]:
        """Return plans whose architecture is the deployed network; the given plans stay unchanged.

        Raises:
            UsageError: no network has the name that the setting `network` gives.
        """
        if self.config.network == PLAN:
            return plans
        entry = architecture("network", self.config.network, plan_of(plans, configuration))
        return replace_architecture(plans, configuration, entry)

    @property
    def output_folder_base(self) -> Any:  # noqa: ANN401 - a path, None where nnUNet_results is not set
        """The folder of the model: nnU-Net's name for trainer, plans and configuration, and the tag of the run."""
        if self._output_folder_base is None or not self.settings.tag:
            return self._output_folder_base
        return f"{self._output_folder_base}@{self.settings.tag}"

    @output_folder_base.setter
    def output_folder_base(self, folder: str | None) -> None:
        self._output_folder_base = folder

    @property
    def deployed(self) -> nn.Module:
        """The network that validation scores and that the final checkpoint holds."""
        return self.network

    @property
    def trained(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        """The networks that learn by gradient, each with its optimiser."""
        return [(self.network, self.optimizer)]

    def set_training_mode(self) -> None:
        """Put the networks into the mode for training."""
        for network, _ in self.trained:
            network.train()

    def print_to_log_file(
        self,
        *args: object,
        also_print_to_console: bool = True,  # noqa: ARG002 - nnU-Net's signature
        add_timestamp: bool = True,
    ) -> None:
        """Write to nnU-Net's log file only; the run loop chooses what the terminal shows."""
        if self.local_rank == 0:
            super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)

    def state(self) -> dict[str, Any]:
        """Return all that a continued run needs besides the files on disk."""
        scaler = self.grad_scaler
        return {
            "iteration": self.iteration,
            "epoch": self.current_epoch,
            "student": unwrap(self.network).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": scaler.state_dict() if scaler is not None else None,
            "terms": {name: value.item() for name, value in self._terms.items()},
            "counted_steps": self._counted_steps,
            "rng": checkpoints.rng_state(),
            "logging": checkpoints.plain(self.logger.get_checkpoint()),
            "best_ema": self._best_ema,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned in an earlier session."""
        self.iteration, self.current_epoch = state["iteration"], state["epoch"]
        unwrap(self.network).load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.grad_scaler is not None and state["grad_scaler"] is not None:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        self._terms = {name: torch.tensor(value, device=self.device) for name, value in state["terms"].items()}
        self._counted_steps = state.get(
            "counted_steps", self.iteration - self.settings.epoch_end(self.current_epoch - 1)
        )
        checkpoints.set_rng_state(state["rng"])
        self.load_log(state["logging"])
        self._best_ema = state["best_ema"]

    def load_log(self, lists: Mapping[str, list[Any]]) -> None:
        """Load nnU-Net's log up to the current iteration: an entry for each done epoch, and the start of a begun one.

        Another run may have stopped elsewhere in the epoch, and a longer run does the last, shorter epoch again.

        Args:
            lists: the log of a checkpoint, with one list a quantity and one entry an epoch.
        """
        begun = self.iteration > self.settings.epoch_end(self.current_epoch - 1)
        kept = {
            name: values[: self.current_epoch + int(begun and name in LOGGED_AT_START)]
            for name, values in lists.items()
        }
        self.logger.load_checkpoint(kept)

    def extra_content(self) -> dict[str, Any]:
        """Return what a method keeps in every checkpoint under nnssl's key; prediction does not need this content."""
        return {}

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint atomically: `checkpoint_latest.pth` holds the whole state, every other file is slim.

        A slim checkpoint holds exactly the deployed network and reads like a checkpoint of nnU-Net's own trainer.

        Raises:
            EnvironmentProblem: the folder cannot be written, or the disk is full.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        path = Path(filename)
        full = path.name == LATEST
        ours: dict[str, Any] = {
            "trainer": type(self).__name__,
            "run": self.settings.to_dict(),
            "iteration": self.iteration,
            **self.extra_content(),
        }
        if full:
            ours["state"] = self.state()
        if path.name == CHECKPOINT_SUPERVISED:
            ours["students"] = [unwrap(network).state_dict() for network, _ in self.trained]
        checkpoint = {
            "network_weights": unwrap(self.deployed).state_dict(),
            "optimizer_state": None,
            "grad_scaler_state": None,
            "logging": checkpoints.plain(self.logger.get_checkpoint()),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch,
            "init_args": checkpoints.plain(self.my_init_kwargs),
            "trainer_name": "nnUNetTrainer",  # stock prediction needs no nnssl: the plans describe the network
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            checkpoints.KEY: ours,
        }
        checkpoints.save(checkpoint, path, keep_previous=full)

    def load_checkpoint(self, filename_or_checkpoint: str | dict[str, Any]) -> None:
        """Load a checkpoint of this method; where `checkpoint_latest.pth` is damaged, load the checkpoint before it.

        Raises:
            EnvironmentProblem: the file is missing or damaged, or belongs to another method.
            UsageError: the file belongs to a run with other settings.
        """
        if not self.was_initialized:
            self.initialize()
        checkpoint = filename_or_checkpoint
        if not isinstance(checkpoint, dict):
            path = Path(checkpoint)
            checkpoint = checkpoints.load_newest(path) if path.name == LATEST else checkpoints.load(path)
        ours = checkpoints.of_run(checkpoint, type(self).__name__, self.settings.to_dict(), Path(self.output_folder))
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]
        if "state" in ours:
            self.load_state(ours["state"])
            if ours["run"]["num_iterations"] < self.settings.num_iterations:
                # The shorter run may have ended inside an epoch of the longer run.
                self.current_epoch = self.settings.epoch_of(self.iteration)
                self.load_log(ours["state"]["logging"])
        else:
            unwrap(self.deployed).load_state_dict(checkpoint["network_weights"])
            self.iteration, self.current_epoch = ours["iteration"], checkpoint["current_epoch"]
            self._resumable = False


def plan_of(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return one configuration of nnU-Net's plans, including what the configuration inherits from others."""
    plan: dict[str, Any] = plans_manager(plans).get_configuration(configuration).configuration
    return plan
