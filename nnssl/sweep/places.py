"""Where a run of a study stands on disk, and how far it is: the files of the run decide, never the database alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from nnssl.names import (
    FOLD_PREFIX,
    PREPROCESSED_VARIABLE,
    RESULTS_VARIABLE,
    SEMI_KEY,
    SUMMARY_JSON,
    TAG_SEPARATOR,
    VALIDATION_FOLDER,
)
from nnssl.sweep.study import StudyPlan, StudyRun
from nnssl.system.files import environment_folder
from nnssl.training.record import RunRecord
from nnssl.training.run_folder import LATEST, ModelName, is_locked

Progress = Literal["new", "locked", "started", "unvalidated", "done"]

RESUMABLE = (LATEST, LATEST.replace("latest", "previous"))  # the second one is there while the first is replaced


@dataclass(frozen=True)
class Places:
    """The folders of the data set of a study.

    Attributes:
        preprocessed: of the data set, below `nnUNet_preprocessed`.
        results: of the data set, below `nnUNet_results`.
    """

    preprocessed: Path
    results: Path

    @classmethod
    def of(cls, dataset: str) -> Places:
        """Return the folders of a data set.

        Raises:
            EnvironmentProblem: a variable is not set.
        """
        return cls(*(environment_folder(name) / dataset for name in (PREPROCESSED_VARIABLE, RESULTS_VARIABLE)))

    def plans_files(self, job: StudyRun | StudyPlan) -> list[Path]:
        """Return the plans of a job that exist: those for its fold alone come before those of all folds."""
        budget = job.budget
        names = [f"{job.plans}{budget.tag}-fold{job.fold}", job.plans + budget.tag] if budget else [job.plans]
        return [file for name in names if (file := self.preprocessed / f"{name}.json").is_file()]

    def has_plans(self, job: StudyPlan) -> bool:
        """Return whether plans for the job exist that have its configurations.

        Plans of another fold with the same budget do not count for a fold that keeps other labels; `nnssl_train` makes
        the same check, label by label.
        """
        for file in self.plans_files(job):
            content = _plans(file, file.stat().st_mtime_ns)
            if set(job.configurations) <= content.configurations:
                return job.budget is None or job.fold == "0" or file.stem.endswith(f"-fold{job.fold}")
        return False

    def hardware(self, plans: str) -> str | None:
        """Return the kind of machine that plans of this name (with any budget) were made for, None where none says."""
        for file in sorted(self.preprocessed.glob("*.json")):
            if file.stem.partition(TAG_SEPARATOR)[0] != plans:
                continue
            kind = _plans(file, file.stat().st_mtime_ns).hardware
            if kind:
                return kind
        return None

    def folder(self, run: StudyRun) -> Path:
        """Return the folder of the fold, with the plans that exist now."""
        found = self.plans_files(run)
        plans = found[0].stem if found else run.plans + (run.budget.tag if run.budget else "")
        name = ModelName(run.trainer, plans, run.configuration, run.settings.tag).folder
        return self.results / name / f"{FOLD_PREFIX}{run.fold}"


def progress_of(folder: Path, run: StudyRun) -> Progress:
    """Return how far a run is by its files.

    Returns:
        `locked`: a process trains it now. `done`: trained to its length and validated. `unvalidated`: trained only.
        `started`: there is a checkpoint to continue from. `new`: none of these.
    """
    if not folder.is_dir():
        return "new"
    if is_locked(folder):
        return "locked"
    record = RunRecord.read(folder)
    if record is not None and record.state == "done" and record.iteration >= run.settings.num_iterations:
        return "done" if (folder / VALIDATION_FOLDER / SUMMARY_JSON).is_file() else "unvalidated"
    return "started" if any((folder / name).is_file() for name in RESUMABLE) else "new"


@dataclass(frozen=True)
class _Plans:
    configurations: frozenset[str] = frozenset()
    hardware: str | None = None


@cache
def _plans(file: Path, _changed: int) -> _Plans:
    """Return what matters in a plans file; nothing for another JSON file."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, Mapping) and isinstance(content.get("configurations"), Mapping):
            return _Plans(frozenset(content["configurations"]), content.get(SEMI_KEY, {}).get("hardware"))
    return _Plans()
