"""What a bundle does not tell: names of cases and patients, paths of the machine, hashes of lists of cases."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnssl.names import CASES_KEY, FILE_ENDING_KEY, LABELS_KEY, SEMI_KEY
from nnssl.training.record import RunRecord, Session
from nnssl.training.settings import RunSettings

DESCRIPTION_KEYS = (
    "channel_names", "modality", LABELS_KEY, "regions_class_order", FILE_ENDING_KEY, "numTraining", "name",
    "overwrite_image_reader_writer",
)  # fmt: skip
PLACES = ("start_from", "pseudo_labels")  # settings of a run that are paths
RUN_KEY = "run"
A_PATH = "PATH"  # stands for every path in a command
REMOVED = (
    f"from dataset.json all but {', '.join(DESCRIPTION_KEYS)}; so {CASES_KEY} with the names of cases and patients",
    "fingerprint, splits, logs, predictions and scores of single cases",
    "paths in the command and the settings, hashes of the data",
)


def public_description(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return what prediction needs of a dataset.json: no names of cases, no free text."""
    return {key: dataset_json[key] for key in DESCRIPTION_KEYS if key in dataset_json}


def public_plans(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Return plans whose settings of the run name no paths."""
    if not isinstance(plans.get(SEMI_KEY), dict) or RUN_KEY not in plans[SEMI_KEY]:
        return dict(plans)
    settings = {key: "" if key in PLACES else value for key, value in plans[SEMI_KEY][RUN_KEY].items()}
    return {**plans, SEMI_KEY: {**plans[SEMI_KEY], RUN_KEY: settings}}


def public_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a fold without paths and hashes of the data; None where there is none.

    Without the key of its supervised stage, no training on another machine starts from these weights unasked.
    """
    record = RunRecord.read(folder)
    if record is None:
        return None
    settings = {name: value for name, value in record.settings.to_dict().items() if name not in PLACES}
    sessions = tuple(map(_public_session, record.sessions))
    public = dataclasses.replace(record, settings=RunSettings(**settings), sessions=sessions, supervised_key="")
    return {key: value for key, value in dataclasses.asdict(public).items() if key != "data"}


def _public_session(session: Session) -> Session:
    """Return a session whose command has no paths, and whose platform is the name of the system only."""
    machine = session.machine
    if machine is not None:
        machine = dataclasses.replace(machine, platform=machine.platform.partition("-")[0])
    return dataclasses.replace(session, command=without_paths(session.command), machine=machine)


def without_paths(command: str) -> str:
    """Return a command line in which every word with a slash, a backslash or a leading tilde is `PATH`."""
    quoted = r"""(?:[^\s'"\\]|'[^']*'|"[^"]*"|\\.)+"""
    return re.sub(quoted, lambda word: A_PATH if re.search(r"[/\\]|^['\"]?~", word[0]) else word[0], command)
