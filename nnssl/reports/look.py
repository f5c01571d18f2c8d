"""`nnssl.look`: a picture of scans with their masks, in three planes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl.comparison.scores import read_scores
from nnssl.data.raw import IMAGE_ENDINGS
from nnssl.errors import DataError, UsageError
from nnssl.names import DATASET_JSON, SUMMARY_JSON
from nnssl.reports.case_files import object_of
from nnssl.reports.colours import names_of_values
from nnssl.reports.drawing import draw_legend, draw_slice, figure_of, picture_bytes
from nnssl.reports.tables import case_scores
from nnssl.reports.volumes import Array, Volume, case_of, grey_levels, read_volume
from nnssl.system.files import check_output_file, write_bytes

PANEL_INCH, TEXT_INCH = 2.4, 2.2
FIRST_CHANNEL = "_0000"
PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Sheet:
    """A picture that was written.

    Attributes:
        file: the PNG.
        cases: the cases on it, in order.
        left_out: the cases beyond the number that was asked for.
    """

    file: Path
    cases: tuple[str, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    """One line of the sheet: a scan with one mask, or alone; `at` is the voxel that the planes pass through."""

    case: str
    name: str
    scan: Volume
    mask: Volume | None
    score: float | None
    at: list[int]


def look(
    scan: str | Path, masks: Sequence[str | Path] = (), *, output_file: str | Path | None = None, cases: int = 10
) -> Sheet:
    """Draw scans in three planes with the contours of their masks, and the names and volumes of the labels.

    The planes pass through the largest areas of the first mask, or through the middle of a scan without one. Pictures
    show the patient's left on the right. Names of labels come from dataset.json beside the mask, or one folder above.

    Args:
        scan: an image file, or a folder of scans; of several channels the first one is drawn.
        masks: mask files, or folders with masks of the same names; one line each. Where the first folder with a
            `summary.json` has scores, its worst cases come first.
        output_file: the PNG; None for `CASE_look.png` or `FOLDER_look.png` in the current folder.
        cases: largest number of scans on the sheet.

    Raises:
        UsageError: `cases` is below 1, or the output is no PNG.
        DataError: a file is missing or cannot be read, a folder holds no scan, or a mask has another shape.
        EnvironmentProblem: the picture cannot be written.
    """
    place, folders = Path(scan), [Path(mask) for mask in masks]
    file = Path(output_file) if output_file else Path(f"{case_of(place).removesuffix(FIRST_CHANNEL)}_look.png")
    if cases < 1:
        raise UsageError(f"-n must be at least 1, got {cases}")
    if file.suffix.lower() != ".png":
        raise UsageError("the sheet is a PNG file", where=file, run=f"-o {file.with_suffix('.png')}")
    check_output_file(file)
    scans, scores = _scans(place), {folder: _scores(folder) for folder in folders}
    first = next(filter(None, scores.values()), {})
    order = sorted(scans, key=lambda case: (first.get(case, np.inf), case))
    rows = [row for case in order[:cases] for row in _rows(case, scans[case], scores)]
    labels = next(filter(None, (_labels(folder) for folder in folders)), {})
    content = _draw(rows, labels)
    write_bytes(file, content)
    return Sheet(file, tuple(order[:cases]), tuple(order[cases:]))


def label_volumes(mask: Volume, labels: Mapping[int, str]) -> dict[str, float]:
    """Return name -> volume in ml of each label value in a mask; a value without a name is `label 3`."""
    values, counts = np.unique(mask.voxels[mask.voxels > 0], return_counts=True)
    found = zip(map(int, values), map(int, counts), strict=True)
    return {labels.get(value, f"label {value}"): count * mask.voxel_ml for value, count in found}


def plane_slices(voxels: Array, at: Sequence[int]) -> list[Array]:
    """Return the axial, coronal and sagittal slice of a volume (D, H, W) through a voxel; superior is up."""
    return [voxels[at[0]], voxels[::-1, at[1], :], voxels[::-1, :, at[2]]]


def centre_of(mask: Array | None, shape: tuple[int, ...]) -> list[int]:
    """Return for each axis the slice with most voxels of the mask; the middle where there is none."""
    if mask is None or not mask.any():
        return [size // 2 for size in shape]
    filled = mask > 0
    return [int(np.argmax(filled.sum(axis=tuple(other for other in range(3) if other != axis)))) for axis in range(3)]


def _scans(place: Path) -> dict[str, Path]:
    """Return case -> first channel."""
    if place.is_file():
        return {case_of(place).removesuffix(FIRST_CHANNEL): place}
    if not place.is_dir():
        raise DataError("there is no such scan and no such folder", where=place)
    files = [file for file in sorted(place.iterdir()) if file.name.lower().endswith(IMAGE_ENDINGS)]
    first = [file for file in files if case_of(file).endswith(FIRST_CHANNEL)] or files
    if not first:
        raise DataError("the folder holds no scan", where=place)
    return {case_of(file).removesuffix(FIRST_CHANNEL): file for file in first}


def _scores(place: Path) -> dict[str, float]:
    """Return case -> mean Dice of a folder; empty without a summary.json."""
    file = place / SUMMARY_JSON
    return case_scores(read_scores(file), "Dice") if file.is_file() else {}


def _labels(place: Path) -> dict[int, str]:
    folder = place if place.is_dir() else place.parent
    for file in (folder / DATASET_JSON, folder.parent / DATASET_JSON):
        if names := names_of_values(object_of(file)):
            return names
    return {}


def _rows(case: str, file: Path, masks: Mapping[Path, Mapping[str, float]]) -> Iterator[_Row]:
    """Yield a line for each mask, or folder of masks, with its own score of the case."""
    scan = read_volume(file)
    scan = Volume(grey_levels(scan.voxels), scan.spacing_mm, scan.affine)
    at = centre_of(None, scan.voxels.shape)
    if not masks:
        yield _Row(case, "", scan, None, None, at)
    seen = False
    for place, scores in masks.items():
        mask = _mask_of(case, place)
        if mask is None:
            yield _Row(case, f"{place.name}: no mask", scan, None, None, at)
            continue
        volume = read_volume(mask)
        if volume.voxels.shape != scan.voxels.shape:
            shapes = f"the scan has {scan.voxels.shape}, the mask {volume.voxels.shape} voxels"
            raise DataError("scan and mask differ in shape", where=mask, why=shapes)
        if not seen and volume.voxels.any():
            at, seen = centre_of(volume.voxels, volume.voxels.shape), True
        name = place.name if place.is_dir() else case_of(place)
        yield _Row(case, name, scan, volume, scores.get(case), at)


def _mask_of(case: str, place: Path) -> Path | None:
    if not place.is_dir():
        return place
    return next((file for file in sorted(place.iterdir()) if case_of(file) == case), None)


def _draw(rows: Sequence[_Row], labels: Mapping[int, str]) -> bytes:
    """Return the PNG with three planes and a text for each row."""
    with figure_of(3 * PANEL_INCH + TEXT_INCH, PANEL_INCH * len(rows) + 0.5) as figure:
        panels = figure.subplots(len(rows), 4, squeeze=False, width_ratios=[1, 1, 1, TEXT_INCH / PANEL_INCH])
        for line, row in zip(panels, rows, strict=True):
            _draw_row(line, row, labels)
        present = {int(value) for row in rows if row.mask is not None for value in np.unique(row.mask.voxels)}
        shown = {value: labels.get(value, f"label {value}") for value in sorted(present) if value > 0}
        draw_legend(figure, shown)
        return picture_bytes(figure, "png")


def _draw_row(line: Sequence[object], row: _Row, labels: Mapping[int, str]) -> None:
    mask = None if row.mask is None else row.mask.voxels
    scans = plane_slices(row.scan.voxels, row.at)
    masks = [None] * 3 if mask is None else plane_slices(mask, row.at)
    up, back, left = row.scan.spacing_mm
    aspects = (back / left, up / left, up / back)
    for axes, grey, label, aspect, plane in zip(line, scans, masks, aspects, PLANES, strict=False):
        draw_slice(axes, grey, label, aspect)
        axes.set_title(plane, fontsize="x-small")  # type: ignore[attr-defined]
    words = [row.case, *([row.name] if row.name else [])]
    words += [f"Dice {row.score:.3f}"] if row.score is not None else []
    if row.mask is not None:
        words += [f"{name}: {size:.1f} ml" for name, size in label_volumes(row.mask, labels).items()] or ["empty mask"]
    text = line[3]
    text.set_axis_off()  # type: ignore[attr-defined]
    text.text(0, 0.95, "\n".join(words), va="top", fontsize="small", transform=text.transAxes, wrap=True)  # type: ignore[attr-defined]
