"""What one training run was asked to do; stands in the plans and in every checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnssl.config import Value
from nnssl.errors import UsageError

ITERATIONS_PER_EPOCH = 250  # nnU-Net's
DEFAULT_EPOCHS = 1000  # nnU-Net's


@dataclass(frozen=True)
class RunSettings:
    """Length, seed, label budget and method settings of a run.

    Attributes:
        num_iterations: optimiser steps; every schedule is stretched over them.
        seed: of weights, batches and everything drawn in training.
        labelled: label budget (`7`, `10%`), None for all labels.
        bf16: networks calculate in bfloat16 (otherwise fp16 on CUDA, fp32 elsewhere).
        config: the method's settings that differ from their defaults.
    """

    num_iterations: int = DEFAULT_EPOCHS * ITERATIONS_PER_EPOCH
    seed: int = 0
    labelled: str | None = None
    bf16: bool = False
    config: dict[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_iterations < 1:
            raise UsageError(f"-num_iterations must be at least 1, got {self.num_iterations}")
        if self.seed < 0:
            raise UsageError(f"-seed must be 0 or larger, got {self.seed}")

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any]) -> RunSettings:
        """Return the run settings in the plans; where a stock command trains, the defaults with the plans' budget."""
        ours = plans.get("nnssl_semi", {})
        return cls(**ours.get("run", {"labelled": ours.get("labelled")}))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and checkpoints."""
        return dataclasses.asdict(self)

    @property
    def num_epochs(self) -> int:
        """Number of validation and checkpoint intervals: 250 iterations each, the last one may be shorter."""
        return -(-self.num_iterations // ITERATIONS_PER_EPOCH)

    def epoch_end(self, epoch: int) -> int:
        """Return the iteration at which an epoch (counted from 0) ends."""
        return min((epoch + 1) * ITERATIONS_PER_EPOCH, self.num_iterations)
