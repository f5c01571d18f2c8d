"""What the steps take on this machine: every command that counts, on a few of the user's scans."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from nnssl.chooser import costs
from nnssl.journey.commands import Command, Ended, folders_of, run_command
from nnssl.journey.match import Collected
from nnssl.journey.state import Cost, Measured, Pace, Request
from nnssl.names import PREPROCESSED_VARIABLE, PROGRESS_JSONL, RAW_VARIABLE, SUPERVISED_TRAINER
from nnssl.registry import find_method

SAMPLE = {"images": 2, "labels": 2, "unlabelled": 4}  # files of each part
PREPARE_SECONDS = 120.0  # for conversion, planning and prediction of the sample, each
LIMIT_SECONDS = 180.0  # of a training that is measured
ITERATIONS = {"2d": 40, "3d_fullres": 16}  # of the supervised training; the steady pace is that of the second half
AIM_SECONDS, LEAST, MOST = 20.0, 12, 100  # the training of the method: its time, and bounds of its iterations
READINGS = 2  # planning reads a scan for its check and fingerprint, and again for the preprocessing
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


def measure(request: Request, collected: Collected, folder: Path) -> Measured:
    """Return what the commands take on a few scans of the user; a command that is too slow to measure is left out.

    Where the training of the method alone is too slow, its pace follows from that of the baseline.

    Args:
        request: what the user asked for.
        collected: all files.
        folder: for the work; it is removed at the end.

    Raises:
        StepFailed: the sample cannot be converted, planned, trained on or predicted.
    """
    sample = {
        name: path for part, count in SAMPLE.items() for name, path in islice(_of_part(collected, part).items(), count)
    }
    shutil.rmtree(folder, ignore_errors=True)
    Collected(sample, []).link(folder / "scans")
    try:
        return _Sample(request, folder).measured()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Sample:
    """The commands on the sample in a folder of their own."""

    request: Request
    folder: Path

    def measured(self) -> Measured:
        """Run the commands one after the other; what follows a command that is too slow is not measured."""
        folders, machine = folders_of(self.folder, {}), Machine.of(self.request)
        raw, preprocessed = (Path(folders[name]) for name in (RAW_VARIABLE, PREPROCESSED_VARIABLE))
        made = Measured()
        convert = ("folder", "-i", str(self.folder / "scans"), "-d", SAMPLE_ID, "-o", "Sample", "--fix_geometry",
                   "--skip_unreadable", *self.request.options)  # fmt: skip
        plan = ("-d", SAMPLE_ID, *machine.plan_words, "--skip_unreadable")
        for name, words, files, readings in (
            ("convert", convert, raw.glob("*/images*/*"), 1),
            ("plan_and_preprocess", plan, preprocessed.glob("*/*/*.b2nd"), READINGS),
        ):
            ended = self._run(Command(name, words), PREPARE_SECONDS)
            if ended is None:
                return made
            made.costs[name] = cost_of(ended.seconds, files, readings)
        pace = self._train(SUPERVISED_TRAINER, ITERATIONS[machine.configuration])
        if pace is None:
            return made
        made.paces[SUPERVISED_TRAINER] = pace
        trainer, configuration = self.request.trainer, machine.configuration
        measured = self._train(trainer, _iterations(trainer, configuration, pace.seconds))
        made.paces[trainer] = measured or _relative(trainer, configuration, pace)
        masks = self.folder / "masks"
        words = ("-i", str(next(raw.glob("*/imagesUn"))), "-o", str(masks), "-d", SAMPLE_ID, "-tr", SUPERVISED_TRAINER,
                 *machine.device_words)  # fmt: skip
        ended = self._run(Command("predict", words), PREPARE_SECONDS)
        if ended is not None:
            made.costs["predict"] = cost_of(ended.seconds, (Path(mask) for mask in ended.result["masks"]))
        return made

    def _train(self, trainer: str, iterations: int) -> Pace | None:
        machine = Machine.of(self.request)
        words = (SAMPLE_ID, machine.configuration, "0", "-tr", trainer, *machine.device_words,
                 *_words_of_stage(trainer, iterations))  # fmt: skip
        ended = self._run(Command("train", words), LIMIT_SECONDS)
        return None if ended is None else _pace(ended)

    def _run(self, command: Command, limit_seconds: float) -> Ended | None:
        return run_command(command, folders_of(self.folder, {}), self.folder / "log.txt", limit_seconds)


def cost_of(seconds: float, files: Iterable[Path], readings: int = 1) -> Cost:
    """Return the cost of a command from its time and from the times at which it wrote its files, one or more a scan.

    Args:
        seconds: of the whole command.
        files: what it wrote.
        readings: how often the command reads a scan; the files show the last time alone.
    """
    times = sorted(file.lstat().st_mtime for file in files)
    each = readings * (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    each = min(each, seconds / max(1, len(times)))
    return Cost(seconds - len(times) * each, each)


def config_class(trainer: str) -> Any:  # noqa: ANN401 - the settings of a method, a dataclass
    """Return the class of the settings of a method."""
    return find_method(trainer).load().config_class


def _of_part(collected: Collected, part: str) -> dict[str, Path]:
    return {name: path for name, path in collected.files.items() if name.startswith(f"{part}/")}


def _iterations(trainer: str, configuration: str, supervised_seconds: float) -> int:
    """Return how many iterations of a method to measure, from the pace of the baseline and the relative cost."""
    relative = costs()[configuration][trainer].time
    return min(MOST, max(LEAST, int(AIM_SECONDS / max(1e-6, supervised_seconds * relative))))


def _relative(trainer: str, configuration: str, baseline: Pace) -> Pace:
    """Return the pace of a method that is too slow to measure, from that of the baseline and the relative cost."""
    cost = costs()[configuration][trainer]
    memory, device = (round(cost.memory * number) for number in (baseline.memory_bytes, baseline.device_bytes))
    return replace(baseline, seconds=cost.time * baseline.seconds, memory_bytes=memory, device_bytes=device)


def _words_of_stage(trainer: str, iterations: int) -> list[str]:
    """Return the options of a measured run: the stage with unlabelled scans alone, which is the slower one."""
    words = ["-num_iterations", str(iterations), "-tag", "measured"]
    fields = config_class(trainer).__dataclass_fields__
    changes = [f"{name}=0" for name in ("supervised_share", "ready_dice") if name in fields]
    return [*words, "--set", *changes] if changes else words


def _pace(ended: Ended) -> Pace:
    """Return the pace of a run of one epoch, from the log in its folder and the record in its result."""
    (line,) = (Path(ended.result["folder"]) / PROGRESS_JSONL).read_text(encoding="utf-8").splitlines()
    epoch, record = json.loads(line), ended.result["record"]
    steady, check = epoch["steady_seconds_per_iteration"], epoch["validation_seconds"]
    start = ended.seconds - epoch["iteration"] * steady - check
    device = max(session["peak_device_bytes"] for session in record["sessions"])
    return Pace(steady, check, max(0.0, start), ended.memory_bytes, device)
