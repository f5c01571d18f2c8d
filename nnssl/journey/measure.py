"""What a training takes on this machine: a few iterations on a few scans, and the proposal that follows from them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nnssl.journey.commands import Command, Ended, folders_of, run_command
from nnssl.journey.match import Collected
from nnssl.journey.state import Pace, Proposal, Request
from nnssl.names import SUPERVISED_TRAINER
from nnssl.registry import find_method
from nnssl.training.settings import RunSettings

log = logging.getLogger("nnssl.run")
SAMPLE = {"images": 2, "labels": 2, "unlabelled": 2}  # files of each part
PREPARE_SECONDS = 120.0  # for conversion and planning of the sample, each
LIMIT_SECONDS = 60.0  # of a training that is measured
ITERATIONS = 25
SHORT = 10_000  # below this length AdamW is ahead of nnU-Net's optimiser
FAST_OPTIMISER = {"optimizer": "adamw", "learning_rate": 0.001}
TIME_SECONDS = {"laptop": 3600.0, "workstation": 12 * 3600.0}
LEAST, MOST = 250, 250_000  # iterations that are proposed
FASTER, SLOWER = 0.8, 1.3  # the trainings take this share of the measured pace
STEPS_WITHOUT_TRAINING = 6  # conversion, planning, two predictions, scores
SAMPLE_ID = "1"


@dataclass(frozen=True)
class Machine:
    """What the budget means here.

    Attributes:
        configuration: `2d` or `3d_fullres`.
        hardware: `cpu`, or None for the planner of nnU-Net.
    """

    configuration: str
    hardware: str | None

    @classmethod
    def of(cls, request: Request) -> Machine:
        """Return the configuration and the kind of plans for a request."""
        laptop = request.budget == "laptop"
        return cls(request.configuration or ("2d" if laptop else "3d_fullres"), "cpu" if laptop else None)

    @property
    def plan_words(self) -> list[str]:
        """The options of `nnssl_plan_and_preprocess`."""
        return ["-c", self.configuration, *(["-hardware", self.hardware] if self.hardware else [])]

    @property
    def device_words(self) -> list[str]:
        """The options of `nnssl_train` and `nnssl_predict`: small plans train on the CPU."""
        return ["-device", "cpu"] if self.hardware else []


def measure(request: Request, collected: Collected, folder: Path) -> dict[str, Pace]:
    """Return the pace of both trainers on a few scans of the user; a trainer that is too slow to measure is left out.

    Args:
        request: what the user asked for.
        collected: all files.
        folder: for the work; it is removed at the end.

    Raises:
        StepFailed: the sample cannot be converted or planned.
    """
    machine, folders = Machine.of(request), folders_of(folder, {})
    sample = {
        name: path for part, count in SAMPLE.items() for name, path in islice(_of_part(collected, part).items(), count)
    }
    shutil.rmtree(folder, ignore_errors=True)
    Collected(sample, []).link(folder / "scans")
    convert = ("folder", "-i", str(folder / "scans"), "-d", SAMPLE_ID, "-o", "Sample", "--fix_geometry",
               "--skip_unreadable", *request.options)  # fmt: skip
    plan = ("-d", SAMPLE_ID, *machine.plan_words, "--skip_unreadable")
    paces: dict[str, Pace] = {}
    try:
        for command in (Command("convert", convert), Command("plan_and_preprocess", plan)):
            if run_command(command, folders, folder / "log.txt", PREPARE_SECONDS) is None:
                return {}
        for trainer in (SUPERVISED_TRAINER, request.trainer):
            train = Command("train", (SAMPLE_ID, machine.configuration, "0", "-tr", trainer, *machine.device_words,
                                      *_words_of_stage(trainer, ITERATIONS)))  # fmt: skip
            ended = run_command(train, folders, folder / "log.txt", LIMIT_SECONDS)
            if ended is not None:
                paces[trainer] = _pace(ended)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return paces


def propose(request: Request, paces: Mapping[str, Pace], scans_to_predict: int) -> Proposal:
    """Return plan, method, length, time and memory.

    Args:
        request: what the user asked for.
        paces: trainer -> measurement.
        scans_to_predict: number of scans that each of the two models segments at the end.
    """
    machine = Machine.of(request)
    known = {SUPERVISED_TRAINER, request.trainer} <= set(paces)
    length = request.num_iterations
    if length is None and known:
        available = request.time_seconds or TIME_SECONDS[request.budget]
        length = _length(request.trainer, paces, available)
    length = length or LEAST
    settings: dict[str, Any] = dict(FAST_OPTIMISER) if length < SHORT else {}
    if not known:
        return Proposal(machine.configuration, machine.hardware, request.trainer, length, settings)
    baseline, method = paces[SUPERVISED_TRAINER], paces[request.trainer]
    training = length * (baseline.seconds + _mean_pace(request.trainer, paces, length))
    start = max(baseline.start_seconds, method.start_seconds)
    once = start * (2 + STEPS_WITHOUT_TRAINING)
    each = 2 * scans_to_predict  # a scan takes a sixth to a half of the time that a command takes to start
    return Proposal(
        machine.configuration,
        machine.hardware,
        request.trainer,
        length,
        settings,
        (FASTER * training + once / 2 + each * start / 6, SLOWER * training + once + each * start / 2),
        max(baseline.memory_bytes, method.memory_bytes),
        max(baseline.device_bytes, method.device_bytes),
    )


def proposal_lines(proposal: Proposal) -> list[str]:
    """Return the proposal in words, one line a fact."""
    plan = "a small plan for the CPU" if proposal.hardware == "cpu" else "the plan of nnU-Net"
    lines = [
        f"plan:    {proposal.configuration}, {plan}",
        f"method:  {proposal.trainer}, beside {SUPERVISED_TRAINER}: {proposal.num_iterations} iterations each",
    ]
    if proposal.seconds is None:
        return [*lines, f"time:    unknown: {ITERATIONS} iterations take more than {LIMIT_SECONDS:.0f} s here"]
    low, high = (_duration(seconds) for seconds in proposal.seconds)
    memory = f"memory:  {(proposal.memory_bytes or 0) / 1e9:.1f} GB"
    on_device = f", and {proposal.device_bytes / 1e9:.1f} GB of the GPU" if proposal.device_bytes else ""
    return [*lines, f"time:    {low} to {high}, from a measurement on this machine", memory + on_device]


def time_line(proposal: Proposal, seconds: float) -> str:
    """Return what the steps took, beside what was expected."""
    took = f"the steps took {_duration(seconds)}"
    if proposal.seconds is None:
        return took
    low, high = (_duration(each) for each in proposal.seconds)
    return f"{took}, expected were {low} to {high}"


def _of_part(collected: Collected, part: str) -> dict[str, Path]:
    return {name: path for name, path in collected.files.items() if name.startswith(f"{part}/")}


def _words_of_stage(trainer: str, iterations: int) -> list[str]:
    """Return the options of a measured run: the stage with unlabelled scans alone, which is the slower one."""
    words = ["-num_iterations", str(iterations), "-tag", "measured"]
    fields = _config_class(trainer).__dataclass_fields__
    changes = [f"{name}=0" for name in ("supervised_share", "ready_dice") if name in fields]
    return [*words, "--set", *changes] if changes else words


def _config_class(trainer: str) -> Any:  # noqa: ANN401 - the settings of a method, a dataclass
    return find_method(trainer).load().config_class


def _pace(ended: Ended) -> Pace:
    record = ended.result["record"]
    seconds = record["seconds_per_iteration"]
    device = max(session["peak_device_bytes"] for session in record["sessions"])
    return Pace(seconds, max(0.0, ended.seconds - ITERATIONS * seconds), ended.memory_bytes, device)


def _mean_pace(trainer: str, paces: Mapping[str, Pace], length: int) -> float:
    """Return the seconds of an iteration of the method over its supervised stage and the stage after it."""
    config = _config_class(trainer)()
    share = getattr(config, "supervised_share", 0.0)
    if share:
        share = min(1.0, max(share, getattr(config, "supervised_least", 0) / length))
    return float(share * paces[SUPERVISED_TRAINER].seconds + (1 - share) * paces[trainer].seconds)


def _length(trainer: str, paces: Mapping[str, Pace], available_seconds: float) -> int:
    """Return the number of iterations, two digits long, whose two trainings take the available time."""
    both = paces[SUPERVISED_TRAINER].seconds + _mean_pace(trainer, paces, RunSettings().num_iterations)
    number = min(MOST, max(LEAST, int(available_seconds / both)))
    digits = 10 ** max(0, len(str(number)) - 2)
    rounded: int = number // digits * digits
    return max(LEAST, rounded)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
