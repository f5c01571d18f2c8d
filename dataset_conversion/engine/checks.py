"""The check of a download before anything is written: every file read once, every problem in one list."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnssl.data.scans import LABEL_SPACING_TOLERANCE, PLACEMENT_TOLERANCE, count_not_finite
from nnssl.dataset_conversion.engine.records import Found, Record, Source
from nnssl.dataset_conversion.engine.sources import NIFTI, UnreadableError, placement
from nnssl.system.files import content_hash

FORMAT = 1  # part of every recipe: a new number converts everything anew
CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
IMAGE_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".h5", ".hdf5", ".img", ".hdr")


@dataclass(frozen=True)
class CaseRecord:
    """What conversion.json keeps of a case.

    Attributes:
        recipe: hash of everything that decides the output: record, label values, options, and the inputs' bytes.
        voxels: SHA-256 of the decoded voxels of all channels.
        values: label values that occur in the download, none without a label.
        inputs: file of the download -> SHA-256.
        outputs: file of the data set -> SHA-256.
    """

    recipe: str
    voxels: str
    inputs: dict[str, str]
    values: tuple[int, ...] = ()
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What the worker processes are told once.

    Attributes:
        source: the download folder.
        folder: the data set folder.
        values: value in the download -> value that is written; empty keeps every value from 0 to 255.
        fix_geometry: give labels the placement of their image where both have the same size.
        done: the cases that earlier runs completed.
    """

    source: Path
    folder: Path
    values: dict[int, int]
    fix_geometry: bool
    done: dict[str, CaseRecord]


@dataclass
class Checked:
    """The outcome for one case; `entry` is None where it cannot be converted."""

    entry: CaseRecord | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_case(record: Record, job: Job) -> Checked:
    """Read the files of one case and say what is wrong with them; a case that is complete already is not decoded."""
    outcome = Checked()
    files = record.files()
    missing = [path for path in files if not path.exists()]
    if missing:
        outcome.problems = [f"{record.case}: {shown(path, job.source)} is missing" for path in missing]
        return outcome
    try:
        inputs = {shown(path, job.source): _hash_of(path, *_stamp(path)) for path in files}
    except OSError as error:
        name = shown(Path(error.filename), job.source) if error.filename else "a file"
        outcome.problems = [f"{record.case}: {name} cannot be read ({error.strerror})"]
        return outcome
    recipe = recipe_of(record, job, inputs)
    earlier = job.done.get(record.case)
    if earlier and earlier.recipe == recipe and _outputs_are_whole(earlier, job.folder):
        outcome.entry = earlier
        return outcome
    voxels = hashlib.sha256()
    places = [_check_channel(source, job, outcome, voxels) for source in record.channels]
    known = [place for place in places if place]
    for place in known[1:]:
        outcome.problems += _differences("a channel", place, known[0], fixed=False)
    values = _check_label(record.label, known[0] if known else None, job, outcome) if record.label else ()
    outcome.problems = [f"{record.case}: {text}" for text in outcome.problems]
    outcome.notes = [f"{record.case}: {text}" for text in outcome.notes]
    if not outcome.problems:
        outcome.entry = CaseRecord(recipe, voxels.hexdigest(), inputs, values)
    return outcome


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)  # the frames of a 4-D file share it
def _hash_of(path: Path, size: int, modified: int) -> str:  # noqa: ARG001 - they belong to the cache's key
    return content_hash(path)


def recipe_of(record: Record, job: Job, inputs: Mapping[str, str]) -> str:
    """Return a hash that changes with everything that decides what is written for a case."""
    deciding = [
        FORMAT,
        dataclasses.asdict(record),
        sorted(job.values.items()),
        job.fix_geometry,
        sorted(inputs.items()),
    ]
    kinds = [type(source).__name__ for source in (*record.channels, record.label)]
    text = json.dumps([deciding, kinds], sort_keys=True, default=lambda path: shown(path, job.source))
    return hashlib.sha256(text.encode()).hexdigest()


def shown(path: Path, root: Path) -> str:
    """Return a path below the download folder as text, with forward slashes."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def name_problems(found: Found) -> list[str]:
    """Return what is wrong with the cases as a whole, before a file is opened."""
    rule = "cannot be a case name: it takes ASCII letters, digits, '_', '-' and '.'; rename the file or folder"
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
    wanted = len(found.channel_names)
    problems += [
        f"{record.case}: {len(record.channels)} channel(s), {wanted} are expected"
        for record in found.records
        if len(record.channels) != wanted
    ]
    if not any(record.part == "labelled" for record in found.records) and not found.problems:
        problems.append("no labelled case was found; at least one is needed to learn from")
    both = sorted(patient for patient, kinds in parts.items() if len(kinds) > 1)
    return problems + [f"patient {patient} is in the test part and elsewhere" for patient in both]


def strangers(found: Found, source: Path) -> list[Path]:
    """Return the image files below the download folder that the layout does not know."""
    used = {path for record in found.records for path in record.files()} | set(found.ignored)
    inside = (path for path in sorted(source.rglob("*")) if path.name.lower().endswith(IMAGE_ENDINGS))
    return [path for path in inside if not _is_hidden(path, source) and not ({path, *path.parents} & used)]


def repeated(entries: Mapping[str, CaseRecord], records: Iterable[Record]) -> list[list[Record]]:
    """Return groups of cases of several patients that hold the same voxels."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(entries[record.case].voxels, []).append(record)
    return [group for group in groups.values() if len({record.person for record in group}) > 1]


def _is_hidden(path: Path, source: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(source).parts)


def _outputs_are_whole(entry: CaseRecord, folder: Path) -> bool:
    return bool(entry.outputs) and all(
        (folder / name).is_file() and content_hash(folder / name) == digest for name, digest in entry.outputs.items()
    )


def _opened(source: Source, job: Job, outcome: Checked) -> Any:  # noqa: ANN401 - SimpleITK has no types
    name = shown(source.files()[0], job.source)
    try:
        return source.read()
    except UnreadableError as error:
        outcome.problems.append(f"{name} {error}")
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, KeyError) as error:
        outcome.problems.append(f"{name} cannot be read ({error})")
    return None


def _check_channel(source: Source, job: Job, outcome: Checked, digest: Any) -> Any:  # noqa: ANN401 - a hashlib object
    image = _opened(source, job, outcome)
    if image is None:
        return None
    voxels = sitk.GetArrayViewFromImage(image)
    digest.update(repr((voxels.shape, str(voxels.dtype))).encode())
    for plane in voxels:
        digest.update(np.ascontiguousarray(plane).data)
    path = source.files()[0]
    bad = sum(int(plane.size - np.isfinite(plane).sum()) for plane in voxels) if voxels.dtype.kind == "f" else 0
    if not bad and len(source.files()) == 1 and path.name.lower().endswith(NIFTI) and voxels.dtype.kind == "f":
        bad = count_not_finite(path, voxels)
    if bad:
        outcome.problems.append(f"{shown(path, job.source)} has {bad} voxels that are NaN or infinite")
    return placement(image)


def _check_label(source: Source, place: Any, job: Job, outcome: Checked) -> tuple[int, ...]:  # noqa: ANN401
    """Compare a label with the placement of its image, check its values, and return them."""
    label = _opened(source, job, outcome)
    if label is None:
        return ()
    name = shown(source.files()[0], job.source)
    if place:
        differences = _differences(name, placement(label), place, fixed=job.fix_geometry)
        outcome.problems += differences
        if not differences and _differences(name, placement(label), place, fixed=False):
            outcome.notes.append(f"{name} gets the geometry of its image (--fix_geometry)")
    values = present_values(sitk.GetArrayViewFromImage(label))
    unknown = sorted(values - set(job.values or range(256)))
    if unknown:
        listed = ", ".join(f"{value:g}" for value in unknown[:5]) + (" …" if len(unknown) > 5 else "")
        expected = ", ".join(map(str, sorted(job.values))) or "whole numbers from 0 to 255"
        outcome.problems.append(f"{name} has the label value(s) {listed}, expected are {expected}")
    elif values == {0}:
        outcome.notes.append(f"{name} is background only")
    return () if unknown else tuple(sorted(int(value) for value in values))


def present_values(voxels: Any) -> set[float]:  # noqa: ANN401 - an array view (D, H, W)
    """Return the values that occur, plane by plane: sorting a whole volume would need several of it."""
    found: set[float] = set()
    for plane in voxels:
        if plane.dtype.kind in "iu" and int(plane.max()) - int(plane.min()) < 1 << 16:
            low = int(plane.min())
            seen = np.zeros(int(plane.max()) - low + 1, dtype=bool)
            seen[plane.astype(np.int64) - low] = True
            found |= {float(value) for value in np.flatnonzero(seen) + low}
        else:
            found |= {float(value) for value in np.unique(plane)}
    return found


def _differences(name: str, place: Any, wanted: Any, *, fixed: bool) -> list[str]:  # noqa: ANN401 - placements
    """Return how a placement differs from that of the image."""
    (size, spacing, origin, direction), (size_0, spacing_0, origin_0, direction_0) = place, wanted
    if size != size_0:
        return [f"{name} has {_by(size)} voxels, its image has {_by(size_0)}"]
    if fixed:
        return []
    repair = "correct the header, or add --fix_geometry to take the image's"
    found = []
    if not np.allclose(spacing, spacing_0, rtol=LABEL_SPACING_TOLERANCE, atol=0):
        found.append(f"{name} has the spacing {_by(spacing)} mm, its image has {_by(spacing_0)} mm: {repair}")
    tolerance_mm = max(PLACEMENT_TOLERANCE, 0.01 * min(spacing_0))
    if not np.allclose(origin, origin_0, rtol=0, atol=tolerance_mm):
        found.append(f"{name} has the origin {_by(origin, ', ')}, its image has {_by(origin_0, ', ')}: {repair}")
    if not np.allclose(direction, direction_0, rtol=0, atol=PLACEMENT_TOLERANCE):
        found.append(f"{name} has the direction {_by(direction, ', ')}, its image {_by(direction_0, ', ')}: {repair}")
    return found


def _by(numbers: Iterable[float], separator: str = " x ") -> str:
    return separator.join(f"{number:.6g}" for number in numbers)
