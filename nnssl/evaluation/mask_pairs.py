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

from nnssl.data.completeness import check_complete
from nnssl.data.geometry import Difference, Geometry, geometry_of_array, has_right_angles, relate_grids
from nnssl.data.labels import Label
from nnssl.data.read_errors import COPY_AGAIN, SHEARED, explain_read_error
from nnssl.data.scans import count_not_finite
from nnssl.errors import DataError
from nnssl.evaluation.masks import label_map
from nnssl.evaluation.metrics import overlap_counts, segmentation_metrics, voxel_metrics
from nnssl.evaluation.postprocessing import Postprocessing, postprocess
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
        same_placement: whether origin and direction must agree, besides shape and spacing; flipped and reordered axes
            always agree.
        postprocessing: what is done to every prediction before it is measured; None does nothing.
    """

    reader: type[Any]
    structures: Structures
    nsd_tolerance_mm: float
    paper: bool
    same_placement: bool = True
    postprocessing: Postprocessing | None = None


@dataclass(frozen=True)
class LabelImage:
    """A label file: values (D, H, W) and their place in space."""

    values: NDArray[np.integer[Any]]
    geometry: Geometry

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size in the order of the array's axes."""
        return self.geometry.spacing_mm[::-1]


@dataclass(frozen=True)
class MeasuredCase:
    """The outcome for one case.

    Attributes:
        metrics: label -> nnU-Net's overlap numbers, `hd95_mm`, `assd_mm`, `nsd`, `missed` and `spurious`.
        notes: what a user should know about the files, one line each.
    """

    metrics: CaseMetrics
    notes: tuple[str, ...] = ()


def measure_case(measurement: Measurement, files: FilePair) -> MeasuredCase:
    """Return the metrics of one case, measured on the axes of the reference.

    Raises:
        DataError: a file cannot be read or holds values that are not declared, or the two geometries differ.
    """
    reference = read_labels(measurement.reader, files.reference)
    prediction, notes = bring_to_reference(
        read_labels(measurement.reader, files.prediction), reference, files, measurement.same_placement
    )
    structures = measurement.structures
    if structures.allowed is not None:
        ignored = set() if structures.ignore_label is None else {structures.ignore_label}
        _check_values(reference, structures.allowed | ignored, files.reference)
        _check_values(prediction, structures.allowed, files.prediction)
    predicted = postprocess(prediction.values, measurement.postprocessing)
    maps, ignore = (predicted, reference.values), structures.ignore_label
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
    return MeasuredCase(results, notes)


def read_labels(reader: type[Any], path: Path) -> LabelImage:
    """Return the content of a label file; a 2-D image is a volume of one slice, as nnU-Net reads it.

    Raises:
        DataError: the file cannot be read, has several channels, or does not hold labels and a valid spacing.
    """
    try:
        check_complete(path)
        with contextlib.redirect_stdout(io.StringIO()):
            array, properties = reader().read_seg(str(path))
    except Exception as error:
        problem = explain_read_error(error)
        again = ", or predict the case again" if COPY_AGAIN in problem.hint else ""
        raise DataError(
            "a label file cannot be read", where=path, why=problem.cause, run=f"{problem.hint}{again}"
        ) from error
    if bad := count_not_finite(path, array):
        raise DataError("a label file holds NaN or infinite values", where=path, why=f"{bad} of {array.size} voxels")
    if len(array) != 1:
        raise DataError(f"a label file has {len(array)} channels", where=path, why="a label map has one")
    try:
        values = label_map(array[0], "label file")
    except DataError as error:
        raise DataError(error.what, where=path, why=error.why) from None
    image = LabelImage(values, geometry_of_array(values.shape, properties))
    thick = [mm for mm, voxels in zip(image.spacing_mm, values.shape, strict=True) if voxels > 1]
    if not all(0 < size < math.inf for size in thick):
        raise DataError(
            "the spacing of a label file is not valid", where=path, why=f"spacing {_text(image.spacing_mm)} mm"
        )
    return image


def bring_to_reference(
    prediction: LabelImage, reference: LabelImage, files: FilePair, same_placement: bool = True
) -> tuple[LabelImage, tuple[str, ...]]:
    """Return the prediction on the axes of the reference, and notes about the two files.

    Raises:
        DataError: shape or spacing differs, or, with `same_placement`, origin or direction; the message names the case,
            both values and the tolerance.
    """
    relation = relate_grids(prediction.geometry, reference.geometry)
    notes = []
    if not has_right_angles(reference.geometry):
        notes.append(f"{files.name}: {SHEARED}; distances are measured as if the axes were at right angles")
    if relation.turn:
        notes.append(f"{files.name}: the prediction was brought to the axes of the reference ({relation.turn})")
        turned = relation.turn.turn_array(prediction.values)
        return LabelImage(turned, relation.turn.turn_geometry(prediction.geometry)), tuple(notes)
    checked = [found for found in relation.differences if same_placement or found.quantity in ("shape", "spacing")]
    if checked:
        raise _mismatch(checked[0], files)
    return prediction, tuple(notes)


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
