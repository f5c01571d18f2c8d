"""Applies a published protocol to a download: its test patients become test cases, its lists become fold 0."""

from __future__ import annotations

import dataclasses
from typing import Any

from nnssl.data.protocols import Lists, ProtocolCase, find_protocol, protocol_fold
from nnssl.dataset_conversion.engine.records import Found, Part, SourceRecord


def apply_protocol(found: Found, name: str) -> tuple[Found, list[dict[str, Any]]]:
    """Return the cases as the protocol divides them, and the content of splits_final.json.

    A protocol with lists divides all cases with labels anew, also those of the test part of the data set, and leaves
    out cases that its lists do not name. A protocol with a rule leaves out the test cases of the data set. `imagesTs`
    then holds only test cases of the protocol, so that a score on `imagesTs` is a score of the protocol.

    Raises:
        UsageError: no such protocol.
        DataError: the download lacks patients of the protocol.
    """
    protocol, _ = find_protocol(name)
    usable = [record for record in found.records if record.part == "labelled" or (record.label and not protocol.rule)]
    lists = protocol.lists({record.person: record.domain for record in usable})
    records, dropped = [], []
    for record in found.records:
        part = _part(record, lists, by_rule=bool(protocol.rule))
        if part:
            records.append(dataclasses.replace(record, part=part))
        else:
            dropped.append(record)
    parts = {part: [_case(record) for record in records if record.part == part] for part in ("labelled", "unlabelled")}
    fold = protocol_fold(protocol, lists, parts["labelled"], parts["unlabelled"])
    ignored = [path for record in dropped for path in record.files()]
    notes = [f"{len(dropped)} case(s) are not part of the protocol {protocol.family}"] if dropped else []
    absent = sorted(set(lists.test) - {record.person for record in records})
    if absent:
        notes.append(f"{len(absent)} test patient(s) of the protocol are not in the download: {', '.join(absent[:10])}")
    return (
        dataclasses.replace(
            found, records=tuple(records), ignored=(*found.ignored, *ignored), notes=(*found.notes, *notes)
        ),
        [fold],
    )


def _part(record: SourceRecord, lists: Lists, *, by_rule: bool) -> Part | None:
    """Return the part that a protocol assigns a case to, None if the protocol leaves the case out."""
    patient = record.person
    if patient in lists.test:
        return "test" if record.label else None  # no label: an unlabelled scan of a test patient
    if by_rule:
        return None if record.part == "test" and lists.test else record.part
    if patient not in lists.train and patient not in lists.validation:
        return None
    return "labelled" if record.label else record.part


def _case(record: SourceRecord) -> ProtocolCase:
    return ProtocolCase(record.case, record.person, record.domain)
