"""The h5 files of SSL4MIS, UA-MT and their successors: an array `image`, and `label` where there is one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.data.read_errors import explain_read_error
from nnssl.dataset_conversion.engine.layout import number_labels, stem
from nnssl.dataset_conversion.engine.records import Found, SourceRecord
from nnssl.dataset_conversion.engine.sources import H5Volume, open_h5
from nnssl.errors import UsageError

ENDINGS = (".h5", ".hdf5")
SLICE = re.compile(r"(.+)_slice_?(\d+)")
UNIT_MM = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class _File:
    """One file: its case, its slice number (None for a volume), and whether the file holds a label."""

    path: Path
    case: str
    number: int | None
    labelled: bool


def find_cases(folder: Path, options: dict[str, Any]) -> Found:
    """Return a case for each volume and for each series of slices without a volume, ignoring arrays like `scribble`."""
    spacing = tuple(options.get("spacing") or UNIT_MM)
    if not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        given = " ".join(f"{mm:g}" for mm in spacing)
        raise UsageError("voxel sizes must be greater than 0", where=f"-spacing {given}")
    inside = (path for path in sorted(folder.rglob("*")) if path.name.lower().endswith(ENDINGS))
    paths = [path for path in inside if path.is_file() and not path.name.startswith(".")]
    problems: list[str] = [] if paths else [f"-i {folder} holds no .h5 file"]
    files = [file for path in paths if (file := _inspect_file(path, folder, problems))]
    volumes = _name_by_folder([file for file in files if file.number is None])
    series: dict[str, list[_File]] = {}
    for file in files:
        if file.number is not None:
            series.setdefault(file.case, []).append(file)
    there = {file.case for file in volumes}
    records = [_record(file.case, [file], spacing) for file in volumes]
    for case, parts in sorted(series.items()):
        if case not in there:
            ordered = sorted(parts, key=lambda file: file.number or 0)
            problems += _series_problems(case, ordered)
            records.append(_record(case, ordered, spacing))
    unused = [file.path for case, parts in series.items() if case in there for file in parts]
    notes = [f"{len(unused)} slice files are left out: the download also holds their volumes"] if unused else []
    if not options.get("spacing"):
        notes.append("h5 files hold no voxel size: 1 mm in every direction is assumed, -spacing sets another one")
    names, wrong = number_labels(options.get("label_names"))
    return Found(
        tuple(records), ("image",), names, problems=(*problems, *wrong), ignored=tuple(unused), notes=tuple(notes)
    )


def _inspect_file(path: Path, folder: Path, problems: list[str]) -> _File | None:
    name = path.relative_to(folder).as_posix()
    try:
        with open_h5(path) as file:
            if "image" not in file:
                problems.append(f"{name} has no array 'image', it holds: {', '.join(file) or 'nothing'}")
                return None
            axes, labelled = len(getattr(file["image"], "shape", ())), "label" in file  # a group of arrays has no shape
    except OSError as error:
        problems.append(f"{name} {explain_read_error(error)}")
        return None
    if axes not in (2, 3):
        problems.append(f"{name}: 'image' has {axes} axes, 2 or 3 are expected")
        return None
    match = SLICE.fullmatch(stem(path))
    if axes == 3:
        return _File(path, stem(path), None, labelled)
    return _File(path, match[1], int(match[2]), labelled) if match else _File(path, stem(path), 0, labelled)


def _name_by_folder(volumes: Sequence[_File]) -> list[_File]:
    """Return the volumes; where file names repeat, the folder names the case."""
    counts = Counter(file.case for file in volumes)
    return [
        _File(file.path, file.path.parent.name if counts[file.case] > 1 else file.case, None, file.labelled)
        for file in volumes
    ]


def _series_problems(case: str, parts: Sequence[_File]) -> list[str]:
    numbers = [file.number or 0 for file in parts]
    lost = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    found = [f"{case}: slice {', '.join(map(str, lost))} is missing"] if lost else []
    found += [f"{case}: {count} files are slice {number}" for number, count in Counter(numbers).items() if count > 1]
    if len({file.labelled for file in parts}) > 1:
        without = ", ".join(file.path.name for file in parts if not file.labelled)
        found.append(f"{case}: some slices have a label, but these have none: {without}")
    return found


def _record(case: str, parts: Iterable[_File], spacing: tuple[float, ...]) -> SourceRecord:
    parts = list(parts)
    paths = tuple(file.path for file in parts)
    labelled = parts[0].labelled
    match = re.fullmatch(r"(patient\d+)_frame\d+", case)  # ACDC: two frames of one patient
    return SourceRecord(
        case,
        (H5Volume(paths, "image", spacing),),
        "labelled" if labelled else "unlabelled",
        H5Volume(paths, "label", spacing) if labelled else None,
        patient=match[1] if match else case,
    )
