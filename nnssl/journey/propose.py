"""The proposal before the question: plan, method, length, and the time and memory that follow from a measurement."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from nnssl.journey.measure import LIMIT_SECONDS, Machine, config_class
from nnssl.journey.state import Measured, Pace, Proposal, Request
from nnssl.names import SUPERVISED_TRAINER
from nnssl.registry import find_method
from nnssl.system.resources import cpu_count
from nnssl.training.settings import ITERATIONS_PER_EPOCH, RunSettings

SHORT = 10_000  # below this length AdamW is ahead of nnU-Net's optimiser
FAST_OPTIMISER = {"optimizer": "adamw", "learning_rate": 0.001}
TIME_SECONDS = {"laptop": 3600.0, "workstation": 12 * 3600.0}
LEAST, MOST = 250, 250_000  # iterations that are proposed
SPREAD = 1.3  # the time lies within this factor of the estimate if nothing else changes on the machine
MOST_FOLDS = 5
SCORES = ("evaluate", "evaluate", "compare")  # commands that take about as long as a conversion starts
REPORT = 3  # the report loads more, and draws


@dataclass(frozen=True)
class Scans:
    """How many scans a study has.

    Attributes:
        labelled: with masks.
        unlabelled: without.
        to_predict: that each of the two models segments at the end.
    """

    labelled: int
    unlabelled: int
    to_predict: int

    @property
    def validated(self) -> int:
        """Number of scans that a run holds out: the first fold of five, or one scan of fewer than five."""
        return -(-self.labelled // min(MOST_FOLDS, max(1, self.labelled)))


def propose(request: Request, measured: Measured, scans: Scans) -> Proposal:
    """Return plan, method, length, time and memory.

    Args:
        request: what the user asked for.
        measured: what the commands take here.
        scans: how many there are.
    """
    machine, paces = Machine.of(request), measured.paces
    known = {SUPERVISED_TRAINER, request.trainer} <= set(paces)
    length = request.num_iterations
    if length is None and known:
        available = request.time_seconds or TIME_SECONDS[request.budget]
        length = _length(request.trainer, measured, available)
    length = length or LEAST
    settings: dict[str, Any] = dict(FAST_OPTIMISER) if length < SHORT else {}
    if not known:
        return Proposal(machine.configuration, machine.hardware, request.trainer, length, settings)
    both = [paces[name] for name in (SUPERVISED_TRAINER, request.trainer)]
    return Proposal(
        machine.configuration,
        machine.hardware,
        request.trainer,
        length,
        settings,
        _seconds(request.trainer, measured, scans, length) if "predict" in measured.costs else None,
        max(pace.memory_bytes for pace in both),
        max(pace.device_bytes for pace in both),
    )


def proposal_lines(proposal: Proposal) -> list[str]:
    """Return the proposal in words, one line a fact."""
    plan = "a small plan for the CPU" if proposal.hardware == "cpu" else "the plan of nnU-Net"
    lines = [
        f"plan:    {proposal.configuration}, {plan}",
        f"method:  {proposal.trainer}, beside {SUPERVISED_TRAINER}: {proposal.num_iterations} iterations each",
    ]
    if proposal.seconds is None:
        lines.append(f"time:    unknown: a few iterations take more than {LIMIT_SECONDS:.0f} s here")
    else:
        low, middle, high = (_duration(proposal.seconds * factor) for factor in (1 / SPREAD, 1, SPREAD))
        lines.append(f"time:    about {middle} ({low} to {high}), from a measurement on this machine{_load()}")
    if proposal.memory_bytes:
        on_device = f", and {proposal.device_bytes / 1e9:.1f} GB of the GPU" if proposal.device_bytes else ""
        lines.append(f"memory:  {proposal.memory_bytes / 1e9:.1f} GB{on_device}")
    return lines


def time_line(proposal: Proposal, seconds: float) -> str:
    """Return what the steps took, beside what was expected."""
    took = f"the steps took {_duration(seconds)}"
    return took if proposal.seconds is None else f"{took}; about {_duration(proposal.seconds)} were expected"


def _seconds(trainer: str, measured: Measured, scans: Scans, length: int) -> float:
    """Return the time of all steps."""
    costs, paces = measured.costs, measured.paces
    each, light = costs["predict"].scan_seconds, costs["convert"].start_seconds
    mean = _mean_pace(trainer, paces, length)
    trainings = [_training(paces[SUPERVISED_TRAINER], paces[SUPERVISED_TRAINER].seconds, length),
                 _training(paces[trainer], mean, length)]  # fmt: skip
    validation = 2 * (scans.validated - 1) * each  # the start of a measured training contains the first one
    labelling = scans.unlabelled * each if find_method(trainer).takes_pseudo_labels else 0.0
    total = costs["convert"].of(scans.labelled + scans.unlabelled)
    total += costs["plan_and_preprocess"].of(scans.labelled + scans.unlabelled)
    total += sum(trainings) + validation + labelling + 2 * costs["predict"].of(scans.to_predict)
    return total + (len(SCORES) + REPORT) * light


def _training(pace: Pace, mean_seconds: float, length: int) -> float:
    """Return the time of a training: its start, its iterations, and a validation on patches for each epoch."""
    return pace.start_seconds + length * mean_seconds + RunSettings(length).num_epochs * pace.check_seconds


def _mean_pace(trainer: str, paces: dict[str, Pace], length: int) -> float:
    """Return the seconds of an iteration of the method over its supervised stage and the stage after it."""
    config = config_class(trainer)()
    share = getattr(config, "supervised_share", 0.0)
    if share:
        share = min(1.0, max(share, getattr(config, "supervised_least", 0) / length))
    return float(share * paces[SUPERVISED_TRAINER].seconds + (1 - share) * paces[trainer].seconds)


def _length(trainer: str, measured: Measured, available_seconds: float) -> int:
    """Return the number of iterations, two digits long, whose two trainings take the available time."""
    paces = measured.paces
    both = paces[SUPERVISED_TRAINER].seconds + _mean_pace(trainer, paces, RunSettings().num_iterations)
    both += sum(paces[name].check_seconds for name in (SUPERVISED_TRAINER, trainer)) / ITERATIONS_PER_EPOCH
    number = min(MOST, max(LEAST, int(available_seconds / both)))
    digits = 10 ** max(0, len(str(number)) - 2)
    rounded: int = number // digits * digits
    return max(LEAST, rounded)


def _load() -> str:
    """Return a note where other programs take the machine, as its pace will change with them."""
    if not hasattr(os, "getloadavg"):  # Windows
        return ""
    load, cores = os.getloadavg()[1], cpu_count()
    return f", which is busy (load {load:.0f} on {cores} cores)" if load > 2 * cores else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
