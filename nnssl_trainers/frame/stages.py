"""A run in two stages: nnU-Net's supervised training on the labels first, the method from its weights second.

The supervised stage is a whole supervised run of its length: same batches, same weights, complete learning-rate
schedule. A finished supervised run, or the supervised stage of another method, therefore takes its place where its
record has the same key. The second stage has fresh optimisers and a complete schedule of its own; a teacher equals its
student at the start of it. The losses on unlabelled patches begin when the network that labels them is ready: it must
find every class of the labelled patches.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from nnssl.config import Value, hyper
from nnssl.names import CHECKPOINT_SUPERVISED
from nnssl.training import checkpoints
from nnssl.training.record import find_supervised
from nnssl_trainers.frame.batch import Batch, as_list
from nnssl_trainers.frame.data_streams import LOOK_BATCHES, UnlabelledConfig
from nnssl_trainers.frame.optimization import schedule_factor
from nnssl_trainers.frame.trainer import SemiSupervisedTrainer

PAPER_CLOCK: dict[str, Value] = {
    "supervised_share": 0.0,
    "ready_dice": 0.0,
}  # of the presets that keep a paper's phases
KINDS = ("tp", "fp", "fn")  # counts of voxels: true positive, false positive, false negative
log = logging.getLogger("nnssl.train")


@dataclass(frozen=True)
class StagedConfig(UnlabelledConfig):
    """The settings of every method that starts from a supervised stage."""

    supervised_share: float = hyper(
        0.5, "share of the run that is supervised training first; 0 after -start_from", low=0.0, high=0.99
    )
    supervised_least: int = hyper(0, "least number of iterations of that training, where the share is not 0", low=0)
    ready_dice: float = hyper(
        0.5, "Dice of every class on labelled patches from which on unlabelled patches count", low=0.0, high=1.0
    )


StagedConfigT = TypeVar("StagedConfigT", bound=StagedConfig)


class StagedTrainer(SemiSupervisedTrainer[StagedConfigT]):
    """The frame of methods that start from a supervised stage; see the docstring of this module.

    Attributes:
        method_begin: iteration from which on unlabelled patches count; None before.
        labelled_dice: Dice of each class (NaN where no patch shows it) of the labelling network at the last look.
    """

    scored_on: ClassVar[str] = "patches"  # what readiness is measured on
    method_begin: int | None = None
    labelled_dice: tuple[float, ...] = ()
    _second_stage = False
    _supervised_for: int | None = None  # length of a finished supervised stage: a run that becomes longer keeps it

    # ------------------------------------------------------------------ where the run stands

    @property
    def supervised_iterations(self) -> int:
        """Number of iterations of the supervised stage; 0 for a run that starts from another run."""
        if self._supervised_for is not None:
            return self._supervised_for
        if self.settings.start_from or not self.config.supervised_share:
            return 0
        total = self.settings.num_iterations
        return min(total, max(round(self.config.supervised_share * total), self.config.supervised_least))

    @property
    def starts_trained(self) -> bool:
        """Whether the second stage starts from a trained network."""
        return self.supervised_iterations > 0 or bool(self.settings.start_from)

    @property
    def restarts(self) -> bool:
        """Whether the second stage has optimisers and a learning-rate schedule of its own."""
        return True

    @property
    def method_iterations(self) -> int:
        """Number of iterations from the begin of the method's losses to the end of the run, at least 1."""
        begin = self.supervised_iterations if self.method_begin is None else self.method_begin
        return max(1, self.settings.num_iterations - begin)

    @property
    def method_step(self) -> int:
        """Number of finished iterations with the method's losses."""
        return 0 if self.method_begin is None else self.iteration - self.method_begin

    @property
    def labelling_networks(self) -> list[nn.Module]:
        """The networks that label unlabelled patches; all of them must be ready."""
        return [network for network, _ in self.trained]

    @property
    def draws_unlabelled(self) -> bool:
        """Whether the streams hold unlabelled patches: not in the supervised stage."""
        return self.uses_unlabelled and self.iteration >= self.supervised_iterations

    @property
    def unlabelled_from(self) -> int | None:
        """Iteration from which on unlabelled patches count, None before; the record of the run holds it."""
        return self.method_begin

    def supervised_key(self) -> str:
        """Return the key of the supervised stage, empty where the run has none or another run cannot use it."""
        return self.key_of_supervised(self.supervised_iterations) if self.restarts else ""

    # ------------------------------------------------------------------ the stages

    def initialize(self) -> None:
        """Build networks and optimisers; a run without stages begins with the method at once."""
        super().initialize()
        if not self.starts_trained and not self.config.ready_dice:
            self._second_stage, self._supervised_for, self.method_begin = True, 0, 0

    def on_train_start(self) -> None:
        """Take over a finished supervised stage, if there is one; then start as every run does."""
        if not self.was_initialized:
            self.initialize()
        if self.uses_unlabelled:
            self.unlabelled_dataset()  # an error about the unlabelled scans comes before the supervised stage
        if self.iteration == 0 and self.supervised_iterations and not self.disable_checkpointing:
            self._take_finished_stage()
        if self.iteration >= self.supervised_iterations and not self._second_stage:
            self.begin_second_stage()
        super().on_train_start()

    def before_step(self) -> None:
        """Begin the second stage when it is time, and look whether the labelling networks are ready."""
        if not self._second_stage and self.iteration >= self.supervised_iterations:
            self.begin_second_stage()
            self.reopen_streams()
        if self.looks_before(self.iteration):
            self.look_at_labelled_patches()
        elif self.method_begin is None and self._second_stage and not self.config.ready_dice:
            self.method_begin = self.iteration

    def begin_second_stage(self) -> None:
        """Write the weights of the supervised stage, and give the second stage fresh optimisers."""
        if self.supervised_iterations:
            self.save_checkpoint(str(Path(self.output_folder) / CHECKPOINT_SUPERVISED))
            log.info("the supervised stage of %d iterations is done", self.supervised_iterations)
        self._second_stage, self._supervised_for = True, self.supervised_iterations
        if self.supervised_iterations and self.restarts:
            torch.manual_seed(self.settings.seed)  # the same numbers follow where the supervised stage was taken over
            for _, optimizer in self.trained:
                optimizer.state.clear()
        self.set_training_mode()

    def losses_of_step(self, batch: Batch) -> dict[str, Tensor]:
        """Return nnU-Net's loss before unlabelled patches count, then the losses of the method."""
        if self.method_begin is None:
            return self.supervised_losses(batch)
        return self.training_losses(dataclasses.replace(batch, iteration=self.method_step))

    def supervised_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return nnU-Net's loss on the labelled patches for each trained network."""
        terms = [self.supervised_loss(as_list(network(batch.image_l)), batch) for network, _ in self.trained]
        if len(terms) == 1:
            return {"supervised": terms[0]}
        return {f"supervised_{number}": term for number, term in enumerate(terms, start=1)}

    def finish_step(self) -> None:
        """Do what follows a step of the method; before, let a teacher follow its student."""
        if self.method_begin is not None:
            self.after_step()
        elif self._second_stage:
            self.follow_student()

    def follow_student(self) -> None:
        """Move a teacher towards its student while unlabelled patches do not count yet."""

    def learning_rate_factors(self, iteration: int) -> list[float]:
        """Return the factor of each trained network's learning rate; each stage has a complete schedule."""
        begin, length = self.stage_at(iteration)
        factor = schedule_factor(self.config, (iteration - begin) / length)
        return [factor for _ in self.trained]

    def stage_at(self, iteration: int) -> tuple[int, int]:
        """Return the first iteration and the length of the stage that an iteration belongs to."""
        first, total = self.supervised_iterations, self.settings.num_iterations
        if not self.restarts:
            return 0, total
        return (0, first) if iteration < first else (first, max(1, total - first))

    # ------------------------------------------------------------------ readiness

    def looks_before(self, iteration: int) -> bool:
        """Return whether the labelling networks are scored before the step of an iteration."""
        first = self.supervised_iterations
        if not self.config.ready_dice or iteration < first or iteration >= self.settings.num_iterations:
            return False
        begins = iteration == first and self.starts_trained
        return begins or (
            iteration > first and iteration == self.settings.epoch_end(self.settings.epoch_of(iteration) - 1)
        )

    def look_at_labelled_patches(self) -> None:
        """Score the labelling networks on labelled patches; unlabelled patches count from now on if they are ready."""
        batches = [next(self.dataloader_train)["look"] for _ in range(LOOK_BATCHES)]
        self.labelled_dice = tuple(
            min(values)
            for values in zip(*(self._labelled_dice(net, batches) for net in self.labelling_networks), strict=True)
        )
        self.set_training_mode()
        known = [value for value in self.labelled_dice if not math.isnan(value)]
        if self.method_begin is None and known and min(known) >= self.config.ready_dice:
            self.method_begin = self.iteration
            self._tell(f"the unlabelled scans count from iteration {self.iteration} on; {self._dice_text()}")

    @torch.no_grad()
    def _labelled_dice(self, network: nn.Module, batches: list[dict[str, Any]]) -> list[float]:
        network.eval()
        scores = [self.score_batch(network, batch) for batch in batches]
        counts = torch.stack(
            [
                torch.stack([torch.as_tensor(score[f"{kind}_hard"]).double() for score in scores]).sum(0)
                for kind in KINDS
            ]
        )
        tp, fp, fn = counts.cpu()
        dice = torch.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), torch.nan)
        values: list[float] = dice.tolist()
        return values

    def _dice_text(self) -> str:
        pairs = zip(self.structure_names(), self.labelled_dice, strict=True)
        parts = [f"{name} {value:.2f}" for name, value in pairs if not math.isnan(value)]
        return f"Dice on labelled {self.scored_on}: {', '.join(parts)}"

    def epoch_warnings(self) -> list[str]:
        """Return the general warnings, and one while the labelling networks are not ready."""
        general = super().epoch_warnings()
        if not self._second_stage or self.method_begin is not None or not self.labelled_dice:
            return general
        hint = f"a class below {self.config.ready_dice:g} would be unlearned; training goes on with the labels alone"
        return [*general, f"the unlabelled scans do not count yet: {hint} ({self._dice_text()})"]

    def on_train_end(self) -> None:
        """End the run, and say so where no unlabelled patch ever counted."""
        super().on_train_end()
        if self.method_begin is None and self.uses_unlabelled:
            log.warning(
                "warning: this run is supervised: no unlabelled scan counted, because the network did not learn every "
                "class (%s); train longer (-num_iterations), or start from a better run (-start_from)",
                self._dice_text() if self.labelled_dice else "it was never scored",
            )

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Return the state, including the stage."""
        return {
            **super().state(),
            "supervised_iterations": self._supervised_for,
            "second_stage": self._second_stage,
            "method_begin": self.method_begin,
            "labelled_dice": list(self.labelled_dice),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that includes the stage; runs of earlier versions had no stages."""
        super().load_state(state)
        self._second_stage = state.get("second_stage", True)
        self._supervised_for = state.get("supervised_iterations", 0)
        self.method_begin = state.get("method_begin", 0)
        self.labelled_dice = tuple(state.get("labelled_dice", ()))

    def _take_finished_stage(self) -> None:
        """Start from the supervised stage that another run has finished, if there is one with the same key."""
        folder = Path(self.output_folder)
        found = find_supervised(folder.parents[1], self.supervised_key(), folder)
        if found is None:
            return
        checkpoint = checkpoints.load(found)
        self.load_students(checkpoint, found)
        self._best_ema = checkpoint["_best_ema"]
        self.iteration = self.supervised_iterations
        self.current_epoch = self.settings.epoch_of(self.iteration)
        self.load_log(checkpoint["logging"])
        if self.local_rank == 0:
            self.record.take_over(found.parent, self.settings.epoch_end(self.current_epoch - 1))
        self._tell(f"the supervised stage of {self.iteration} iterations is taken from {found}")
