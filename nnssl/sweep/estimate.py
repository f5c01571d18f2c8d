"""How long the runs of a study take and how much disk they need, from the runs of the data set that exist."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnssl.chooser import Pace, paces
from nnssl.data.raw import dataset_name
from nnssl.errors import UsageError
from nnssl.names import FOLD_PREFIX, PREPROCESSED_VARIABLE, RESULTS_VARIABLE, RUN_JSON
from nnssl.sweep.store import Task
from nnssl.sweep.study import StudyPlan, StudyRun
from nnssl.system.files import environment_folder
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
    _known: dict[str, dict[str, Pace]] = field(default_factory=dict, repr=False, compare=False)

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
        """Return time and disk of a run, by the runs that exist.

        The time is the median over runs of the same trainer, else that of other trainers with the relative costs that
        were measured; see `nnssl.chooser.paces`. The disk is the median over runs of the same trainer, else over all
        runs of the same configuration.
        """
        pace, size = self.paces_of(run.configuration).get(run.trainer), _median(self.sizes, run)
        each = _median(self.seconds, run) if pace is None else pace.seconds  # no pace from trainers of others
        seconds = None if each is None else each * run.settings.num_iterations
        return Estimate(seconds, None if size is None else round(size))

    def paces_of(self, configuration: str) -> dict[str, Pace]:
        """Return the pace of each trainer; a study of many runs asks again and again."""
        if configuration not in self._known:
            measured = {trainer: found for (trainer, own), found in self.seconds.items() if own == configuration}
            self._known[configuration] = paces(measured, configuration)
        return self._known[configuration]


def pace_of_dataset(name_or_id: str | int) -> dict[str, dict[str, Pace]]:
    """Return the seconds of an iteration on a data set, from its runs below `nnUNet_results`.

    Args:
        name_or_id: name or id of the data set.

    Returns:
        configuration -> trainer -> pace, for each configuration that has a run.

    Raises:
        UsageError: there is no such data set, or no run of the data set tells a time yet.
    """
    name = dataset_name(name_or_id, environment_folder(PREPROCESSED_VARIABLE), "nnssl_plan_and_preprocess")
    results = environment_folder(RESULTS_VARIABLE) / name
    measured = Measured.of(results)
    if not measured.seconds:
        raise UsageError(
            "no run of this data set tells how long an iteration takes",
            where=results,
            why="the estimate for a method needs one run, a short one will do",
            run=f"nnssl_train {name} CONFIGURATION 0 -tr SupervisedTrainer -num_iterations 100 -tag pace",
        )
    configurations = sorted({configuration for _, configuration in measured.seconds})
    return {configuration: measured.paces_of(configuration) for configuration in configurations}


def total(estimates: Iterable[Estimate]) -> Estimate:
    """Return the sum; None where one of the estimates is missing."""
    listed = list(estimates)
    seconds = [each.seconds for each in listed if each.seconds is not None]
    sizes = [each.disk_bytes for each in listed if each.disk_bytes is not None]
    return Estimate(
        sum(seconds) if len(seconds) == len(listed) else None, sum(sizes) if len(sizes) == len(listed) else None
    )


def _median(
    measured: dict[tuple[str, str], list[float]] | dict[tuple[str, str], list[int]], run: StudyRun
) -> float | None:
    values: Sequence[float] = measured.get((run.trainer, run.configuration)) or [
        value for (_, configuration), found in measured.items() if configuration == run.configuration for value in found
    ]
    return float(statistics.median(values)) if values else None
