"""Reads one raw scan as nnU-Net will, checks the scan, and keeps the facts that later steps need."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.data.completeness import check_complete
from nnssl.data.geometry import (
    CHANNEL_SPACING_TOLERANCE,
    Difference,
    Geometry,
    Quantity,
    axis_code,
    find_differences,
    geometry_of_array,
    has_right_angles,
    relate_grids,
)
from nnssl.data.raw import RawCase, listed
from nnssl.data.read_errors import RIGHT_ANGLES, SHEARED, explain_read_error
from nnssl.host import companion_file
from nnssl.system.files import content_hash

PERCENTILE_VOXELS = 1_000_000

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class ChannelIntensity:
    """Intensities of one channel over its nonzero voxels, or over all voxels of a channel that is zero everywhere.

    The percentiles come from at most two million voxels at even distances.
    """

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class ScanFacts:
    """What the check learned about one scan.

    Attributes:
        case: case name.
        kind: `labelled`, `unlabelled` or `test`.
        shape: spatial size in voxels, in the axis order of nnU-Net's reader.
        spacing_mm: voxel size in that order.
        orientation: axis code of the axes as the reader gives them (`RAS` for example), empty for a file without
            direction.
        content_hash: SHA-256 of the decoded voxels of all channels; header and compression do not count.
        source_hash: SHA-256 of the image files' bytes, and of the label file's where the label was read.
        intensity: one entry a channel.
    """

    case: str
    kind: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    content_hash: str
    source_hash: str
    intensity: tuple[ChannelIntensity, ...]


@dataclass(frozen=True)
class ScanTask:
    """One scan to examine. Its label file is opened only if `read_label` is True."""

    case: RawCase
    kind: str
    read_label: bool


@dataclass(frozen=True)
class Expected:
    """What every scan of the data set must look like.

    Attributes:
        reader: nnU-Net's reader class.
        channels: number of channels.
        labels: allowed label values; empty allows all of them.
        file_ending: file ending with its dot.
    """

    reader: Any
    channels: int
    labels: tuple[int, ...]
    file_ending: str


LARGEST_VALUE = 1e15  # its square, which the standard deviation needs, is far below the largest fp32 number


@dataclass
class Examined:
    """The outcome for one scan.

    Attributes:
        facts: what the check learned; None if a file cannot be read.
        problems: what must be repaired, one line each.
        warnings: what a user should look at, one line each.
        on_other_axes: whether a file lies in the place of the first channel, but on flipped or reordered axes.
        unreadable: whether a file could not be read; the next attempt may succeed.
    """

    facts: ScanFacts | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    on_other_axes: bool = False
    unreadable: bool = False

    def __add__(self, other: Examined) -> Examined:
        """Return the findings of both, in this order."""
        return Examined(
            self.facts or other.facts,
            self.problems + other.problems,
            self.warnings + other.warnings,
            self.on_other_axes or other.on_other_axes,
            self.unreadable or other.unreadable,
        )


@dataclass(frozen=True)
class _Volume:
    """A decoded file: voxels (C, D, H, W) and where they lie in space."""

    path: Path
    voxels: FloatArray
    geometry: Geometry

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size in the order of the array's axes."""
        return self.geometry.spacing_mm[::-1]


def examine(task: ScanTask, expected: Expected) -> Examined:
    """Read one scan and return its facts, problems and warnings. A bad file is a problem, never an exception."""
    return examine_parts(task, expected)[-1]


def examine_parts(task: ScanTask, expected: Expected) -> tuple[Examined, ...]:
    """Return what `examine` finds without the label and, where the label is read, what `examine` finds with it.

    Every file is read once. The first result is the same whether the label is read or not.
    """
    files, label, whole = Examined(), Examined(), Examined()
    case = task.case
    _check_channel_numbers(task, expected, files)
    volumes = [_read(path, expected, files) for path in case.images]
    channels = [volume for volume in volumes if volume is not None]
    if task.read_label:
        _check_label(task, expected, channels, label)
    complete = len(channels) == len(case.images) and bool(channels)
    if complete:
        _check_channels(channels, expected, whole)
    outcomes = [files + whole, files + label + whole] if task.read_label else [files + whole]
    title = f"{case.name} ({task.kind}): "
    facts = _facts(task, channels) if complete else None
    for outcome, sources in zip(outcomes, _sources(task), strict=True):
        if facts is not None:
            outcome.facts = replace(facts, source_hash=content_hash(*sources))
        outcome.problems = [title + text for text in outcome.problems]
        outcome.warnings = [title + text for text in outcome.warnings]
    return tuple(outcomes)


def sources_of(task: ScanTask) -> list[Path]:
    """Return the files that `examine` reads of a scan, in the order in which the hash of the sources takes them."""
    return _sources(task)[-1]


def _sources(task: ScanTask) -> list[list[Path]]:
    """Return the files without the label and, where the label is read, those with it."""
    images, label = task.case.images, task.case.label
    with_label = images + ((label,) if label and label.is_file() else ())
    return [[*files, *_companions(files)] for files in ((images, with_label) if task.read_label else (images,))]


def _companions(sources: Iterable[Path]) -> list[Path]:
    """Return the files beside scans and label that hold their voxel size: `CASE.json` for `CASE_0000.tif`."""
    cases = (path.with_name(re.sub(r"_\d{4}$", "", path.stem) + path.suffix) for path in sources)
    files = {companion for case in cases if (companion := companion_file(case)) and companion.is_file()}
    return sorted(files | {other for path in sources if (other := companion_file(path)) and other.is_file()})


def _check_channel_numbers(task: ScanTask, expected: Expected, outcome: Examined) -> None:
    pattern = re.compile(rf".+_(\d{{4}}){re.escape(expected.file_ending)}")
    matches = [pattern.fullmatch(path.name) for path in task.case.images]
    numbers = [int(match[1]) for match in matches if match]
    if len(numbers) == len(matches) and numbers != list(range(len(numbers))):
        there = ", ".join(f"{number:04d}" for number in numbers)
        outcome.problems.append(
            f"{task.case.images[0].parent} holds the channels {there}; "
            f"channels must count up from 0000: add the missing files or rename these"
        )


def _read(path: Path, expected: Expected, outcome: Examined, is_label: bool = False) -> _Volume | None:
    """Return the decoded file. A file that cannot be read gives None, and a problem that names file and cause."""
    if not path.is_file():
        outcome.problems.append(f"{path} does not exist: add the file")
        outcome.unreadable = True
        return None
    try:
        check_complete(path)
        reader = expected.reader()
        voxels, properties = reader.read_seg(str(path)) if is_label else reader.read_images((str(path),))
    except Exception as error:
        outcome.problems.append(f"{path} {explain_read_error(error)}")
        outcome.unreadable = True
        return None
    if len(properties["spacing"]) != voxels.ndim - 1:
        outcome.problems.append(
            f"{path} has {len(properties['spacing'])} spacing(s) for {voxels.ndim - 1} axes as nnU-Net reads it: "
            "write one file for each channel"
        )
        return None
    return _Volume(path, voxels, geometry_of_array(voxels.shape[1:], properties))


def _check_channels(channels: Sequence[_Volume], expected: Expected, outcome: Examined) -> None:
    found = sum(len(volume.voxels) for volume in channels)
    if found != expected.channels:
        outcome.problems.append(
            f"{found} channel(s) in {', '.join(volume.path.name for volume in channels[:4])}, "
            f"dataset.json names {expected.channels}: add or remove channel files, or correct channel_names"
        )
    first = channels[0]
    for number, volume in enumerate(channels):
        bad = count_not_finite(volume.path, volume.voxels)
        low, high = float(volume.voxels.min()), float(volume.voxels.max())
        extreme = low if abs(low) > abs(high) else high
        if bad:
            outcome.problems.append(
                f"{volume.path} has {bad} of {volume.voxels.size} voxels that are NaN or infinite, 0 are allowed: "
                f"replace them with a value that means background"
            )
        elif abs(extreme) > LARGEST_VALUE:
            outcome.problems.append(
                f"{volume.path}: the intensities of channel {number} cannot be normalised, because of the value "
                f"{extreme:.6g} (at most {LARGEST_VALUE:g} in size): replace it by a value of the scan's own range, "
                f"its background for example"
            )
        elif low == high:
            outcome.warnings.append(f"{volume.path} has the value {volume.voxels.flat[0]:g} in every voxel")
    if not all(0 < mm < np.inf for mm in first.spacing_mm):
        outcome.problems.append(f"{first.path} has the spacing {_mm(first.spacing_mm)}: correct the header")
    if not has_right_angles(first.geometry):
        outcome.warnings.append(
            f"{first.path}: {SHEARED}; nnU-Net takes the voxel size along these axes as the size in space. For exact "
            f"sizes {RIGHT_ANGLES}"
        )
    for volume in channels[1:]:
        _compare(volume, first, outcome)


def _check_label(task: ScanTask, expected: Expected, channels: Sequence[_Volume], outcome: Examined) -> None:
    path = task.case.label
    if path is None or not path.is_file():
        outcome.problems.append(
            f"the label file {path} does not exist: add the file, or move the scan to imagesUn if it has no label"
        )
        return
    label = _read(path, expected, outcome, is_label=True)
    if label is None:
        return
    if channels:
        _compare(label, channels[0], outcome, is_label=True)
    if len(label.voxels) != 1:
        outcome.problems.append(f"{path} has {len(label.voxels)} channels, a label has 1: write a single-channel file")
    if not expected.labels:
        return
    bad = count_not_finite(label.path, label.voxels)
    if bad:
        outcome.problems.append(f"{path} has {bad} voxels that are NaN or infinite, 0 are allowed: correct the label")
    strange = label.voxels[~np.isin(label.voxels, expected.labels) & np.isfinite(label.voxels)]
    if strange.size:
        values = np.unique(strange)
        shown = listed([f"{value:g}" for value in values])
        kind = "values that are not integers" if (values != np.rint(values)).any() else "values"
        outcome.problems.append(
            f"{path} has {kind} {shown} in {strange.size} voxel(s), dataset.json allows "
            f"{expected.labels[0]} to {expected.labels[-1]}: correct the label, or add the value to 'labels'"
        )
    elif not label.voxels.any():
        outcome.warnings.append(f"{path} is background only")


def count_not_finite(path: Path, voxels: NDArray[Any]) -> int:
    """Return the number of NaN and infinite voxels. ITK reads those of a NIfTI file as 0, so nibabel reads the file."""
    import nibabel

    found = int(voxels.size - np.isfinite(voxels).sum())
    if found or not path.name.endswith((".nii", ".nii.gz")):
        return found
    image = nibabel.load(path)
    if image.get_data_dtype().kind != "f":
        return 0
    stored = image.dataobj.get_unscaled()
    return int(stored.size - np.isfinite(stored).sum())


def _compare(volume: _Volume, reference: _Volume, outcome: Examined, *, is_label: bool = False) -> None:
    """Compare the geometry of a channel or a label with that of the first channel."""
    relation = relate_grids(volume.geometry, reference.geometry)
    if relation.turn:
        outcome.on_other_axes = True
        outcome.problems.append(
            f"{volume.path} lies in the same place as {reference.path.name}, but on other axes ({relation.turn}): "
            f"nnU-Net reads arrays in the order of the file, so that the voxels of both would not belong together; "
            f"bring the file to the axes of {reference.path.name}, as nnssl_convert folder does"
        )
        return
    differences = (
        relation.differences
        if is_label
        else find_differences(
            volume.geometry, reference.geometry, spacing_tolerance=CHANNEL_SPACING_TOLERANCE, thin_axes=True
        )
    )
    _report({difference.quantity: difference for difference in differences}, volume, reference, outcome)


def _report(differences: Mapping[Quantity, Difference], volume: _Volume, reference: _Volume, outcome: Examined) -> None:
    """Add the differences to the outcome; nnU-Net ignores origin and direction, so that these are warnings."""
    name = reference.path.name
    if "shape" in differences:
        shape, wanted = volume.voxels.shape[1:], reference.voxels.shape[1:]
        outcome.problems.append(
            f"{volume.path} has the shape {_by(shape)}, {name} has {_by(wanted)} (tolerance 0): "
            f"resample the file to the grid of {name}"
        )
    elif "spacing" in differences:
        outcome.problems.append(
            f"{volume.path} has the spacing {_mm(volume.spacing_mm)}, {name} has {_mm(reference.spacing_mm)} "
            f"(tolerance {differences['spacing'].tolerance}): correct the header that is wrong, or resample"
        )
    placement: tuple[Quantity, ...] = ("origin", "direction")
    for quantity in placement:
        if found := differences.get(quantity):
            outcome.warnings.append(
                f"{volume.path} has the {quantity} {_numbers(found.found)}, {name} has {_numbers(found.expected)} "
                f"(tolerance {found.tolerance}); nnU-Net ignores this difference, look whether the scans overlap"
            )


def _facts(task: ScanTask, channels: Sequence[_Volume]) -> ScanFacts:
    digest = hashlib.sha256()
    for volume in channels:
        digest.update(repr(volume.voxels.shape).encode())
        digest.update(np.ascontiguousarray(volume.voxels, dtype=np.float32).data)
    first = channels[0]
    return ScanFacts(
        case=task.case.name,
        kind=task.kind,
        shape=tuple(int(n) for n in first.voxels.shape[1:]),
        spacing_mm=first.spacing_mm,
        orientation=axis_code(first.geometry),
        content_hash=digest.hexdigest(),
        source_hash="",
        intensity=tuple(_intensity(channel) for volume in channels for channel in volume.voxels),
    )


def _intensity(channel: FloatArray) -> ChannelIntensity:
    values = channel[channel != 0]
    values = values if values.size else channel.ravel()
    low, high = np.percentile(values[:: max(1, values.size // PERCENTILE_VOXELS)], [0.5, 99.5])
    mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return ChannelIntensity(float(mean), float(std), float(low), float(high))


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _mm(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.7g}" for value in values) + " mm"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
