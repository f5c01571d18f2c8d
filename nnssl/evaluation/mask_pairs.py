"""One case: read reference and prediction, check that they belong together, measure."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.data.scans import count_not_finite, gzip_is_complete
from nnssl.errors import DataError
from nnssl.evaluation.masks import Label, label_map
from nnssl.evaluation.metrics import overlap_counts, segmentation_metrics, voxel_metrics
from nnssl.evaluation.structures import Structures

Floats = NDArray[np.float64]
CaseMetrics = dict[Label, dict[str, float]]

SPACING_TOLERANCE = 1e-3  # relative
ORIGIN_TOLERANCE = 1e-2  # in units of the smallest voxel edge
DIRECTION_TOLERANCE = 1e-3  # per cosine
SAME_AS_NNUNET = ("dice", "jaccard")  # nnU-Net's Dice and IoU


@dataclass(frozen=True)
class CaseFiles:
    """The two label files of a case."""

    name: str
    reference: Path
    prediction: Path


@dataclass(frozen=True)
class Measurement:
    """How every case is measured: nnU-Net's reader class, the structures, the NSD tolerance in mm, the protocol.

    `same_placement` tells whether origin and direction must agree, beside shape and spacing.
    """

    reader: type[Any]
    structures: Structures
    nsd_tolerance_mm: float
    paper: bool
    same_placement: bool = True


@dataclass(frozen=True)
class LabelImage:
    """A label file: values (*S), spacing in mm along the array's axes; origin and direction if the file has them."""

    values: NDArray[np.integer[Any]]
    spacing_mm: Floats
    origin: Floats | None
    direction: Floats | None


def measure_case(measurement: Measurement, files: CaseFiles) -> CaseMetrics:
    """Return label -> nnU-Net's overlap numbers and ours (`hd95_mm`, `assd_mm`, `nsd`, `missed`, `spurious`).

    Raises:
        DataError: a file cannot be read, holds values that are not declared, or the two do not share one geometry.
    """
    reference = read_labels(measurement.reader, files.reference)
    prediction = read_labels(measurement.reader, files.prediction)
    check_same_geometry(reference, prediction, files, measurement.same_placement)
    structures = measurement.structures
    if structures.allowed is not None:
        ignored = set() if structures.ignore_label is None else {structures.ignore_label}
        _check_values(reference, structures.allowed | ignored, files.reference)
        _check_values(prediction, structures.allowed, files.prediction)
    maps, ignore = (prediction.values, reference.values), structures.ignore_label
    counts = overlap_counts(*maps, structures.names, ignore_label=ignore)
    surfaces = segmentation_metrics(
        *maps,
        [float(size) for size in reference.spacing_mm],
        structures.names,
        nsd_tolerance_mm=measurement.nsd_tolerance_mm,
        ignore_label=ignore,
    )
    voxels = voxel_metrics(*maps, structures.names, ignore_label=ignore) if measurement.paper else {}
    results: CaseMetrics = {}
    for label in structures.names:
        parts: tuple[Mapping[str, Any], ...] = (counts[label], surfaces[label], voxels.get(label, {}))
        results[label] = {key: value for part in parts for key, value in part.items() if key not in SAME_AS_NNUNET}
    return results


def read_labels(reader: type[Any], path: Path) -> LabelImage:
    """Return the content of a label file; a volume of a single slice comes as a 2-D image of that slice.

    Raises:
        DataError: the file cannot be read, has several channels, or does not hold labels and a valid spacing.
    """
    try:
        if path.suffix == ".gz" and not gzip_is_complete(path):
            raise EOFError("Compressed file ended before the end-of-stream marker was reached")
        with contextlib.redirect_stdout(io.StringIO()):
            array, properties = reader().read_seg(str(path))
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        raise DataError(
            "a label file cannot be read",
            where=path,
            why=text.splitlines()[-1],
            run="copy the reference again from its source, or predict the case again",
        ) from error
    if bad := count_not_finite(path, array):
        raise DataError("a label file holds NaN or infinite values", where=path, why=f"{bad} of {array.size} voxels")
    if len(array) != 1:
        raise DataError(f"a label file has {len(array)} channels", where=path, why="a label map has one")
    try:
        values = label_map(array[0], "label file")
    except DataError as error:
        raise DataError(error.what, where=path, why=error.why) from None
    spacing = np.asarray(properties["spacing"], dtype=np.float64)
    if values.shape[0] == 1:  # nnU-Net reads a 2-D image as one slice with a spacing of its own invention
        values, spacing = values[0], spacing[1:]
    if not all(0 < size < math.inf for size in spacing):
        raise DataError("the spacing of a label file is not valid", where=path, why=f"spacing {_text(spacing)} mm")
    return LabelImage(values, spacing, *_placement(properties))


def _placement(properties: Mapping[str, Any]) -> tuple[Floats | None, Floats | None]:
    """Return origin and flat direction cosines, in the order of the file's axes."""
    if "sitk_stuff" in properties:
        found = properties["sitk_stuff"]
        return np.asarray(found["origin"], dtype=np.float64), np.asarray(found["direction"], dtype=np.float64)
    if "nibabel_stuff" in properties:
        found = properties["nibabel_stuff"]
        affine = np.asarray(found.get("reoriented_affine", found["original_affine"]), dtype=np.float64)
        columns = affine[:3, :3]
        return affine[:3, 3], (columns / np.linalg.norm(columns, axis=0)).ravel()
    return None, None


def check_same_geometry(
    reference: LabelImage, prediction: LabelImage, files: CaseFiles, same_placement: bool = True
) -> None:
    """Check that two label images have one shape and spacing and, with `same_placement`, origin and direction.

    Raises:
        DataError: they differ; the message names the case, both values and the tolerance.
    """
    if reference.values.shape != prediction.values.shape:
        raise _mismatch("shape", files, (str(reference.values.shape), str(prediction.values.shape)), "none")
    edge = float(reference.spacing_mm.min())
    checks: tuple[tuple[str, Floats | None, Floats | None, float | Floats, str], ...] = (
        (
            "spacing",
            reference.spacing_mm,
            prediction.spacing_mm,
            SPACING_TOLERANCE * reference.spacing_mm,
            f"{SPACING_TOLERANCE:.1%} of the reference",
        ),
        (
            "origin",
            reference.origin,
            prediction.origin,
            ORIGIN_TOLERANCE * edge,
            f"{ORIGIN_TOLERANCE * edge:.3g} mm, {ORIGIN_TOLERANCE:.0%} of the smallest voxel edge",
        ),
        ("direction", reference.direction, prediction.direction, DIRECTION_TOLERANCE, f"{DIRECTION_TOLERANCE} each"),
    )
    for quantity, wanted, found, tolerance, in_words in checks if same_placement else checks[:1]:
        if wanted is None or found is None:
            continue
        if wanted.shape != found.shape or not (np.abs(wanted - found) <= tolerance).all():
            raise _mismatch(quantity, files, (_text(wanted), _text(found)), in_words)


def _mismatch(quantity: str, files: CaseFiles, values: tuple[str, str], tolerance: str) -> DataError:
    return DataError(
        f"{files.name}: reference and prediction differ in {quantity}",
        where=files.prediction,
        why=f"reference  {values[0]}\nprediction {values[1]}\ntolerance  {tolerance}",
        run="predict again from the scan that the reference belongs to, or repair the wrong header"
        + ("; --ignore_placement compares the arrays as they are" if quantity in ("origin", "direction") else ""),
    )


def _text(numbers: Floats) -> str:
    return "(" + ", ".join(f"{number:.6g}" for number in numbers) + ")"


def _check_values(image: LabelImage, allowed: frozenset[int] | set[int], path: Path) -> None:
    values = image.values
    if values.min(initial=0) < 0 or values.max(initial=0) > max(allowed):
        present = np.unique(values)
    else:
        seen = np.zeros(max(allowed) + 1, dtype=np.bool_)
        seen[values] = True
        present = np.flatnonzero(seen)
    strangers = sorted({int(value) for value in present} - allowed)
    if strangers:
        raise DataError(
            f"a label file holds {', '.join(map(str, strangers[:5]))}, which dataset.json does not declare",
            where=path,
            why=f"declared values: {', '.join(map(str, sorted(allowed)))}",
            run="correct the file or dataset.json; -l LABEL [LABEL ...] evaluates only those and ignores other values",
        )
