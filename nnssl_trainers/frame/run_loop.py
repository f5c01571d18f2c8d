"""One run from start to end: the loop, the record, signals, and checkpoints that survive a kill at any moment."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, distributed, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nnssl.config import MethodConfig, config_with
from nnssl.errors import EnvironmentProblem, NnsslError, StoppedBySignal, UsageError
from nnssl.system.files import write_json
from nnssl.training import checkpoints
from nnssl.training.run_folder import BEST, FINAL, LATEST, check_other_folds
from nnssl.training.settings import RunSettings
from nnssl_trainers.frame.epoch_log import ProgressLog, epoch_line
from nnssl_trainers.frame.validation import predict_validation_cases

SECONDS_BETWEEN_PLOTS = 60.0
log = logging.getLogger("nnssl.train")


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


class Run(nnUNetTrainer):
    """nnU-Net's trainer with a run that counts iterations; the methods' frame (`base.py`) stands on it.

    Raises:
        UsageError: cascade configuration, unknown or impossible settings.
    """

    config_class: ClassVar[type[MethodConfig]] = MethodConfig
    network: Any
    grad_scaler: Any
    was_initialized: bool
    _best_ema: float | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        plans = self.plans_of_run(plans, configuration, dataset_json)
        plans.setdefault("continue_training", False)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded:
            raise UsageError(f"{configuration} is a cascade", why="nnssl trains 2d, 3d_lowres and 3d_fullres")
        if self.is_ddp and device.type == "cpu":
            self.device, self.grad_scaler = device, None
        self.settings = RunSettings.from_plans(plans)
        self.config: Any = config_with(self.config_class, self.settings.config)
        self.num_epochs = self.settings.num_epochs
        self.iteration = 0
        self.record = ProgressLog(Path(self.output_folder))
        self._terms: dict[str, Tensor] = {}
        self._last_plot = 0.0
        self._stop_requested = self._in_loop = False
        self._resumable = True

    def plans_of_run(
        self,
        plans: dict[str, Any],
        configuration: str,  # noqa: ARG002
        dataset_json: dict[str, Any],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return the plans, whose architecture is the deployed network; a method with another one changes a copy."""
        return plans

    @property
    def deployed(self) -> nn.Module:
        """The network that validation scores and the final checkpoint holds."""
        return self.network

    @property
    def trained(self) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
        """The networks that are trained by gradient, each with its optimiser."""
        return [(self.network, self.optimizer)]

    def training_mode(self) -> None:
        """Put the networks into the mode that they train in."""
        for network, _ in self.trained:
            network.train()

    def print_to_log_file(
        self,
        *args: object,
        also_print_to_console: bool = True,  # noqa: ARG002 - nnU-Net's signature
        add_timestamp: bool = True,
    ) -> None:
        """Write to nnU-Net's log file; the terminal gets one line an epoch instead."""
        if self.local_rank == 0:
            super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)

    def request_stop(self) -> None:
        """Save and stop at the next step (several processes: at the end of the epoch); outside of the loop at once.

        Raises:
            StoppedBySignal: outside of the loop.
        """
        if not self._in_loop:
            raise self._stopped()
        self._stop_requested = True

    def run_training(self) -> None:
        """Train from the current iteration to the last, validating and saving after every epoch.

        Raises:
            StoppedBySignal: `request_stop` was called; the state is saved.
            NnsslError: the loss became infinite or not a number.
        """
        if not self._resumable:
            if self.iteration >= self.settings.num_iterations:
                log.info("training is finished already: %s", self.output_folder)
                return
            raise EnvironmentProblem(
                "this checkpoint holds the deployed network only",
                where=self.output_folder,
                why="a run continues from checkpoint_latest.pth or checkpoint_previous.pth",
                run="train again without --c",
            )
        self.on_train_start()
        total = self.settings.num_iterations
        try:
            with (
                logging_redirect_tqdm(),
                tqdm(total=total, initial=self.iteration, disable=None, unit="it", smoothing=0.05) as bar,
                self.dataloader_train.naming_deaths(),
            ):
                self._in_loop = True
                while self.current_epoch < self.num_epochs:
                    self._run_epoch(bar)
        finally:
            self._in_loop = False
            self.dataloader_train.close()
        self.on_train_end()

    def _run_epoch(self, bar: Any) -> None:  # noqa: ANN401 - tqdm
        start, epoch_end = map(self.settings.epoch_end, (self.current_epoch - 1, self.current_epoch))
        if self.iteration == start:
            self.on_epoch_start()
        clock, waited, first = time.perf_counter(), self.dataloader_train.seconds_waited, self.iteration
        self.training_mode()
        while self.iteration < epoch_end:
            self.train_step(next(self.dataloader_train))
            bar.update()
            if self._stop_requested and not self.is_ddp:
                self.save_checkpoint(str(Path(self.output_folder) / LATEST))
                raise self._stopped()
        terms = {name: value.item() / (epoch_end - start) for name, value in self._terms.items()}
        self._check_finite(terms)
        seconds = time.perf_counter() - clock
        speed = {
            "seconds_per_iteration": seconds / max(1, epoch_end - first),
            "data_wait_share": (self.dataloader_train.seconds_waited - waited) / max(seconds, 1e-9),
        }
        with torch.no_grad():
            self.on_validation_epoch_start()
            batches = itertools.islice(self.dataloader_val, self.num_val_iterations_per_epoch)
            self.on_validation_epoch_end([self.validation_step(batch) for batch in batches])
        self._finish_epoch(terms, speed)
        if self._any_rank(self._stop_requested):
            raise self._stopped()

    def _any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set in any process: all must leave the loop after the same step."""
        if not self.is_ddp:
            return flag
        shared = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return bool(shared.item())

    def add_terms(self, terms: dict[str, Tensor]) -> None:
        """Add one step's detached loss terms to the epoch's sums; they stay on the device."""
        for name, value in terms.items():
            self._terms[name] = self._terms[name] + value.float() if name in self._terms else value.float()

    def _check_finite(self, terms: dict[str, float]) -> None:
        fine = all(map(math.isfinite, terms.values()))
        if not fine and self.grad_scaler is not None:  # it skips steps that overflow in half precision
            fine = all(bool(p.isfinite().all()) for network, _ in self.trained for p in network.parameters())
        if not fine:
            raise NnsslError(
                "training diverged: a loss term is not a finite number",
                where=f"epoch {self.current_epoch}, iteration {self.iteration}",
                why=", ".join(f"{name}={value:g}" for name, value in terms.items()),
                run="the checkpoint of the epoch before is kept; lower the learning rate or the weight of that term",
            )

    def on_epoch_start(self) -> None:
        """Log the start of an epoch."""
        super().on_epoch_start()
        self._terms = {}
        self.lr_scheduler.step(self.iteration)
        self.logger.log("lrs", self.optimizer.param_groups[0]["lr"], self.current_epoch)

    def _finish_epoch(self, terms: dict[str, float], speed: dict[str, float]) -> None:
        loss = sum(terms.values())
        self.logger.log("train_losses", loss, self.current_epoch)
        self.logger.log("epoch_end_timestamps", time.time(), self.current_epoch)
        dice = checkpoints.plain(self.logger.get_value("dice_per_class_or_region", step=-1))
        row = {
            "epoch": self.current_epoch,
            "iteration": self.iteration,
            "loss": loss,
            **{f"loss_{name}": value for name, value in terms.items()},
            "validation_loss": float(self.logger.get_value("val_losses", step=-1)),
            "pseudo_dice": float(self.logger.get_value("mean_fg_dice", step=-1)),
            **{f"pseudo_dice_{k + 1}": value for k, value in enumerate(dice)},
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **speed,
        }
        self.current_epoch += 1
        ema = float(self.logger.get_value("ema_fg_dice", step=-1))
        is_best = self._best_ema is None or ema > self._best_ema or math.isnan(self._best_ema)
        self._best_ema = ema if is_best else self._best_ema
        if self.local_rank == 0:
            self.record.append(row)
            line = epoch_line(row, self.settings.num_iterations, terms)
            self.print_to_log_file(line)
            log.info(line)
            for warning in self.epoch_warnings():
                log.warning("warning: %s", warning)
            self._plot()
        if is_best:
            self.save_checkpoint(str(Path(self.output_folder) / BEST))
        self.save_checkpoint(str(Path(self.output_folder) / LATEST))

    def epoch_warnings(self) -> list[str]:
        """Return what a user should know about the epoch that ended."""
        return []

    def _plot(self) -> None:
        if self.current_epoch == self.num_epochs or time.monotonic() - self._last_plot > SECONDS_BETWEEN_PLOTS:
            self.logger.plot_progress_png(self.output_folder)
            self._last_plot = time.monotonic()

    def _stopped(self) -> StoppedBySignal:
        return StoppedBySignal(
            "stopped by a signal; the run is saved",
            where=self.output_folder,
            why=f"{self.iteration} of {self.settings.num_iterations} iterations are done",
            run="the same command with --c continues it",
        )

    # ------------------------------------------------------------------ start, validation, end

    def on_train_start(self) -> None:
        """Build what is missing, open the streams, and write the files that prediction needs."""
        check_other_folds(Path(self.output_folder), self.plans_manager.plans, self.configuration_name)
        if not self.was_initialized:
            self.initialize()
        rng = checkpoints.rng_state()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        checkpoints.set_rng_state(rng)  # a continued run draws on where the stopped one was
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        if self.local_rank == 0:
            for leftover in Path(self.output_folder).glob(".checkpoint_*.tmp"):  # of a session that was killed
                leftover.unlink()
            self.record.rewind(self.iteration)
            base = Path(self.output_folder_base)
            write_json(base / "plans.json", self.plans_manager.plans)
            write_json(base / "dataset.json", self.dataset_json)
            tag = "".join(self.plans_manager.plans_name.partition("@")[1:])
            fingerprint = Path(self.preprocessed_dataset_folder_base) / f"dataset_fingerprint{tag}.json"
            if fingerprint.is_file():
                shutil.copyfile(fingerprint, base / "dataset_fingerprint.json")
            self._save_debug_information()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the extra outputs of the networks on (training) or off (inference)."""
        for network in {self.deployed, *(network for network, _ in self.trained)}:
            unwrapped(network).decoder.deep_supervision = enabled  # type: ignore[union-attr]

    @contextmanager
    def deployed_as_network(self) -> Iterator[None]:
        """Make nnU-Net's code, which uses `self.network`, work on the deployed network."""
        trained = self.network
        self.network = self.deployed
        try:
            yield
        finally:
            self.network = trained

    def on_validation_epoch_start(self) -> None:
        """Put the deployed network into inference mode."""
        self.deployed.eval()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return nnU-Net's validation numbers of the deployed network on one batch."""
        with self.deployed_as_network():
            result: dict[str, Any] = super().validation_step(batch["validation"])
        return result

    def on_train_end(self) -> None:
        """Write the slim final checkpoint, then delete the ones that a continued run would need."""
        folder = Path(self.output_folder)
        self.save_checkpoint(str(folder / FINAL))
        if self.local_rank == 0 and not self.disable_checkpointing:
            for name in (LATEST, checkpoints.previous(folder / LATEST).name):
                (folder / name).unlink(missing_ok=True)
        log.info("training done: %s", folder / FINAL)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the fold's validation cases with the deployed network and write validation/summary.json."""
        self.set_deep_supervision_enabled(False)
        self.deployed.eval()
        predict_validation_cases(self, unwrapped(self.deployed), save_probabilities)
        self.set_deep_supervision_enabled(True)

    # ------------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """Return everything a continued run needs beyond the files on disk."""
        scaler = self.grad_scaler
        return {
            "iteration": self.iteration,
            "epoch": self.current_epoch,
            "student": unwrapped(self.network).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": scaler.state_dict() if scaler is not None else None,
            "terms": {name: value.item() for name, value in self._terms.items()},
            "rng": checkpoints.rng_state(),
            "logging": checkpoints.plain(self.logger.get_checkpoint()),
            "best_ema": self._best_ema,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned in an earlier session."""
        self.iteration, self.current_epoch = state["iteration"], state["epoch"]
        unwrapped(self.network).load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.grad_scaler is not None and state["grad_scaler"] is not None:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        self._terms = {name: torch.tensor(value, device=self.device) for name, value in state["terms"].items()}
        checkpoints.set_rng_state(state["rng"])
        self.logger.load_checkpoint(state["logging"])
        self._best_ema = state["best_ema"]

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint in one piece; `checkpoint_latest.pth` holds the whole state, the others are slim.

        A slim one holds exactly the deployed network, as a checkpoint of nnU-Net's own trainer.

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
        }
        if full:
            ours["state"] = self.state()
        checkpoint = {
            "network_weights": unwrapped(self.deployed).state_dict(),
            "optimizer_state": None,
            "grad_scaler_state": None,
            "logging": checkpoints.plain(self.logger.get_checkpoint()),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch,
            "init_args": checkpoints.plain(self.my_init_kwargs),
            "trainer_name": "nnUNetTrainer",  # the plans alone describe the deployed network
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            checkpoints.KEY: ours,
        }
        checkpoints.save(checkpoint, path, keep_previous=full)

    def load_checkpoint(self, filename_or_checkpoint: str | dict[str, Any]) -> None:
        """Load a checkpoint of this method; a damaged `checkpoint_latest.pth` falls back to the one before it.

        Raises:
            EnvironmentProblem: the file is missing or damaged, or belongs to another method.
            UsageError: it belongs to a run with other settings.
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
        else:
            unwrapped(self.deployed).load_state_dict(checkpoint["network_weights"])
            self.iteration, self.current_epoch = ours["iteration"], checkpoint["current_epoch"]
            self._resumable = False
