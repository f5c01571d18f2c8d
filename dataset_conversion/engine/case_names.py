"""The check of the cases as a whole: their names, parts and patients, before any file is opened."""

from __future__ import annotations

import re

from nnssl.data.raw import clashing_names
from nnssl.dataset_conversion.engine.records import Found

CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


def find_name_problems(found: Found) -> list[str]:
    """Return problems of the cases as a whole, before any file is opened."""
    rule = "cannot be a case name, which has only ASCII letters, digits, '_', '-' and '.': rename the file or folder"
    problems = [f"'{record.case}' {rule}" for record in found.records if not CASE_NAME.fullmatch(record.case)]
    by_name: dict[str, list[str]] = {}
    parts: dict[str, set[bool]] = {}
    for record in found.records:
        by_name.setdefault(record.case.casefold(), []).append(record.case)
        parts.setdefault(record.person, set()).add(record.part == "test")
    problems += [
        f"{len(names)} cases have the name {names[0]}, letter case aside: rename or remove all but one"
        for names in by_name.values()
        if len(names) > 1
    ]
    problems += clashing_names(record.case for record in found.records if record.part != "test")
    wanted = len(found.channel_names) // found.channels_per_file
    problems += [
        f"{record.case}: {len(record.channels)} channel(s), {wanted} are expected"
        for record in found.records
        if len(record.channels) != wanted
    ]
    if not any(record.part == "labelled" for record in found.records) and not found.problems:
        problems.append("no labelled case was found; training needs at least one")
    both = sorted(patient for patient, kinds in parts.items() if len(kinds) > 1)
    return problems + [f"patient {patient} is in the test part and elsewhere" for patient in both]
