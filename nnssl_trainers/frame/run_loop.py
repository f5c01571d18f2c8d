"""The loop of a run: epochs and their log, signals, validation, and the end of the run."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from nnssl.config import ConfigT
from nnssl.errors import EnvironmentProblem, NnsslError, StoppedBySignal, StoppedByUser
from nnssl.evaluation.structures import declared_structures
from nnssl.names import DATASET_JSON
from nnssl.system.files import write_json
from nnssl.training import checkpoints
from nnssl.training.run_folder import BEST, FINAL, LATEST, check_other_folds
from nnssl.training.tracking import Tracks
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.checkpointing import Checkpointing
from nnssl_trainers.frame.epoch_log import epoch_line
from nnssl_trainers.frame.plots import plot_progress
from nnssl_trainers.frame.postprocessing import decide_for_fold, forget_decision_of_model
from nnssl_trainers.frame.reporting import ProgressStyle, Reporter, header_lines, learning_warnings
from nnssl_trainers.frame.validation import predict_validation_cases

SECONDS_BETWEEN_PLOTS = 60.0
log = logging.getLogger("nnssl.train")


class RunLoop(Checkpointing[ConfigT]):
    """The part of the frame that runs the loop, counts iterations, and saves the state after every epoch."""

    progress_style: ProgressStyle | None = None  # None shows a bar on a terminal and lines elsewhere
    tracks = Tracks()
    _last_plot = 0.0
    _stop_requested = False
    _by_user = False
    _in_loop = False

    def request_stop(self, by_user: bool = False) -> None:
        """Save and stop after the current step, or after the epoch where several processes train.

        Args:
            by_user: the user pressed Ctrl-C; False: the system sent a signal.

        Raises:
            StoppedBySignal: the loop does not run, so that the run ends at once.
        """
        self._by_user = by_user
        if not self._in_loop:
            raise self._stop_error()
        self._stop_requested = True
        if by_user:
            log.info("saving and stopping after this iteration; press Ctrl-C again to stop at once")

    def run_training(self) -> None:
        """Train from the current iteration to the last; validate and save after every epoch.

        Raises:
            StoppedBySignal: `request_stop` was called; the state is saved.
            NnsslError: a loss term became infinite or not a number.
            EnvironmentProblem: the loaded checkpoint is slim, and its run is not finished.
        """
        if not self._resumable:
            if self.iteration >= self.settings.num_iterations:
                log.info("training is finished already: %s", self.output_folder)
                return
            raise EnvironmentProblem(
                "this checkpoint holds the deployed network only",
                where=self.output_folder,
                why="a run continues from checkpoint_latest.pth or checkpoint_previous.pth",
                run="the same command with --overwrite instead of --c trains from the start",
            )
        self.on_train_start()
        if self.local_rank == 0:
            self._tell(*header_lines(self))
        style = self.progress_style if self.local_rank == 0 else "off"
        try:
            with (
                Reporter(style, self.settings.num_iterations, self.iteration) as reporter,
                self.dataloader_train.translate_worker_death(),
            ):
                self._in_loop = True
                while self.current_epoch < self.num_epochs:
                    self._run_epoch(reporter)
        finally:
            self._in_loop = False
            self.dataloader_train.close()
        self.on_train_end()

    def _tell(self, *lines: str) -> None:
        """Write lines to the terminal and to nnU-Net's log file."""
        for line in lines:
            log.info(line)
            self.print_to_log_file(line)

    def _run_epoch(self, reporter: Reporter) -> None:
        start, epoch_end = map(self.settings.epoch_end, (self.current_epoch - 1, self.current_epoch))
        if self.iteration == start:
            self.on_epoch_start()
        clock, waited, first = time.perf_counter(), self.dataloader_train.seconds_waited, self.iteration
        self.set_training_mode()
        middle, half_way = first + (epoch_end - first) // 2, clock
        while self.iteration < epoch_end:
            if self.iteration == middle:
                half_way = time.perf_counter()
            self.before_step()
            self.train_step(next(self.dataloader_train))
            if line := reporter.step():
                self._tell(line)
            if self._stop_requested and not self.is_ddp:
                self.save_checkpoint(str(Path(self.output_folder) / LATEST))
                raise self._stop_error()
        terms = {name: value.item() / self._counted_steps for name, value in self._terms.items()}
        self._check_finite(terms)
        now = time.perf_counter()
        seconds = now - clock
        speed = {
            "seconds_per_iteration": seconds / max(1, epoch_end - first),
            "steady_seconds_per_iteration": (now - half_way) / max(1, epoch_end - middle),  # the workers have started
            "data_wait_share": (self.dataloader_train.seconds_waited - waited) / max(seconds, 1e-9),
        }
        with torch.no_grad():
            self.on_validation_epoch_start()
            batches = itertools.islice(self.dataloader_val, self.num_val_iterations_per_epoch)
            self.on_validation_epoch_end([self.validation_step(batch) for batch in batches])
        self._finish_epoch(terms, {**speed, "validation_seconds": time.perf_counter() - now})
        if self._any_rank(self._stop_requested):
            raise self._stop_error()

    def before_step(self) -> None:
        """Do what has to happen before the optimiser step of the current iteration."""

    def _any_rank(self, flag: bool) -> bool:
        """Return whether any process has set the flag; all processes must leave the loop after the same step."""
        if not self.is_ddp:
            return flag
        shared = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return bool(shared.item())

    def add_terms(self, terms: dict[str, Tensor]) -> None:
        """Add the detached loss terms of one step to the sums of the epoch; the sums stay on the device."""
        self._counted_steps += 1
        for name, value in terms.items():
            self._terms[name] = self._terms[name] + value.float() if name in self._terms else value.float()

    def _check_finite(self, terms: dict[str, float]) -> None:
        finite = all(map(math.isfinite, terms.values()))
        if not finite and self.grad_scaler is not None:  # the scaler skips a step whose half-precision loss overflows
            finite = all(bool(p.isfinite().all()) for network, _ in self.trained for p in network.parameters())
        if not finite:
            raise NnsslError(
                "training diverged: a loss term is not a finite number",
                where=f"epoch {self.current_epoch}, iteration {self.iteration}",
                why=", ".join(f"{name}={value:g}" for name, value in terms.items()),
                run="lower the learning rate or the weight of that term; the previous epoch's checkpoint is kept",
            )

    def on_epoch_start(self) -> None:
        """Start the sums of the loss terms anew, and log the learning rate."""
        super().on_epoch_start()
        self._terms, self._counted_steps = {}, 0
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
            **self.epoch_values(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **speed,
        }
        self.current_epoch += 1
        ema = float(self.logger.get_value("ema_fg_dice", step=-1))
        is_best = self._best_ema is None or ema > self._best_ema or math.isnan(self._best_ema)
        self._best_ema = ema if is_best else self._best_ema
        if self.local_rank == 0:
            self.record.append(row)
            self.tracks.log(row)
            self._tell(epoch_line(row, self.settings.num_iterations, terms, self.structure_names()))
            for warning in self.epoch_warnings():
                log.warning("warning: %s", warning)
                self.print_to_log_file(f"warning: {warning}")
            self._plot()
        if is_best:
            self.save_checkpoint(str(Path(self.output_folder) / BEST))
        self.save_checkpoint(str(Path(self.output_folder) / LATEST))

    def epoch_values(self) -> dict[str, float]:
        """Return what else the log says about the epoch that has ended: name -> value."""
        return {}

    def epoch_warnings(self) -> list[str]:
        """Return warnings for the user about the epoch that has ended."""
        return learning_warnings(self.record.rows, self.structure_names(), self.settings.num_iterations)

    def structure_names(self) -> list[str]:
        """Return the names of the structures, in the order in which nnU-Net lists the Dice of each."""
        declared = declared_structures(self.dataset_json, Path(DATASET_JSON)).names
        return [declared[label] for label in (declared if self.label_manager.has_regions else sorted(declared))]

    def _plot(self) -> None:
        if self.current_epoch == self.num_epochs or time.monotonic() - self._last_plot > SECONDS_BETWEEN_PLOTS:
            plot_progress(self.record.rows, self.structure_names(), Path(self.output_folder) / "progress.png")
            self._last_plot = time.monotonic()

    def _stop_error(self) -> StoppedBySignal:
        """Return the error that ends a stopped run; the message says what is saved and how to continue."""
        kind = StoppedByUser if self._by_user else StoppedBySignal
        done = f"{self.iteration} of {self.settings.num_iterations} iterations are done"
        what = "stopped by Ctrl-C" if self._by_user else "stopped by a signal"
        folder = Path(self.output_folder)
        saved = (folder / LATEST).is_file() or (folder / FINAL).is_file()
        if not saved:
            return kind(f"{what}; nothing is saved", where=folder, why=done, run="the same command starts again")
        if self.iteration >= self.settings.num_iterations:
            return kind(f"{what}; training is done", where=folder, why=done, run="the same command with --val")
        return kind(f"{what}; the run is saved", where=folder, why=done, run="the same command with --c continues it")

    # ------------------------------------------------------------------ start, validation, end

    def on_train_start(self) -> None:
        """Build the networks if needed, open the batch streams, and write the files that prediction needs."""
        check_other_folds(Path(self.output_folder), self.plans_manager.plans, self.configuration_name)
        if not self.was_initialized:
            self.initialize()
        rng = checkpoints.rng_state()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        checkpoints.set_rng_state(rng)  # opening the streams draws numbers; a continued run must not notice
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        if self.local_rank == 0:
            for leftover in Path(self.output_folder).glob(".checkpoint_*.tmp"):  # a killed session leaves such files
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
        """Switch the networks' outputs of deep supervision on for training or off for inference."""
        for network in {self.deployed, *(network for network, _ in self.trained)}:
            unwrap(network).decoder.deep_supervision = enabled  # type: ignore[union-attr]

    @contextmanager
    def use_network(self, network: nn.Module) -> Iterator[None]:
        """Let `self.network`, which nnU-Net's code reads, be another network inside the `with` block."""
        trained = self.network
        self.network = network
        try:
            yield
        finally:
            self.network = trained

    def on_validation_epoch_start(self) -> None:
        """Put the deployed network into inference mode."""
        self.deployed.eval()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return nnU-Net's validation numbers of the deployed network on one batch."""
        return self.score_batch(self.deployed, batch["validation"])

    def score_batch(self, network: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """Return nnU-Net's validation numbers of a network on one batch: loss, and voxels of each class."""
        with self.use_network(network):
            result: dict[str, Any] = super().validation_step(batch)
        return result

    def on_train_end(self) -> None:
        """Write the slim final checkpoint and the post-processing; the latest whole state stays for a longer run."""
        folder = Path(self.output_folder)
        if self.local_rank == 0:
            forget_decision_of_model(self)
        self.save_checkpoint(str(folder / FINAL))
        if self.local_rank == 0 and not self.disable_checkpointing:
            checkpoints.previous(folder / LATEST).unlink(missing_ok=True)
        log.info("training done: %s", folder / FINAL)
        if self.local_rank == 0:
            decide_for_fold(self)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the fold's validation cases with the deployed network, and write `validation/summary.json`."""
        self.set_deep_supervision_enabled(False)
        self.deployed.eval()
        predict_validation_cases(self, unwrap(self.deployed), save_probabilities)
        self.set_deep_supervision_enabled(True)
