"""Any images, labels and unlabelled images: globs choose the files, and the text that `*` matches names the case."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.dataset_conversion.engine.globs import expected_files, match_files, merge_matches
from nnssl.dataset_conversion.engine.layout import number_labels, relative_name, without_channel_number
from nnssl.dataset_conversion.engine.pictures import COLOURS, PNG, ImageKind, find_kind, without_voxel_size
from nnssl.dataset_conversion.engine.records import Found, Part, SourceRecord
from nnssl.errors import UsageError

PARTS: dict[str, Part] = {"images": "labelled", "unlabelled": "unlabelled", "test": "test"}
LABELS = ("labels", "test_labels")
DEFAULT_FOLDERS = {  # options without a glob take all files of these folders, letter case aside
    "unlabelled": ("unlabelled", "unlabeled"),
    "test": ("test",),
    "test_labels": ("test_labels",),
}
SHOWN_CASES = 5
SAME_TEXT = "* must stand for the same text in the globs of image and label; scans without a label go to -unlabelled"


@dataclass
class _Search:
    """The files of a folder that the globs of the options choose.

    Attributes:
        folder: the folder of the globs.
        options: the options of the converter.
        problems: what must be repaired, one line each; every search may add lines.
    """

    folder: Path
    options: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def globs(self, option: str) -> tuple[str, ...]:
        """Return the globs of an option, or those of its default folders that exist."""
        given = self.options[option]
        if given:
            return (given,) if isinstance(given, str) else tuple(given)
        names = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
        return tuple(f"{name}/*" for name in names if name.lower() in DEFAULT_FOLDERS.get(option, ()))

    def files(
        self, option: str, globs: Sequence[str] | None = None, without: Collection[Path] = frozenset()
    ) -> dict[str, Path]:
        """Return case -> file for all globs of an option, or for some of them; a glob without a file is a problem."""
        found: dict[str, Path] = {}
        for glob in self.globs(option) if globs is None else globs:
            files = match_files(self.folder, glob, self.problems, without)
            if self.options[option] and not files:
                only = " but labels" if match_files(self.folder, glob, []) else ""
                self.problems.append(f"-{option} {glob} matches no file{only}")
            merge_matches(found, files, self.problems)
        return found

    def channels(self, option: str, count: int, without: Collection[Path]) -> list[dict[str, Path]]:
        """Return case -> file for each of `count` channels; a case without a file of each is a problem and left out."""
        globs = self.globs(option)
        found = [self.files(option, globs[number::count], without) for number in range(count)]
        cases = set().union(*found)
        for number, files in enumerate(found):
            self.problems += [
                f"{case}: no file matches -{option} {expected_files(globs[number::count], case)}"
                for case in sorted(cases - set(files))
            ]
        complete = sorted(cases.intersection(*found))
        return [{case: files[case] for case in complete} for files in found]


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return one case for each name that the globs of a part match; each channel must have a file of every name."""
    _check_options(options)
    search = _Search(folder, options)
    labels = {option: search.files(option) for option in LABELS}
    masks = {path for files in labels.values() for path in files.values()}
    kind = _kind_of_images(search, masks)
    channels = _channel_names(options["channel"], kind)
    count = len(channels) // kind.colours  # files of a case
    _check_number_of_globs(options, count)
    patient_of = _patients(options["patient"], search.problems)
    records: list[SourceRecord] = []
    without_label: dict[str, Path] = {}
    for option, part in PARTS.items():
        if count > 1 and not options[option]:
            continue  # the default globs cannot tell channels apart; `_warnings` reports the folder
        found = search.channels(option, count, masks)
        own = {"labelled": labels["labels"], "test": labels["labels"] | labels["test_labels"]}.get(part, {})
        for case, first in found[0].items():
            if part == "labelled" and case not in own:
                without_label[case] = first
                continue
            images = tuple(kind.image(files[case]) for files in found)
            label = kind.label(own[case]) if case in own else None
            records.append(SourceRecord(case, images, part, label, patient_of(case)))
    _report_missing_labels(search, without_label, labels["labels"])
    _report_unused_labels(search, labels, records)
    values = {value: number for number, value in enumerate(options["label_values"] or ())}
    names, wrong = number_labels(options["label_names"] or [f"label_{number}" for number in range(1, len(values))])
    return Found(
        tuple(records),
        tuple(channels),
        names,
        label_values=values,
        problems=(*dict.fromkeys(search.problems), *wrong),
        warnings=tuple(_warnings(search, count, records)),
        strict=False,
        channels_per_file=kind.colours,
        file_ending=PNG if kind.name == "picture" else Found.file_ending,
    )


def _kind_of_images(search: _Search, masks: Collection[Path]) -> ImageKind:
    """Return what the images are: the first one that can be read decides."""
    found = (match_files(search.folder, glob, [], masks) for option in PARTS for glob in search.globs(option))
    return find_kind(path for files in found for path in files.values())


def _channel_names(given: Sequence[str], kind: ImageKind) -> tuple[str, ...]:
    """Return the names of the channels; colour pictures have three channels in a file.

    Raises:
        UsageError: the user names another number of channels than colours.
    """
    if kind.colours == 1:
        return tuple(given)
    if len(given) not in (1, kind.colours):
        raise UsageError(
            f"-channel has {len(given)} names, colour images have {kind.colours} channels in one file",
            where=f"-channel {' '.join(given)}",
            run=f"leave -channel out, or give {kind.colours} names",
        )
    return COLOURS if len(given) == 1 else tuple(given)


def _report_missing_labels(search: _Search, images: Mapping[str, Path], labels: Mapping[str, Path]) -> None:
    """Report images whose label was not found: the name that each label should have, and the names of the labels."""
    if not images or not labels:
        return  # without any label the search has reported that the glob matches no file
    globs = search.globs("labels")
    search.problems += [
        f"{case}: the image {relative_name(path, search.folder)} expects a label that matches "
        f"{expected_files(globs, case)}"
        for case, path in images.items()
    ]
    there = ", ".join(sorted(labels)[:SHOWN_CASES]) + (", …" if len(labels) > SHOWN_CASES else "")
    hint = SAME_TEXT
    numbered = [case for case in images if without_channel_number(case) in labels]
    if numbered:
        name = images[numbered[0]].name.replace(numbered[0], f"*{numbered[0][-len('_0000') :]}")
        glob = relative_name(images[numbered[0]].with_name(name), search.folder)
        hint = f"-images '{glob}' leaves the channel number out of the name"
    search.problems[-1] += f"\n-labels {' '.join(globs)} matches the labels of {there}: {hint}"


def _report_unused_labels(
    search: _Search, labels: Mapping[str, Mapping[str, Path]], records: Sequence[SourceRecord]
) -> None:
    """Report labels that belong to no image; with other problems their image may be the one that is reported."""
    if search.problems:
        return
    used = {path for record in records if record.label for path in record.label.files()}
    for option in LABELS:
        search.problems += [
            f"{case}: the label {relative_name(path, search.folder)} belongs to no image: {SAME_TEXT}"
            for case, path in labels[option].items()
            if path not in used
        ]


def _warnings(search: _Search, count: int, records: Sequence[SourceRecord]) -> list[str]:
    """Return what a user should look at: folders that are left out, test scans without a label, unknown voxel sizes."""
    warnings = [
        f"{glob.removesuffix('/*')}/ is left out: with {count} channels give -{option} one glob a channel"
        for option in PARTS
        for glob in search.globs(option)
        if count > 1 and not search.options[option]
    ]
    untold = without_voxel_size(path for record in records for source in record.channels for path in source.files())
    if untold:
        warnings.append(
            f"{len(untold)} TIFF volume(s) have no file with their voxel size, {untold[0].stem}.json for example: the "
            "TIFF header decides, which most programs leave at 1 mm"
        )
    if search.globs("test_labels"):
        cases = [record.case for record in records if record.part == "test" and not record.label]
        more = ", …" if len(cases) > SHOWN_CASES else ""
        warnings += (
            [f"{len(cases)} test case(s) have no label: {', '.join(cases[:SHOWN_CASES])}{more}"] if cases else []
        )
    return warnings


def _check_options(options: Mapping[str, Any]) -> None:
    """Check the options before any file is read.

    Raises:
        UsageError: a value is repeated, a number of values does not fit, or a glob is absolute or empty.
    """
    values, names = options["label_values"], options["label_names"]
    for option in (*LABELS, *PARTS):
        given = options[option] if options[option] is not None else ()
        for glob in (given,) if isinstance(given, str) else given:
            if not glob or glob.startswith("/"):
                raise UsageError(f"'{glob}' is no glob below -i", why="the glob is empty or absolute")
    if values and len(set(values)) != len(values):
        raise UsageError("-label_values repeats a value", where=f"-label_values {' '.join(map(str, values))}")
    if values and names and len(names) != len(values) - 1:
        raise UsageError(
            f"-label_names has {len(names)} name(s) for {len(values)} -label_values",
            why="the first value belongs to the background, every other value has a name",
        )


def _check_number_of_globs(options: Mapping[str, Any], count: int) -> None:
    """Check that every part has the same number of globs for each of `count` files of a case.

    Raises:
        UsageError: a number of globs does not fit.
    """
    for option in PARTS:
        given = options[option] or ()
        globs = (given,) if isinstance(given, str) else given
        if len(globs) % count:
            raise UsageError(
                f"-{option} has {len(globs)} glob(s) for {count} channel(s)",
                where=f"-{option} {' '.join(globs)}",
                why=f"give one for each channel, in the order of -channel {' '.join(options['channel'])}",
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
