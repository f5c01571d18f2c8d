"""The check of one case before anything is written: every file of the case is read once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnssl.data.geometry import Geometry, GridRelation, geometry_of_image, has_right_angles, relate_grids
from nnssl.data.read_errors import RIGHT_ANGLES, SHEARED, explain_read_error
from nnssl.data.scans import count_not_finite
from nnssl.dataset_conversion.engine.label_values import describe_unknown_values, present_values
from nnssl.dataset_conversion.engine.layout import relative_name
from nnssl.dataset_conversion.engine.placement import describe_differences
from nnssl.dataset_conversion.engine.records import Source, SourceRecord
from nnssl.dataset_conversion.engine.sources import NIFTI, UnreadableError
from nnssl.system.files import content_hash

FORMAT = 1  # part of every recipe: with a new number the next run converts every case again
FIX_FORMAT = 2  # the same for cases under --fix_geometry; rule 1 gave an image's header to labels on flipped axes too


@dataclass(frozen=True)
class ConvertedCase:
    """What conversion.json stores about a case.

    Attributes:
        recipe: hash of everything that decides the output: record, label values, options, and bytes of the inputs.
        voxels: SHA-256 of the decoded voxels of all channels.
        values: label values that occur in the download, none without a label.
        inputs: file of the download -> SHA-256.
        outputs: file of the data set -> SHA-256.
        grid: the grid of the first channel, where a file of the case must be brought to it; None leaves all files as
            they are.
        turned_channels: numbers of the channels that must be brought to `grid`.
    """

    recipe: str
    voxels: str
    inputs: dict[str, str]
    values: tuple[int, ...] = ()
    outputs: dict[str, str] = field(default_factory=dict)
    grid: Geometry | None = None
    turned_channels: tuple[int, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """Return what conversion.json holds: all but `grid` and `turned_channels`, which only this run needs."""
        only_this_run = ("grid", "turned_channels")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in only_this_run}


@dataclass(frozen=True)
class Job:
    """The settings of a conversion, which every worker process gets once.

    Attributes:
        source: the download folder.
        folder: the data set folder.
        values: value in the download -> value in the data set; empty keeps every value from 0 to 255.
        fix_geometry: give labels the spacing and origin of their image if both have the same size and direction.
        done: the cases that earlier runs completed.
        skip_unreadable: leave out unlabelled cases that have problems.
        file_ending: ending of the files of the data set.
    """

    source: Path
    folder: Path
    values: dict[int, int]
    fix_geometry: bool
    done: dict[str, ConvertedCase]
    skip_unreadable: bool = False
    file_ending: str = ".nii.gz"


@dataclass
class Checked:
    """The outcome for one case.

    Attributes:
        entry: what the check learned; None if the case cannot be converted.
        problems: what must be repaired, one line each.
        notes: what the conversion does with the case beyond copying, one line each.
        uses_grid: whether a file of the case must be brought to the axes of the first channel.
        unknown_values: label values that the data set does not have.
    """

    entry: ConvertedCase | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    uses_grid: bool = False
    unknown_values: tuple[float, ...] = ()


def check_case(record: SourceRecord, job: Job) -> Checked:
    """Read the files of one case and return their problems; a case that an earlier run completed is not decoded."""
    outcome = Checked()
    files = record.files()
    missing = [path for path in files if not path.exists()]
    if missing:
        outcome.problems = [f"{record.case}: {relative_name(path, job.source)} is missing" for path in missing]
        return outcome
    try:
        inputs = {relative_name(path, job.source): _hash_of(path, *_stamp(path)) for path in files}
    except OSError as error:
        name = relative_name(Path(error.filename), job.source) if error.filename else "a file"
        outcome.problems = [f"{record.case}: {name} cannot be read ({error.strerror})"]
        return outcome
    recipe = recipe_of(record, job, inputs)
    earlier = job.done.get(record.case)
    if earlier and earlier.recipe == recipe and _outputs_are_whole(earlier, job.folder):
        outcome.entry = earlier
        return outcome
    voxels = hashlib.sha256()
    checked = [_check_channel(source, job, outcome, voxels) for source in record.channels]
    grid = checked[0] if checked else None
    turned = tuple(
        number
        for number, (source, geometry) in enumerate(zip(record.channels, checked, strict=True))
        if number and grid and geometry and _is_turned(_name(source, job), relate_grids(geometry, grid), outcome)
    )
    values = _check_label(record.label, grid, job, outcome) if record.label else ()
    outcome.problems = [f"{record.case}: {text}" for text in outcome.problems]
    outcome.notes = [f"{record.case}: {text}" for text in outcome.notes]
    if not outcome.problems:
        kept = grid if outcome.uses_grid or job.fix_geometry else None
        outcome.entry = ConvertedCase(recipe, voxels.hexdigest(), inputs, values, grid=kept, turned_channels=turned)
    return outcome


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)  # the frames of a 4-D file share one entry
def _hash_of(path: Path, size: int, modified: int) -> str:  # noqa: ARG001 - keys of the cache
    return content_hash(path)


def recipe_of(record: SourceRecord, job: Job, inputs: Mapping[str, str]) -> str:
    """Return a hash that changes with everything that decides the files of a case."""
    deciding = [
        FORMAT,
        dataclasses.asdict(record),
        sorted(job.values.items()),
        job.fix_geometry and FIX_FORMAT,
        sorted(inputs.items()),
    ]
    kinds = [type(source).__name__ for source in (*record.channels, record.label)]
    text = json.dumps([deciding, kinds], sort_keys=True, default=lambda path: relative_name(path, job.source))
    return hashlib.sha256(text.encode()).hexdigest()


def _outputs_are_whole(entry: ConvertedCase, folder: Path) -> bool:
    return bool(entry.outputs) and all(
        (folder / name).is_file() and content_hash(folder / name) == digest for name, digest in entry.outputs.items()
    )


def _open_source(source: Source, job: Job, outcome: Checked) -> Any:  # noqa: ANN401 - SimpleITK has no types
    """Return the image of the source; None and a problem where the file cannot be read or has sheared axes."""
    name = _name(source, job)
    try:
        image = source.read()
    except UnreadableError as error:
        outcome.problems.append(f"{name} {error}")
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, KeyError) as error:
        outcome.problems.append(f"{name} {explain_read_error(error)}")
    else:
        if has_right_angles(geometry_of_image(image)):
            return image
        # ITK reads such axes from some formats, but its NIfTI writer replaces them by axes at right angles.
        outcome.problems.append(f"{name} cannot be converted ({SHEARED}): {RIGHT_ANGLES}")
    return None


def _name(source: Source, job: Job) -> str:
    return relative_name(source.files()[0], job.source)


def _check_channel(source: Source, job: Job, outcome: Checked, digest: Any) -> Geometry | None:  # noqa: ANN401
    image = _open_source(source, job, outcome)
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
        outcome.problems.append(f"{_name(source, job)} has {bad} voxels that are NaN or infinite")
    return geometry_of_image(image)


def _check_label(source: Source, geometry: Geometry | None, job: Job, outcome: Checked) -> tuple[int, ...]:
    """Compare a label with the geometry of its image, check its values, and return these."""
    label = _open_source(source, job, outcome)
    if label is None:
        return ()
    name = _name(source, job)
    if geometry:
        relation = relate_grids(geometry_of_image(label), geometry)
        if job.fix_geometry and not relation.is_same and relation.header_may_be_replaced:
            outcome.notes.append(f"{name} gets the geometry of its image (--fix_geometry)")
        else:
            _is_turned(name, relation, outcome, may_be_fixed=True)
    values = present_values(sitk.GetArrayViewFromImage(label))
    unknown = sorted(values - set(job.values or range(256)))
    if unknown:
        outcome.unknown_values = tuple(unknown)
        outcome.problems.append(describe_unknown_values(name, unknown, job.values))
    elif values == {0}:
        outcome.notes.append(f"{name} is background only")
    return () if unknown else tuple(sorted(int(value) for value in values))


def _is_turned(name: str, relation: GridRelation, outcome: Checked, *, may_be_fixed: bool = False) -> bool:
    """Return whether a file must be brought to other axes, which is a note; different grids are a problem.

    Args:
        name: name of the file.
        relation: how the grid of the file relates to that of the first channel.
        outcome: gets the note or the problem.
        may_be_fixed: whether --fix_geometry concerns this file.
    """
    if not relation.turn:
        outcome.problems += describe_differences(name, relation, may_be_fixed)
        return False
    outcome.uses_grid = True
    outcome.notes.append(f"{name} lies in the place of its image and is brought to its axes ({relation.turn})")
    return True
