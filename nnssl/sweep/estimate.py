"""How long the runs of a study take and how much disk they need, from the runs of the data set that exist."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nnssl.names import FOLD_PREFIX, RUN_JSON
from nnssl.sweep.store import Task
from nnssl.sweep.study import StudyPlan, StudyRun
from nnssl.training.record import RunRecord


@dataclass(frozen=True)
class Estimate:
    """Time and disk of one run.

    Attributes:
        seconds: of the training without the validation, None where no run tells.
        disk_bytes: of the fold's folder, None where no run tells.
    """

    seconds: float | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a study before they begin.

    Attributes:
        runs: with their states by their files.
        plans: planning and preprocessing that is missing.
        estimates: time and disk of each run.
        commands: command line of each run that is not done; it continues a run that has begun.
    """

    runs: list[Task]
    plans: list[StudyPlan]
    estimates: list[Estimate]
    commands: list[str]


@dataclass(frozen=True)
class Measured:
    """What the runs of a data set took.

    Attributes:
        seconds: (trainer, configuration) -> seconds of an iteration of each run.
        sizes: (trainer, configuration) -> bytes of each finished fold.
    """

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    sizes: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Path) -> Measured:
        """Return what the records below the results folder of a data set say."""
        made = cls()
        for file in sorted(results.glob(f"*/{FOLD_PREFIX}*/{RUN_JSON}")):
            record = RunRecord.read(file.parent)
            if record is None:
                continue
            key = (record.trainer, record.configuration)
            if record.seconds_per_iteration:
                made.seconds.setdefault(key, []).append(record.seconds_per_iteration)
            if record.state == "done":
                size = sum(each.stat().st_size for each in file.parent.rglob("*") if each.is_file())
                made.sizes.setdefault(key, []).append(size)
        return made

    def estimate(self, run: StudyRun) -> Estimate:
        """Return the medians over runs of the same trainer, else over all runs of the same configuration."""
        key = (run.trainer, run.configuration)
        pace, size = _median(self.seconds, key), _median(self.sizes, key)
        seconds = None if pace is None else pace * run.settings.num_iterations
        return Estimate(seconds, None if size is None else round(size))


def total(estimates: Iterable[Estimate]) -> Estimate:
    """Return the sum; None where one of the estimates is missing."""
    listed = list(estimates)
    seconds = [each.seconds for each in listed if each.seconds is not None]
    sizes = [each.disk_bytes for each in listed if each.disk_bytes is not None]
    return Estimate(
        sum(seconds) if len(seconds) == len(listed) else None, sum(sizes) if len(sizes) == len(listed) else None
    )


def _median(measured: dict[tuple[str, str], list[float]] | dict[tuple[str, str], list[int]],
            key: tuple[str, str]) -> float | None:  # fmt: skip
    values = [*measured.get(key, ())] or [
        value for (_, configuration), found in measured.items() if configuration == key[1] for value in found
    ]
    return float(statistics.median(values)) if values else None
