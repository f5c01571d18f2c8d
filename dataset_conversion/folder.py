"""Any images, labels and unlabelled images: globs choose the files, and the text that `*` matches names the case."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.layout import number_labels, stem
from nnssl.dataset_conversion.engine.records import Found, Part, SourceRecord
from nnssl.dataset_conversion.engine.sources import ImageFile
from nnssl.errors import UsageError

PARTS: dict[str, Part] = {"images": "labelled", "unlabelled": "unlabelled", "test": "test"}


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return one case for each name that the globs of a part match; every glob must match every name."""
    _check_options(options)
    problems: list[str] = []
    records: list[SourceRecord] = []
    labels = _matches(folder, options["labels"], problems)
    channels = options["channel"]
    patient_of = _patients(options["patient"], problems)
    for option, part in PARTS.items():
        globs = options[option] or (_default_glob(folder, option),) * len(channels)
        if not options[option] and len(channels) > 1:
            continue  # the default globs cannot tell channels apart
        found = [_matches(folder, glob, problems) for glob in globs]
        if options[option]:
            problems += [
                f"-{option} {glob} matches no file" for glob, files in zip(globs, found, strict=True) if not files
            ]
        for case in sorted(set().union(*found)):
            lacking = [glob for glob, matched in zip(globs, found, strict=True) if case not in matched]
            problems += [f"{case}: no file matches -{option} {glob}" for glob in lacking]
            if part == "labelled" and case not in labels:
                problems.append(f"{case}: no file matches -labels {options['labels']}{_found_instead(labels)}")
            elif not lacking:
                images = tuple(ImageFile(matched[case]) for matched in found)
                label = ImageFile(labels[case]) if part != "unlabelled" and case in labels else None
                records.append(SourceRecord(case, images, part, label, patient_of(case)))
    imaged = {record.case for record in records}
    problems += [f"{case}: a label without an image" for case in sorted(set(labels) - imaged) if not problems]
    values = {value: number for number, value in enumerate(options["label_values"] or ())}
    names, wrong = number_labels(options["label_names"] or [f"label_{number}" for number in range(1, len(values))])
    return Found(
        tuple(records), tuple(channels), names, label_values=values, problems=(*problems, *wrong), strict=False
    )


def _default_glob(folder: Path, option: str) -> str:
    american = option == "unlabelled" and not (folder / option).is_dir() and (folder / "unlabeled").is_dir()
    return "unlabeled/*" if american else f"{option}/*"


def _found_instead(labels: dict[str, Path]) -> str:
    """Return the cases that the labels are of, as the end of a message."""
    if not labels:
        return ""
    return f", whose files are the labels of {', '.join(sorted(labels)[:3])}{', …' if len(labels) > 3 else ''}"


def _check_options(options: dict[str, Any]) -> None:
    """Check the options before any file is read.

    Raises:
        UsageError: a number of values does not fit, a value is repeated, or a glob is absolute or empty.
    """
    channels, values, names = options["channel"], options["label_values"], options["label_names"]
    for option in PARTS:
        globs = options[option]
        if globs and len(globs) != len(channels):
            raise UsageError(
                f"-{option} has {len(globs)} glob(s) for {len(channels)} channel(s)",
                where=f"-{option} {' '.join(globs)}",
                why=f"give one for each channel, in the order of -channel {' '.join(channels)}",
            )
    for glob in (options["labels"], *(glob for option in PARTS for glob in options[option] or ())):
        if not glob or glob.startswith("/"):
            raise UsageError(f"'{glob}' is no glob below -i", why="the glob is empty or absolute")
    if values and len(set(values)) != len(values):
        raise UsageError("-label_values repeats a value", where=f"-label_values {' '.join(map(str, values))}")
    if values and names and len(names) != len(values) - 1:
        raise UsageError(
            f"-label_names has {len(names)} name(s) for {len(values)} -label_values",
            why="the first value belongs to the background, every other value has a name",
        )


def _patients(expression: str | None, problems: list[str]) -> Callable[[str], str]:
    """Return a function from case to patient; a case name without a match becomes a problem."""
    try:
        pattern = re.compile(expression or ".+")
    except re.error as error:
        problems.append(f"-patient {expression} is no regular expression: {error}")
        return str

    def patient_of(case: str) -> str:
        match = pattern.search(case)
        if match is None:
            problems.append(f"{case}: -patient {expression} finds nothing in this name")
        return match[0] if match else case

    return patient_of


def _matches(folder: Path, glob: str, problems: list[str]) -> dict[str, Path]:
    """Return case -> file for the files that a glob matches."""
    pattern = re.compile(_as_regex(glob))
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(glob)):
        match = pattern.fullmatch(path.relative_to(folder).as_posix())
        if not path.is_file() or path.name.startswith(".") or match is None:
            continue
        end = len(match[0]) - len(path.name) + len(stem(path))  # what `*` matches of an image ending names no case
        spans = (match.span(number) for number in range(1, pattern.groups + 1))
        words = [word for start, stop in spans for word in match[0][start : min(stop, end)].split("/") if word]
        case = "_".join(words) or stem(path)
        if case in found:
            problems.append(f"{found[case].name} and {path.name} would both be the case {case}")
        found[case] = path
    return found


def _as_regex(glob: str) -> str:
    kinds = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}
    parts = re.split(r"(\*\*/|\*|\?)", glob)
    return "".join(kinds.get(part, re.escape(part)) for part in parts)
