"""The one writer behind every converter: check everything, then write case by case, dataset.json last."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.case_files import ENDING, FOLDERS, WORK, write_case
from nnssl.dataset_conversion.engine.checks import (
    CaseRecord,
    Checked,
    Job,
    check_case,
    name_problems,
    repeated,
    shown,
    strangers,
)
from nnssl.dataset_conversion.engine.records import Found, Record
from nnssl.dataset_conversion.engine.table import Converter, find_converter
from nnssl.errors import DataError, EnvironmentProblem, UsageError
from nnssl.system.files import check_writable, environment_folder, read_object, write_json
from nnssl.system.workers import run_parallel

MOST_LABELS = 127  # of a data set that names none
MANIFEST = "conversion.json"
SPLITS = "splits_final.json"
OUR_NAMES = re.compile(r"images\w+/.+_\d{4}\.nii\.gz|labels\w+/.+\.nii\.gz")


@dataclass(frozen=True)
class Result:
    """What a conversion made, or would make.

    Attributes:
        folder: the data set folder.
        converter: the entry of `CONVERTERS`, with licence and citation.
        dry_run: True where nothing was written.
        labelled: number of labelled cases; `unlabelled` and `test` likewise.
        converted: cases that this run wrote (a dry run: would write).
        kept: cases that an earlier run had completed.
        notes: what the user should know.
    """

    folder: Path
    converter: Converter
    dry_run: bool
    labelled: int
    unlabelled: int
    test: int
    converted: int
    kept: int
    notes: tuple[str, ...]

    def _counts(self) -> str:
        return f"{self.converted} {'to convert' if self.dry_run else 'converted'}, {self.kept} there already"

    def lines(self) -> list[str]:
        """Return what was made, licence, citation and the next command, as lines to print."""
        next_command = "the same command without --dry_run" if self.dry_run else "nnssl_plan_and_preprocess -d"
        number = "" if self.dry_run else f" {int(self.folder.name[7:10])}"
        return [
            *(f"note: {note}" for note in self.notes),
            f"{self.folder}{' would be written' if self.dry_run else ''}",
            f"  {self.labelled} labelled, {self.unlabelled} unlabelled, {self.test} test cases: {self._counts()}",
            f"licence:  {self.converter.licence}",
            f"citation: {self.converter.citation}",
            f"next: {next_command}{number}",
        ]


def convert(  # noqa: PLR0913 - the command's options, each with a default
    data_set: str,
    source: str | Path,
    dataset_id: int,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    protocol: str | None = None,
    fix_geometry: bool = False,
    same_scans_are_one_patient: bool | None = None,
    dry_run: bool = False,
    num_processes: int | None = None,
) -> Result:
    """Convert a download into `nnUNet_raw/DatasetXXX_NAME`; a repeated call does what is missing.

    Everything is checked before a file is written: a problem leaves the disk as it was.

    Args:
        data_set: what `nnssl_convert` takes, `acdc` for example.
        source: the download folder.
        dataset_id: 1 to 999.
        name: name after the id, None for the converter's own.
        options: values of the converter's options, by name.
        protocol: published protocol whose test patients go to imagesTs and whose lists go to splits_final.json.
        fix_geometry: give labels the spacing, origin and direction of their image where both have the same size.
        same_scans_are_one_patient: cases with the same voxels count as one patient instead of being an error.
        dry_run: check and count, write nothing.
        num_processes: worker processes, None for one a core and at most eight.

    Raises:
        UsageError: an option is wrong, or the id is taken.
        DataError: the download has problems; the message lists them all.
        EnvironmentProblem: `nnUNet_raw` is not set or cannot be written.
    """
    converter = find_converter(data_set)
    raw = environment_folder("nnUNet_raw")
    processes = min(8, os.cpu_count() or 1) if num_processes is None else num_processes
    if processes < 1:
        raise UsageError("-np must be at least 1", where=f"-np {processes}")
    source = Path(source).absolute()
    if not source.is_dir():
        raise UsageError("the download folder does not exist", where=f"-i {source}")
    given = {option.name: option.default for option in converter.options} | dict(options or {})
    found = converter.load()(source, given)
    folder = raw / f"Dataset{dataset_id:03d}_{_name(name or converter.dataset or found.name)}"
    _check_target(raw, folder, dataset_id)
    splits: list[dict[str, Any]] = []
    if protocol:
        from nnssl.dataset_conversion.engine.arrangement import arranged

        found, splits = arranged(found, protocol)
    done = _completed(folder)
    job = Job(source, folder, found.allowed_values(), fix_geometry, done)
    merge = converter.same_scans_are_one_patient if same_scans_are_one_patient is None else same_scans_are_one_patient
    found, entries, notes = _checked(found, job, merge, processes)
    open_cases = [record for record in found.records if not entries[record.case].outputs]
    labelled, unlabelled, test = (sum(record.part == part for record in found.records) for part in FOLDERS)
    kept = len(found.records) - len(open_cases)
    result = Result(
        folder,
        converter,
        dry_run,
        labelled,
        unlabelled,
        test,
        len(open_cases),
        kept,
        tuple(dict.fromkeys([*found.notes, *notes])),
    )
    if not dry_run:
        about = _dataset_json(converter, found, folder, protocol)
        had_protocol = _has_protocol(folder)
        with _locked(folder):
            _write(found, job, {record.case: entries[record.case] for record in open_cases}, processes)
            if had_protocol and not splits:
                (folder / SPLITS).unlink(missing_ok=True)
            _finish(converter, found, job, about, splits, given)
    return result


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_\-]+", name):
        raise UsageError(f"'{name}' cannot be the name of a data set", where="-o", why="letters, digits, '-' and '_'")
    return name


def _check_target(raw: Path, folder: Path, dataset_id: int) -> None:
    if not 1 <= dataset_id <= 999:
        raise UsageError("the id of a data set is 1 to 999", where=f"-d {dataset_id}")
    check_writable(folder, "the raw data folder", "export nnUNet_raw=/a/folder/that/can/be/written")
    taken = [path.name for path in raw.glob(f"Dataset{dataset_id:03d}_*") if path != folder]
    if taken:
        raise UsageError(f"the id {dataset_id} is taken", where=raw / taken[0], run="choose another -d, or the same -o")
    ours = (folder / MANIFEST).is_file() or (folder / WORK).is_dir()
    if folder.exists() and not ours and any(folder.iterdir()):
        raise UsageError(
            "the data set folder exists and was not made by nnssl_convert",
            where=folder,
            run="choose another -d, or remove the folder",
        )


def _has_protocol(folder: Path) -> bool:
    """Return whether the folder's last conversion was for a protocol, so that splits_final.json is its."""
    paths = [path for path in (folder / MANIFEST, folder / "dataset.json") if path.is_file()]
    return any(read_object(path).get("protocol") for path in paths)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing the data set; the lock of a process that is gone is taken over.

    Raises:
        EnvironmentProblem: another process writes it.
    """
    lock = folder / WORK / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    if lock.is_file() and not _runs(lock.read_text()):
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


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def _unnamed(folder: Path, done: Mapping[str, CaseRecord]) -> list[str]:
    """Return the files in the folders for images and labels that no completed case names."""
    named = {name for entry in done.values() for name in entry.outputs}
    places = [folder / place for pair in FOLDERS.values() for place in pair if place]
    inside = [path for place in places for path in sorted(place.glob("[!.]*"))]
    return [name for path in inside if (name := path.relative_to(folder).as_posix()) not in named]


def _foreign(job: Job) -> list[str]:
    """Return problems: files that no run of ours made; one that was killed leaves files and no dataset.json."""
    finished = (job.folder / "dataset.json").is_file()
    names = [name for name in _unnamed(job.folder, job.done) if finished or not OUR_NAMES.fullmatch(name)]
    return [f"{job.folder / name} was not made by nnssl_convert: move it elsewhere" for name in names]


def _completed(folder: Path) -> dict[str, CaseRecord]:
    """Return the cases that earlier runs completed; a run that was stopped left one file a case."""
    manifest = folder / MANIFEST
    stored = read_object(manifest, keys=("cases",))["cases"] if manifest.is_file() else {}
    stored |= {path.name.removesuffix(".json"): read_object(path) for path in (folder / WORK).glob("*.json")}
    return {case: CaseRecord(**{**entry, "values": tuple(entry["values"])}) for case, entry in stored.items()}


def _checked(found: Found, job: Job, merge: bool, num_processes: int) -> tuple[Found, dict[str, CaseRecord], list[str]]:
    """Return the cases (repeated scans with one patient), what is known of each, and notes.

    Raises:
        DataError: there are problems.
    """
    problems = [*found.problems, *name_problems(found), *_foreign(job)]
    left_over = strangers(found, job.source)
    if found.strict and found.records:  # in a wrong folder everything would be listed
        problems += [f"{shown(path, job.source)} does not belong to the layout" for path in left_over]
    outcomes: dict[str, Checked] = run_parallel(
        partial(check_case, job=job),
        {f"{number} {record.case}": record for number, record in enumerate(found.records)},
        num_processes,
        "checking the files",
    )
    results = list(outcomes.values())
    problems += [text for outcome in results for text in outcome.problems]
    notes = [text for outcome in results for text in outcome.notes]
    if left_over and not found.strict:
        notes.append(f"{len(left_over)} other image file(s) below {job.source} are not converted")
    pairs = zip(found.records, results, strict=True)
    entries = {record.case: outcome.entry for record, outcome in pairs if outcome.entry}
    known = [record for record in found.records if record.case in entries]
    for group in repeated(entries, known):
        text = f"the same voxels are in {', '.join(record.case for record in group)}"
        one_part = len({record.part for record in group}) == 1
        if merge and one_part:
            found = _with_one_patient(found, group)
            notes.append(f"{text}: they count as one patient")
        else:
            other = ", or add --same_scans_are_one_patient" if one_part else ""
            problems.append(f"{text}: remove all but one{other}")
    left = sorted(set(job.done) - {record.case for record in found.records})
    if left:
        problems.append(
            f"{job.folder} holds {len(left)} case(s) that this conversion does not make ({', '.join(left[:5])}): "
            f"remove the folder, or choose another -d"
        )
    if problems:
        raise DataError(
            f"the download has {len(problems)} problem(s); nothing was written",
            where=job.source,
            why="\n".join(problems),
            run="repair them, then run the same command again",
        )
    return _with_labels(found, entries), entries, notes


def _with_labels(found: Found, entries: Mapping[str, CaseRecord]) -> Found:
    """Return the cases with the labels that occur, where neither the layout nor the user names them.

    Raises:
        DataError: there is a gap of such a size that the values are no class numbers.
    """
    if found.labels:
        return found
    present = {value for entry in entries.values() for value in entry.values}
    if max(present, default=0) > MOST_LABELS:
        raise DataError(
            "the label values are not class numbers",
            where=next(
                f"{record.case}, {record.label.files()[0]}"
                for record in found.records
                if record.label and max(entries[record.case].values, default=0) > MOST_LABELS
            ),
            why=f"they are {', '.join(map(str, sorted(present)[:10]))}; expected are 0, 1, 2, … up to {MOST_LABELS}",
            run="write them as class numbers; for image files nnssl_convert folder -label_values 0 255 does it",
        )
    labels = {"background": 0} | {f"label_{value}": value for value in range(1, max(present, default=0) + 1)}
    return dataclasses.replace(found, labels=labels)


def _with_one_patient(found: Found, group: list[Record]) -> Found:
    patients = {record.person for record in group}
    first = min(patients)
    records = [
        dataclasses.replace(record, patient=first, named=record.person)
        if record.person in patients - {first}
        else record
        for record in found.records
    ]
    return dataclasses.replace(found, records=tuple(records))


def _dataset_json(converter: Converter, found: Found, folder: Path, protocol: str | None) -> dict[str, Any]:
    from nnssl import __version__

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
        "labels": labels,
        **({"regions_class_order": list(found.regions_class_order)} if found.regions_class_order else {}),
        "numTraining": sum(record.part == "labelled" for record in found.records),
        "file_ending": ENDING,
        "converted_by": f"nnssl_convert {converter.name} (nnssl-semi {__version__})",
        **({"protocol": protocol} if protocol else {}),
        "cases": cases,
    }


def _write(found: Found, job: Job, entries: Mapping[str, CaseRecord], num_processes: int) -> None:
    records = {record.case: record for record in found.records if record.case in entries}
    if not records:
        return
    (job.folder / WORK).mkdir(parents=True, exist_ok=True)
    (job.folder / "dataset.json").unlink(missing_ok=True)  # it comes last: without it the data set is not complete
    for name in (name for case in records if case in job.done for name in job.done[case].outputs):
        (job.folder / name).unlink(missing_ok=True)  # of an earlier run with other files or options
    tasks = {case: (record, entries[case]) for case, record in records.items()}
    run_parallel(partial(write_case, job=job), tasks, num_processes, "writing the cases")


def _finish(
    converter: Converter,
    found: Found,
    job: Job,
    about: dict[str, Any],
    splits: list[dict[str, Any]],
    options: Mapping[str, Any],
) -> None:
    """Write splits, manifest and, last, dataset.json; remove the work folder."""
    cases = _completed(job.folder)
    for name in _unnamed(job.folder, cases):  # a run that was killed left them: others are refused before
        if OUR_NAMES.fullmatch(name):
            (job.folder / name).unlink()
    manifest = {
        "converter": converter.name,
        "protocol": about.get("protocol"),
        "options": dict(options),
        "ignored": sorted(shown(path, job.source) for path in found.ignored),
        "cases": {case: dataclasses.asdict(cases[case]) for case in sorted(cases)},
    }
    write_json(job.folder / MANIFEST, manifest)
    if splits:
        write_json(job.folder / SPLITS, splits)
    write_json(job.folder / "dataset.json", about)
    shutil.rmtree(job.folder / WORK, ignore_errors=True)
