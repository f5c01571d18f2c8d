"""What a report says about the runs: departures from the default settings, versions, commands, logs, pseudo-labels."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.comparison.sources import Compared
from nnssl.config import MethodConfig, format_value
from nnssl.config_source import settings_without_torch
from nnssl.errors import NnsslError
from nnssl.names import PROGRESS_JSONL, PSEUDO_FOLDER, PSEUDO_JSON
from nnssl.registry import find_method
from nnssl.reports.case_files import run_folders
from nnssl.training.record import RunRecord
from nnssl.training.settings import RunSettings

RUN_HELP = {
    "num_iterations": "optimiser steps",
    "seed": "seed of everything",
    "labelled": "label budget: the other labels stay unread",
    "bf16": "networks calculate in bfloat16",
    "start_from": "the weights that the run starts from",
    "pseudo_labels": "masks of unlabelled scans, made elsewhere",
}


@dataclass(frozen=True)
class Decision:
    """One departure from the default settings: name, value and default as text, and what the setting means."""

    name: str
    value: str
    default: str
    meaning: str


@dataclass(frozen=True)
class RunFacts:
    """One fold of one run.

    Attributes:
        method: name of the method in the comparison.
        folder: of the fold.
        record: its record, None for runs without one.
        rows: its log, one row an epoch.
        decisions: every departure from the defaults.
        pseudo_scores: case -> score of its stored pseudo-label, and whether it was kept.
    """

    method: str
    folder: Path
    record: RunRecord | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    pseudo_scores: dict[str, tuple[float, bool]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of the method, with seed, fold and label budget where they are known."""
        if self.record is None:
            return f"{self.method}, {self.folder.name}"
        settings = self.record.settings
        labelled = f", labelled {settings.labelled}" if settings.labelled else ""
        return f"{self.method}, seed {settings.seed}, fold {self.record.fold}{labelled}"

    @property
    def commands(self) -> list[str]:
        """The commands that made the run, in order and each once."""
        return list(dict.fromkeys(session.command for session in self.record.sessions)) if self.record else []


def facts_of_runs(method: Compared) -> list[RunFacts]:
    """Return what is known about each fold of each run of a method."""
    found = []
    for folder in run_folders(method):
        record = RunRecord.read(folder)
        found.append(
            RunFacts(
                method.name,
                folder,
                record,
                _rows(folder / PROGRESS_JSONL),
                [] if record is None else decisions_of(record),
                _pseudo_scores(folder / PSEUDO_FOLDER / PSEUDO_JSON),
            )
        )
    return found


def decisions_of(record: RunRecord) -> list[Decision]:
    """Return every departure of a run from the default settings of runs and of its method."""
    settings, defaults = record.settings.to_dict(), RunSettings().to_dict()
    found = [
        Decision(name, format_value(settings[name]), _default(defaults[name]), meaning)
        for name, meaning in RUN_HELP.items()
        if settings[name] != defaults[name]
    ]
    known = {item.name: item for item in _settings_of(record.trainer)}
    for name, value in record.settings.config.items():
        item = known.get(name)
        default, meaning = (format_value(item.default), str(item.metadata["help"])) if item else ("?", "")
        found.append(Decision(name, format_value(value), default, meaning))
    return found


def _settings_of(trainer: str) -> tuple[dataclasses.Field[Any], ...]:
    with contextlib.suppress(NnsslError):
        config: type[MethodConfig] | None = settings_without_torch(find_method(trainer))
        return dataclasses.fields(config) if config else ()
    return ()


def _default(value: object) -> str:
    return "none" if value in (None, "") else format_value(value)


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if isinstance(row, dict) and "iteration" in row:
                rows.append(row)
    return rows


def _pseudo_scores(file: Path) -> dict[str, tuple[float, bool]]:
    scores = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        for case, entry in json.loads(file.read_text(encoding="utf-8")).items():
            if isinstance(entry, Mapping) and isinstance(entry.get("score"), int | float):
                scores[str(case)] = (float(entry["score"]), bool(entry.get("kept", True)))
    return scores
