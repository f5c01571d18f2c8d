"""What one training run was asked to do; stands in the plans and in every checkpoint. And the name of the run."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnssl.config import Value, format_value
from nnssl.errors import UsageError
from nnssl.names import SEMI_KEY

ITERATIONS_PER_EPOCH = 250  # nnU-Net's
DEFAULT_EPOCHS = 1000  # nnU-Net's
DEFAULT_TAG = "default"  # names the run without a tag where a tag can be given
LONGEST_TAG, KEPT_OF_LONG_TAG = 60, 48
FORBIDDEN = re.compile(r"[^A-Za-z0-9._=,+%-]|_(?=_)")  # two underscores separate the parts of a folder's name


@dataclass(frozen=True)
class RunSettings:
    """Length, seed, label budget and method settings of a run.

    Attributes:
        num_iterations: optimiser steps; every schedule is stretched over them.
        seed: of weights, batches and everything drawn in training.
        labelled: label budget (`7`, `10%`), None for all labels.
        bf16: networks calculate in bfloat16 (otherwise fp16 on CUDA, fp32 elsewhere).
        config: the method's settings that differ from their defaults.
        tag: name of the run beside other runs of the same method; empty for the default run.
        start_from: checkpoint whose weights the run starts from, below `nnUNet_results` or as a whole path; or empty.
        pseudo_labels: folder with masks of unlabelled scans that the run learns from, as a whole path; or empty.
        setting: setting of domains, `umda:A:B`, or the protocol that brings it; or empty.
    """

    num_iterations: int = DEFAULT_EPOCHS * ITERATIONS_PER_EPOCH
    seed: int = 0
    labelled: str | None = None
    bf16: bool = False
    config: dict[str, Value] = field(default_factory=dict)
    tag: str = ""
    start_from: str = ""
    pseudo_labels: str = ""
    setting: str = ""

    def __post_init__(self) -> None:
        if self.num_iterations < 1:
            raise UsageError(f"-num_iterations must be at least 1, got {self.num_iterations}")
        if self.seed < 0:
            raise UsageError(f"-seed must be 0 or larger, got {self.seed}")

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any]) -> RunSettings:
        """Return the run settings in the plans; where a stock command trains, the defaults with the plans' budget."""
        ours = plans.get(SEMI_KEY, {})
        return cls(**ours.get("run", {"labelled": ours.get("labelled"), "setting": ours.get("setting", "")}))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and checkpoints."""
        return dataclasses.asdict(self)

    @property
    def num_epochs(self) -> int:
        """Number of validation and checkpoint intervals: 250 iterations each, the last one may be shorter."""
        return -(-self.num_iterations // ITERATIONS_PER_EPOCH)

    def epoch_of(self, iteration: int) -> int:
        """Return the epoch (counted from 0) that an iteration belongs to."""
        return iteration // ITERATIONS_PER_EPOCH

    def epoch_end(self, epoch: int) -> int:
        """Return the iteration at which an epoch (counted from 0) ends."""
        return min((epoch + 1) * ITERATIONS_PER_EPOCH, self.num_iterations)


def automatic_tag(settings: RunSettings, pretrained: bool = False) -> str:
    """Return the name of a run without `-tag`: what differs from the defaults, or an empty text.

    The parts stand in this order, joined by commas: `seed1`, `iterations2500`, `bf16`, `pretrained`, `started` and
    `pseudolabels` with a hash of the place, then the method's settings by name as `--set` takes them. Setting
    and label budget are part of the plans name. Text beyond 60 characters is shortened, and characters that a folder's
    name should not have become `-`. Such a tag ends in a hash, so that different settings never share a tag.

    Args:
        settings: of the run; their `tag` does not count.
        pretrained: the run starts from other weights.
    """
    parts = [f"seed{settings.seed}"] if settings.seed else []
    if settings.num_iterations != RunSettings().num_iterations:
        parts.append(f"iterations{settings.num_iterations}")
    parts += ["bf16"] if settings.bf16 else []
    parts += ["pretrained"] if pretrained else []
    for name, place in (("started", settings.start_from), ("pseudolabels", settings.pseudo_labels)):
        parts += [f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"] if place else []
    parts += [f"{name}={format_value(value)}" for name, value in sorted(settings.config.items())]
    text = ",".join(parts)
    mended = FORBIDDEN.sub("-", text)
    if mended == text and len(text) <= LONGEST_TAG:
        return text
    return f"{mended[:KEPT_OF_LONG_TAG]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def check_tag(tag: str) -> str:
    """Return the tag that a user gave, as it stands in folder names: `default` is the run without a tag.

    Raises:
        UsageError: the tag is empty, too long, or has characters that a folder's name should not have.
    """
    if not tag or FORBIDDEN.search(tag) or len(tag) > LONGEST_TAG:
        raise UsageError(
            f"'{tag}' cannot be the tag of a run",
            where=f"-tag {tag}",
            why=f"a tag has 1 to {LONGEST_TAG} letters, digits and . _ = , + % -, but no two underscores in a row",
        )
    return "" if tag == DEFAULT_TAG else tag
