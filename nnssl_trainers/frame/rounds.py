"""Self-training in rounds: one network or several label the scans, and a new network learns labels and pseudo-labels.

The supervised stage trains one network, or several members one after the other, each for its share of the stage, with
its own random weights and a complete schedule. They label the scans together. A round trains a network on labels and
pseudo-labels, at its end on labels alone, with a complete schedule. Before a second round, the network of the first one
labels the scans anew.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from nnssl.config import hyper
from nnssl.names import CHECKPOINT_LATEST
from nnssl.training import checkpoints
from nnssl_trainers.frame.architecture import unwrap
from nnssl_trainers.frame.stored_labels import StoredLabelsConfig, StoredLabelsTrainer

MEMBER_SEEDS = 1000  # member n starts from the seed of the run plus this many times n


@dataclass(frozen=True)
class RoundsConfig(StoredLabelsConfig):
    """The settings of self-training in rounds."""

    restart_weights: bool = hyper(True, "a round starts from new random weights; off: from the labelling network")
    finetune_share: float = hyper(0.15, "share of each round, at its end, on labels alone", low=0.0, high=0.9)
    members: int = hyper(
        1, "networks of the supervised stage; they share its iterations and label together", low=1, high=10
    )
    rounds: int = hyper(1, "times that scans are labelled and a network learns from them", low=1, high=2)


RoundsConfigT = TypeVar("RoundsConfigT", bound=RoundsConfig)


class RoundsTrainer(StoredLabelsTrainer[RoundsConfigT]):
    """The frame of self-training in rounds; see the docstring of this module."""

    _round = 1

    # ------------------------------------------------------------------ where the run stands

    @property
    def members(self) -> int:
        """Number of networks of the supervised stage; 1 where there is no such stage."""
        return max(1, min(self.config.members, self.supervised_iterations))

    @property
    def member_ends(self) -> list[int]:
        """Iterations with which the members of the supervised stage are done, without the last member's."""
        return [n * self.supervised_iterations // self.members for n in range(1, self.members)]

    @property
    def round_begins(self) -> list[int]:
        """First iterations of the rounds; there is no second round after a first one without pseudo-labels."""
        first, rounds = self.supervised_iterations, self.config.rounds
        if self._round == 1 and self.kept == []:
            rounds = 1
        return [first + n * (self.settings.num_iterations - first) // rounds for n in range(rounds)]

    def stage_at(self, iteration: int) -> tuple[int, int]:
        """Return the first iteration and the length of the training that an iteration belongs to."""
        begins = sorted({0, *self.member_ends, *self.round_begins})
        begin = max(each for each in begins if each <= iteration)
        end = min((each for each in begins if each > iteration), default=self.settings.num_iterations)
        return begin, max(1, end - begin)

    def supervised_key(self) -> str:
        """Return the key of the supervised stage; several members are not the stage of a supervised run."""
        return super().supervised_key() if self.members == 1 else ""

    @property
    def finetune_begin(self) -> int:
        """Iteration of the current round from which on only labelled patches are learned."""
        begin, length = self.stage_at(max(self.iteration, self.supervised_iterations))
        learned = max(1, begin + length - max(begin, self.method_begin or 0))
        return begin + length - round(self.config.finetune_share * learned)

    @property
    def draws_unlabelled(self) -> bool:
        """Whether the streams hold pseudo-labelled patches: in every round, but not at its end."""
        return super().draws_unlabelled and self.iteration < self.finetune_begin

    # ------------------------------------------------------------------ what labels, and where

    @property
    def given_labels(self) -> bool:
        """Whether the user gave the pseudo-labels of this round."""
        return super().given_labels and self._round == 1

    @property
    def pseudo_folder(self) -> Path:
        """The folder of the stored pseudo-labels; a second round has one of its own."""
        folder = super().pseudo_folder
        return folder if self._round == 1 else folder.with_name(f"{folder.name}_{self._round}")

    @property
    def label_source(self) -> str:
        """What the networks that label are, for the report."""
        if self._round > 1:
            return f"the network of round {self._round - 1}"
        files = [self.member_file(n).name for n in range(1, self.members)]
        return ", ".join([*files, super().label_source])

    def member_file(self, number: int) -> Path:
        """Return the checkpoint of a finished member; the first has number 1."""
        return Path(self.output_folder) / f"checkpoint_member_{number}.pth"

    def labelling_weights(self) -> list[dict[str, Tensor]]:
        """Return the weights of the networks that label together: all members, or the network of the round before."""
        files = [self.member_file(n) for n in range(1, self.members)] if self._round == 1 else []
        return [*(checkpoints.load(file)["network_weights"] for file in files), *super().labelling_weights()]

    # ------------------------------------------------------------------ the course of the run

    def before_step(self) -> None:
        """Begin what is due: a member, a stage, a round, or the end of a round on labels alone."""
        if self.iteration in self.member_ends:
            number = self.member_ends.index(self.iteration) + 1
            self.save_checkpoint(str(self.member_file(number)))
            self.optimizer.state.clear()
            self.start_from_random_weights(self.settings.seed + MEMBER_SEEDS * number)
        if self._round == 1 and self.iteration in self.round_begins[1:]:
            self.begin_round()
        super().before_step()
        if self.method_begin is not None and self.method_begin < self.iteration == self.finetune_begin:
            self.reopen_streams()

    def start_from_random_weights(self, seed: int) -> None:
        """Give the network new random weights."""
        torch.manual_seed(seed)
        unwrap(self.network).load_state_dict(self.new_network().state_dict())

    def begin_round(self) -> None:
        """Begin the second round with the labelling of the scans; a run that is killed then goes on from here."""
        self._round, self.kept = 2, None
        if self.local_rank == 0:
            shutil.rmtree(self.pseudo_folder, ignore_errors=True)  # of a killed run that has no checkpoint
        if self.is_ddp:
            distributed.barrier()
        self.optimizer.state.clear()
        self.save_checkpoint(str(Path(self.output_folder) / CHECKPOINT_LATEST))
        self.label_scans()
        self.reopen_streams()

    def label_scans(self) -> None:
        """Label the unlabelled scans, and give the network new random weights from the run's seed and the round."""
        super().label_scans()
        if not self.kept:
            return
        seed = self.settings.seed + self._round
        torch.manual_seed(seed)  # the same numbers follow where the labelling was interrupted
        if self.config.restart_weights and not self.given_labels:  # otherwise this network has labelled nothing
            self.start_from_random_weights(seed)

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Return the state, including the round."""
        return {**super().state(), "round": self._round}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state that includes the round."""
        super().load_state(state)
        self._round = state.get("round", 1)
