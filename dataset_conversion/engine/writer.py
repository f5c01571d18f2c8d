"""The one writer behind every converter: it writes case by case, and dataset.json last.

A data set without dataset.json is therefore not complete. A run that is stopped leaves one file a completed case in the
work folder, so that the next run does only what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.case_files import FOLDERS, MANIFEST, WORK, write_case
from nnssl.dataset_conversion.engine.checks import ConvertedCase, Job
from nnssl.dataset_conversion.engine.layout import relative_name
from nnssl.dataset_conversion.engine.records import Found
from nnssl.dataset_conversion.engine.table import Converter
from nnssl.errors import EnvironmentProblem
from nnssl.names import CASES_KEY, DATASET_JSON, FILE_ENDING_KEY, LABELS_KEY, SPLITS_JSON
from nnssl.system.files import read_object, write_json
from nnssl.system.workers import run_parallel

WRITTEN_NAMES = re.compile(r"images\w+/.+_\d{4}\.(nii\.gz|png)|labels\w+/.+\.(nii\.gz|png)")


def write_dataset(  # noqa: PLR0913 - what was found, how it is written, and what the files record of it
    converter: Converter,
    found: Found,
    job: Job,
    entries: Mapping[str, ConvertedCase],
    num_processes: int,
    *,
    protocol: str | None,
    splits: list[dict[str, Any]],
    options: Mapping[str, Any],
    skipped: Mapping[str, list[str]],
) -> None:
    """Write the cases of `entries`, then splits, manifest and dataset.json.

    Args:
        converter: the converter.
        found: all cases of the data set.
        job: source, target and the cases that earlier runs completed.
        entries: case -> what the check learned, of the cases to write.
        num_processes: worker processes.
        protocol: published protocol of the data set, None without one.
        splits: the folds of that protocol; empty leaves a user's splits_final.json alone.
        options: the converter's options, for the manifest.
        skipped: case that is left out -> why, for the manifest.

    Raises:
        EnvironmentProblem: another process writes the data set, or the disk is full.
    """
    about = _describe_dataset(converter, found, job.folder, protocol)
    had_protocol = _has_protocol(job.folder)
    with _locked(job.folder):
        _write_cases(found, job, entries, num_processes)
        if had_protocol and not splits:
            (job.folder / SPLITS_JSON).unlink(missing_ok=True)
        cases = read_completed(job.folder)
        for name in _unnamed_files(job.folder, cases):  # a killed run left these; foreign files are refused before
            if WRITTEN_NAMES.fullmatch(name):
                (job.folder / name).unlink()
        manifest = {
            "converter": converter.name,
            "protocol": protocol,
            "options": dict(options),
            "ignored": sorted(relative_name(path, job.source) for path in found.ignored),
            "skipped": dict(skipped),
            CASES_KEY: {case: cases[case].as_record() for case in sorted(cases)},
        }
        write_json(job.folder / MANIFEST, manifest)
        if splits:
            write_json(job.folder / SPLITS_JSON, splits)
        write_json(job.folder / DATASET_JSON, about)
        shutil.rmtree(job.folder / WORK, ignore_errors=True)


def read_completed(folder: Path) -> dict[str, ConvertedCase]:
    """Return the cases that earlier runs completed; a run that was stopped left one file a case.

    Raises:
        DataError: the manifest is damaged.
    """
    manifest = folder / MANIFEST
    stored = read_object(manifest, keys=(CASES_KEY,))[CASES_KEY] if manifest.is_file() else {}
    stored |= {path.name.removesuffix(".json"): read_object(path) for path in (folder / WORK).glob("*.json")}
    return {case: ConvertedCase(**{**entry, "values": tuple(entry["values"])}) for case, entry in stored.items()}


def find_foreign_files(job: Job) -> list[str]:
    """Return a problem for each file in the folders for images and labels that no conversion wrote.

    A conversion that was killed leaves files that no completed case names, and no dataset.json: these are no problem.
    """
    finished = (job.folder / DATASET_JSON).is_file()
    names = [name for name in _unnamed_files(job.folder, job.done) if finished or not WRITTEN_NAMES.fullmatch(name)]
    return [f"{job.folder / name} was not made by nnssl_convert: move it elsewhere" for name in names]


def _unnamed_files(folder: Path, done: Mapping[str, ConvertedCase]) -> list[str]:
    """Return the files in the folders for images and labels that no completed case names."""
    named = {name for entry in done.values() for name in entry.outputs}
    places = [folder / place for pair in FOLDERS.values() for place in pair if place]
    inside = [path.relative_to(folder).as_posix() for place in places for path in sorted(place.glob("[!.]*"))]
    return [name for name in inside if name not in named]


def _has_protocol(folder: Path) -> bool:
    """Return whether the last conversion into the folder followed a protocol: splits_final.json is then its own."""
    paths = [path for path in (folder / MANIFEST, folder / DATASET_JSON) if path.is_file()]
    return any(read_object(path).get("protocol") for path in paths)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the data set; the lock of a process that has ended is taken over.

    Raises:
        EnvironmentProblem: another process writes the data set.
    """
    lock = folder / WORK / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    if lock.is_file() and not _is_running(lock.read_text()):
        lock.unlink(missing_ok=True)
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        raise EnvironmentProblem(
            "another nnssl_convert writes this data set",
            where=lock,
            why=f"process {lock.read_text()}",
            run="wait for it, then run the same command again",
        ) from None
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(str(os.getpid()))
        yield
    finally:
        lock.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass  # the process of another user
    return True


def _describe_dataset(converter: Converter, found: Found, folder: Path, protocol: str | None) -> dict[str, Any]:
    """Return the content of dataset.json."""
    from nnssl.version import __version__

    labels = {name: list(value) if isinstance(value, tuple) else value for name, value in found.labels.items()}
    cases = {
        record.case: {"patient": record.person}
        | {key: text for key, text in (("domain", record.domain), ("named", record.named)) if text}
        for record in sorted(found.records, key=lambda record: record.case)
    }
    return {
        "name": folder.name.partition("_")[2],
        "description": converter.title,
        "reference": converter.owner,
        "licence": converter.licence,
        "citation": converter.citation,
        "channel_names": {str(number): name for number, name in enumerate(found.channel_names)},
        LABELS_KEY: labels,
        **({"regions_class_order": list(found.regions_class_order)} if found.regions_class_order else {}),
        "numTraining": sum(record.part == "labelled" for record in found.records),
        FILE_ENDING_KEY: found.file_ending,
        "converted_by": f"nnssl_convert {converter.name} (nnssl-semi {__version__})",
        **({"protocol": protocol} if protocol else {}),
        CASES_KEY: cases,
    }


def _write_cases(found: Found, job: Job, entries: Mapping[str, ConvertedCase], num_processes: int) -> None:
    records = {record.case: record for record in found.records if record.case in entries}
    if not records:
        return
    (job.folder / WORK).mkdir(parents=True, exist_ok=True)
    (job.folder / DATASET_JSON).unlink(missing_ok=True)  # until the last case is written the data set is incomplete
    for case in records:
        earlier = job.done.get(case)  # converted before, with other files or options
        for name in earlier.outputs if earlier else ():
            (job.folder / name).unlink(missing_ok=True)
    tasks = {case: (record, entries[case]) for case, record in records.items()}
    run_parallel(partial(write_case, job=job), tasks, num_processes, "writing the cases")
