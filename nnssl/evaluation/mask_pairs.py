"""Measures one case: reads reference and prediction, checks that both belong together, compares them."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.data.geometry import Difference, Geometry, find_differences, geometry_of_array
from nnssl.data.labels import Label
from nnssl.data.scans import count_not_finite, gzip_is_complete
from nnssl.errors import DataError
from nnssl.evaluation.masks import label_map
from nnssl.evaluation.metrics import overlap_counts, segmentation_metrics, voxel_metrics
from nnssl.evaluation.structures import Structures

CaseMetrics = dict[Label, dict[str, float]]

SAME_AS_NNUNET = ("dice", "jaccard")  # nnU-Net's Dice and IoU


@dataclass(frozen=True)
class FilePair:
    """The two label files of a case."""

    name: str
    reference: Path
    prediction: Path


@dataclass(frozen=True)
class Measurement:
    """How every case is measured.

    Attributes:
        reader: nnU-Net's reader class.
        structures: the labels to measure.
        nsd_tolerance_mm: tolerance of the normalised surface distance, mm.
        paper: whether to add the voxel distances of the semi-supervised papers.
        same_placement: whether origin and direction must agree, besides shape and spacing.
    """

    reader: type[Any]
    structures: Structures
    nsd_tolerance_mm: float
    paper: bool
    same_placement: bool = True


@dataclass(frozen=True)
class LabelImage:
    """A label file: values (*S) and their place in space."""

    values: NDArray[np.integer[Any]]
    geometry: Geometry

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size in the order of the array's axes."""
        return self.geometry.spacing_mm[::-1]


def measure_case(measurement: Measurement, files: FilePair) -> CaseMetrics:
    """Return label -> metrics: nnU-Net's overlap numbers, `hd95_mm`, `assd_mm`, `nsd`, `missed` and `spurious`.

    Raises:
        DataError: a file cannot be read or holds values that are not declared, or the two geometries differ.
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
        reference.spacing_mm,
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
    """Return the content of a label file; a volume of a single slice becomes a 2-D image.

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
    if values.shape[0] == 1:  # nnU-Net reads a 2-D image as one slice, whose thickness the file does not tell
        values, properties = values[0], {**properties, "spacing": properties["spacing"][1:]}
    image = LabelImage(values, geometry_of_array(values.shape, properties))
    if not all(0 < size < math.inf for size in image.spacing_mm):
        raise DataError(
            "the spacing of a label file is not valid", where=path, why=f"spacing {_text(image.spacing_mm)} mm"
        )
    return image


def check_same_geometry(
    reference: LabelImage, prediction: LabelImage, files: FilePair, same_placement: bool = True
) -> None:
    """Check that two label images have the same shape and spacing and, with `same_placement`, origin and direction.

    Raises:
        DataError: one of these differs; the message names the case, both values and the tolerance.
    """
    differences = find_differences(prediction.geometry, reference.geometry)
    checked = [found for found in differences if same_placement or found.quantity in ("shape", "spacing")]
    if checked:
        raise _mismatch(checked[0], files)


def _mismatch(difference: Difference, files: FilePair) -> DataError:
    placement = difference.quantity in ("origin", "direction")
    step = 1 if placement else -1  # shape and spacing are shown in the order of the array's axes
    return DataError(
        f"{files.name}: reference and prediction differ in {difference.quantity}",
        where=files.prediction,
        why=f"reference  {_text(difference.expected[::step])}\nprediction {_text(difference.found[::step])}\n"
        f"tolerance  {difference.tolerance}",
        run="predict again from the scan that the reference belongs to, or repair the wrong header"
        + ("; --ignore_placement compares the arrays as they are" if placement else ""),
    )


def _text(numbers: Sequence[float]) -> str:
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
