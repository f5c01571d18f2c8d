"""The check of all files before anything is written: one list holds every problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnssl.dataset_conversion.engine.case_names import find_name_problems
from nnssl.dataset_conversion.engine.checks import Checked, ConvertedCase, Job, check_case
from nnssl.dataset_conversion.engine.layout import relative_name
from nnssl.dataset_conversion.engine.left_over import find_strangers
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.errors import DataError
from nnssl.system.workers import run_parallel

MOST_LABELS = 127  # of a data set without label names


@dataclass(frozen=True)
class CheckedDownload:
    """What the check of all files learned.

    Attributes:
        found: the cases to convert, with the labels that occur where the converter names none.
        entries: case -> what the check learned.
        notes: what the conversion does beyond copying.
        skipped: unlabelled case that is left out -> its problems.
        left_out: files below the download folder that the conversion does not take.
    """

    found: Found
    entries: dict[str, ConvertedCase]
    notes: list[str]
    skipped: dict[str, list[str]]
    left_out: list[Path]


def check_download(found: Found, job: Job, merge: bool, num_processes: int, foreign: Iterable[str]) -> CheckedDownload:
    """Check everything that a converter found.

    Args:
        found: the cases.
        job: source, target and options.
        merge: cases with the same voxels become scans of one patient instead of a problem.
        num_processes: worker processes.
        foreign: problems with files that stand in the data set folder already.

    Raises:
        DataError: there are problems; the message lists all of them.
    """
    problems = [*found.problems, *find_name_problems(found), *foreign]
    left_out = find_strangers(found, job.source, job.folder.parent)
    if found.strict and found.records:  # without cases the folder is wrong, and the list would hold every file
        problems += [f"{relative_name(path, job.source)} does not belong to the layout" for path in left_out]
    outcomes: dict[str, Checked] = run_parallel(
        partial(check_case, job=job),
        {f"{number} {record.case}": record for number, record in enumerate(found.records)},
        num_processes,
        "checking the files",
    )
    pairs = list(zip(found.records, outcomes.values(), strict=True))
    notes = [text for outcome in outcomes.values() for text in outcome.notes]
    skipped = {record.case: outcome.problems for record, outcome in pairs if _may_be_skipped(record, outcome, job)}
    pairs = [(record, outcome) for record, outcome in pairs if record.case not in skipped]
    found = dataclasses.replace(found, records=tuple(record for record, _ in pairs))
    entries = {record.case: outcome.entry for record, outcome in pairs if outcome.entry}
    run = _repair(problems, pairs, job, found.strict)
    problems += [text for _, outcome in pairs for text in outcome.problems]
    found = _with_repeated_scans(found, entries, merge, problems, notes)
    problems += _stale_cases(found, job)
    if problems:
        raise DataError(
            f"the files of -i have {len(problems)} problem(s); nothing was written",
            where=job.source,
            why="\n".join(dict.fromkeys(problems)),
            run=run,
        )
    return CheckedDownload(_with_labels(found, entries), entries, notes, skipped, [] if found.strict else left_out)


def _may_be_skipped(record: SourceRecord, outcome: Checked, job: Job) -> bool:
    """Return whether to leave a case out; a case of an earlier conversion stays, as the data set holds its files."""
    is_broken_scan = record.part == "unlabelled" and bool(outcome.problems)
    return job.skip_unreadable and is_broken_scan and record.case not in job.done


def _repair(problems: list[str], pairs: list[tuple[SourceRecord, Checked]], job: Job, strict: bool) -> str:
    """Return what the user should do first about the problems of the layout and of the cases."""
    again = "repair these problems, then run the same command again"
    broken = [(record, outcome) for record, outcome in pairs if outcome.problems]
    unknown = sorted({value for _, outcome in broken for value in outcome.unknown_values})
    if unknown and not strict:
        return f"{again}; -label_values says which values stand for the labels 0, 1, …"
    scans = [record for record, _ in broken if record.part == "unlabelled" and record.case not in job.done]
    if scans and len(scans) == len(broken) and not problems:
        return f"{again}; or add --skip_unreadable, which leaves these {len(scans)} unlabelled scan(s) out"
    return again


def _with_repeated_scans(
    found: Found, entries: Mapping[str, ConvertedCase], merge: bool, problems: list[str], notes: list[str]
) -> Found:
    """Return the cases; those with the same voxels count as one patient if `merge` is set, and are a problem else."""
    known = [record for record in found.records if record.case in entries]
    for group in find_repeated(entries, known):
        text = f"the same voxels are in {', '.join(record.case for record in group)}"
        one_part = len({record.part for record in group}) == 1
        if merge and one_part:
            found = _with_one_patient(found, group)
            notes.append(f"{text}: they count as one patient")
        else:
            other = ", or add --same_scans_are_one_patient" if one_part else ""
            problems.append(f"{text}: remove all but one{other}")
    return found


def _stale_cases(found: Found, job: Job) -> list[str]:
    """Return the problem that the data set folder holds cases of another conversion."""
    left = sorted(set(job.done) - {record.case for record in found.records})
    if not left:
        return []
    text = f"{job.folder} holds {len(left)} case(s) that this conversion does not make ({', '.join(left[:5])})"
    return [f"{text}: remove the folder, or choose another -d"]


def _with_labels(found: Found, entries: Mapping[str, ConvertedCase]) -> Found:
    """Return the cases; if neither layout nor user names the labels, with the labels that occur.

    Raises:
        DataError: a value is so large that the values cannot be class numbers.
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
            why=f"values {', '.join(map(str, sorted(present)[:10]))}; expected are 0, 1, 2, … up to {MOST_LABELS}",
            run=_numbering(sorted(present)),
        )
    labels = {"background": 0} | {f"label_{value}": value for value in range(1, max(present, default=0) + 1)}
    return dataclasses.replace(found, labels=labels)


def _numbering(values: Sequence[int]) -> str:
    """Return how the values of label files become class numbers."""
    if len(values) > MOST_LABELS or 0 not in values:
        return "write class numbers into the label files"
    return f"nnssl_convert folder … -label_values {' '.join(map(str, values))} makes them the labels 0, 1, …"


def _with_one_patient(found: Found, group: list[SourceRecord]) -> Found:
    patients = {record.person for record in group}
    first = min(patients)
    records = [
        dataclasses.replace(record, patient=first, named=record.person)
        if record.person in patients - {first}
        else record
        for record in found.records
    ]
    return dataclasses.replace(found, records=tuple(records))


def find_repeated(entries: Mapping[str, ConvertedCase], records: Iterable[SourceRecord]) -> list[list[SourceRecord]]:
    """Return the groups of cases that hold the same voxels and belong to several patients."""
    groups: dict[str, list[SourceRecord]] = {}
    for record in records:
        groups.setdefault(entries[record.case].voxels, []).append(record)
    return [group for group in groups.values() if len({record.person for record in group}) > 1]
