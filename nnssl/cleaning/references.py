"""Which folders of preprocessed cases the plans of a data set name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnssl.data.raw import read_raw_dataset
from nnssl.errors import NnsslError
from nnssl.names import (
    DATA_CHECK,
    DATASET_JSON,
    PLANS_JSON,
    UNLABELLED_KEY,
    UNLABELLED_SUFFIX,
)
from nnssl.planning.manifest import MANIFEST_ENDING, resolved_configuration
from nnssl.system.files import read_json, read_object
from nnssl.training.runs import runs

NO_PLANS = (DATASET_JSON, "dataset_fingerprint", "splits_final", DATA_CHECK)  # starts of the names of other JSON files


@dataclass(frozen=True)
class References:
    """What the plans of a data set need.

    Attributes:
        folders: names of the folders of preprocessed cases, labelled and unlabelled.
        cases: the cases of the raw data set and of its splits; None where they cannot be told.
        notes: why nothing, or less, can be said to be left over.
        certain: whether all plans could be read.
    """

    folders: frozenset[str]
    cases: frozenset[str] | None
    notes: tuple[str, ...] = ()
    certain: bool = True


def references_of(preprocessed: Path) -> References:
    """Return what the plans of a data set, and the plans of its running trainings, need.

    Args:
        preprocessed: folder of the data set below `nnUNet_preprocessed`.
    """
    files = [*_plans_files(preprocessed), *_plans_of_running(preprocessed.name)]
    named = {path: _identifiers(path) for path in files}
    folders = {name for names in named.values() for name in names or ()}
    unreadable = [path for path, names in named.items() if names is None]
    notes = [f"{path} cannot be read as plans: no cases of {preprocessed.name} are left over" for path in unreadable]
    cases, why = _cases(preprocessed)
    both = folders | {name + UNLABELLED_SUFFIX for name in folders}
    return References(frozenset(both), cases, (*notes, *why), certain=not unreadable)


def _plans_files(preprocessed: Path) -> Iterator[Path]:
    for path in sorted(preprocessed.glob("*.json")):
        if not path.name.startswith((*NO_PLANS, ".")) and not path.name.endswith(MANIFEST_ENDING):
            yield path


def _plans_of_running(dataset: str) -> list[Path]:
    try:
        return [run.folder.parent / PLANS_JSON for run in runs(dataset) if run.state == "running"]
    except NnsslError:  # without a folder of results there are no runs
        return []


def _identifiers(path: Path) -> set[str] | None:
    """Return the folders that plans name, none for another JSON object, None for a file that cannot be read."""
    try:
        plans = read_object(path)
        names = plans.get("configurations", {})
        return {str(resolved_configuration(plans, name)["data_identifier"]) for name in names}
    except (NnsslError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _cases(preprocessed: Path) -> tuple[frozenset[str] | None, list[str]]:
    """Return all cases that the data set knows, and why they cannot be told."""
    known: set[str] = set()
    try:
        raw = read_raw_dataset(preprocessed.name)
        known |= {*raw.labelled, *raw.unlabelled}
        for path in preprocessed.glob("splits_final*.json"):
            for fold in read_json(path):
                known |= {case for key in ("train", "val", UNLABELLED_KEY) for case in fold.get(key, ())}
    except (NnsslError, TypeError, AttributeError) as error:
        return None, [f"{preprocessed.name}: cases without a scan are not looked for ({error.args[0]})"]
    return frozenset(known), []
